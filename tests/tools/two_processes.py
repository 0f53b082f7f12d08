"""What each of two processes does in test_two_processes.py: `accelerate launch … two_processes.py FOLDER`.

Every process writes what it ended with to FOLDER/RANK.pt; the test compares that with one process over the same batches.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import tiny
from laws.lawbook import attached, randomise, stacks, without_dropout
from toy import arguments, classifier, rows, tuned_state

from unipelt.inject.state import mixture_state

STEPS, BATCH = 4, 8
FSDP2 = {
    "version": 2, "reshard_after_forward": True, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "cpu_ram_efficient_loading": False,
}  # fmt: skip
FSDP = ("bert", "llama", "bart", "t5", "modernbert", "albert")


def trained_by_trainer(folder: Path, processes: int = 1) -> dict[str, Tensor]:
    """transformers' Trainer; the global batch is the same however many processes share it."""
    from transformers import Trainer

    model = without_dropout(randomise(classifier()))
    given = arguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // processes,
        save_strategy="steps",
        save_steps=STEPS,
        train_sampling_strategy="sequential",
        optim="sgd",  # Adam divides rounding by rounding where a gradient is nearly 0
        learning_rate=0.1,
        # else Trainer doubles the loss of a model that, as BERT's classifier, takes the mean over its own rows alone
        average_tokens_across_devices=False,
    )
    Trainer(model=model, args=given, train_dataset=rows(STEPS * BATCH)).train()
    return tuned_state(model)


def trained_by_sft(folder: Path, processes: int = 1, shards: bool = False) -> dict[str, Tensor]:
    """TRL's SFTTrainer on chats whose answers differ in length: the loss counts every answer token of the global batch alike.

    shards: with FSDP2, each layer a unit.
    """
    from datasets import Dataset
    from generation.toy_text import CHATML, tokenizer
    from trl import SFTConfig, SFTTrainer

    words = tokenizer(CHATML)
    model = without_dropout(
        attached("llama", "unipelt-apl", dtype=torch.float32, top="generator", build={"vocab_size": len(words)})
    )
    questions = [f"what is {n}?" + " word" * (n % 5) for n in range(STEPS * BATCH)]
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": "a list " * (1 + n % 3)}]
        for n, question in enumerate(questions)
    ]
    given = SFTConfig(
        str(folder / "sft"), max_steps=STEPS, per_device_train_batch_size=BATCH // processes, learning_rate=0.1, optim="sgd",
        assistant_only_loss=True, max_length=60, train_sampling_strategy="sequential", save_strategy="no", use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, activation_checkpointing=False,
        **({"fsdp": "full_shard auto_wrap", "fsdp_config": FSDP2} if shards else {}),
    )  # fmt: skip
    data = Dataset.from_dict({"messages": chats})
    trainer = SFTTrainer(model, given, train_dataset=data, processing_class=words)
    trainer.train()
    assert any(isinstance(p, torch.distributed.tensor.DTensor) for p in trainer.model.parameters()) == shards
    return {name: whole(p) for name, p in tuned_state(trainer.model).items()}


def shard_on_cpus() -> None:
    """Let accelerate shard here: it does so on accelerators alone, and takes two CPU processes for such from now on."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    own = PartialState.__init__

    def as_of_gpus(self: PartialState, *args: object, **given: object) -> None:
        own(self, *args, **given)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_of_gpus  # type: ignore[method-assign]


def trained_by_loop() -> dict[str, Tensor]:
    """A loop of one's own around accelerate: losses, first gradients, parameters."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = without_dropout(randomise(classifier())).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batches = torch.utils.data.DataLoader(rows(STEPS * BATCH), batch_size=BATCH // accelerator.num_processes)
    model, optimiser, batches = accelerator.prepare(model, optimiser, batches)
    found, losses = {}, []
    for batch in batches:
        optimiser.zero_grad()
        loss = model(**batch).loss
        accelerator.backward(loss)
        if not found:
            named = mixture_state(accelerator.unwrap_model(model)).named_parameters()
            found = {f"gradient of {name}": p.grad.clone() for name, p in named}
        optimiser.step()
        losses.append(accelerator.reduce(loss.detach(), "mean"))
    return {**found, "losses": torch.stack(losses), **tuned_state(accelerator.unwrap_model(model))}


def sharded(arch: str, rank: int, processes: int) -> dict[str, Tensor]:
    """One forward and backward under FSDP2, each layer a unit, then the whole; or the plain model where there is one process."""
    model = without_dropout(attached(arch, "unipelt-apl", dtype=torch.float32, attn="sdpa")).train()
    given = tiny.inputs(arch, model, batch=4, pads=(0, 2, 3, 1))
    mine = slice(rank * 4 // processes, (rank + 1) * 4 // processes)
    if processes > 1:
        from torch.distributed.fsdp import fully_shard

        for stack in stacks(model):
            for layer in stack.layers:
                fully_shard(model.get_submodule(layer.path))
        fully_shard(model)
        assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in mixture_state(model).parameters())
    logits = model(**{name: value[mine] for name, value in given.items()}).logits
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 1])[mine]).backward()
    return {"logits": logits.detach()} | {name: whole(p.grad) for name, p in mixture_state(model).named_parameters()}


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    result = {"loop": trained_by_loop(), "trainer": trained_by_trainer(folder, processes=2)}
    if find_spec("trl"):
        result["sft"] = trained_by_sft(folder, processes=2)
        shard_on_cpus()
        result["sft in shards"] = trained_by_sft(folder, processes=2, shards=True)
    assert dist.get_world_size() == 2
    result |= {arch: sharded(arch, dist.get_rank(), 2) for arch in FSDP}
    torch.save(result, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
