"""The page in a real browser: no error, no network, tables that sort, figures that show, no sideways scroll on a phone."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from report.own_file import LABELS, own_file
from report.studies import OPTIONS, cells, lively, write
from unipelt.report.build import PAGE, build

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip
LONG = ("unipelt-apl(bottleneck=4, prefix=2, mlp=8, r=2)", "lora(r=16, target_modules=all-linear)")
SWEEP = tuple(f"adapter(bottleneck={size})" for size in (12, 24, 96))
METHODS = ("full", "adapter", "prefix", "lora", "unipelt-apl", "prefix(length=50)", *LONG)
SORTED = {"study": "scores", "own": "classes"}
"""the table that is sorted, by page"""
ROWS = {"study": [*METHODS, *SWEEP, "best of adapter, prefix, lora", "best constant answer"], "own": LABELS}
LISTEN = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
</script>"""
ASK = r"""<script>
const column = (table, place) => [...table.tBodies[0].rows].map((row) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim());
const table = document.querySelector("#SORTED table"), heads = table.tHead.rows[0].cells;
const sorts = [];
for (const place of [1, 1, 0]) {
  heads[place].firstElementChild.click();
  sorts.push([heads[place].getAttribute("aria-sort"), column(table, place), [...heads].filter((head) => head.ariaSort).length]);
}
// texts of figures that are cut, or that stand on each other; slanted ones have boxes larger than themselves
const faults = [];
for (const svg of document.querySelectorAll("figure svg")) {
  const frame = svg.getBoundingClientRect(), name = svg.closest("figure").id;
  const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect(), /rotate\(-[1-9]/.test(text.outerHTML)]);
  texts.forEach(([text, box, slanted], place) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) faults.push([name, "cut", text]);
    for (const [other, its, leans] of texts.slice(place + 1)) {
      const wide = Math.min(box.right, its.right) - Math.max(box.left, its.left), high = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
      if (wide > 1 && high > 4 && !slanted && !leans) faults.push([name, text, other]);
    }
  });
}
const shown = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect());
parent.document.getElementById("said").textContent = JSON.stringify({
  errors, sorts, faults, width: innerWidth,
  names: Math.max(...[...document.querySelectorAll("tbody th")].map((head) => head.getBoundingClientRect().width)), scroll: document.documentElement.scrollWidth,
  figures: shown.map((box) => [box.width, box.height]),
  enlarged: [...document.querySelectorAll("figure svg")].filter((svg) => svg.getBoundingClientRect().width > Math.max(svg.closest(".scroll").clientWidth, svg.viewBox.baseVal.width * 4 / 3) + 1).length,
  loaded: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
});
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a study and of a comparison on one's own file, each of which reports what it shows."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there; apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    tasks = ["sst2", "cola", "a-task-whose-name-has-no-end-and-no-space-either"]
    plan = [*cells(tasks, [100, 500, 1000], METHODS, range(2)), *cells(tasks, [100], SWEEP, range(2))]
    options = OPTIONS | {"data_dir": "/a/very/long/path/without/any/space/in/it/" + "x" * 80}
    write(folder / "study", lively(plan, rows=40), options=options)
    own_file(folder / "own")
    for name, table in SORTED.items():
        text = build(folder / name).files[PAGE].decode().replace("<meta", LISTEN + "<meta", 1)
        (folder / f"{name}.html").write_text(text.replace("</body>", ASK.replace("SORTED", table) + "</body>"))
    return {name: folder / f"{name}.html" for name in SORTED}


def framed(page: Path, width: int, height: int) -> str:
    """The page in a frame of a phone's size, which no browser window has."""
    inner = json.dumps(page.read_text()).replace("</", "<\\/")
    frame = f'<iframe id="frame" style="width: {width}px; height: {height}px; border: 0"></iframe>'
    return (
        f'<!doctype html><pre id="said"></pre>{frame}<script>document.getElementById("frame").srcdoc = {inner}</script>'
    )


@pytest.mark.parametrize("name", SORTED)
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_page_in_a_browser(name: str, pages: dict[str, Path], width: int, height: int, tmp_path: Path):
    outer = tmp_path / "outer.html"
    outer.write_text(framed(pages[name], width, height))
    command = [
        CHROMIUM,
        *QUIET,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--dump-dom",
        outer.as_uri(),
    ]
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    answer = re.search(r'<pre id="said">(.+?)</pre>', found.stdout, flags=re.DOTALL)
    assert answer, found.stderr[-2000:]
    said = json.loads(answer[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert said["errors"] == [] and said["loaded"] == []
    assert said["faults"] == [], "texts of figures that are cut or stand on each other"
    assert "CONSOLE" not in found.stderr
    assert (said["width"], said["scroll"]) == (width, width)
    assert 0 < said["names"] < width / 2, "names leave space for numbers"
    assert len(said["figures"]) >= 2 and all(w > 200 and h > 100 for w, h in said["figures"])
    assert said["enlarged"] == 0, "no figure is made larger than what shows it"
    down, up, names = said["sorts"]
    numbers = [float(value) for value in down[1]]
    assert down[0] == "descending" and numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 2
    assert up[0] == "ascending" and [float(value) for value in up[1]] == numbers[::-1]
    assert names == ["ascending", sorted(ROWS[name]), 1]
