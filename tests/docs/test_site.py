"""The documentation site builds: no broken link, no missing page, no warning of mkdocs."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import build_site
import first_commands

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install 'unipelt[docs]'")
def test_the_site_is_built():
    done = subprocess.run([sys.executable, ROOT / "docs" / "build_site.py"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    site = ROOT / "build" / "site"
    assert "unipelt train" in (site / "docs" / "commands" / "index.html").read_text(encoding="utf-8")
    assert 'id="unipelt.inject.attach.attach"' in (site / "docs" / "interface" / "index.html").read_text(
        encoding="utf-8"
    )


def test_a_link_that_leads_nowhere_is_refused():
    page = ROOT / "docs" / "page.md"
    with pytest.raises(ValueError, match=r"docs/page\.md: the link 'nowhere\.md' leads nowhere"):
        build_site.linked("[x](nowhere.md)", page, {})
    text = "```python\nf[0](nowhere)\n```\n[a](https://example.org) [b](#part) [c](design.md#words) [d](../Makefile)"
    found = build_site.linked(text, page, {page: Path("page.md"), ROOT / "docs" / "design.md": Path("deep/design.md")})
    assert found == text.replace("design.md", "deep/design.md").replace("[d](../Makefile)", "d (`Makefile`)")


def test_the_readmes_first_commands_are_those_of_make_demo():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = first_commands.first_commands(text)
    assert [command.split()[0] for command in commands] == ["unipelt", "printf", "unipelt"]
    assert [commands[0].split()[1], commands[2].split()[1]] == ["compare", "predict"]
    assert commands[2].split()[2] == re.search(r"--out (\S+)", commands[0])[1] + "/winner"  # type: ignore[index]
    assert commands[1].split()[-1] == commands[2].split()[-1], "the file that is made is the file that is read"
