"""A whole report: its page, its tables and figures as files, and its answer. Nothing is written here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipelt.checkpoint.json_types import fits
from unipelt.errors import UserError
from unipelt.report import details, paper_comparison
from unipelt.report.claims import Claim, claim_table, claims
from unipelt.report.comparison import Comparison, comparison_table, headline
from unipelt.report.drawing import Figure
from unipelt.report.figures import figures, gate_means
from unipelt.report.page import page
from unipelt.report.recommendation import Recommendation, recommend
from unipelt.report.runs import LISTED
from unipelt.report.scores import scores_table, validation_table, whole_table
from unipelt.report.sections import comparison_sections
from unipelt.report.study import Study, read
from unipelt.report.tables import WRITERS, Section, Table, as_csv, markdown
from unipelt.study.store import EFFICIENCY, Store

PAGE, MARKDOWN = "report.html", "report.md"
OWN_SECTIONS: dict[str, Sequence[str]] = {
    "Methods": ["comparison"],
    "Gates": ["gates"],
    "Training": ["curves"],
    "Details": ["failed"],
}
STUDY_SECTIONS = {
    "Comparison": ["answer", "comparison", "claims", "differences"],
    "Scores": ["table1", "table2", "table3"],
    "Cost": ["table4"],
    "Beside the paper": ["beside"],
    "One option varied": ["sweep-", "sweeps"],
    "Gates": ["gates"],
    "Learning curves": ["curves"],
    "Details": ["validation", "rates", "failed"],
}
"""by heading: the tables and figures in it, by the start of their names"""

MISSING = {
    "table1": "table 1 (no runs with K other than all)",
    "table2": "table 2 (needs unipelt-ap or unipelt-apl with all of its parts, each with one set of options)",
    "table3": "table 3 (no runs with K = all)",
    "table4": f"table 4 (no {EFFICIENCY}: run `unipelt study efficiency`)",
    "beside": "the paper's numbers (no task, size and method in common)",
    "curves": "learning curves (no run was evaluated twice)",
    "gates": "gates (no run has recorded any)",
    "sweep": "sweeps (no preset with three values of one option)",
}
"""what a study's runs may have no data for, by the start of the names of its tables and figures"""


@dataclass(frozen=True)
class Report:
    study: Study
    headline: str
    why: str
    """further sentences about it"""
    cautions: list[str]
    """what to know before the numbers are trusted"""
    sections: list[Section]
    """what the page shows, in its order"""
    comparisons: dict[int | str, Comparison]
    """by size; for a comparison on one file, against the recommended method"""
    recommendation: Recommendation | None
    """of a comparison on one's own file"""
    claims: dict[int | str, list[Claim]]
    missing: list[str]
    """tables and figures that the runs have no data for, in words"""
    files: dict[str, bytes]


def build(folder: Path) -> Report:
    """The report of a study's folder. Raises UserError where there is no study, or none of its runs is finished."""
    store = Store.read(folder)
    try:
        study = read(store)
        advice = recommend(study) if study.own_file else None
        cautions, evidence = comparison_sections(study, advice, store) if advice else ([], [])
    finally:
        store.close()
    compared = {study.sizes[0]: advice.comparison} if advice else study.compared
    judged = {} if advice else {k: claims(study.samples_of(k)) for k in study.sizes}
    shown: dict[str, Table | Figure] = {one.name: one for one in figures(study)}
    tables = [comparison_table(compared, study.own_file), details.failure_table(study)]
    if not advice:
        tables += [
            scores_table(study), validation_table(study), paper_comparison.mixture_table(study), whole_table(study), claim_table(judged),
            details.cost_table(efficiency_of(folder / EFFICIENCY)), paper_comparison.paper_table(study), details.difference_table(study),
            details.rate_table(study), details.sweep_table(study),
        ]  # fmt: skip
    shown |= {table.name: table for table in tables if table}
    sections = [
        Section(heading, _starting(shown, *names), folded=heading == "Details")
        for heading, names in (OWN_SECTIONS if advice else STUDY_SECTIONS).items()
    ]
    sections = [section for section in (sections[0], *evidence, *sections[1:]) if section.parts]
    missing = [] if advice else [said for name, said in MISSING.items() if not _starting(shown, name)]
    head, why = (f"Take {advice.take}", advice.why) if advice else (headline(compared), "")
    files = {PAGE: page(study, head, why, sections, missing, cautions).encode()}
    for part in (part for section in sections for part in section.parts):
        made = part.files if isinstance(part, Figure) else {kind: form(part).encode() for kind, form in WRITERS.items()}
        files |= {f"{part.name}.{kind}": data for kind, data in made.items()}
    if advice:
        files[MARKDOWN] = _markdown(head, why, cautions, sections).encode()
    files["runs.csv"] = as_csv([LISTED, *(run.listed for run in study.chosen)]).encode()
    gates = [(*key, *place, value) for key, of in gate_means(study).items() for place, value in of.items()]
    if gates:
        files["gates.csv"] = as_csv([("k", "method", "task", "layer", "change", "mean"), *gates]).encode()
    return Report(study, head, why, cautions, sections, compared, advice, judged, missing, files)


def _markdown(head: str, why: str, cautions: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's words and tables."""
    texts = [f"# {head}", why, "\n".join(f"- {one}" for one in cautions)]
    for section in sections:
        tables = [markdown(part).strip() for part in section.parts if isinstance(part, Table)]
        texts += [f"## {section.heading}", section.sentence, *tables]
    return "\n\n".join(filter(None, texts)) + "\n"


def _starting(shown: Mapping[str, Table | Figure], *names: str) -> list[Table | Figure]:
    """The tables and figures whose names start so, in this order."""
    return [part for start in names for name, part in shown.items() if name.startswith(start)]


def efficiency_of(path: Path) -> list[dict[str, Any]]:
    """A benchmark's ratios; none where there is no such file. Raises UserError for a damaged one."""
    if not path.exists():
        return []
    expected = 'expected a list such as [{"method": "lora", "train": 0.6, "inference": 1.05, "train_memory": 0.5}]'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {expected}, or remove it") from None
    for row in found if isinstance(found, list) else [None]:
        if not isinstance(row, dict) or not isinstance(row.get("method"), str) or not all(
            fits(row.get(name), float | None) and _is_range(row.get(f"{name}_range")) for name in details.RATIOS
        ):  # fmt: skip
            raise UserError(f"{path}: {str(row)[:80]}; {expected}, or remove it")
    return found


def _is_range(value: object) -> bool:
    return value is None or (isinstance(value, list) and fits(value, list[float]) and len(value) == 2)
