"""Prints every message that the code can raise for a user's mistake, by file: `python docs/messages.py`.

A part in braces is filled in when the message is raised.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "unipelt"


def kinds() -> set[str]:
    """The names of UserError and of its kinds."""
    tree = ast.parse((SOURCE / "errors.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def messages() -> list[tuple[str, int, str]]:
    """File, line and text of each message that is written where it is raised."""
    found, known = [], kinds()
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known and node.args:
                for text in texts(node.args[0]):
                    found.append((path.relative_to(SOURCE).as_posix(), node.lineno, " ".join(text.split())))
    return found


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression can give; names and calls in braces."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        )  # type: ignore[attr-defined]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in texts(node.left):
            yield from (left + right for right in texts(node.right))
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    else:
        yield f"{{{ast.unparse(node)}}}"


def page() -> str:
    """All messages as a page, one list for each file."""
    lines, last = ["# Messages", "", "Every message that unipelt can give for a mistake. Braces are filled in."], ""
    for path, _, text in messages():
        if path != last:
            lines += ["", f"## {path}", ""]
        lines.append(f"- `` {text} ``")
        last = path
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, line, text in messages():
        print(f"{path}:{line}: {text}")
