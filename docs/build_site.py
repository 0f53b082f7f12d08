"""Builds the documentation site: `make docs`. Raises where a link is broken or mkdocs warns.

The site's sources keep the repository's layout, so links between README, docs and examples hold in both places. Three pages are
made here: the help of every command, the Python interface from the docstrings, and every message.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import messages

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
COPIED = ("docs/*.md", "docs/*.svg", "docs/*.png", "examples/README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    sources = {path: path.relative_to(ROOT) for pattern in COPIED for path in ROOT.glob(pattern)}
    sources[ROOT / "README.md"] = Path("index.md")
    for source, target in sources.items():
        copy = PAGES / target
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            copy.write_text(linked(source.read_text(encoding="utf-8"), source, sources), encoding="utf-8")
        else:
            shutil.copy(source, copy)
    (PAGES / "docs" / "commands.md").write_text(commands(), encoding="utf-8")
    (PAGES / "docs" / "interface.md").write_text(interface(), encoding="utf-8")
    (PAGES / "docs" / "messages.md").write_text(messages.page(), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"], check=True, cwd=ROOT, env=environment
    )
    print(f"{ROOT / 'build' / 'site' / 'index.html'}: written")


def linked(text: str, source: Path, sources: dict[Path, Path]) -> str:
    """A page whose links to files outside the site become plain text. Raises ValueError for a link to a missing file."""

    def link(match: re.Match) -> str:
        label, address, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", address) or not address:
            return match[0]
        target = (source.parent / address).resolve()
        if not target.exists():
            raise ValueError(f"{source.relative_to(ROOT)}: the link {address!r} leads nowhere")
        if target not in sources:
            return f"{label.strip('![]')} (`{target.relative_to(ROOT)}`)"
        return f"{label}({os.path.relpath(sources[target], sources[source].parent)}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # every second part is code
    prose = [re.sub(r"(!?\[[^\]]*\])\(([^)#\s]*)(#[^)]*)?\)", link, part) for part in parts[::2]]
    return "".join(one + two for one, two in zip(prose, [*parts[1::2], ""]))


def commands() -> str:
    """The help page of every command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "90", "PYTHONIOENCODING": "utf-8"}
    sections = ["# Command line\n"]
    for words in every_command():
        shown = [sys.executable, "-m", "unipelt", *words, "--help"]
        page = subprocess.run(
            shown, check=True, capture_output=True, text=True, encoding="utf-8", env=environment
        ).stdout
        sections.append(f"## {' '.join(('unipelt', *words))}\n\n```text\n{page}```\n")
    return "\n".join(sections)


def every_command() -> Iterator[tuple[str, ...]]:
    import typer

    from unipelt.cli import build

    group: Any = typer.main.get_command(build())
    yield ()
    for name, command in group.commands.items():
        yield (name,)
        yield from ((name, inner) for inner in getattr(command, "commands", {}))


def interface() -> str:
    """The public names, each with its docstring."""
    import unipelt

    functions = [name for name in unipelt.__all__ if name[0].islower()]
    classes = [name for name in unipelt.__all__ if name[0].isupper() and name != name.upper()]
    sections = ["# Python interface\n\n`import unipelt` loads each name when it is first used.\n"]
    for title, names in (("Functions", functions), ("Classes", classes)):
        paths = [f"::: unipelt.{unipelt._WHERE[name]}.{name}\n" for name in names]
        sections.append(f"## {title}\n\n" + "\n".join(paths))
    return "\n".join(sections)


if __name__ == "__main__":
    main()
