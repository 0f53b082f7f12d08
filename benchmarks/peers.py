"""Full fine-tuning, `peft`, `adapters` and ours: training step, inference and memory, interleaved, in one command.

    python benchmarks/peers.py                                      # what this machine can: its shapes, its modes
    python benchmarks/peers.py --shapes bert-base-8x128 --modes eager --python adapters=ENV/bin/python
    python benchmarks/peers.py --offline --path adapters=FOLDER --fleet 64 --jobs 8 --shapes bert-base-16x128 bert-base-16xglue

Each model is a process of its own (benchmarks/steps.py) that takes its turns: a round is one turn of every model, so that the
machine's drift cancels, and a ratio is the median over rounds of the ratio within the round. Training is beside full
fine-tuning's, inference beside the plain model's, in the same mode. A library is looked for in the Python that is named, in this
one, and in build/peers/LIBRARY, which is made where it is missing, unless --offline. Random weights. Writes build/peers.json and build/peers.md.

On a CPU: one thread, float32, CPU seconds of the process, in which other processes do not count; memory is the most that the
process was resident with, beyond what it held when its libraries were imported. On a GPU: AdamW fused, products in bfloat16
(autocast over float32 weights, unless --precision says else), seconds from idle GPU to idle GPU over ten steps; memory is the most
that torch had allocated.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
LLAMA = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192,
}  # fmt: skip
# tokens of 16 rows of GLUE's train sets each, sst2, stsb, mrpc and rte: random.seed(0), random.sample, BERT's uncased WordPiece, at most 128
GLUE = [
    [9, 9, 5, 6, 5, 13, 5, 10, 22, 4, 16, 7, 12, 12, 12, 4],
    [61, 51, 22, 21, 21, 20, 31, 48, 19, 54, 25, 35, 22, 14, 34, 28],
    [46, 39, 73, 44, 65, 69, 56, 65, 54, 59, 68, 41, 64, 63, 64, 61],
    [40, 126, 37, 43, 39, 128, 128, 37, 26, 22, 27, 128, 52, 36, 62, 31],
]
SHAPES = {
    "tiny-bert": {"family": "bert", "sizes": TINY, "batches": [[8] * 2]},
    "tiny-bert-lengths": {"family": "bert", "sizes": TINY, "batches": [[3, 5], [16, 9]]},
    "tiny-llama": {"family": "llama", "sizes": TINY | {"num_key_value_heads": 2}, "batches": [[8] * 2]},
    "bert-base-8x128": {"family": "bert", "sizes": {}, "batches": [[128] * 8]},
    "bert-base-16x128": {"family": "bert", "sizes": {}, "batches": [[128] * 16]},
    "bert-base-128x128": {"family": "bert", "sizes": {}, "batches": [[128] * 128]},
    "bert-base-16xglue": {"family": "bert", "sizes": {}, "batches": GLUE},
    "llama-1b-8x512": {"family": "llama", "sizes": LLAMA, "batches": [[512] * 8]},
}
USUAL = {  # where nothing is named
    "cpu": (["bert-base-8x128", "bert-base-16xglue"], ["eager", "compiled"]),
    "cuda": (["bert-base-16x128", "bert-base-128x128", "bert-base-16xglue", "llama-1b-8x512"], ["eager", "compiled", "graph", "compiled graph"]),
}  # fmt: skip
MODES = USUAL["cuda"][1]  # graph: forward, backward and optimiser, captured and replayed as one CUDA graph
MAIN = ["full", "adapter", "prefix", "lora", "unipelt-ap", "unipelt-apl"]
REFERENCE = ("transformers", "full")
METHODS = {
    "transformers": ["full", "frozen"],
    "peft": ["lora", "lora-all-linear"],
    "adapters": MAIN,  # its full: the plain model of the transformers that it is pinned to
    "unipelt": [
        *MAIN[1:], "lora-all-linear", "unipelt-ap-nogate", "unipelt-apl-nogate", "unipelt-central", "houlsby", "prefix-first-layer", "prompt", "bitfit", "head",
        "parallel-adapter", "scaled-parallel-adapter", "multi-head-parallel-adapter", "mam", "compacter", "dora", "ia3",
    ],
}  # fmt: skip
HOME = {
    "transformers": "unipelt",
    "peft": "unipelt",
    "adapters": "adapters",
    "unipelt": "unipelt",
}  # library: its environment
REQUIREMENTS = {  # of an environment that is made; torch is the same in both
    "unipelt": ["-c", str(ROOT / "constraints.txt"), "-e", str(ROOT), "peft"],
    "adapters": ["adapters==1.3.0", "transformers==4.57.6"],
}


class Model:
    """One process that takes its turns: a library's model of one method, in one mode."""

    def __init__(self, given: dict[str, Any], python: str, environment: dict[str, str], log: Path, patience: float):
        self.log, self.patience = log, patience
        self.name = given["library"], given["method"], given["runs"]
        self.taken: dict[str, list[float]] = {"train": [], "infer": []}
        self.said: dict[str, Any] = {"failed": {}}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("steps.py")), json.dumps(given)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, env=environment,
            )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """Its next answer; a process that gives none in time, or dies, has failed in everything."""
        timer, began = threading.Timer(self.patience, self.process.kill), time.monotonic()
        timer.start()
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        timer.cancel()
        if line:
            return json.loads(line)
        if time.monotonic() - began >= self.patience:
            why = f"no answer in {self.patience:g} s"
        else:
            said = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            why = f"ended with {self.process.wait()}: {said[-1][:120]}".replace("|", "/")
        return {"failed": dict.fromkeys(("train", "infer"), why)}

    def ready(self) -> "Model":
        self.said = self.hear()
        if len(self.said["failed"]) == 2:
            self.end()  # it holds memory that others want
        return self

    def turn(self, kind: str) -> None:
        if kind in self.said["failed"]:
            return
        self.process.stdin.write(kind + "\n")  # type: ignore[union-attr]
        said = self.hear()
        self.taken[kind].append(said.get("seconds", 0.0))
        self.said["failed"] |= said["failed"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()  # type: ignore[union-attr]

    def row(self, reference: "Model | None") -> dict[str, Any]:
        """What is kept of it: medians, and ratios to the reference within each round."""
        found: dict[str, Any] = dict(zip(("library", "method", "runs"), self.name)) | self.said
        for kind, seconds in self.taken.items():
            if kind in self.said["failed"] or not seconds:
                continue
            found |= {f"{kind}_seconds": median(seconds), f"{kind}_turns": seconds}
            if reference is not None and kind not in reference.said["failed"]:
                ratios = [mine / theirs for mine, theirs in zip(seconds, reference.taken[kind])]
                found |= {f"{kind}_ratio": median(ratios), f"{kind}_range": [min(ratios), max(ratios)]}
        if reference is not None and "memory" in found and reference.said.get("memory"):
            found["memory_ratio"] = found["memory"] / reference.said["memory"]
        return found


class Environments:
    """Which Python has which library."""

    def __init__(self, given: argparse.Namespace):
        self.offline, self.work, self.torch = given.offline, given.work, ""
        self.pythons = dict(pair.split("=", 1) for pair in given.python)
        self.paths = dict(pair.split("=", 1) for pair in given.path)

    def variables(self, library: str) -> dict[str, str]:
        source = str(ROOT / "src") if library == "unipelt" else ""
        folders = [self.paths.get(library, ""), source, os.environ.get("PYTHONPATH", "")]
        single = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return os.environ | single | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}

    def has(self, python: str, library: str) -> bool:
        """Whether this Python has the library, and torch, whose version is remembered."""
        code = (
            "import sys; from importlib import metadata, util; print(metadata.version('torch')); "
            f"sys.exit(util.find_spec({library!r}) is None)"
        )
        try:
            asked = subprocess.run([python, "-c", code], env=self.variables(library), capture_output=True, text=True)
        except OSError:
            return False
        if asked.returncode == 0:
            self.torch = self.torch or asked.stdout.split("+")[0].strip()
        return asked.returncode == 0

    def python(self, library: str) -> str:
        """The Python of a library. Raises LookupError, with the reason, where there is none."""
        home = HOME[library]
        named = self.pythons.get(library) or self.pythons.get(home)
        if named:
            if self.has(named, library):
                return named
            raise LookupError(f"{named} does not have it")
        own = str(self.work / home / "bin" / "python")
        for python in (sys.executable, own):
            if self.has(python, library):
                return python
        hint = f"name an environment that has it: --python {home}=ENV/bin/python"
        if self.offline:
            raise LookupError(f"{sys.executable} does not have it, and --offline makes no environment; {hint}")
        tell(f"{library}: making {self.work / home}")
        torch = f"torch=={self.torch}" if self.torch else "torch"
        install = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch, *REQUIREMENTS[home]]
        for command in ([sys.executable, "-m", "venv", str(self.work / home)], install):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                last = (done.stdout.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:160]
                raise LookupError(f"its environment could not be made ({last}); {hint}")
        return own


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(models: Sequence[Callable[[], Model]], rounds: int, jobs: int) -> list[dict[str, Any]]:
    """Rows of one shape in one mode: every model is made ready, then they take their turns."""
    started: list[Model] = []

    def start(make: Callable[[], Model]) -> Model:
        model = make()
        started.append(model)
        tell(f"  {label(*model.name)}: {said_of(model.ready().said['failed']) or 'ready'}")
        return model

    with ThreadPoolExecutor(jobs) as pool:
        try:
            ready = list(pool.map(start, models))
            for turn in range(rounds):
                for kind in ("train", "infer"):
                    for model in ready:
                        model.turn(kind)
                tell(f"  round {turn + 1} of {rounds}")
            reference = next((model for model in ready if model.name == (*REFERENCE, 1)), None)
            return [model.row(reference) for model in ready]
        finally:  # before the pool waits for its threads, which wait for these
            for model in started:
                model.end()


