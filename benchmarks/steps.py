"""One model of one library, in a process of its own, that takes its turns: what benchmarks/peers.py starts, in any of its environments.

    python benchmarks/steps.py '{"library": "adapters", "method": "lora", …}'

Its first answer says what was made; then each line, `train` or `infer`, is answered by the seconds of one step. Imports torch and
the one library that is asked for; of ours nothing beside it but, for a fleet, what trains one.
"""

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import Any

Step = Callable[[Any], None]
# steps before what is measured; capture wants three. One more is taken while memory is looked at
WARM_UP = {"cpu": 1, "cuda": 3}
REPEATS = {"cpu": 1, "cuda": 10}  # steps of a turn: a wait for the GPU must not be what is measured
SIZE, LENGTH, RANK, ALPHA = 48, 10, 8, 16  # our presets' own: what peers are told, so that all train as many parameters


def base(shape: dict[str, Any]) -> Any:
    """A classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    if shape["family"] == "bert":
        return BertForSequenceClassification(BertConfig(**shape["sizes"]))
    return LlamaForSequenceClassification(LlamaConfig(**shape["sizes"], pad_token_id=0))


def from_transformers(model: Any, method: str, runs: int) -> Any:
    """Full fine-tuning, which is the plain model too; `frozen` is the floor: no change at all, a backward to the lowest layer."""
    if method == "frozen":
        model.requires_grad_(False)
        head = model.classifier if hasattr(model, "classifier") else model.score
        head.requires_grad_(True)
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    return model


def from_peft(model: Any, method: str, runs: int) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = {"lora": ["query", "value"] if hasattr(model, "bert") else ["q_proj", "v_proj"], "lora-all-linear": "all-linear"}  # fmt: skip
    return get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets[method], task_type="SEQ_CLS")
    )


def from_adapters(model: Any, method: str, runs: int) -> Any:
    import adapters
    from adapters import ConfigUnion, LoRAConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig

    bottleneck = SeqBnConfig(reduction_factor=model.config.hidden_size / SIZE)
    prefix, lora = PrefixTuningConfig(prefix_length=LENGTH), LoRAConfig(r=RANK, alpha=ALPHA)
    gated = [part.replace(use_gating=True) for part in (prefix, bottleneck)]
    configs = {
        "adapter": bottleneck, "prefix": prefix, "lora": lora, "unipelt-ap": ConfigUnion(*gated),
        "unipelt-apl": UniPELTConfig(prefix_tuning=prefix, adapter=bottleneck, lora=lora),
    }  # fmt: skip
    if method == "full":  # the plain model of the transformers that it is pinned to
        return model
    adapters.init(model)
    model.add_adapter("a", config=configs[method])
    model.train_adapter("a")
    return model.to(model.dtype)  # what it adds is float32, and fails beside a base in half precision


def from_unipelt(model: Any, method: str, runs: int) -> Any:
    import unipelt

    named = "lora(target_modules='all-linear')" if method == "lora-all-linear" else method
    return unipelt.attach(model, named, runs=runs)


MAKERS = {"transformers": from_transformers, "peft": from_peft, "adapters": from_adapters, "unipelt": from_unipelt}


def batches(shape: dict[str, Any], runs: int, vocabulary: int, device: str) -> list[dict[str, Any]]:
    """Random words; each batch as long as its longest row, up to a multiple of 8. The runs of a fleet have rows of the same lengths."""
    import torch

    chance, made = torch.Generator().manual_seed(0), []
    for lengths in shape["batches"]:
        every = torch.tensor(lengths * runs)[:, None]
        longest = math.ceil(max(lengths) / 8) * 8
        real = torch.arange(longest)[None] < every
        ids = torch.randint(5, vocabulary, real.shape, generator=chance).masked_fill(~real, 0)
        rows = {"input_ids": ids, "attention_mask": real.long(), "labels": torch.arange(len(ids)) % 2}
        made.append({name: value.to(device) for name, value in rows.items()})
    return made


def fleet_of(model: Any, made: list[dict[str, Any]], runs: int) -> Any:
    """What a study trains its runs with: each step makes its batch, takes the loss and clips by run, and reads the losses; on a GPU
    all between is captured. Examples lie as a study's do, like lengths together."""
    import numpy as np

    from unipelt.data import Columns
    from unipelt.tasks.batches import Encoded
    from unipelt.tasks.classification import Classification
    from unipelt.train.fleet import Fleet
    from unipelt.train.recipes import Recipe
    from unipelt.train.records import RunConfig, RunRecord
    from unipelt.train.runs import Plan

    class Words:
        pad_token_id = pad_token_type_id = 0

    plans, size = [], len(made[0]["labels"]) // runs
    for run in range(runs):
        features: dict[str, list[Any]] = {"input_ids": [], "attention_mask": []}
        labels: list[int] = []
        for rows in made:
            mine = {name: value[run * size : (run + 1) * size].cpu().numpy() for name, value in rows.items()}
            real = mine["attention_mask"].astype(bool)
            for name, kept in features.items():
                kept += [row[mask] for row, mask in zip(mine[name], real)]
            labels += mine["labels"].tolist()
        task = Classification(name="random", metric="accuracy", columns=Columns(text="text"), labels=("no", "yes"))
        longest = max(len(row) for row in features["input_ids"])
        rows = Encoded({name: [np.array(row) for row in kept] for name, kept in features.items()}, labels, longest)
        record = RunRecord(config=RunConfig(task="random", seed=run))
        plans.append(
            Plan(
                initial_record=record,
                task=task,
                train=rows,
                validation=rows,
                recipe=Recipe(epochs=100_000, batch_size=size),
            )
        )
    return Fleet(model, plans, Words())


