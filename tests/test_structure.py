"""The layout of the project: imports point one way, packages import only what they may, and files stay small."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import unipelt

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((SOURCE / "unipelt").rglob("*.py"))}

MAY_IMPORT = {  # each package, and those that it may import
    "errors": (),
    "spec": ("errors",),
    "forms": ("spec", "errors"),
    "inject": ("forms", "spec", "errors"),
    "checkpoint": ("inject", "forms", "spec", "errors"),
    "data": ("errors",),
    "tasks": ("checkpoint", "inject", "data", "errors"),
    "train": ("tasks", "checkpoint", "inject", "forms", "spec", "data", "errors"),
    "study": ("train", "tasks", "checkpoint", "inject", "forms", "spec", "data", "errors"),
    "report": ("study", "train", "tasks", "checkpoint", "spec", "data", "errors"),
    "cli": ("report", "study", "train", "tasks", "checkpoint", "inject", "forms", "spec", "data", "errors"),
    "__main__": ("cli",),
    "unipelt": (),
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in FILES}


def package_of(module: str) -> str:
    return [*module.split("."), "unipelt"][1]


def imports(tree: ast.AST) -> set[str]:
    """Every module that a file imports, in functions too; `unipelt.attach` counts as the module that has it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name != "unipelt"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written out"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else behind(node.module or "", alias.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "unipelt":
            found.add(behind("unipelt", node.attr))
    return found - {"unipelt"}


def behind(module: str, name: str) -> str:
    return f"unipelt.{unipelt._WHERE[name]}" if module == "unipelt" and name in unipelt._WHERE else module


def at_top(tree: ast.Module) -> set[str]:
    return imports(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path):
    package = package_of(name_of(path))
    for module in imports(FILES[path]):
        if module.split(".")[0] == "unipelt" and package_of(module) != package:
            assert package_of(module) in MAY_IMPORT[package], (
                f"{name_of(path)} imports {module}: {package} may not import it"
            )


def test_no_import_cycle():
    graph = {name: {module for module in at_top(FILES[path]) if module in NAMES} for name, path in NAMES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("unipelt.errors") < order.index("unipelt.cli")


def test_spec_uses_the_standard_library_only():
    for path, tree in FILES.items():
        if package_of(name_of(path)) in ("spec", "errors"):
            foreign = {module.split(".")[0] for module in imports(tree)} - sys.stdlib_module_names - {"unipelt"}
            assert not foreign, f"{name_of(path)} imports {foreign}"


def test_data_imports_no_model_library():
    for path, tree in FILES.items():
        if package_of(name_of(path)) == "data":
            known = {module.split(".")[0] for module in imports(tree)}
            assert not known & {"torch", "transformers", "accelerate", "safetensors"}, name_of(path)
    code = "import sys, unipelt.spec, unipelt.data, unipelt.tasks.metrics, unipelt.train.records; assert not {'torch', 'transformers'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_inject_imports_transformers_model_code():
    for path, tree in FILES.items():
        inside = [
            module for module in imports(tree) if module.startswith("transformers.m")
        ]  # models, masking, modeling
        assert not inside or package_of(name_of(path)) == "inject", f"{name_of(path)} imports {inside}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_small_and_says_what_it_is(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, "move one idea to a file of its own"
    assert ast.get_docstring(FILES[path]) or not path.read_text(encoding="utf-8").strip()


def test_no_file_names_a_path_of_this_machine():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("no git here")
    paths = [str(ROOT), str(ROOT.parent), str(Path.home())]
    for name in names.stdout.splitlines():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        for path in paths:
            assert path + "/" not in text or len(path) < 3, f"{name} names {path}"


def test_every_public_name_is_there():
    assert set(unipelt.__all__) == set(dir(unipelt)) == set(unipelt._WHERE)
    for name in unipelt.__all__:
        value = getattr(unipelt, name)
        assert value is getattr(import_module(f"unipelt.{unipelt._WHERE[name]}"), name)
    assert unipelt.__version__ in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        unipelt.atach  # noqa: B018
