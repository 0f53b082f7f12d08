"""The command line: one file a command. Nothing here imports torch before a command runs, so `--help` is quick."""

import sys

import click
import typer

from unipelt.errors import UserError


def build() -> typer.Typer:
    """The application with all its commands."""
    from unipelt.cli import export, inspect, methods, predict, train

    app = typer.Typer(
        name="unipelt",
        help="Tune a frozen language model with every parameter-efficient method at once.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(epilog="--debug behind any command shows the traceback of an error.")(lambda: None)
    for module in (methods, train, predict, inspect, export):
        app.command()(getattr(module, module.__name__.rsplit(".", 1)[-1]))
    return app


def main() -> None:
    """Run the command line. A user's mistake is one line and exit code 2; `--debug` shows its traceback."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = build()(args=arguments, standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        print(f"unipelt: {error}", file=sys.stderr)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        print("unipelt: stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    except OSError as error:
        if debug:
            raise
        print(
            f"unipelt: {error.filename or ''} {error.strerror or error}; nothing written before is lost",
            file=sys.stderr,
        )
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