class SharedResult:
    """The steps of one model in one mode."""

    def __init__(self, given: dict[str, Any]):
        import torch

        self.torch, self.device = torch, given["device"]
        self.compiled, self.captured = "compiled" in given["mode"], "graph" in given["mode"]
        torch.set_num_threads(1)
        torch.manual_seed(0)
        half = given["precision"] == "bfloat16"
        with torch.device(self.device):
            plain = base(given["shape"]).to(torch.bfloat16 if half else torch.float32)
        self.model = MAKERS[given["library"]](plain, given["method"], given["runs"]).to(self.device)
        self.autocast = given["precision"] == "autocast"
        self.batches = batches(given["shape"], given["runs"], plain.config.vocab_size, self.device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.fleet = fleet_of(self.model, self.batches, given["runs"]) if given["runs"] > 1 else None
        gpu = {"fused": True, "capturable": self.captured} if self.device == "cuda" else {}
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-4, **gpu)
        self.stream = torch.cuda.Stream() if self.captured else None
        self.pool = torch.cuda.graph_pool_handle() if self.captured else None
        self.steps: dict[str, list[Callable[[], Any]]] = {}
        self.note = ""

    def precision(self) -> Any:
        return self.torch.autocast(self.device, dtype=self.torch.bfloat16) if self.autocast else nullcontext()

    def prepare(self, kind: str) -> int:
        """Make the steps of a kind, and the most memory in bytes that they took."""
        if not self.compiled:
            return self._prepare(kind, self.model)
        try:
            return self._prepare(kind, self.torch.compile(self.model, fullgraph=True))
        except self.torch._dynamo.exc.TorchDynamoException as error:
            self.note += f"{kind} is not compiled whole: {in_few_words(error)}. "
        self.torch._dynamo.reset()
        return self._prepare(kind, self.torch.compile(self.model))

    def _prepare(self, kind: str, model: Any) -> int:
        """Warm up; capture, or a step more; the most memory of that."""
        step = partial({"train": self.train, "infer": self.infer}[kind], model)
        captured = self.captured
        if kind == "train" and self.fleet is not None:  # it captures its steps itself
            step, captured = self.advance, False
        self.model.train(kind == "train")
        cuda = self.torch.cuda
        with cuda.stream(self.stream) if captured else nullcontext():
            if captured:
                self.stream.wait_stream(cuda.default_stream())
            for _ in range(WARM_UP[self.device]):
                for rows in self.batches:
                    step(rows)
            if self.device == "cuda":
                cuda.synchronize()
                cuda.reset_peak_memory_stats()
            if not captured:
                self.steps[kind] = [partial(step, rows) for rows in self.batches]
                for one in self.steps[kind]:
                    one()
        if captured:
            self.steps[kind] = [self.capture(step, rows).replay for rows in self.batches]
        if self.device == "cuda":
            cuda.synchronize()
            return cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def capture(self, step: Step, rows: Any) -> Any:
        """A whole step as one CUDA graph. On the stream of the warm-up, where autograd's nodes of the parameters were made; graphs
        of several lengths share their memory, since they run one after another and nothing is kept of what they give."""
        graph = self.torch.cuda.CUDAGraph()
        try:
            with self.torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                step(rows)
        except Exception as error:
            raise error.__context__ or error  # noqa: B904  # what stopped the capture, not that it was stopped
        return graph

    def train(self, model: Any, rows: Any) -> None:
        """Forward, backward, AdamW. Gradients are dropped first: those of a captured step then lie in its own memory."""
        self.optimiser.zero_grad(set_to_none=True)
        with self.precision():
            loss = model(**rows).loss
        loss.backward()
        self.optimiser.step()

    def advance(self, rows: Any) -> None:
        """A step of a fleet, which makes its own batches of all rows."""
        self.fleet.step()

    def infer(self, model: Any, rows: Any) -> None:
        with self.torch.no_grad(), self.precision():
            model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])

    def seconds(self, kind: str) -> float:
        """Of one step, on average over the batches: CPU seconds of this process, or the wall's from idle GPU to idle GPU."""
        self.model.train(kind == "train")
        repeats, steps = REPEATS[self.device], self.steps[kind]
        wait, clock = (lambda: None, time.process_time)
        if self.device == "cuda":
            wait, clock = self.torch.cuda.synchronize, time.perf_counter
        wait()
        start = clock()
        for _ in range(repeats):
            for step in steps:
                step()
        wait()
        return (clock() - start) / (repeats * len(steps))


