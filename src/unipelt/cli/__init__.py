"""The command line: one file per command. Nothing here imports torch before a command runs, so `--help` is quick."""

import ctypes
import sys
import traceback

import typer

import unipelt
from unipelt.cli.help import Command, Group, click_error
from unipelt.cli.output import never_fail
from unipelt.errors import UserError, out_of_memory

WordsError = click_error("ClickException")  # what typer raises for a wrong option
SEVERAL = ("--data", "--train-rows", "--k", "--methods", "--lr", "--values")
"""options of studies that take several values"""
STOPPED = 130  # the exit code of a command that Ctrl-C ended, by convention of shells
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next step; given back to the system, it would come page by page, zeroed.

    That took up to a fifth of the CPU time of a training on MiniLM. Other C libraries than glibc are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**28)


def _version(requested: bool) -> None:
    if requested:
        print(f"unipelt {unipelt.__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The application with all its commands."""
    from unipelt.cli import architectures, compare, export, inspect, methods, predict, report, study, train

    app = typer.Typer(
        name="unipelt", cls=Group, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback(cls=Group)(_before)
    for module in (methods, architectures, train, compare, predict, inspect, export, report):
        app.command(cls=Command)(getattr(module, module.__name__.rsplit(".", 1)[-1]))
    app.add_typer(study.app, name="study", cls=Group)
    return app


def repeat_flags(arguments: list[str]) -> list[str]:
    """Rewrite `--k 100 500` as click reads it, `--k 100 --k 500`, for the options of studies that take several values."""
    if not arguments or arguments[0] not in ("study", "compare"):
        return arguments
    rewritten: list[str] = []
    flag, taken = "", 0
    for argument in arguments:
        if argument.startswith("--"):
            flag, taken = argument, 0
        elif flag in SEVERAL:
            rewritten += [flag] if taken else []
            taken += 1
        rewritten.append(argument)
    return rewritten


def _before(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="print the version"),
) -> None:
    """Tune a frozen language model with adapters, prefixes, LoRA, biases, or gated mixtures of them.

    Examples:
        unipelt compare --data reviews.csv --text-column review --label-column stars --minutes 20 --out results/reviews
        unipelt train --data reviews.csv --method 'lora(r=16)' --out runs/reviews
        unipelt predict runs/reviews --data new.csv --out answers.csv
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line. A user's mistake is one line and exit code 2; `--debug` shows its traceback too."""
    never_fail()
    keep_freed_memory()
    argv = sys.argv[1:] if argv is None else argv
    arguments = [argument for argument in argv if argument != "--debug"]
    try:
        words = [*arguments, "--help"] if arguments in ([], ["study"]) else repeat_flags(arguments)
        code = build()(args=words, prog_name="unipelt", standalone_mode=False)
    except UserError as error:
        code = _refuse(str(error), debug=len(arguments) < len(argv))
    except WordsError as error:  # type: ignore[misc]
        message, context = error.format_message().rstrip("."), getattr(error, "ctx", None)  # type: ignore[attr-defined]
        message += "" if message.endswith("?") else ";"
        code = _refuse(f"{message} see `{context.command_path if context else 'unipelt'} --help`")
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # the reader of a pipe, such as `| head`, has ended
        code = 0
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        code = _refuse(f"{message}; files written before are kept", debug=len(arguments) < len(argv))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        message = "not enough memory; use a smaller --batch-size or --max-length, or a smaller method or base"
        code = _refuse(message, debug=len(arguments) < len(argv))
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    if code == STOPPED:
        resumes = arguments[:1] in (["train"], ["compare"], ["study"])
        again = "; run the same command again to continue" if resumes else ""
        print(f"unipelt: stopped{again}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str, debug: bool = False) -> int:
    """Print one line that says what is wrong, and return the exit code of a user's mistake."""
    if debug:
        traceback.print_exc()
    print(f"unipelt: {' '.join(message.split())}", file=sys.stderr)
    return 2
