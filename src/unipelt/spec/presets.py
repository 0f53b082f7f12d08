"""Published methods as values: each preset is a function from its options to a Mixture, and names its paper."""

import ast
import inspect
import re
from collections.abc import Callable, Sequence

from unipelt.errors import SpecError, did_you_mean
from unipelt.spec.change import Change, Gate, Learned, Mixture, Weight
from unipelt.spec.compatibility import LINEARS
from unipelt.spec.forms import Bias, Bottleneck, Dora, Kronecker, LowRank, Norm, Prefix, Prompt, Scaling

Layers = tuple[int, ...] | None
PRESETS: dict[str, Callable[..., Mixture]] = {}
DEFAULT = "unipelt-apl"
LAYER_RANGE = re.compile(r"\d+-\d+")  # of layers, written without quotes


def preset(name: str):
    """Register a function as the preset `name`."""

    def register(build: Callable[..., Mixture]) -> Callable[..., Mixture]:
        PRESETS[name] = build
        return build

    return register


def _pfeiffer(size: int, weight: Weight, layers: Layers, init: str = "bert", dropout: float = 0.0) -> Change:
    form = Bottleneck(size=size, init=init, dropout=dropout)  # type: ignore[arg-type]
    return Change(form=form, site="ffn", reads="normed sum", weight=weight, layers=layers)


def _prefix(
    length: int, mlp: int, weight: Weight, layers: Layers, init: str = "unipelt", function: str = "softmax"
) -> Change:
    form = Prefix(length=length, mlp=mlp, init=init, function=function)  # type: ignore[arg-type]
    return Change(form=form, site="heads", reads="queries", weight=weight, layers=layers)


def _lora(form: LowRank, site: str | tuple[str, ...], weight: Weight, layers: Layers) -> Change:
    return Change(form=form, site=site, reads="input", weight=weight, layers=layers)


def _gate(pool: str, group: str = "") -> Gate:
    return Gate(pool=pool, group=group)  # type: ignore[arg-type]


def _linear_sites(target_modules: str | Sequence[str]) -> list[str]:
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not targets:
        raise SpecError("target_modules=[]: expected at least one linear, such as 'query', or 'all-linear'")
    return [target if target in ("query", "key", "value") else LINEARS + target for target in targets]


@preset("adapter")
def adapter(bottleneck: int = 48, init: str = "bert", dropout: float = 0.0, layers: Layers = None) -> Mixture:
    """LN(s + f(LN(s) W↓) W↑) after the FFN          Pfeiffer et al. 2021, arXiv:2005.00247"""
    return Mixture((_pfeiffer(bottleneck, 1.0, layers, init, dropout),))


@preset("houlsby")
def houlsby(bottleneck: int = 48, norms: bool = True, activation: str = "swish", layers: Layers = None) -> Mixture:
    """h + f(h W↓) W↑ after attention and FFN, LayerNorms tuned or not          Houlsby et al. 2019, arXiv:1902.00751"""
    form = Bottleneck(size=bottleneck, activation=activation)  # type: ignore[arg-type]
    changes = [Change(form=form, site=site, reads="output", layers=layers) for site in ("attention", "ffn")]
    if norms:
        changes.append(Change(form=Norm(), site="norms", reads="input", layers=layers))
    return Mixture(tuple(changes))


@preset("lora")
def lora(
    r: int = 8, alpha: float = 16.0, dropout: float = 0.0, target_modules: str | Sequence[str] = ("query", "value"),
    use_rslora: bool = False, layers: Layers = None,
) -> Mixture:  # fmt: skip
    """W + (α/r) B A, with use_rslora (α/√r) B A, on any linear          Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732"""
    form = LowRank(r=r, alpha=alpha * r**0.5 if use_rslora else alpha, dropout=dropout)
    return Mixture(tuple(_lora(form, site, 1.0, layers) for site in _linear_sites(target_modules)))


@preset("dora")
def dora(
    r: int = 8, alpha: float = 16.0, target_modules: str | Sequence[str] = ("query", "value"), layers: Layers = None
) -> Mixture:
    """m ⊙ V / ‖V‖, V = W + (α/r) B A, on query and value, or on any linear by name          Liu et al. 2024, arXiv:2402.09353"""
    form = Dora(r=r, alpha=alpha)
    return Mixture(
        tuple(Change(form=form, site=site, reads="input", layers=layers) for site in _linear_sites(target_modules))
    )


@preset("ia3")
def ia3(gated: bool = False, layers: Layers = None) -> Mixture:
    """keys, values and the FFN's hidden activations, rescaled: h ⊙ (1 + d)          Liu et al. 2022, arXiv:2205.05638"""
    weight = Gate() if gated else 1.0
    sites = ("key", "value", "ffn_hidden")
    return Mixture(
        tuple(Change(form=Scaling(), site=site, reads="output", weight=weight, layers=layers) for site in sites)
    )


