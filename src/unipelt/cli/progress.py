"""Progress of a training on a terminal, and as lines where there is none."""

import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from unipelt.train.records import PLANNED

if TYPE_CHECKING:
    from unipelt.study.store import Store
    from unipelt.train.fleet import Fleet

TRAINED_AGAIN = "{} finished runs are trained again, because other epochs change the learning rate's schedule"
STEPS = 3  # after the first, by which the time of a training is estimated


def format_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, with two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


class Display:
    """A bar on a terminal, and lines where there is none; both on standard error."""

    def __init__(self, *columns: ProgressColumn, transient: bool):
        self.console = Console(stderr=True)
        self.bar = Progress(*columns, console=self.console, transient=transient, disable=not sys.stderr.isatty())
        self.last, self.started = 0.0, time.monotonic()

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def log(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Watch(Display):
    """Shows steps, loss, the validation metric and the time left of a run; see `unipelt.train.fleet.Observer`."""

    def __init__(self) -> None:
        texts = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
        super().__init__(*texts, TimeRemainingColumn(), transient=True)
        self.row: TaskID | None = None
        self.told = False

    def __call__(self, fleet: "Fleet", event: str) -> None:
        plan, record = fleet.plans[0], fleet.records[0]
        if self.row is None:
            self.row = self.bar.add_task("training", total=plan.steps, completed=record.steps)
            self.started, self.first = time.monotonic(), record.steps
        text = "training"
        if record.curve:
            last, metric = record.curve[-1], plan.task.metric
            text = f"epoch {last['epoch']}  loss {last['train_loss']:.4f}  {metric} {last[metric]:.4f}  best {record.validation:.4f}"
        text += "  evaluating" * (event == "prediction")
        self.bar.update(self.row, completed=record.steps, description=text)
        now, done = time.monotonic(), record.steps - self.first
        seconds_left = (now - self.started) / max(1, done) * (plan.steps - record.steps)
        if not self.told and done >= STEPS:
            self.log(f"{plan.steps} steps: about {format_duration(seconds_left)} at most, evaluations not counted")
            self.told = True
        if event == "evaluation" and not sys.stderr.isatty() and (now - self.last > 5 or record.ended):
            self.log(f"{text}  step {record.steps}/{plan.steps}  at most {seconds_left:.0f} s left")
            self.last = now


class StudyWatch(Display):
    """Shows how many runs of a study are done, what the fleet at work does, and the time left."""

    def __init__(self, store: "Store | None" = None):
        texts = TextColumn("{task.completed}/{task.total} runs"), BarColumn(), TextColumn("{task.description}")
        super().__init__(*texts, transient=False)
        self.store, self.row = store, self.bar.add_task("", total=None)
        self.fleet_seconds = 0.0
        """seconds that the fleet at work takes from its first to its last step, at most and by those so far; 0 before them"""
        self.remaining = 0.0, 0
        """seconds and runs that the fleet at work has before it"""

    def __exit__(self, *_: object) -> None:
        self._show("")
        super().__exit__()

    def __call__(self, fleet: "Fleet", event: str) -> None:
        running = [fleet.plans[plan_index] for plan_index in fleet.plan_indices]
        tasks, method = sorted({plan.task.name for plan in running}), fleet.plans[0].key.method
        steps, most = sum(record.steps for record in fleet.records), sum(plan.steps for plan in fleet.plans)
        self.fleet_seconds = fleet.seconds * most / max(1, steps)
        self.remaining = self.fleet_seconds - fleet.seconds, sum(not record.ended for record in fleet.records)
        looking = ", evaluating" * (event == "prediction")
        self.show(f"{len(running)} at once: {method} on {' '.join(tasks)}, {steps} of at most {most} steps{looking}")  # fmt: skip

    def show(self, text: str) -> None:
        """Show what is being trained, at most every few seconds."""
        if time.monotonic() - self.last > (0.5 if sys.stderr.isatty() else 15):
            self._show(text)

    def _show(self, text: str) -> None:
        if self.store is None:
            return
        rows = self.store.runs(["status", "seconds"])
        done = [row["seconds"] for row in rows if row["status"] != PLANNED]
        if text and (seconds := self._seconds_left(len(rows) - len(done), [value for value in done if value])):
            text += f", about {format_duration(seconds)} left at most"
        self.bar.update(self.row, completed=len(done), total=len(rows), description=text)
        now = time.monotonic()
        if text and not sys.stderr.isatty():
            self.log(f"{len(done)}/{len(rows)} runs  {text}  {now - self.started:.0f} s")
        self.last = now

    def _seconds_left(self, pending: int, seconds: list[float]) -> float:
        """Seconds until all runs are done: of the current fleet by its steps, of the others by the finished runs."""
        seconds_left, runs = self.remaining
        each = sum(seconds) / len(seconds) if seconds else seconds_left / max(1, runs)
        return seconds_left + each * max(0, pending - runs) if seconds_left else 0.0
