"""Draws the two diagrams of docs/design.md as SVG files: `python docs/diagrams.py`. A test draws them again and compares.

packages.svg comes from the imports of the source; layer.svg is laid out here.
"""

import ast
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unipelt"
ABOUT = {
    "spec": "what a change is; the published methods",
    "forms": "the formulas, for many runs at once",
    "inject": "where changes go in a transformers model",
    "checkpoint": "folders on disk; peft, AdapterHub",
    "data": "files, GLUE, sampling; knows no model",
    "tasks": "encoding, loss, prediction, metric",
    "train": "the loop for one run or many; prediction",
    "study": "grids of runs and their store",
    "report": "statistics, tables, figures, the page",
    "cli": "one file per command",
}
BESIDE = ("data", "tasks")  # packages in the second column
STYLE = """<style>
text { font: 13px sans-serif; fill: #1b1f24; text-anchor: middle; dominant-baseline: middle }
.name { font-weight: bold } .small { font-size: 11px; fill: #57606a } .left { text-anchor: start }
rect { fill: #f6f8fa; stroke: #8c959f; rx: 5px } .change { fill: #ddf4ff; stroke: #0969da }
circle { fill: #fff8c5; stroke: #9a6700 } path { fill: none; stroke: #57606a; marker-end: url(#head) }
.blue { stroke: #0969da }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<polygon points="0,0 8,4 0,8" fill="#57606a"/></marker></defs>"""


def page(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            STYLE,
            f'<rect width="{width}" height="{height}" style="fill:white;stroke:none"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, *lines: str, kind: str = "") -> list[str]:
    """A box around a centre, with a bold first line and small further lines."""
    shape = f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width:g}" height="{height:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}/>'
    tops = [y + 16 * (place - (len(lines) - 1) / 2) for place in range(len(lines))]
    return [
        shape,
        *(text(x, top, line, "small" if place else "name") for place, (top, line) in enumerate(zip(tops, lines))),
    ]


def line(*points: tuple[float, float], kind: str = "") -> str:
    way = " L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M{way}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}/>'


@cache
def imports() -> dict[str, frozenset[str]]:
    """The packages that each package imports, by the import statements of its files."""
    found: dict[str, set[str]] = {name: set() for name in ABOUT}
    for path in SOURCE.rglob("*.py"):
        package = path.relative_to(SOURCE).parts[0]
        if package not in found:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [one.name for one in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                inner = (
                    [f"{name}.{one.name}" for one in node.names]
                    if name == "unipelt" and isinstance(node, ast.ImportFrom)
                    else [name]
                )
                found[package] |= {
                    parts[1] for parts in (one.split(".") for one in inner) if parts[0] == "unipelt" and len(parts) > 1
                }
    return {name: frozenset(targets & found.keys() - {name}) for name, targets in found.items()}


def reached(name: str) -> frozenset[str]:
    """The packages that a package imports, directly or through another."""
    direct = imports()[name]
    return direct.union(*(reached(one) for one in direct))


def packages() -> str:
    """Each package above those that it imports, at a height of its own in its column; an arrow that others imply is left out."""
    arrows = {
        name: {one for one in direct if not any(one in reached(other) for other in direct)}
        for name, direct in imports().items()
    }
    level: dict[str, int] = {}
    while len(level) < len(ABOUT):
        level |= {
            name: 1 + max((level[one] for one in imports()[name]), default=-1)
            for name in ABOUT
            if name not in level and imports()[name] <= level.keys()
        }
    step, width, height, top = 76, 290, 44, max(level.values())
    place = {name: (690 if name in BESIDE else 320, 40 + step * (top - level[name])) for name in ABOUT}
    parts = [arrow(place[a], place[b], width / 2, height / 2) for a in ABOUT for b in sorted(arrows[a])]
    parts += [one for name, (x, y) in place.items() for one in box(x, y, width, height, name, ABOUT[name])]
    return page(860, 80 + step * top, "Packages of unipelt and their imports", parts)


def arrow(source: tuple[float, float], target: tuple[float, float], half: float, rise: float) -> str:
    """An arrow between two boxes: straight down in a column, with a corner to the other one."""
    (x, y), (u, v) = source, target
    if x == u:
        return line((x, y + rise), (u, v - rise - 1))
    if x < u:
        return line((x + half, y), (u, y), (u, v - rise - 1))
    return line((x, y + rise), (x, v), (u + half + 1, v))


def layer() -> str:
    """One forward pass through a post-LN encoder layer under unipelt-apl."""
    parts: list[str] = []
    main, side, far = 240, 610, 780

    def gate(y: float, name: str) -> None:
        """A gate that weighs the change on its left."""
        parts.extend(
            [f'<circle cx="{far}" cy="{y:g}" r="17"/>', text(far, y, name), line((far - 17, y), (side + 115, y))]
        )

    parts += [text(main, 22, "x, the layer's input", "name"), line((main, 32), (main, 77))]
    for x, name, formula in ((90, "key", "x Wₖ"), (main, "query", "x W_q"), (390, "value", "x Wᵥ")):
        parts += [*box(x, 98, 120, 40, name, formula), line((x, 118), (main + (x - main) * 0.45, 168))]
    parts += [line((main, 45), (90, 45), (90, 77)), line((main, 45), (390, 45), (390, 77))]
    parts += box(side, 98, 230, 40, "LoRA on query and value", "x Aᵀ Bᵀ, added to both", kind="change")
    parts += [line((390, 45), (side, 45), (side, 77), kind="blue"), line((side - 115, 98), (451, 98), kind="blue")]
    gate(98, "g_L")
    parts += box(main, 190, 340, 44, "attention", "softmax(q [g_P P_k; k]ᵀ / √d) [g_P P_v; v]")
    parts += box(side, 190, 230, 40, "prefix", "keys P_k and values P_v", kind="change")
    parts.append(line((side - 115, 190), (main + 171, 190), kind="blue"))
    gate(190, "g_P")
    steps = [
        (262, "output projection", "o = heads W_o"), (332, "add and norm", "a = LN(o + x)"),
        (402, "feed-forward network", "f = GELU(a W₁) W₂"), (472, "add", "s = f + a"), (542, "add and norm", "LN(s + g_A · adapter)"),
    ]  # fmt: skip
    for y, name, formula in steps:
        parts += [line((main, y - 50), (main, y - 21)), *box(main, y, 220, 40, name, formula)]
    parts.append(line((90, 45), (15, 45), (15, 332), (main - 111, 332)))
    parts.append(line((main - 70, 352), (main - 70, 367), (50, 367), (50, 472), (main - 111, 472)))
    parts += box(side, 472, 230, 40, "adapter", "ReLU(LN(s) W↓) W↑", kind="change")
    parts += [
        line((main + 110, 472), (side - 116, 472), kind="blue"),
        line((side, 492), (side, 542), (main + 111, 542), kind="blue"),
    ]
    gate(472, "g_A")
    parts += [line((main, 562), (main, 590)), text(main, 602, "the layer's output", "name")]
    parts += [*box(80, 645, 90, 26, "base"), text(135, 645, "frozen", "small left")]
    parts += [
        *box(250, 645, 90, 26, "change", kind="change"),
        text(305, 645, "trained", "small left"),
        '<circle cx="415" cy="645" r="13"/>',
    ]
    parts.append(text(438, 645, "gate: mean over the tokens of σ(x·v + c), one number per example", "small left"))
    return page(860, 675, "A layer with LoRA, a prefix, an adapter and their gates", parts)


DIAGRAMS = {"packages.svg": packages, "layer.svg": layer}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (ROOT / "docs" / name).write_text(draw(), encoding="utf-8")
