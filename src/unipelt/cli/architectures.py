"""`unipelt architectures`: which model types take which method, and where the parts of one are."""

import typer

from unipelt.cli.fields import switch
from unipelt.errors import SiteError, did_you_mean

METHODS = ("lora", "adapter", "parallel-adapter", "bitfit", "houlsby", "prefix", "mam", "unipelt-apl")


def architectures(
    name: str = typer.Argument("", help="a model type, such as llama; without one, all are listed", show_default=False),
    all_types: bool = switch("Output", "list also the types that support no method, with the reason", "--all"),
) -> None:
    """List the model types of transformers and the methods that each supports, or show where one has its parts.

    Examples:
        unipelt architectures
        unipelt architectures llama
        unipelt architectures --all
    """
    import json

    from unipelt.cli.tables import terminal
    from unipelt.inject.architectures import ARCHITECTURES, CENSUS, CENSUS_OF, entries_to_json

    console = terminal()
    if name:
        if name not in CENSUS:
            raise SiteError(
                f"model_type={name!r} is not in the table ({did_you_mean(name, CENSUS)}); attach tries to find its parts by "
                "running it"
            )
        console.print(takes(name))
        if name in ARCHITECTURES:
            console.print(json.dumps(entries_to_json(ARCHITECTURES[name]), indent=1))
        return
    shown = [known for known in CENSUS if all_types or known in ARCHITECTURES]
    for known in shown:
        console.print(takes(known))
    console.print(
        f"{len(shown)} model types, transformers {CENSUS_OF}; others are tried by running the model when you attach"
    )


def takes(name: str) -> str:
    """One line on a model type: the methods that it does not take, or why it takes none."""
    from unipelt.inject.architectures import CENSUS

    known = CENSUS[name]
    if not known.entries:
        return f"{name}: none; {known.why}"
    refused = [method for method in METHODS if method in (known.refuses or {})]
    return f"{name}: {'all methods but ' + ', '.join(refused) if refused else 'all methods'}"
