"""Every compatible form × site × reads × weight with its equation, and the reason for each refusal. One piece of data:
`Change` checks against it, the tests run over it, docs/papers.md prints it.

h is the modified representation, x the sub-layer's input, LN the base's own output LayerNorm, w the weight.
"""

from dataclasses import dataclass
from typing import Any

from unipelt.errors import SpecError, did_you_mean

LINEARS = "linear:"  # a site by module name: `linear:all-linear`, `linear:fc1`, …
PROJECTIONS = ("query", "key", "value", LINEARS)
SITES = (*PROJECTIONS, "heads", "attention", "ffn", "ffn_hidden", "layer", "embeddings", "biases", "norms")
READS = ("input", "output", "normed sum", "residual", "queries", "nothing")
ANY_WEIGHT = ("number", "learned", "gate", "group")


@dataclass(frozen=True)
class Rule:
    forms: tuple[str, ...]
    sites: tuple[str, ...]
    reads: tuple[str, ...]
    weights: tuple[str, ...]
    equation: str
    source: str
    pre_norm: str = ""
    """the equation on pre-LN models where it is another one"""
    function: str | None = None
    """the only value of the form's own `function` for which this is the equation"""

    @property
    def text(self) -> str:
        return self.equation + (f"; pre-LN models: {self.pre_norm}" if self.pre_norm else "")


MAPS = ("bottleneck", "kronecker")
NO_GROUP = ("number", "learned", "gate")

# fmt: off
RULES = (
    Rule(("low_rank",), PROJECTIONS, ("input",), ANY_WEIGHT,
        "h + w (α/r) x W↓ W↑", "Hu et al. 2021; gated: Mao et al. 2022, §3.2"),
    Rule(("dora",), PROJECTIONS, ("input",), ("number", "learned"),
        "h + w x (m ⊙ V/‖V‖ − W)ᵀ, V = W + (α/r) B A", "Liu et al. 2024, eq. 5 and §4.3"),
    Rule(("scaling",), (*PROJECTIONS, "ffn_hidden"), ("output",), NO_GROUP,
        "h ⊙ (1 + w d)", "Liu et al. 2022, §3.3; gated: unpublished"),
    Rule(("scaling",), (LINEARS,), ("input",), NO_GROUP,
        "x ⊙ (1 + w d) in place of x, what the linear reads", "Liu et al. 2022, §3.3, as peft's feedforward_modules"),
    Rule(MAPS, PROJECTIONS, ("input",), ANY_WEIGHT,
        "h + w f(x W↓) W↑", "unpublished: a parallel adapter on one linear"),
    Rule(MAPS, PROJECTIONS, ("output",), ("number", "learned"),
        "h + w f(h W↓) W↑", "unpublished: a sequential adapter on one linear"),
    Rule(MAPS, ("heads",), ("input",), ANY_WEIGHT,
        "h + w f(x W↓) W↑, h the concatenated heads before the output projection", "He et al. 2022, parallel adapter on attention"),
    Rule(MAPS, ("attention",), ("input",), ANY_WEIGHT,
        "h + w f(x W↓) W↑, after the output projection", "unpublished"),
    Rule(MAPS, ("attention", "ffn"), ("output",), NO_GROUP,
        "h + w f(h W↓) W↑", "Houlsby et al. 2019"),
    Rule(MAPS, ("attention", "ffn"), ("normed sum",), NO_GROUP,
        "LN(s + w f(LN(s) W↓) W↑), s = h + residual", "Pfeiffer et al. 2021; gated: Mao et al. 2022, §3.2",
        pre_norm="s + w f(s W↓) W↑, s = h + residual"),
    Rule(MAPS, ("ffn",), ("input",), NO_GROUP,
        "h + w f(x W↓) W↑", "He et al. 2022, (scaled) parallel adapter"),
    Rule(MAPS, ("ffn",), ("residual",), NO_GROUP,
        "h + w f(u W↓) W↑, u the residual stream before the FFN's LayerNorm", "He et al. 2022, code for mBART"),
    Rule(MAPS, ("layer",), ("input",), NO_GROUP,
        "h + w f(x W↓) W↑, x and h the layer's input and output", "unpublished"),
    Rule(MAPS, ("layer",), ("output",), NO_GROUP,
        "h + w f(h W↓) W↑, h the layer's output", "unpublished"),
    Rule(("prefix",), ("heads",), ("queries",), ANY_WEIGHT,
        "(1−λ) h + λ w softmax(w q P_kᵀ/√d) P_v, λ the softmax mass on the prefix",
        "Li & Liang 2021; He et al. 2022, §3.1; gated: Mao et al. 2022, §3.2", function="softmax"),
    Rule(("prefix",), ("heads",), ("queries",), ANY_WEIGHT,
        "h + w ReLU(q P_kᵀ) P_v", "He et al. 2022, multi-head parallel adapter", function="relu"),
    Rule(("prompt",), ("embeddings",), ("nothing",), ("number",),
        "[w P; h] in place of h, the embedded input, through all layers", "Lester et al. 2021"),
    Rule(("bias",), ("biases",), ("nothing",), ("number",), "h + w b", "Ben Zaken et al. 2021"),
    Rule(("norm",), ("norms",), ("input",), ("number",), "h + w (norm(x) ⊙ w' + b')", "Houlsby et al. 2019, §2.1"),
)

