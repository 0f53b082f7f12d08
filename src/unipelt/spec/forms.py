"""The functional forms of a change, as settings: one small frozen dataclass a form, and nothing but the standard library.

He et al. 2022, arXiv:2110.04366, table 1, first column. What a form computes stands in `unipelt.forms`.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args, get_type_hints

from unipelt.errors import SpecError, did_you_mean

MOST = 2**20
"""of any setting: no base is as wide"""

Activation = Literal["relu", "gelu", "swish", "tanh", "identity"]


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """Δ(x) = f(x W↓ + b↓) W↑ + b↑          Houlsby et al. 2019, arXiv:1902.00751"""

    name: ClassVar[str] = "bottleneck"

    size: int = 48
    """width of the bottleneck, in hidden units"""
    activation: Activation = "relu"
    """non-linearity f"""
    norm: bool = False
    """a LayerNorm of the change's own on its input, as He et al.'s code has on attention adapters"""
    init: Literal["bert", "lora"] = "bert"
    """bert: N(0, 0.02) for both matrices, not a no-op; lora: Kaiming-uniform down and zero up, a no-op at step 0"""
    dropout: float = 0.0
    """probability that a bottleneck unit is dropped in training"""


@dataclass(frozen=True, kw_only=True)
class Kronecker:
    """A bottleneck whose matrices are sums of Kronecker products, W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ)          Compacter: Mahabadi et al. 2021, arXiv:2106.04647"""

    name: ClassVar[str] = "kronecker"

    size: int = 48
    """width of the bottleneck, in hidden units; a multiple of `terms`"""
    terms: int = 4
    """number n of Kronecker products, and the side of the small matrices Aᵢ"""
    rank: int = 1
    """rank of the large factor sᵢ tᵢ"""
    activation: Activation = "gelu"
    """non-linearity between the two matrices"""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Δ(x) = (α / r) x W↓ W↑          LoRA: Hu et al. 2021, arXiv:2106.09685"""

    name: ClassVar[str] = "low_rank"

    r: int = 8
    """rank"""
    alpha: float = 8.0
    """numerator of the scale α / r; α = r is a scale of 1, which is what a gate replaces in UniPELT"""
    dropout: float = 0.0
    """probability that an input feature is dropped in training"""


@dataclass(frozen=True, kw_only=True)
class Dora:
    """Δ(x) = x (W' − W)ᵀ, W' = m ⊙ (W + (α / r) B A) / ‖W + (α / r) B A‖, the norm of each row          DoRA: Liu et al. 2024, arXiv:2402.09353"""

    name: ClassVar[str] = "dora"

    r: int = 8
    """rank of B A, the change of direction"""
    alpha: float = 16.0
    """numerator of the scale α / r"""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Δ(h) = h ⊙ d, so that h + Δ = h ⊙ (1 + d)          IA³: Liu et al. 2022, arXiv:2205.05638, where l = 1 + d"""

    name: ClassVar[str] = "scaling"


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """softmax: head = softmax(q [P_k; K]ᵀ / √d) [P_v; V];  relu: head = h + ReLU(q P_kᵀ) P_v          Li & Liang 2021, arXiv:2101.00190"""

    name: ClassVar[str] = "prefix"

    length: int = 10
    """number of prefix positions in front of every layer's keys and values"""
    mlp: int = None  # type: ignore[assignment]
    """width of the training-time reparameterisation (embedding → tanh → linear), 512 if none is given; 0: the prefixes are
    parameters themselves, as those of relu always are"""
    function: Literal["softmax", "relu"] = "softmax"
    """softmax: prefix tuning; relu: the multi-head parallel adapter of He et al."""
    norm: bool = False
    """of relu: q = W_q LN(x) with a LayerNorm of the prefix's own, which the code of He et al. has and their paper has not"""
    init: Literal["unipelt", "torch"] = "unipelt"
    """unipelt: N(0, 0.02) everywhere (prefix std ≈ 0.005); torch: PyTorch's default for the MLP, as He et al. (std ≈ 0.27)"""

    def __post_init__(self):
        if self.mlp is None:
            object.__setattr__(self, "mlp", 0 if self.function == "relu" else 512)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """[P; E(x)]: P, learned vectors in front of the embedded input, goes through all layers          Lester et al. 2021, arXiv:2104.08691"""

    name: ClassVar[str] = "prompt"

    length: int = 20
    """number of vectors; the input has so many positions less"""
    init: Literal["vocabulary", "uniform"] = "vocabulary"
    """vocabulary: the embeddings of tokens drawn at random; uniform: U(−0.5, 0.5)"""
    first: Literal["input", "prompt"] = "input"
    """what a head that reads the first position gets: the input's first token, or the prompt's first vector, as in peft"""


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Δ = b, one vector for each bias of the base          BitFit: Ben Zaken et al. 2021, arXiv:2106.10199"""

    name: ClassVar[str] = "bias"


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Δ(x) = norm(x) ⊙ w + b, on every LayerNorm of a layer: its scale and shift are tuned          Houlsby et al. 2019, §2.1"""

    name: ClassVar[str] = "norm"


Form = Bottleneck | Kronecker | LowRank | Dora | Scaling | Prefix | Prompt | Bias | Norm
FORMS: dict[str, type] = {
    form.name: form for form in (Bottleneck, Kronecker, LowRank, Dora, Scaling, Prefix, Prompt, Bias, Norm)
}


def check_settings(form: Form) -> None:
    """Raise SpecError where a setting has the wrong type or is out of its range."""
    hints = get_type_hints(type(form))
    for field in fields(form):
        value, hint = getattr(form, field.name), hints[field.name]
        setting = f"{form.name}({field.name}={value!r})"
        if choices := get_args(hint):
            if value not in choices:
                raise SpecError(f"{setting}: {did_you_mean(str(value), choices)}")
        elif hint is bool:
            if not isinstance(value, bool):
                raise SpecError(f"{setting}: expected true or false")
        elif hint is int:
            least = 0 if field.name == "mlp" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
                raise SpecError(f"{setting}: expected a whole number of at least {least}, and at most {MOST}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
            raise SpecError(f"{setting}: expected a number of at least 0, and at most {MOST}")
        if field.name == "dropout" and not value < 1:
            raise SpecError(f"{setting}: expected a probability below 1")
        if field.name == "alpha" and not value:
            raise SpecError(f"{setting}: expected a number above 0, because with 0 the change has no effect")
    if isinstance(form, Prefix) and form.norm and form.function != "relu":
        raise SpecError("prefix(norm=True): a softmax prefix has no LayerNorm; expected norm=False, or function='relu'")
    if isinstance(form, Prefix) and form.function == "relu" and form.mlp:
        raise SpecError(
            f"prefix(function='relu', mlp={form.mlp}): a relu prefix has no MLP; expected mlp=0, or function='softmax'"
        )
    if isinstance(form, Kronecker) and form.size % form.terms:
        raise SpecError(f"kronecker(size={form.size}, terms={form.terms}): size must be a multiple of terms")