def in_few_words(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120].replace("|", "/")


def processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return platform.machine()


def made(given: dict[str, Any]) -> tuple[SharedResult | None, dict[str, Any]]:
    """The steps, and the first answer."""
    answer: dict[str, Any] = {"failed": {}}
    try:
        held = 0
        if given["device"] == "cpu":
            for name in (given["library"], "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"):  # fmt: skip
                import_module(name)
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        turns = SharedResult(given)
        import torch
        import transformers

        modules = {given["library"]: import_module(given["library"]), "torch": torch, "transformers": transformers}
        answer["versions"] = {name: module.__version__ for name, module in modules.items()}
        answer["machine"] = torch.cuda.get_device_name() if turns.device == "cuda" else f"one thread of {processor()}"
        answer["parameters"] = sum(p.numel() for p in turns.trained) // given["runs"]
    except Exception as error:
        return None, answer | {"failed": dict.fromkeys(("train", "infer"), in_few_words(error))}
    for kind in ("train", "infer"):
        try:
            most = turns.prepare(kind) - held
            if kind == "train" and not (turns.compiled and turns.device == "cpu"):  # there the compiler's own is in it
                answer["memory"] = most
        except Exception as error:
            answer["failed"][kind] = in_few_words(error)
    return turns, answer | {"note": turns.note.strip()}


def main() -> None:
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    given = json.loads(sys.argv[1])
    turns, answer = made(given)
    say.write(json.dumps(answer) + "\n")
    for line in sys.stdin:
        assert turns is not None
        said: dict[str, Any] = {"failed": {}}
        try:
            said["seconds"] = turns.seconds(line.strip()) / given["runs"]
        except Exception as error:
            said |= {"failed": {line.strip(): in_few_words(error)}}
        say.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
