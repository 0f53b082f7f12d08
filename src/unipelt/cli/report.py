"""`unipelt report`: the results of a study."""

import typer

from unipelt.cli.fields import option


def report(
    results: str = typer.Argument(..., help="folder of a study or comparison"),
    out: str = option("Output", "folder for page, tables and figures (default: RESULTS/report)"),
) -> None:
    """Make one HTML page of a study, finished or not: tables, figures, and which differences are real.

    Examples:
        unipelt report results/glue
        unipelt report results/reviews --out public/reviews
        unipelt report results/glue/study.sqlite
    """
    from pathlib import Path

    from unipelt.checkpoint.disk import write_whole
    from unipelt.cli.tables import terminal
    from unipelt.errors import UserError
    from unipelt.report.build import PAGE, build
    from unipelt.report.terminal import show
    from unipelt.study.store import FILE

    study = Path(results).parent if Path(results).name == FILE else Path(results)
    folder = Path(out) if out else study / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: not a folder; expected a new folder, or an old report to replace")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).is_file():
        raise UserError(
            f"--out {folder}: not empty, and holds no report; expected a new folder, or an old report to replace"
        )
    study_report = build(study)
    write_whole(folder, study_report.files)
    console = terminal()
    show(study_report, console)
    console.print(f"{folder / PAGE}: the page, with {len(study_report.files) - 1} files of tables, figures and runs")
