"""`unipelt inspect --show-modules`: the entries of a base, which say where its parts are, and whether they pass their checks."""

from collections.abc import Iterator

from unipelt.errors import SiteError


def row_lines(name: str) -> Iterator[str]:
    """The entries of a base, where they come from, and which checks they fail. Raises SiteError if none is found."""
    import json

    from transformers import AutoModel

    from unipelt.checkpoint.bases import from_hub
    from unipelt.cli.architectures import takes
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
