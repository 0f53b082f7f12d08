"""One forward of a base, watched: what each module reads and gives, which products have weights, and what attends.

The output of every product with weights (linear maps, convolutions, embeddings, experts) is cut off from what it was computed
from. So a gradient between two tensors is not zero exactly where one reaches the other through additions, norms, gates and
views alone; the residual stream is what reaches a layer's output in this way from the layer's input.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from unipelt.inject.attention import configs_of, eager_of
from unipelt.inject.resolve import is_linear

TRACE = "unipelt_trace"
"""name of the attention function of a trace, and of the keyword that tells whether keywords arrive"""
LOOKUPS = ("embedding", "embedding_bag", "conv1d", "conv2d", "conv3d")
PRODUCTS = (
    *LOOKUPS, "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "bilinear",
    "grouped_mm", "_grouped_mm", "grouped_mm_fallback", "tensordot",
)  # fmt: skip


CANNOT_RUN = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


class NotFound(Exception):
    """What was seen of an architecture, and what was not."""


@dataclass(eq=False)
class Call:
    """One call of a module. `start` and `end` count events of the forward."""

    path: str
    module: nn.Module
    start: int
    x: Tensor | None
    """its first floating-point tensor"""
    reads: GradientEdge | None
    has_mask: bool
    """whether it is given the batch's own attention mask"""
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    end: int = 0
    gives: GradientEdge | None = None

    def holds(self, time: int) -> bool:
        return self.start < time <= self.end


@dataclass(eq=False)
class Product:
    """A product; where it is one with weights, `gives` is cut off from `reads`."""

    path: str
    module: nn.Module | None
    time: int
    reads: list[GradientEdge]
    gives: GradientEdge


@dataclass(eq=False)
class Attending:
    """One call of an attention: query, key and value as it reads them, and what it gives."""

    path: str
    time: int
    query: GradientEdge
    key: GradientEdge
    value: GradientEdge
    gives: GradientEdge
    dispatched: bool
    """through AttentionInterface"""
    shape: tuple[int, int, int, int] | None = None
    """heads, key/value heads, width of a key, width of a value"""


class Trace:
    """What happened in one forward of a base. Raises NotFound where the base does not run on these inputs."""

    def __init__(self, base: PreTrainedModel, inputs: dict[str, Tensor]):
        self.base, self.time = base, 0
        self.calls: list[Call] = []
        self.open: list[Call] = []
        self.weighted: list[Product] = []
        self.products: list[Product] = []
        self.softmaxes: list[Product] = []
        self.without_linears: list[str] = []
        """modules that attend, but with queries, keys or values of no linear module"""
        self.attending: list[Attending] = []
        self.paths = {id(module): path for path, module in base.named_modules()}
        self.masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        self.inside_kernel = False
        with ExitStack() as stack:
            for module in base.modules():
                for handle in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(frozen_eval(base))
            stack.enter_context(attention_function(base, self._attend))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_Products(self))
            try:
                base(**inputs)
            except CANNOT_RUN as error:
                inside = next((call.path for call in reversed(self.open) if call.path), "itself")
                why = f"{type(error).__name__} in {inside}: {' '.join(str(error).split())[:200]}"
                raise NotFound(f"it does not run on {' and '.join(inputs)} alone ({why})") from error

    @property
    def inside(self) -> str:
        """The path of the module that runs now."""
        return self.open[-1].path if self.open else ""

    def tick(self) -> int:
        self.time += 1
        return self.time

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs)
        reads = get_gradient_edge(x) if x is not None and x.requires_grad else None
        named = [value for name, value in kwargs.items() if "attention_mask" in name and isinstance(value, Tensor)]
        has_mask = any(a is m for a in (*args, *named) for m in self.masks) or any(
            value.shape == mask.shape and value.dtype == mask.dtype for value in named for mask in self.masks
        )
        call = Call(self.paths[id(module)], module, self.tick(), x, reads, has_mask, args, kwargs)
        self.calls.append(call)
        self.open.append(call)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        call = self.open.pop()
        y = output_tensor(output)
        if isinstance(output, Tensor) and is_linear(module) and call.reads is not None:
            output = y = self.cut_off(output, [call.reads], module)
        call.end = self.tick()
        call.gives = get_gradient_edge(y) if y is not None and y.requires_grad else None
        return output

    def cut_off(self, y: Tensor, reads: list[GradientEdge], module: nn.Module | None) -> Tensor:
        """Cut a product with weights off from what it was computed from."""
        leaf = y.detach().requires_grad_()
        path = self.inside if module is None else self.paths[id(module)]
        self.weighted.append(Product(path, module, self.tick(), reads, get_gradient_edge(leaf)))
        return leaf.clone()  # which may be written in place

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        self.inside_kernel = True
        output, weights = eager_of(module)(module, query, key, value, attention_mask, **kwargs)
        self.inside_kernel = False
        attending = self.add_attending(self.paths.get(id(module), "?"), (query, key, value), output, True)
        if output.requires_grad:  # cut off, as a product with weights is
            leaf = output.detach().requires_grad_()
            if attending is not None:
                attending.gives = get_gradient_edge(leaf)
            output = leaf.clone()
        return output, weights

    def add_attending(self, path: str, tensors: Sequence[Tensor], output: Tensor, dispatched: bool) -> Attending | None:
        """Record one attention; None if one of these tensors needs no gradient. tensors: its query, key and value."""
        if not all(t.requires_grad for t in (*tensors, output)):
            return None
        query, key, value = tensors
        q, k, v, y = (get_gradient_edge(t) for t in (*tensors, output))
        shape = (query.shape[1], key.shape[1], key.shape[-1], value.shape[-1]) if query.dim() == 4 else None
        self.attending.append(Attending(path, self.tick(), q, k, v, y, dispatched, shape))
        return self.attending[-1]


