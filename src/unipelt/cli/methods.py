"""`unipelt methods`: the methods and their options."""

import inspect

from unipelt.cli.fields import option, switch
from unipelt.spec import PRESETS, RULES
from unipelt.train.recipes import SMALL, default_recipe


def methods(
    model: str = option("Model", "base model on which each method's parameters are counted, without the head"),
    compatible: bool = switch("Output", "show every compatible combination and its equation instead", "--compatible"),
) -> None:
    """List the methods with paper, formula and options; with --model, also their numbers of parameters.

    Examples:
        unipelt methods
        unipelt methods --model minilm
        unipelt methods --compatible
    """
    from rich.table import Table

    from unipelt.cli.tables import terminal

    console = terminal()
    if compatible:
        table = Table(box=None, pad_edge=False)
        for column in ("form", "site", "reads", "weight", "equation", "source"):
            table.add_column(column, overflow="fold")
        for rule in RULES:
            parts = (", ".join(part) for part in (rule.forms, rule.sites, rule.reads, rule.weights))
            table.add_row(*parts, rule.text, rule.source)
        console.print(table)
        return
    counts = _counts(model) if model else {}
    for name, preset in PRESETS.items():
        first, _, more = inspect.cleandoc(preset.__doc__ or "").partition("\n")
        formula, _, paper = first.partition("          ")
        count = f"  {counts[name]}" if model else ""
        small, large = (f"{default_recipe(name, hidden, 100).lr:g}" for hidden in (SMALL - 1, SMALL))
        rates = f"--lr {small} on a base of fewer than {SMALL} hidden units, else {large}"
        notes = (" ".join(line.split()) for line in more.splitlines() if line.strip())
        lines = [f"{name:<28}{count}   {paper.strip()}", formula.strip(), _typed(name), rates, *notes]
        console.print("\n    ".join(lines))
    if model:
        console.print(
            f"parameters on {model}, without the head: those that train, and those that the file of a run holds (the MLP of a "
            "prefix is needed in training alone)"
        )


def _typed(name: str) -> str:
    """A preset with its options and their defaults, as `--method` takes it."""
    options = inspect.signature(PRESETS[name]).parameters.values()
    return f"{name}({', '.join(f'{option.name}={option.default!r}' for option in options)})" if options else name


def _counts(model: str) -> dict[str, str]:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from unipelt.checkpoint.bases import from_hub
    from unipelt.errors import SiteError
    from unipelt.inject.attach import attach, detach
    from unipelt.inject.fixed_gates import stored_parameters
    from unipelt.inject.record import trainable_parameters
    from unipelt.inject.state import mixture_state
    from unipelt.spec.location import HEAD

    config = from_hub(model, AutoConfig.from_pretrained)
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config)
    counts = {}
    for name in PRESETS:
        try:
            attach(base, name)
        except SiteError:
            counts[name] = "not possible"
            continue
        trained = trainable_parameters(base)
        head = sum(p[0].numel() for path, p in mixture_state(base).named_parameters() if path.startswith("head."))
        counts[name] = (
            f"{sum(trained.values()) - trained.get(HEAD, 0):,} trained, {stored_parameters(base) - head:,} stored"
        )
        detach(base)
    return counts
