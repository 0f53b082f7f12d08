"""Capture a training step as a CUDA graph per batch shape and replay it: one launch per step instead of a thousand.

This is whole-network capture as in torch's notes on CUDA graphs. The tensors among the inputs of a step are copied to the
buffers that the graph reads. The first step of a shape runs normally, on the capture stream, as warm-up; the second is captured,
which computes nothing, and replayed. So every step runs exactly once, and dropout uses the same random numbers as without
capture, because a replay advances torch's generator as the step would.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from unipelt.errors import out_of_memory


class CapturedStep:
    """A step that reads its inputs and returns one tensor, captured once per shape of the inputs.

    step: of inputs whose tensors may stand in tuples, lists and dictionaries. storage: returns the tensors that the step changes
    in place; if they are replaced, all graphs are discarded.
    """

    def __init__(self, step: Callable[[Any], Tensor], storage: Callable[[], list[Tensor]], capturer: "CudaGraphs"):
        self.step, self.storage, self.capturer = step, storage, capturer
        self.pointers: list[int] = []
        self.graphs: dict[Hashable, tuple[Any, Callable[[], None], Tensor]] = {}
        self.warm: set[Hashable] = set()
        self.works = True

    def __call__(self, inputs: Any) -> Tensor:
        pointers = [tensor.data_ptr() for tensor in self.storage()]
        if pointers != self.pointers:
            self.graphs, self.warm, self.pointers = {}, set(), pointers
        leaves, structure = tree_flatten(inputs)
        key = structure, tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if key not in self.warm or not self.works:
            self.warm.add(key)
            return self.capturer.run(lambda: self.step(inputs))
        if key not in self.graphs:
            buffers = tree_map_only(Tensor, Tensor.clone, inputs)
            try:
                self.graphs[key] = (buffers, *self.capturer.capture(lambda: self.step(buffers)))
            except RuntimeError as error:
                if out_of_memory(error):  # the caller retries with a smaller fleet
                    raise
                self.works = False
                self.graphs.clear()
                warnings.warn(f"training steps are not captured: {str(error).splitlines()[0]}", stacklevel=2)
                return self.capturer.run(lambda: self.step(inputs))
        buffers, replay, result = self.graphs[key]
        for buffer, value in zip(tree_leaves(buffers), leaves):
            if isinstance(value, Tensor):
                buffer.copy_(value, non_blocking=True)
        replay()
        return result


class CudaGraphs:
    """CUDA graphs that share one memory pool; only the result of the last replay is kept."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Run the step on the capture stream, because autograd accumulates gradients on the stream of the first backward."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = step()
        current.wait_stream(self.stream)
        return result

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A function that replays the step, and the tensor that holds its result. Raises RuntimeError if it cannot be captured."""
        current, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph()
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        generator = torch.cuda.default_generators[index]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                result = step()
        except RuntimeError:  # torch does not restore stream and generator after a failed capture
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(before)
            raise
        return graph.replay, result
