"""Training step and inference on the CPU as ratios, in one run: full fine-tuning, a frozen base, ours; `adapters` beside it.

    python benchmarks/cpu.py [--rounds 7] [--methods lora 'unipelt-apl(layers=6-11)'] [--bf16] [--fix-gates] [--peer-python ENV/bin/python]

Inference is that of a written checkpoint, whose prefix has no MLP. `--bf16`: every variant also with bf16 matrix products
(autocast), ÷ float32, with the attention that the training loop chooses for them, and `peft` LoRA of the same size, as it comes.

BERT-base shape, random weights, float32, 8 rows of 128 tokens, one thread. The variants take turns, a round each; a ratio is
the median over rounds of the ratio within the round, so that the machine's drift cancels. Seconds are the process's own CPU
seconds, in which other processes of the machine do not count (one thread: CPU seconds are what an idle machine would take). `--peer-python` names the Python
of an environment with `adapters` 1.3.0, which takes its turns in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

BATCH, LENGTH = 8, 128
PEER = """
import sys, time, torch, transformers, adapters
from adapters import AutoAdapterModel, UniPELTConfig, PrefixTuningConfig, SeqBnConfig, LoRAConfig
torch.set_num_threads(1); torch.manual_seed(0)
model = transformers.BertForSequenceClassification(transformers.BertConfig())
adapters.init(model); model.add_adapter("a", config=UniPELTConfig()); model.train_adapter("a"); model.set_active_adapters("a")
ids = torch.randint(5, 30000, (8, 128)); mask = torch.ones_like(ids); labels = torch.randint(0, 2, (8,))
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
def train(half):
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half): loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward(); optimiser.step(); optimiser.zero_grad()
def infer(half):
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half): model(input_ids=ids, attention_mask=mask)
for line in sys.stdin:
    kind, half = line.split(); step = {"train": train, "infer": infer}[kind]
    start = time.process_time(); step(half == "bf16"); print(time.process_time() - start, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-python")
    parser.add_argument("--bf16", action="store_true", help="every variant also with bf16 matrix products")
    parser.add_argument("--fix-gates", action="store_true", help="inference of gated methods with every gate fixed too")
    parser.add_argument("--methods", nargs="*", default=["unipelt-apl", "lora", "adapter", "prefix"])
    given = parser.parse_args()

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import unipelt
    from unipelt.inject.state import mixture_state
    from unipelt.spec import mixture
    from unipelt.study.efficiency import inference_step, training_step
    from unipelt.train.forward import cast_frozen_weights, choose_attention

    torch.set_num_threads(1)

    def model(method: str | None, precision: str = "fp32"):
        torch.manual_seed(0)
        made = BertForSequenceClassification(BertConfig())
        if method is not None:
            unipelt.attach(made, method)
        choose_attention(made, precision, LENGTH)
        if method is not None:
            cast_frozen_weights(made, precision)
        return made

    def written(method: str, precision: str = "fp32"):
        """As a checkpoint has it: a prefix without its MLP."""
        has_mlp = any(getattr(change.form, "mlp", 0) for change in mixture(method).changes)
        plain = method.removesuffix(")") + (", " if method.endswith(")") else "(") + "mlp=0)"
        return model(plain if has_mlp else method, precision)

    ids = torch.randint(5, 30_000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}

    def frozen():
        """The floor: a frozen base with no change at all, whose backward still runs to its lowest layer."""
        made = model(None).requires_grad_(False)
        made.classifier.requires_grad_(True)
        made.bert.embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        return made

    full, tuned = model(None), {name: model(name) for name in given.methods}
    disabled = model("unipelt-apl")
    mixture_state(disabled).remove_hooks()
    mixture_state(disabled).kernels.restore()
    models = {"full": full, **tuned}
    for_inference = {"fp32": {name: written(name) for name in tuned}}
    half_models = {name: model(None if name == "full" else name, "bf16") for name in models} if given.bf16 else {}
    if given.bf16:
        from peft import LoraConfig, get_peft_model

        plain = model(None)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
        for_inference["bf16"] = {name: written(name, "bf16") for name in tuned}
        models["peft lora"] = half_models["peft lora"] = get_peft_model(plain, lora)  # type: ignore[arg-type]
    variants = {}
    for precision in ("fp32", "bf16") if given.bf16 else ("fp32",):
        end = " bf16" if precision == "bf16" else ""
        if not end:
            variants["train frozen base"] = training_step(frozen(), rows)
            variants["infer disabled"] = inference_step(disabled, rows)
        for name, made in (half_models if end else models).items():
            variants[f"train {name}{end}"] = training_step(made, rows, precision)
            inferred = for_inference[precision].get(name, made)
            variants[f"infer {'plain' if name == 'full' else name}{end}"] = inference_step(inferred, rows, precision)
    for name in given.methods if given.fix_gates else ():
        fixed = model(name)
        if any(isinstance(change.weight, unipelt.Gate) for change in mixture_state(fixed).mixture.changes):
            unipelt.simplify_gates(fixed, [rows], max_deviation=1, drop_below=0)
            variants[f"infer {name} gates fixed"] = inference_step(fixed, rows)
    times: dict[str, list[float]] = {name: [] for name in variants}
    peer = None
    if given.peer_python:
        peer = subprocess.Popen(
            [given.peer_python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        halves = ("fp32", "bf16") if given.bf16 else ("fp32",)
        asked_of = {
            f"{kind} adapters APL{' bf16' * (half == 'bf16')}": f"{kind} {half}"
            for kind in ("train", "infer")
            for half in halves
        }
        times |= {name: [] for name in asked_of}

    for turn in range(given.rounds + 1):  # the first warms up
        for name, step in variants.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
        if peer is not None:
            for name, asked in asked_of.items():
                peer.stdin.write(asked + "\n")
                peer.stdin.flush()
                times[name].append(float(peer.stdout.readline()))
        print(f"round {turn} of {given.rounds}", file=sys.stderr, flush=True)
    if peer is not None:
        peer.stdin.close()
        peer.wait()

    print(f"BERT-base shape, float32, {BATCH}×{LENGTH}, one thread, torch {torch.__version__}\n")
    print("| variant | median s | ratio | lowest | highest |\n|---|---|---|---|---|")
    results = {}
    for name, taken in times.items():
        against = times["train full" if name.startswith("train") else "infer plain"]
        ratios = [a / b for a, b in zip(taken[1:], against[1:])]
        results[name] = statistics.median(ratios)
        print(
            f"| {name} | {statistics.median(taken[1:]):.3f} | {results[name]:.3f} | {min(ratios):.3f} | {max(ratios):.3f} |"
        )
    if given.bf16:
        half = {name: taken for name, taken in times.items() if name.endswith(" bf16")}
        print(
            "\n÷ the same in bf16: "
            + ", ".join(
                f"{name} {statistics.median(a / b for a, b in zip(taken[1:], times['train full bf16' if name.startswith('train') else 'infer plain bf16'][1:])):.3f}"
                for name, taken in half.items()
            )
        )
    print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