class _Products(TorchFunctionMode):
    """Sees every product, softmax and fused attention outside the attention functions of AttentionInterface."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, trace, name = kwargs or {}, self.trace, getattr(function, "__name__", "")
        output = function(*args, **kwargs)
        if trace.inside_kernel or not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        if name in PRODUCTS and not (trace.open and is_linear(trace.open[-1].module)):
            operands = (*args, *kwargs.values())
            operands = operands[1:] if name == "baddbmm" else operands  # the first is a bias, such as ALiBi
            tensors = [t for t in flat(operands) if isinstance(t, Tensor)]
            live = [get_gradient_edge(t) for t in tensors if t.requires_grad]
            if (name in LOOKUPS and not live) or (live and len(live) < len(tensors)):
                return trace.cut_off(output, live, None)
            if len(live) > 1:
                output = output.clone()  # no view, which loses its place in the graph when it is written in place
                trace.products.append(Product(trace.inside, None, trace.tick(), live, get_gradient_edge(output)))
        elif name in ("softmax", "_softmax") and output.requires_grad:
            tensor = next(t for t in flat((*args, *kwargs.values())) if isinstance(t, Tensor))
            edges = [get_gradient_edge(tensor)], get_gradient_edge(output)
            trace.softmaxes.append(Product(trace.inside, None, trace.tick(), *edges))
        elif name == "scaled_dot_product_attention" and output.requires_grad:
            trace.add_attending(trace.inside, args[:3], output, False)
        return output


def example_inputs(base: PreTrainedModel, batch: int = 2, length: int = 8) -> dict[str, Tensor]:
    """Two rows of eight tokens, or two small images."""
    config, device = base.config, next(base.parameters()).device
    generator = torch.Generator().manual_seed(1)
    if base.main_input_name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        size = size if isinstance(size, list | tuple) else (size, size)
        shape = (batch, getattr(vision, "num_channels", 3) or 3, *size)
        dtype = next(p.dtype for p in base.parameters() if p.is_floating_point())
        return {"pixel_values": torch.randn(shape, generator=generator).to(device, dtype)}
    words = getattr(config.get_text_config(), "vocab_size", 100) or 100
    ids = torch.randint(min(5, words - 1), min(words, 100), (batch, length), generator=generator).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids[:, :6].flip(0), "decoder_attention_mask": torch.ones_like(ids[:, :6])}
    return inputs


def flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from flat(value)
        else:
            yield value


def first_tensor(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """A module's input: hidden_states, or else its first floating-point tensor."""
    named = kwargs.get("hidden_states")
    every = [named, *args, *kwargs.values()]
    return next((t for t in every if isinstance(t, Tensor) and t.is_floating_point()), None)


def output_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor that a module gives."""
    if isinstance(output, Tensor):
        return output
    every = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((t for t in every if isinstance(t, Tensor) and t.is_floating_point()), None)


def put(restoring: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute, until this stack is closed."""
    restoring.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def frozen_eval(base: PreTrainedModel) -> Iterator[None]:
    """In evaluation, frozen, without a cache, and with experts computed by plain products; afterwards as it was."""
    with ExitStack() as restoring:
        for module in base.modules():
            put(restoring, module, "training", False)
        for parameter in base.parameters():
            put(restoring, parameter, "requires_grad", False)
        for config in configs_of(base):
            if getattr(config, "_experts_implementation", None) not in (None, "eager"):
                put(restoring, config, "_experts_implementation_internal", "eager")
            if getattr(config, "use_cache", False) is True:
                put(restoring, config, "use_cache", False)
        yield


@contextmanager
def attention_function(base: PreTrainedModel, function: Any) -> Iterator[None]:
    """Every attention that dispatches through AttentionInterface calls this function."""
    AttentionInterface.register(TRACE, function)
    AttentionMaskInterface.register(TRACE, _eager_mask)
    with ExitStack() as restoring:
        for config in configs_of(base):
            if hasattr(config, "_attn_implementation"):
                put(restoring, config, "_attn_implementation_internal", TRACE)
        yield


def _eager_mask(*args: Any, **kwargs: Any) -> Any:
    return ALL_MASK_ATTENTION_FUNCTIONS["eager"](*args, **{**kwargs, "allow_is_causal_skip": False})


def takes_keywords(module: nn.Module) -> bool:
    """Whether its forward takes keywords that it does not name."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def gradients(target: GradientEdge | None, sources: Sequence[GradientEdge | None]) -> list[Tensor | None]:
    """The gradient of a random sum of a tensor in each of others; None where it is zero."""
    edges = [edge for edge in sources if edge is not None]
    if target is None or not edges:
        return [None] * len(sources)
    metadata = target.node._input_metadata[target.output_nr]  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(tuple(metadata.shape), generator=generator).to(metadata.device, metadata.dtype)
    grads = iter(torch.autograd.grad([target], edges, [weight], retain_graph=True, allow_unused=True))
    every = [None if edge is None else next(grads) for edge in sources]
    return [None if g is None or not g.any() else g for g in every]


def reached(target: GradientEdge | None, sources: Sequence[GradientEdge | None]) -> list[bool]:
    """For each source, whether the target has a gradient in it. A tensor reaches itself."""
    return [g is not None for g in gradients(target, sources)]
