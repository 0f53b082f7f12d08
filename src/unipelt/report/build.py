"""A whole report: its page, its tables and figures as files, and its answer. Nothing is written here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipelt.errors import UserError
from unipelt.report import details, paper_comparison
from unipelt.report.claims import Claim, claim_table, claims, unified_claims
from unipelt.report.comparison import Comparison, comparison_table, headline
from unipelt.report.drawing import Figure
from unipelt.report.figures import figures, gate_means
from unipelt.report.page import page
from unipelt.report.recommendation import Recommendation, recommend
from unipelt.report.runs import LISTED
from unipelt.report.scores import scores, whole
from unipelt.report.sections import comparison_sections
from unipelt.report.study import Study, read
from unipelt.report.tables import FORMS, Section, Table, as_csv, markdown
from unipelt.study.store import EFFICIENCY, Store

PAGE, MARKDOWN = "report.html", "report.md"


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
    tables: dict[str, Table]
    missing: list[str]
    """tables and figures that the runs have no data for, in words"""
    files: dict[str, bytes]


def build(folder: Path) -> Report:
    """The report of a study's folder. Raises UserError where there is no study, or none of its runs is finished."""
    store = Store.read(folder)
    try:
        study = read(store)
        advice = recommend(study) if study.own_file else None
        careful, own = comparison_sections(study, advice, store) if advice else ([], [])
    finally:
        store.close()
    measured = efficiency_of(folder / EFFICIENCY)
    compared = {study.sizes[0]: advice.comparison} if advice else study.compared
    tables = {"comparison": comparison_table(compared, study.own_file), "failed": details.failures(study)}
    judged = {} if advice else {k: claims(some := study.samples_of(k)) + unified_claims(some) for k in study.sizes}
    if not advice:
        tables |= {
            "table 1": scores(study), "validation": scores(study, "validation"), "table 2": paper_comparison.bound(study),
            "table 3": whole(study), "table 4": details.efficiency(measured), "beside the paper": paper_comparison.beside(study),
            "differences": details.differences(study), "ranks": details.ranks(study), "claims": claim_table(judged),
            "rates": details.rates(study), "sweeps": details.swept(study),
        }  # fmt: skip
    drawn = figures(study)
    missing = [] if study.own_file else _missing(tables, drawn)
    head, why = (f"Take {advice.take}", advice.why) if advice else (headline(compared), "")
    sections = [one for one in _sections(tables, drawn, own) if one.parts]
    parts = [part for section in sections for part in section.parts]
    files = {PAGE: page(study, head, why, sections, missing, careful).encode()}
    files |= {f"{one.name}.{kind}": form(one).encode() for one in parts if isinstance(one, Table) for kind, form in FORMS.items()}  # fmt: skip
    files |= {
        f"{one.name}.{kind}": data for one in parts if isinstance(one, Figure) for kind, data in one.files.items()
    }
    if advice:
        files[MARKDOWN] = _markdown(head, why, careful, sections).encode()
    files["runs.csv"] = as_csv([LISTED, *([getattr(run, name) for name in LISTED] for run in study.chosen)]).encode()
    gates = [
        (*key, *place, value) for key, (_, _, means) in gate_means(study).items() for place, value in means.items()
    ]
    if gates:
        files["gates.csv"] = as_csv([("k", "method", "task", "layer", "change", "mean"), *gates]).encode()
    return Report(study, head, why, careful, sections, compared, advice, judged, tables, missing, files)


def _markdown(head: str, why: str, careful: Sequence[str], sections: Sequence[Section]) -> str:
    """The page's words and tables."""
    texts = [f"# {head}", why, "\n".join(f"- {one}" for one in careful)]
    for section in sections:
        texts += [
            f"## {section.heading}",
            section.say,
            *(markdown(part).strip() for part in section.parts if isinstance(part, Table)),
        ]
    return "\n\n".join(filter(None, texts)) + "\n"


def _sections(tables: dict[str, Table], drawn: Sequence[Figure], own: Sequence[Section]) -> list[Section]:
    def those(*names: str) -> list[Table | Figure]:
        return [table for name in names if (table := tables.get(name))]

    def pictures(start: str) -> list[Table | Figure]:
        return [figure for figure in drawn if figure.name.startswith(start)]

    if own:
        return [
            Section("Methods", those("comparison")), *own, Section("Gates", pictures("gates")),
            Section("Training", pictures("curves")), Section("Details", those("failed"), folded=True),
        ]  # fmt: skip
    return [
        Section("Comparison", [*pictures("answer"), *those("comparison", "claims", "differences", "ranks")]),
        Section("Scores", those("table 1", "table 2", "table 3")),
        Section("Cost", those("table 4")),
        Section("Beside the paper", those("beside the paper")),
        Section("One option varied", [*pictures("sweep"), *those("sweeps")]),
        Section("Gates", pictures("gates")),
        Section("Learning curves", pictures("curves")),
        Section("Details", those("validation", "rates", "failed"), folded=True),
    ]


def _missing(tables: dict[str, Table], drawn: Sequence[Figure]) -> list[str]:
    """What a study's runs have no data for, in words."""
    absent = {
        "table 1": "table 1 (no runs with K other than all)", "table 2": "table 2 (needs unipelt-ap or unipelt-apl with all of its parts, each with one set of options)",
        "table 3": "table 3 (no runs with K = all)", "table 4": f"table 4 (no {EFFICIENCY}: run `unipelt study efficiency`)",
        "beside the paper": "the paper's numbers (no task, size and method in common)", "ranks": "average ranks (needs four methods, four tasks and two seeds)",
    }  # fmt: skip
    missing = [said for name, said in absent.items() if not tables[name]]
    pictures = {
        "curves": "learning curves (no run was evaluated twice)", "gates": "gates (no run has recorded any)",
        "sweep": "sweeps (no preset with three values of one option)",
    }  # fmt: skip
    return missing + [said for start, said in pictures.items() if not any(one.name.startswith(start) for one in drawn)]


def efficiency_of(path: Path) -> list[dict[str, Any]] | None:
    """A benchmark's ratios; None where there is no such file."""
    if not path.exists():
        return None
    expected = 'expected a list such as [{"method": "lora", "train": 0.6, "inference": 1.05, "train_memory": 0.5}]'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {expected}, or remove it") from None
    for row in found if isinstance(found, list) else [None]:
        if not (isinstance(row, dict) and isinstance(row.get("method"), str)) or not all(
            _is_ratio(row.get(name)) and _is_range(row.get(f"{name}_range")) for name in details.RATIOS
        ):
            raise UserError(f"{path}: {str(row)[:80]}; {expected}, or remove it")
    return found


def _is_ratio(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_range(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_ratio, value)))
