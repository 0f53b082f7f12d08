"""`unipelt inspect --base`: where a base keeps its parts, and whether the laws hold there."""

from collections.abc import Iterator

from unipelt.errors import SiteError


def row_lines(name: str) -> Iterator[str]:
    """The rows of a base, where they come from, and what the laws say of them. Raises SiteError where none is found."""
    import json

    from transformers import AutoModel

    from unipelt.checkpoint.bases import from_hub
    from unipelt.cli.architectures import takes
    from unipelt.inject.architectures import CENSUS, rows_for, rows_to_json
    from unipelt.inject.discover import discover
    from unipelt.inject.resolve import find_stacks
    from unipelt.inject.verify import broken_laws

    model = from_hub(name, AutoModel.from_pretrained)
    kind, known = model.config.model_type, rows_for(model.config)
    rows = known or discover(model)
    yield f"{name}: {kind}, {'its row is in the table' if known else 'its row was found by running it'}"
    if known and kind in CENSUS:
        yield takes(kind)
    yield json.dumps(rows_to_json(rows), indent=1)
    for stack in find_stacks(model, rows):
        yield f"{stack.row.name}: {len(stack.layers)} layers, {stack.layers[0].path} to {stack.layers[-1].path}"
    try:
        broken = broken_laws(model, rows)
    except SiteError as error:
        broken = [str(error)]
    yield from (f"broken: {law}" for law in broken)
    yield f"{len(broken)} laws are broken" if broken else "all laws hold: sites, ffn, places"
