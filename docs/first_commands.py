"""Runs the first commands of the README in a folder, with the `unipelt` of this Python's environment.

python docs/first_commands.py FOLDER          runs them
python docs/first_commands.py --link FOLDER   lets a new environment import this environment's packages, unipelt apart
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def first_commands(text: str) -> list[str]:
    """The lines of the first shell block after the installation, continued lines joined."""
    (block, *_) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("make ")]


def link(environment: Path) -> None:
    """Make the packages of this environment importable in another; a path file does not follow editable installs."""
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")


def run(folder: Path) -> None:
    text = README.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    for command in first_commands(text):
        print(f"$ {command}", flush=True)
        subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    *option, folder = sys.argv[1:]
    (link if option == ["--link"] else run)(Path(folder))