def label(library: str, method: str, runs: int) -> str:
    return f"{library} {method}" + (f" × {runs}" if runs > 1 else "")


def said_of(failed: dict[str, str]) -> str:
    """What failed, in few words; the same reason once."""
    reasons: dict[str, list[str]] = {}
    for kind, reason in failed.items():
        reasons.setdefault(reason, []).append(kind)
    return "; ".join(f"{' and '.join(kinds)} failed: {reason}" for reason, kinds in reasons.items())


def table(rows: list[dict[str, Any]]) -> str:
    """One Markdown table of one shape; a row that failed says what failed."""
    lines = [
        "| | mode | trained | training step, ms | ÷ full | inference, ms | ÷ plain | training's memory, MiB | ÷ full | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [label(row["library"], row["method"], row["runs"]), row["mode"]]
        cells.append(f"{row['parameters']:,}" if "parameters" in row else "")
        for kind in ("train", "infer"):
            cells.append(f"{row[f'{kind}_seconds'] * 1000:,.1f}" if f"{kind}_seconds" in row else "")
            ratio = f"{row[f'{kind}_ratio']:.2f} ({row[f'{kind}_range'][0]:.2f}–{row[f'{kind}_range'][1]:.2f})" if f"{kind}_ratio" in row else ""  # fmt: skip
            cells.append(ratio)
        cells.append(f"{row['memory'] / 2**20:,.0f}" if "memory" in row else "")
        cells.append(f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "")
        cells.append("; ".join(part for part in (said_of(row["failed"]), row.get("note", "")) if part))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """The tables, with what they were measured on."""
    facts = found["facts"]
    parts = [
        f"{facts['machine']}, {facts['precision']}, {', '.join(facts['versions'])}; {facts['date']}, commit {facts['commit']}; "
        f"{facts['rounds']} rounds, the machine's load average at the end {facts['load']}. "
        "Ratios: median (lowest–highest) over the rounds; a fleet's times are a run's, its memory the whole fleet's."
    ]
    for library, why in found["missing"].items():
        parts.append(f"Missing: `{library}`: {why}.")
    for shape in dict.fromkeys(row["shape"] for row in found["rows"]):
        parts += [f"**{shape}**", table([row for row in found["rows"] if row["shape"] == shape])]
    return "\n\n".join(parts) + "\n"


def facts_of(given: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the numbers were measured on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    machine = [row["machine"] for row in rows if "machine" in row] or ["unknown"]
    versions = {f"{library} {number}" for row in rows for library, number in row.get("versions", {}).items()}
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "machine": machine[0], "precision": given.precision, "versions": sorted(versions), "date": time.strftime("%Y-%m-%d"),
        "commit": commit or "unknown", "rounds": given.rounds, "load": load, "command": sys.argv[1:],
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="not given: the usual ones of the device")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="not given: those of the device")
    parser.add_argument("--methods", nargs="+", default=["main"], help=f"main ({', '.join(MAIN)}), all, or names")
    parser.add_argument("--libraries", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument(
        "--fleet", type=int, default=0, help="beside each of ours a fleet of so many runs, trained as a study does"
    )
    parser.add_argument("--apart", action="store_true", help="one method after another, each beside a full fine-tuning of its own: less memory")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="models made ready at once; they are timed one by one")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="not given: the GPU if torch sees one")
    parser.add_argument("--precision", choices=["float32", "autocast", "bfloat16"])
    parser.add_argument("--python", nargs="*", default=[], metavar="LIBRARY=PYTHON", help="a Python that has it")
    parser.add_argument("--path", nargs="*", default=[], metavar="LIBRARY=FOLDER", help="packages that come first")
    parser.add_argument("--offline", action="store_true", help="make no environment")
    parser.add_argument("--patience", type=float, default=600, help="seconds until an answer is given up")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "peers", help="where environments and logs are")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="where peers.json and peers.md are written")
    given = parser.parse_args()
    known = {"main", "all", *(method for methods in METHODS.values() for method in methods)}
    for method in given.methods:
        if method not in known:
            parser.error(f"--methods {method}: expected one of {', '.join(sorted(known))}")
    for flag in ("python", "path"):
        for pair in getattr(given, flag):
            if pair.split("=")[0] not in METHODS or "=" not in pair:
                parser.error(f"--{flag} {pair}: expected LIBRARY=…, a library of {', '.join(METHODS)}")
    return given


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the models' processes end too
    given.work.mkdir(parents=True, exist_ok=True)
    environments = Environments(given)
    pythons: dict[str, str] = {}
    missing: dict[str, str] = {}
    for library in given.libraries:
        try:
            pythons[library] = environments.python(library)
        except LookupError as error:
            missing[library] = str(error)
            tell(f"{library} is missing: {error}")
    if not pythons:
        raise SystemExit(f"nothing to measure: none of {', '.join(given.libraries)} is here")
    device = given.device or seen_by(next(iter(pythons.values())))
    given.precision = given.precision or {"cpu": "float32", "cuda": "autocast"}[device]
    usual_shapes, usual_modes = USUAL[device]
    for mode in given.modes or usual_modes:
        if "graph" in mode and device == "cpu":
            raise SystemExit(f"--modes {mode}: a CUDA graph needs a GPU; expected {' or '.join(usual_modes)}")
    every = dict.fromkeys(method for library in pythons for method in METHODS[library])
    groups = {"main": [*MAIN, "frozen"], "all": [*every]}
    methods = [*dict.fromkeys(name for given_name in given.methods for name in groups.get(given_name, [given_name]))]
    together = [[method] for method in methods if method != REFERENCE[1]] if given.apart else [methods]

    fleets = {"cpu": "eager", "cuda": "graph"}[device]  # as a study trains them
    if given.fleet and fleets not in (given.modes or usual_modes):
        raise SystemExit(
            f"--fleet {given.fleet}: is measured in mode {fleets} alone, as a study trains; add that to --modes"
        )

    rows: list[dict[str, Any]] = []
    for shape, mode, group in product(given.shapes or usual_shapes, given.modes or usual_modes, together):
        tell(f"{shape}, {mode}" + (f", {group[0]}" if given.apart else ""))
        chosen = [
            (library, method, 1) for library in pythons for method in METHODS[library] if method in group or (library, method) == REFERENCE
        ]  # fmt: skip
        if given.fleet and mode == fleets:
            chosen += [("unipelt", method, given.fleet) for library, method, _ in chosen if library == "unipelt"]

        def model(library: str, method: str, runs: int, shape: str = shape, mode: str = mode) -> Model:
            asked = {"library": library, "method": method, "runs": runs, "shape": SHAPES[shape], "mode": mode}
            asked |= {"device": device, "precision": given.precision}
            log = given.work / f"{library}-{method}-{runs}-{shape}-{mode.replace(' ', '-')}.log"
            return Model(asked, pythons[library], environments.variables(library), log, given.patience)

        measured = measure([partial(model, *one) for one in chosen], given.rounds, given.jobs)
        rows += [{"shape": shape, "mode": mode} | row for row in measured]
        found = {"facts": facts_of(given, rows), "missing": missing, "rows": rows}
        given.out.mkdir(parents=True, exist_ok=True)  # after each part: what is known so far
        (given.out / "peers.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (given.out / "peers.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def seen_by(python: str) -> str:
    code = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
