"""What the command line prints: text for people, or one JSON object; and errors as one sentence."""

from __future__ import annotations

import functools
import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from sqlmodel import SQLModel

from app.cli.encoding import to_json
from app.service.doctor import Finding
from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS
from core.errors import InvalidInput
from core.events import Progress as Position
from storage.tables import Job, Run

P = ParamSpec("P")
R = TypeVar("R")
_MARKS = {"fine": "✓ fine", "note": "! note", "fault": "✗ fault"}


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a refusal into one sentence on stderr and exit code 1; with --json into {"error": …} on stdout."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (*USER_ERRORS, OSError) as error:
            _print_error(error, as_json=bool(kwargs.get("json")))
            raise typer.Exit(1) from None

    return wrapper


def _print_error(error: Exception, as_json: bool) -> None:
    if as_json:
        print(to_json({"error": plain_sentence(error), "kind": type(error).__name__}))
    else:
        print(f"Error: {_harmless(plain_sentence(error))}", file=sys.stderr)


_ONE_OF_MANY = (
    "Merging ",
    "Writing ",
    "Combining ",
    "Measuring ",
    "Packing ",
    "Restoring ",
)  # not a line each


class Console:
    """Prints results, as text or as JSON."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        # Piped output is not cut at a terminal's width, so that names and fingerprints can be copied from it.
        self._out = RichConsole(highlight=False, width=None if sys.stdout.isatty() else 240)
        self._err = RichConsole(stderr=True, highlight=False)

    def result(self, content: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
        """A result: the whole content as JSON, or labelled rows."""
        if self._json:
            print(to_json(content))
            return
        grid = Table.grid(padding=(0, 2))
        for label, value in rows:
            grid.add_row(Text(label, style="bold"), Text(_harmless(value)))
        self._out.print(grid)

    def row(self, row: SQLModel, leave_out: Sequence[str] = (), extra: dict[str, Any] | None = None) -> None:
        """One registry row, and what else belongs to it."""
        content = {key: getattr(row, key) for key in type(row).model_fields if key not in leave_out} | (
            extra or {}
        )
        self.result(
            content,
            [(key, _shown(key, value)) for key, value in content.items() if value not in (None, "", [])],
        )

    def table(self, rows: Sequence[SQLModel], columns: Sequence[str]) -> None:
        """Several registry rows; as JSON under "rows", with all columns but the bulky ones."""
        if self._json:
            bulky = {"layer_shapes", "preview"}
            print(to_json({"rows": [row.model_dump(exclude=bulky) for row in rows]}))
            return
        self.records([{column: getattr(row, column) for column in columns} for row in rows])

    def records(self, rows: Sequence[Mapping[str, Any]], none: str = "Nothing yet.") -> None:
        """Several rows, which need not have the same columns; `none` is said where there are no rows."""
        if self._json:
            print(to_json({"rows": rows}))
            return
        if not rows:
            self._out.print(Text(none))
            return
        columns = list(dict.fromkeys(column for row in rows for column in row))
        table = Table(*[column.replace("_", " ") for column in columns], header_style="bold")
        for row in rows:
            table.add_row(*[Text(_harmless(_shown(column, row.get(column)))) for column in columns])
        self._out.print(table)

    def stream(self, text: str) -> None:
        """A piece of an answer, as it comes."""
        if not self._json:
            self._out.out(_harmless(text), end="")

    def answers(self, content: dict[str, Any], streamed: bool) -> None:
        """All answers; what was streamed already is only ended."""
        if self._json:
            self.result(content, [])
        elif streamed:
            self._out.print()
        else:
            for one in content["answers"]:
                self._out.print(Text(one["adapter"] or f"{content['base']} (plain base)", style="bold"))
                self._out.print(Text(f"{_harmless(one['answer'])}\n"))

    def say(self, message: str) -> None:
        """A remark beside the result."""
        self._err.print(Text(_harmless(message)), soft_wrap=True)

    def findings(self, findings: Sequence[Finding]) -> None:
        """The doctor's findings."""
        if self._json:
            print(to_json({"findings": [finding.to_dict() for finding in findings]}))
            return
        grid = Table.grid(padding=(0, 2))
        for one in findings:
            grid.add_row(
                _MARKS[one.level],
                Text(one.what, style="bold"),
                Text(one.found + (f"\n→ {one.remedy}" if one.remedy else "")),
            )
        self._out.print(grid)

    def confirm(self, question: str, yes: bool) -> None:
        """Ask before something is removed. Without a terminal --yes is needed."""
        if yes:
            return
        if self._json or not sys.stdin.isatty():
            raise InvalidInput(f"{question} Nobody can be asked here: give --yes if that is meant.")
        if not typer.confirm(question, err=True):
            raise typer.Exit(1)

    @contextmanager
    def progress(self) -> Iterator[ProgressLine]:
        """A progress line on stderr."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._err,
            transient=True,
            disable=self._json or not self._err.is_terminal,
        )
        with bar:
            yield ProgressLine(bar, None if self._json else self._err)


class ProgressLine:
    """What is being done now; without a terminal each new stage is a line."""

    def __init__(self, bar: Progress, lines: RichConsole | None) -> None:
        self._bar, self._lines = bar, lines
        self._task = bar.add_task("Starting", total=None, figures="")
        self._stage = ""

    def say(self, message: str) -> None:
        """A new stage."""
        self._show(message, None, "")

    def report(self, progress: Position) -> None:
        """Where work in this process is."""
        self._show(progress.message, progress.fraction, "")

    def job(self, job: Job) -> None:
        """Where a job is."""
        if job.active:
            self._show(job.message, job.fraction, "")

    def run_watcher(self, workbench: Workbench) -> Callable[[Run], None]:
        """A watcher that shows where a run is."""

        def watch(run: Run) -> None:
            point = workbench.registry.measurements.last_point(run.id or 0) if run.active else None
            total = run.details.get("total_steps")
            if point is None or not total:
                self._show(f"Run {run.id} ({run.name}): {run.state}", None, "")
                return
            figures = (
                f"step {point.step}/{total}  loss {point.loss:.3f}  {point.tokens_per_second:,.0f} tokens/s"
            )
            self._show(f"Run {run.id} ({run.name}): {run.state}", point.step / total, figures)

        return watch

    def sweep_watcher(self, workbench: Workbench) -> Callable[[list[Run]], None]:
        """A watcher that shows how far the runs of a sweep are, together."""

        def watch(runs: list[Run]) -> None:
            points = [workbench.registry.measurements.last_point(run.id or 0) for run in runs]
            totals = [run.details.get("total_steps") for run in runs]
            shares = [
                1.0 if not run.active else (point.step / total if point and total else 0.0)
                for run, point, total in zip(runs, points, totals, strict=True)
            ]
            losses = [point.loss for point in points if point and point.loss is not None]
            ended = sum(not run.active for run in runs)
            best = f"  lowest loss {min(losses):.3f}" if losses else ""
            self._show(f"{len(runs)} runs, {ended} ended", sum(shares) / len(shares), best)

        return watch

    def _show(self, message: str, fraction: float | None, figures: str) -> None:
        self._bar.update(
            self._task,
            description=message,
            figures=figures,
            completed=fraction or 0.0,
            total=None if fraction is None else 1.0,
        )
        stage = message.split(" (")[0] if "MB" in message else message
        if (
            self._lines
            and not self._lines.is_terminal
            and stage != self._stage
            and not message.startswith(_ONE_OF_MANY)
        ):
            self._lines.print(Text(message))
        self._stage = stage


def _harmless(text: str) -> str:
    """Text without control characters: a name or an answer must not command the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))


def _shown(column: str, value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if column in ("created", "started", "ended"):
        return datetime.fromtimestamp(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if column.endswith("bytes"):
        return f"{value / 1e6:,.1f} MB"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if column.endswith("id") else f"{value:,}"
    return json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, (dict, list)) else str(value)
