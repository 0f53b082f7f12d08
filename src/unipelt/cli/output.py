"""Output on terminals that cannot show every character: cp1252, latin-1 and ASCII get plain signs instead of an error."""

import codecs
import os
import sys

PLAIN = {
    "→": "->", "←": "<-", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+/-", "÷": "/", "≤": "<=", "≥": ">=", "·": "*",
    "“": '"', "”": '"', "‘": "'", "’": "'", "∈": "in", "∑": "sum", "Σ": "sum", "Δ": "delta", "λ": "lambda", "α": "alpha", "β": "beta",
    "σ": "sigma", "√": "sqrt", "ᵀ": "^T", "ᵢ": "_i", "ₖ": "_k", "₀": "_0", "₁": "_1", "⊗": "(x)", "⊙": "(.)", "∞": "inf", "²": "^2", "³": "^3", "‖": "||", "½": "1/2", "≈": "~", "∩": "and", "∪": "or", "ᵣ": "_r",
    "↓": "_down", "↑": "_up", "§": "section ",
}  # fmt: skip
HANDLER = "unipelt.plain"


def plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: by a similar sign, or by their code as in Python, such as `\\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs), error.end


def never_fail() -> None:
    """Make standard output and error write any text."""
    codecs.register_error(HANDLER, plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)