REFUSALS: dict[tuple[str, str], str] = {
    ("low_rank", "output"): "LoRA is a change to a linear map's weight, so it reads the map's input; sequential on its output it is "
                            "a bottleneck: use Bottleneck(activation='identity')",
    ("low_rank", "elsewhere"): "LoRA is a change to a linear map's weight; at this site use a Bottleneck, or name a linear",
    ("dora", "elsewhere"): "DoRA splits a linear map's weight into magnitude and direction; its site is a linear and it reads the 'input'",
    ("scaling", "elsewhere"): "IA³ rescales a linear's output or the FFN's hidden activations; its site is a linear or 'ffn_hidden', "
                              "and it reads 'output'; at a linear by name it may read 'input'",
    ("prefix", "elsewhere"): "a prefix adds keys and values to the attention heads; its site is 'heads' and it reads 'queries'",
    ("prompt", "elsewhere"): "a prompt stands in front of the embedded input; its site is 'embeddings' and it reads 'nothing'",
    ("bias", "elsewhere"): "BitFit tunes the biases that the base has; its site is 'biases' and it reads 'nothing'",
    ("norm", "elsewhere"): "this form tunes the LayerNorms that the base has; its site is 'norms' and it reads 'input'",
    ("any", "group"): "gates of one group share a softmax over what the attention block reads; this change reads something else",
    ("any", "gate"): "a gate needs a stream of tokens to read; this change is a constant of the run or reads a linear's output: "
                     "use a number",
    ("any", "learned"): "this change is learned as a whole, so a learned scale adds nothing: use a number",
    ("any", "elsewhere"): "no published or derived equation joins this form, site and reads; see `unipelt methods --compatible`",
}
# fmt: on


def kind_of_weight(weight: Any) -> str:
    if isinstance(weight, int | float):
        return "number"
    return "group" if getattr(weight, "group", "") else type(weight).__name__.lower()


def equation(form: Any, site: str, reads: str, weight: Any, pre_norm: bool | None = None) -> str:
    """The equation of a combination, on a pre-LN or a post-LN model; on both if pre_norm is None. Raises SpecError with the reason
    where there is none."""
    site_kind = LINEARS if site.startswith(LINEARS) else site
    if site_kind not in SITES:
        raise SpecError(f"site={site!r}: {did_you_mean(site, SITES)}")
    if site_kind == LINEARS and site == LINEARS:
        raise SpecError(f"site={site!r}: expected a name after the colon, such as 'linear:all-linear'")
    if reads not in READS:
        raise SpecError(f"reads={reads!r}: {did_you_mean(reads, READS)}")
    kind = kind_of_weight(weight)
    function = getattr(form, "function", None)
    fitting = [
        rule
        for rule in RULES
        if form.name in rule.forms
        and site_kind in rule.sites
        and reads in rule.reads
        and rule.function in (None, function)
    ]
    for rule in fitting:
        if kind in rule.weights:
            return rule.text if pre_norm is None else rule.pre_norm if pre_norm and rule.pre_norm else rule.equation
    if fitting:
        group = kind == "group" and "gate" in fitting[0].weights
        reason = REFUSALS["any", "group" if group else "learned" if kind == "learned" else "gate"]
    elif (form.name, reads) in REFUSALS and site_kind in PROJECTIONS:
        reason = REFUSALS[form.name, reads]
    else:
        reason = REFUSALS.get((form.name, "elsewhere"), REFUSALS["any", "elsewhere"])
    raise SpecError(f"{form.name} at {site!r} reading {reads!r} with weight {kind}: refused, because {reason}")
