"""How soon the command line is there, and what it does not load for it."""

import resource
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import unipelt

HEAVY = ("torch", "transformers", "numpy", "scipy", "sklearn", "pyarrow", "datasets", "matplotlib", "jinja2")
COMMAND = str(Path(sys.executable).with_name("unipelt"))


def seconds(*words: str, tries: int = 3) -> float:
    """Of the processor, the best of a few: a machine that does other things too says nothing by its clock."""
    best = float("inf")
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def loaded_by(code: str, packages: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of these packages a program has loaded at its end."""
    code += f"\nimport sys; print('loaded', *(name for name in {packages} if name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    return set(said.splitlines()[-1].split()[1:])


def calling(*lines: str) -> str:
    """A program that gives these command lines."""
    return f"""
from unipelt.cli import main
for line in {lines!r}:
    try:
        main(line.split())
    except SystemExit as ended:
        assert ended.code == 0, (line, ended.code)
"""


def test_help_is_there_in_half_a_second():
    limit = max(0.5, 35 * seconds(sys.executable, "-c", ""))  # on a slow machine, 35 bare starts of Python
    assert seconds(COMMAND, "--help") < limit
    assert seconds(COMMAND, "train", "--help") < limit


def test_the_version_is_told(run):
    assert run("--version").out == f"unipelt {unipelt.__version__}\n"


@pytest.mark.parametrize("words", [(), ("study",)])
def test_alone_it_says_what_there_is(words: tuple, run):
    alone, asked = run(*words), run(*words, "--help")
    assert alone == asked and "─ Commands " in alone.out and (alone.code, alone.err) == (0, "")


def test_the_help_of_export_has_the_defaults_of_fold(run):
    said = " ".join(run("export", "--help").out.replace("│", "").split())
    _, _, deviation, least, *_ = (
        parameter.default for parameter in signature(unipelt.simplify_gates).parameters.values()
    )
    assert f"become constants (default: {deviation})" in said and f"removed with its change (default: {least})" in said


def test_help_loads_nothing_heavy():
    commands = ("train", "predict", "inspect", "methods", "export", "report", "study", "study grid", "study sweep")
    program = calling("--help", *(f"{command} --help" for command in commands))
    assert loaded_by(program, (*HEAVY, "pydantic")) == set()


def test_the_package_costs_next_to_nothing_beside_transformers():
    code = "import time, transformers; t = time.process_time(); import unipelt; dir(unipelt); print(time.process_time() - t)"
    said = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert float(said) < 0.3
    assert loaded_by("import unipelt") == set()


def test_results_are_read_without_torch(finished):
    runs = [finished(method) for method in ("unipelt-apl", "full")]
    assert loaded_by(calling("methods", "methods --compatible", *(f"inspect {folder}" for folder in runs))) <= {
        "numpy"
    }, "safetensors'"
    read = "from pathlib import Path\nfrom unipelt.train.run_folder import read_record\n"
    assert loaded_by(read + f"assert read_record(Path({str(runs[0])!r})).done") == set()


def test_the_package_runs_as_the_command():
    given = [[COMMAND, "methods"], [sys.executable, "-m", "unipelt", "methods"]]
    command, module = (subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in given)
    assert command == module and "unipelt-apl" in command