@preset("prefix")
def prefix(length: int = 10, mlp: int = 512, init: str = "unipelt", layers: Layers = None) -> Mixture:
    """softmax(q [P_k; K]ᵀ) [P_v; V] in every attention          Li & Liang 2021, arXiv:2101.00190"""
    return Mixture((_prefix(length, mlp, 1.0, layers, init),))


@preset("prefix-first-layer")
def prefix_first_layer(length: int = 10) -> Mixture:
    """a prefix in the first layer only          the unified view of prompt tuning: He et al. 2022, §2.2"""
    return Mixture((_prefix(length, 0, 1.0, (0,)),))


@preset("prompt")
def prompt(length: int = 20, init: str = "vocabulary") -> Mixture:
    """[P; E(x)] through all layers, P in front of the embedded input          Lester et al. 2021, arXiv:2104.08691"""
    form = Prompt(length=length, init=init)  # type: ignore[arg-type]
    return Mixture((Change(form=form, site="embeddings", reads="nothing"),))


@preset("bitfit")
def bitfit() -> Mixture:
    """every bias of the base is tuned          Ben Zaken et al. 2021, arXiv:2106.10199"""
    return Mixture((Change(form=Bias(), site="biases", reads="nothing"),))


@preset("head")
def head() -> Mixture:
    """trains the head alone, by gradient descent          baseline without changes"""
    return Mixture(())


def _parallel(size: int, weight: Weight, layers: Layers, init: str, reads: str = "input") -> Change:
    form = Bottleneck(size=size, init=init)  # type: ignore[arg-type]
    return Change(form=form, site="ffn", reads=reads, weight=weight, layers=layers)  # type: ignore[arg-type]


@preset("parallel-adapter")
def parallel_adapter(bottleneck: int = 48, init: str = "lora", reads: str = "input", layers: Layers = None) -> Mixture:
    """h + f(x W↓) W↑ beside the FFN          He et al. 2022, arXiv:2110.04366, §3.3"""
    return Mixture((_parallel(bottleneck, 1.0, layers, init, reads),))


@preset("scaled-parallel-adapter")
def scaled_parallel_adapter(
    bottleneck: int = 48, s: float = 4.0, learned: bool = False, init: str = "lora", reads: str = "input", layers: Layers = None
) -> Mixture:  # fmt: skip
    """h + s f(x W↓) W↑ beside the FFN, s given or learned from there          He et al. 2022, §4.5"""
    return Mixture((_parallel(bottleneck, Learned(start=s) if learned else s, layers, init, reads),))


@preset("multi-head-parallel-adapter")
def multi_head_parallel_adapter(length: int = 10, layers: Layers = None) -> Mixture:
    """h + ReLU(q P_kᵀ) P_v on each head          He et al. 2022, arXiv:2110.04366"""
    return Mixture((_prefix(length, 0, 1.0, layers, function="relu"),))


@preset("mam")
def mam(
    prefix: int = 16, mlp: int = 512, bottleneck: int = 16, s: float = 2.0, reads: str = "input", layers: Layers = None
) -> Mixture:
    """a small prefix and a scaled parallel adapter on the FFN          He et al. 2022, §4.6"""
    return Mixture((_prefix(prefix, mlp, 1.0, layers, "torch"), _parallel(bottleneck, s, layers, "lora", reads)))


@preset("compacter")
def compacter(bottleneck: int = 48, terms: int = 4, rank: int = 1, layers: Layers = None) -> Mixture:
    """Houlsby's adapters with W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ), each layer its own Aᵢ          Mahabadi et al. 2021, arXiv:2106.04647"""
    form = Kronecker(size=bottleneck, terms=terms, rank=rank)
    return Mixture(tuple(Change(form=form, site=site, reads="output", layers=layers) for site in ("attention", "ffn")))


def _unipelt(
    bottleneck: int, length: int, mlp: int, init: str, layers: Layers, weight: Weight, low_rank: LowRank | None = None
) -> Mixture:
    changes = [_pfeiffer(bottleneck, weight, layers, init), _prefix(length, mlp, weight, layers)]
    if low_rank is not None:
        changes += [_lora(low_rank, site, weight, layers) for site in ("query", "value")]
    return Mixture(tuple(changes))


@preset("unipelt-ap")
def unipelt_ap(
    bottleneck: int = 48, prefix: int = 10, mlp: int = 512, init: str = "bert", pool: str = "auto", layers: Layers = None,
) -> Mixture:  # fmt: skip
    """g_A · adapter + g_P · prefix          Mao et al. 2022, arXiv:2110.07577"""
    return _unipelt(bottleneck, prefix, mlp, init, layers, _gate(pool))


@preset("unipelt-apl")
def unipelt_apl(
    bottleneck: int = 48, prefix: int = 10, mlp: int = 512, r: int = 8, init: str = "bert", pool: str = "auto",
    layers: Layers = None,
) -> Mixture:  # fmt: skip
    """g_A · adapter + g_P · prefix + g_L · LoRA on query and value          Mao et al. 2022, arXiv:2110.07577"""
    low_rank = LowRank(r=r, alpha=float(r))  # α/r = 1: the gate is the scale
    return _unipelt(bottleneck, prefix, mlp, init, layers, _gate(pool), low_rank)


