"""Memory of one training step, told apart: weights, gradients, optimiser state, and what the backward pass keeps.

    python benchmarks/memory.py [--batch 8 --length 128] [--methods …]

BERT-base shape, random weights, float32, AdamW. Activations are the distinct storages that autograd saves, those of
parameters and inputs apart; on a GPU the allocator's own peak stands beside the sum.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--methods", nargs="*", default=["unipelt-apl", "lora", "adapter", "prefix", "bitfit", "head"])
    given = parser.parse_args()

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import unipelt

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(5, 30_000, (given.batch, given.length), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(given.batch, device=device) % 2

    def megabytes(count: float) -> str:
        return f"{count / 2**20:,.1f}"

    print(f"BERT-base shape, float32, {given.batch}×{given.length}, AdamW, {device}, torch {torch.__version__}; MiB\n")
    print(
        "| method | weights | gradients | optimiser | activations | sum | sum / full | allocator's peak |\n|---|---|---|---|---|---|---|---|"
    )
    whole = 0.0
    for method in ["full", *given.methods]:
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig()).to(device).train()
        if method != "full":
            unipelt.attach(model, method)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-4)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()} | {ids.untyped_storage().data_ptr()}
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept, own=own):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        activations = sum(kept.values())
        loss.backward()
        optimiser.step()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in trained if p.grad is not None)
        states = sum(
            v.numel() * v.element_size() for s in optimiser.state.values() for v in s.values() if torch.is_tensor(v)
        )
        total = weights + gradients + states + activations
        whole = whole or total
        peak = megabytes(torch.cuda.max_memory_allocated()) if device == "cuda" else "not on a CPU"
        cells = " | ".join(megabytes(part) for part in (weights, gradients, states, activations, total))
        print(f"| {method} | {cells} | {total / whole:.2f} | {peak} |", flush=True)
        del model, optimiser, trained, loss, kept


if __name__ == "__main__":
    main()
