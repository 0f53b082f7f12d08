"""What several commands do alike with their flags: the help of a flag is the doc of the field that it sets."""

import ast
import inspect
from functools import cache

from unipelt.errors import UserError


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


def size(text: str) -> int | str:
    """What --k names. Raises UserError for what is neither a whole number nor all."""
    if text != "all" and not (text.isdecimal() and len(text) < 10 and int(text)):
        raise UserError(f"--k {text[:40]}: expected a whole number from 1, or all")
    return text if text == "all" else int(text)