@preset("unipelt-ap-nogate")
def unipelt_ap_nogate(
    bottleneck: int = 48, prefix: int = 10, mlp: int = 512, init: str = "bert", layers: Layers = None
) -> Mixture:
    """adapter + prefix, every gate fixed to 1          Mao et al. 2022, arXiv:2110.07577"""
    return _unipelt(bottleneck, prefix, mlp, init, layers, 1.0)


@preset("unipelt-apl-nogate")
def unipelt_apl_nogate(
    bottleneck: int = 48, prefix: int = 10, mlp: int = 512, r: int = 8, alpha: float = 16.0, init: str = "bert",
    layers: Layers = None,
) -> Mixture:  # fmt: skip
    """adapter + prefix + LoRA scaled by α/r, every gate fixed to 1          Mao et al. 2022, arXiv:2110.07577"""
    return _unipelt(bottleneck, prefix, mlp, init, layers, 1.0, LowRank(r=r, alpha=alpha))


@preset("unipelt-central")
def unipelt_central(
    bottleneck: int = 48, prefix: int = 10, mlp: int = 512, r: int = 8, init: str = "bert", pool: str = "auto",
    layers: Layers = None,
) -> Mixture:  # fmt: skip
    """one softmax over LoRA (query and value) and prefix; the adapter is not gated          Mao et al. 2022, code"""
    gate = _gate(pool, "central")
    low_rank = _lora(LowRank(r=r, alpha=float(r)), ("query", "value"), gate, layers)
    return Mixture((_pfeiffer(bottleneck, 1.0, layers, init), low_rank, _prefix(prefix, mlp, gate, layers)))


def mixture(text: "str | Mixture") -> Mixture:
    """The mixture that a text names: `lora`, `lora(r=16)`, `unipelt-apl(prefix=20, bottleneck=64)`.

    Raises SpecError for a misspelt preset or option; the message names similar ones.
    """
    if isinstance(text, Mixture):
        return text
    if not isinstance(text, str):
        got = f"got {type(text).__name__}"
        raise SpecError(f"{got}; expected the name of a method, such as 'lora(r=16)', or a Mixture((change, …))")
    name, options = _call(text)
    try:
        built = PRESETS[name](**options)
    except SpecError as error:
        raise SpecError(f"{text}: {error}") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"{text}: an option has another type than its default ({error})") from None
    return Mixture(built.changes, text.replace(" ", ""))


def _call(text: str) -> tuple[str, dict[str, object]]:
    """The name of the preset in a text, and the options given there. Raises SpecError as `mixture` does."""
    name, _, options_text = text.strip().partition("(")
    name = name.strip()
    if name == "full":
        raise SpecError(
            "'full' is not a mixture: full fine-tuning trains the base itself; use `unipelt train --method full`, or train the model without attach"
        )
    if name not in PRESETS:
        raise SpecError(f"method {name!r}: {did_you_mean(name, [*PRESETS, 'full'])}")
    known = inspect.signature(PRESETS[name]).parameters
    options = _options(text, options_text) if options_text else {}
    for option in options:
        if option not in known:
            raise SpecError(
                f"method {name!r} has no option {option!r}: "
                + (did_you_mean(option, known) if known else "it has none")
            )
    return name, options


def settings(text: str) -> dict[str, object]:
    """All options of the preset that a text names: those given, and the defaults of the others."""
    name, options = _call(text)
    known = inspect.signature(PRESETS[name]).parameters
    return {option: parameter.default for option, parameter in known.items()} | options


def canonical(text: str) -> str:
    """The canonical text of a preset and its options: `lora( alpha=4,r=2 )` becomes `lora(r=2, alpha=4)`."""
    name, options = _call(text)
    order = [option for option in inspect.signature(PRESETS[name]).parameters if option in options]
    values = [str(options[o]) if LAYER_RANGE.fullmatch(str(options[o])) else repr(options[o]) for o in order]
    options_text = ", ".join(f"{option}={value}" for option, value in zip(order, values))
    return f"{name}({options_text})" if options_text else name


def _options(text: str, options_text: str) -> dict[str, object]:
    try:
        call = ast.parse(f"f({options_text}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        names = [str(keyword.arg) for keyword in call.keywords]
        for name in names:
            if names.count(name) > 1:
                raise SpecError(f"{text!r}: {name} is given {names.count(name)} times; expected once")
        return {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise SpecError(
            f"{text!r}: expected NAME(option=value, …), such as lora(r=16); quote texts: reads='residual'"
        ) from None


def _value(node: ast.expr) -> object:
    """A literal, or a range of layers as its text: layers=6-11."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return ast.unparse(node).replace(" ", "")
    return ast.literal_eval(node)
