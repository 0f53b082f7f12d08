"""Steps recorded once for each shape and replayed: a GPU then waits for one launch a step, not for a thousand.

Whole-network capture, as torch's notes on CUDA graphs have it. What a step depends on comes in as tensors, which are copied
to where the recording reads them. The first step of a shape runs as it is, on the stream that will record, and so warms up;
the second is recorded, which computes nothing, and replayed. No step is lost or done twice, and each draws its dropout where
a step that is not recorded would: at a replay torch moves the generator on as far as the recording says.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from unipelt.errors import out_of_memory

Batch = dict[str, Tensor]


class Recorder(Protocol):
    """Where steps run, and how one is recorded."""

    def run(self, step: Callable[[], Tensor]) -> Tensor: ...

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(what replays the step, the tensor that then holds its result). Raises RuntimeError where a step cannot be recorded."""


class Captured:
    """A step that reads a batch and returns one tensor, recorded for each shape of its batch.

    storage: the tensors that the step changes in place; where they are others, nothing recorded before holds.
    """

    def __init__(self, step: Callable[[Batch], Tensor], storage: Callable[[], list[Tensor]], recorder: Recorder):
        self.step, self.storage, self.recorder = step, storage, recorder
        self.places: list[int] = []
        self.graphs: dict[Any, tuple[Batch, Callable[[], None], Tensor]] = {}
        self.warm: set[Any] = set()
        self.works = True

    def __call__(self, batch: Batch) -> Tensor:
        places = [tensor.data_ptr() for tensor in self.storage()]
        if places != self.places:
            self.graphs, self.warm, self.places = {}, set(), places
        key = tuple((name, value.shape, value.dtype) for name, value in batch.items())
        if key not in self.warm or not self.works:
            self.warm.add(key)
            return self.recorder.run(lambda: self.step(batch))
        if key not in self.graphs:
            buffers = {name: value.clone() for name, value in batch.items()}
            try:
                self.graphs[key] = (buffers, *self.recorder.record(lambda: self.step(buffers)))
            except RuntimeError as error:
                if out_of_memory(error):  # whoever planned the fleet takes a smaller one
                    raise
                self.works = False
                self.graphs.clear()
                warnings.warn(f"training steps are not captured: {str(error).splitlines()[0]}", stacklevel=2)
                return self.recorder.run(lambda: self.step(batch))
        buffers, replay, result = self.graphs[key]
        for name, value in batch.items():
            buffers[name].copy_(value, non_blocking=True)
        replay()
        return result


class CudaGraphs:
    """CUDA graphs that share one pool of memory: none holds anything from one step to the next but its result, read by then."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """On the stream that records: gradients are accumulated on the stream that first did so."""
        around = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            result = step()
        around.wait_stream(self.stream)
        return result

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        around, graph = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph()
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        generator = torch.cuda.default_generators[index]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                result = step()
        except RuntimeError:  # torch leaves its stream and its generator as they are within a recording
            torch.cuda.set_stream(around)
            generator.graphsafe_set_state(before)
            raise
        return graph.replay, result
