"""A whole report: its page, its tables and figures as files, its short answer. Nothing is written here."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipelt.errors import UserError
from unipelt.report import evidence
from unipelt.report.answer import Answer, answers, headline
from unipelt.report.claims import Claim
from unipelt.report.decision import decision
from unipelt.report.drawing import Figure
from unipelt.report.figures import figures, gate_means
from unipelt.report.page import Section, page
from unipelt.report.paper_comparison import beside, bound
from unipelt.report.recommendation import verdict
from unipelt.report.scores import scores, whole
from unipelt.report.study import Study, read
from unipelt.report.table import Table, comma_separated, latex, markdown
from unipelt.study.store import DONE, EFFICIENCY, KEYS, Store

PAGE = "report.html"
ASKED_OF_STUDIES = (
    "Table 2",
    "beside the paper",
    "differences",
    "average ranks",
    "claims",
    "sweeps",
)  # and not of one's own file
RUNS = (*KEYS, "metric", "validation", "test", "status", "steps", "seconds")


@dataclass(frozen=True)
class Report:
    study: Study
    said: str
    """the answer in words"""
    answers: list[Answer]
    claims: dict[int | str, list[Claim]]
    missing: list[str]
    """tables that the runs have no data for, in words"""
    files: dict[str, bytes]


def build(folder: Path) -> Report:
    """The report of a study's folder. Raises UserError where there is no study, or none of its runs is finished."""
    store = Store.read(folder)
    try:
        study = read(store)
        # the page of a comparison begins with what `unipelt compare` says to take
        chosen = verdict([row for row in store.runs() if row["status"] in DONE]) if study.own_rows else None
    finally:
        store.close()
    measured = efficiency_of(folder / EFFICIENCY)
    judged = {} if study.own_rows else evidence.judged(study)
    drawn = figures(study)
    tables = {
        "Table 1": scores(study), "Table 1, validation": scores(study, "validation"), "Table 2": bound(study), "Table 3": whole(study),
        "Table 4": evidence.efficiency(study, measured), "beside the paper": beside(study), "differences": evidence.differences(study),
        "average ranks": evidence.ranks(study), "claims": evidence.claim_table(judged), "sweeps": evidence.swept(study),
        "rates": evidence.rates(study), "failed": evidence.failures(study),
    }  # fmt: skip
    if chosen:
        tables = {name: table for name, table in tables.items() if name not in ASKED_OF_STUDIES}
        tables["decision"] = decision(chosen)
    missing = [] if study.own_rows else _missing(tables, drawn, measured is not None)
    found = [] if chosen else answers(study)
    head, why = (f"Take {chosen.take}", chosen.why) if chosen else (headline(found), "")
    said = f"{head}: {why}" if why else head
    files = {
        PAGE: page(study, head, why, found, _sections(tables, drawn), missing).encode(),
        "runs.csv": _runs(study),
        **_gates(study),
    }
    for table in filter(None, tables.values()):
        files |= {
            f"{table.name}.{kind}": of(table).encode()
            for kind, of in (("md", markdown), ("csv", comma_separated), ("tex", latex))
        }
    for figure in drawn:
        files |= {f"{figure.name}.{kind}": data for kind, data in figure.files.items()}
    return Report(study, said, found, judged, missing, files)


def _sections(tables: dict[str, Table], drawn: Sequence[Figure]) -> list[Section]:
    def those(*names: str) -> list[Table | Figure]:
        return [table for name in names if (table := tables.get(name))]

    def pictures(start: str) -> list[Table | Figure]:
        return [figure for figure in drawn if figure.name.startswith(start)]

    real = [*pictures("answer"), *those("claims", "differences", "average ranks")]
    return [
        Section("Which method to take", those("decision")),
        Section("Which differences are real", real),
        Section("Scores", those("Table 1", "Table 2", "Table 3")),
        Section("Cost", those("Table 4")),
        Section("Beside the paper", those("beside the paper")),
        Section("One option varied", [*pictures("sweep"), *those("sweeps")]),
        Section("Gates", pictures("gates")),
        Section("Learning curves", pictures("curves")),
        Section("Details", those("Table 1, validation", "rates", "failed"), folded=True),
    ]


def _missing(tables: dict[str, Table], drawn: Sequence[Figure], timed: bool) -> list[str]:
    """What a study's runs have no data for, in words. timed: whether inference was."""
    absent = {
        "Table 1": "table 1 (no runs with K other than all)", "Table 2": "table 2 (needs unipelt-ap or unipelt-apl with all of its parts, each with one set of options)",
        "Table 3": "table 3 (no runs with K = all)", "Table 4": f"table 4 (no {EFFICIENCY}, and no finished runs of full and another method)",
        "beside the paper": "the paper's numbers (no task, size and method in common)", "differences": "differences (needs two methods on the same tasks)",
        "average ranks": "average ranks (needs two methods on two tasks)",
    }  # fmt: skip
    missing = [said for name, said in absent.items() if not tables[name]]
    if not timed and tables["Table 4"]:
        missing.append(f"inference time (no {EFFICIENCY})")
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
            _is_ratio(row.get(name)) and _is_range(row.get(f"{name}_range")) for name in evidence.RATIOS
        ):
            raise UserError(f"{path}: {str(row)[:80]}; {expected}, or remove it")
    return found


def _is_ratio(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_range(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_ratio, value)))


def _table(rows: Iterator[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _runs(study: Study) -> bytes:
    return _table(iter([RUNS, *([row[name] for name in RUNS] for row in study.chosen)]))


def _gates(study: Study) -> dict[str, bytes]:
    rows = [
        (k, method, task, *place, value)
        for (k, method, task), (_, _, means) in gate_means(study).items()
        for place, value in means.items()
    ]
    return {"gates.csv": _table(iter([("k", "method", "task", "layer", "change", "mean"), *rows]))} if rows else {}
