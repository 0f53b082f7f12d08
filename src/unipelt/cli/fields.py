"""The help of a flag is the doc of the field that it sets."""

import ast
import inspect
from functools import cache


@cache
def docs(settings: type) -> dict[str, str]:
    """The string under each field of a dataclass, by field."""
    (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, doc in zip(definition.body, definition.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(doc.value.value).split())
    return found
