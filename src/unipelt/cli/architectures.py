"""`unipelt architectures`: which model types take which method, and where the parts of one, or of a base, are."""

import json
from collections.abc import Iterator

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


def base_lines(name: str) -> Iterator[str]:
    """The entries of a base, where they come from, and which checks they fail. Raises SiteError if none is found."""
    from transformers import AutoModel

    from unipelt.checkpoint.bases import from_hub
    from unipelt.inject.architectures import CENSUS, entries_for, entries_to_json
    from unipelt.inject.discover import discover
    from unipelt.inject.resolve import find_stacks
    from unipelt.inject.verify import failed_checks

    model = from_hub(name, AutoModel.from_pretrained)
    kind, known = model.config.model_type, entries_for(model.config)
    entries = known or discover(model)
    yield f"{name}: {kind}, {'its entry is in the table' if known else 'its entry was found by running it'}"
    if known and kind in CENSUS:
        yield takes(kind)
    yield json.dumps(entries_to_json(entries), indent=1)
    for stack in find_stacks(model, entries):
        yield f"{stack.entry.name}: {len(stack.layers)} layers, {stack.layers[0].path} to {stack.layers[-1].path}"
    try:
        failures = list(failed_checks(model, entries))
    except SiteError as error:
        failures = [str(error)]
    yield from (f"failed: {failure}" for failure in failures)
    yield f"{len(failures)} checks failed" if failures else "all checks pass: complete, sites, ffn, positions"
