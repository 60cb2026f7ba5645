"""The sheet that holds a run against full fine-tuning, the plain base and examples in its prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from html import escape

import gradio as gr

from app.service.baselines import RANKS, SHOTS, Baseline
from app.service.workbench import Workbench
from app.web.parts.curve import MOST_RUNS
from app.web.parts.markup import number, size
from app.web.parts.panes import bar, close_sheet, opener, sheet
from app.web.parts.routes import link, there
from app.web.parts.shell import WORKING, Shell, inform, told
from app.web.sections.runs.chosen_runs import one_of, runs_of

_KEY = "baselines"
_HELP = (
    "What is missing is trained and measured: full fine-tuning with a tenth of the run's learning rate, and "
    "the plain base on the validation rows, behind examples in its prompt and behind none."
)


def baselines_opener() -> gr.Button:
    """The button that opens the sheet."""
    return opener(_KEY, "Compare with baselines …")


def baselines_sheet(shell: Shell, chosen: gr.HTML) -> None:
    """Lay out the sheet and bind it."""
    baselines = shell.workbench.baselines
    with sheet(_KEY, "Compare with baselines", _HELP):
        shots = gr.Slider(
            1, 16, SHOTS, step=1, label="Examples in the prompt", info="Taken from the training part."
        )
        full = gr.Checkbox(value=True, label="Full fine-tuning, where it fits the memory")
        with bar():
            begin = gr.Button("Train and measure", variant="primary", size="md", scale=0)
            enough = gr.Button("Is LoRA enough here?", size="md", scale=0)
        gr.HTML(
            f"<p class='hint'>Is LoRA enough here? trains the run at ranks {', '.join(map(str, RANKS))} at "
            "once and full fine-tuning behind them, and draws quality against cost.</p>"
        )
        table = gr.HTML()

    @told
    def start(keys: str, count: int, whole: bool) -> None:
        begun = baselines.begin(one_of(keys), int(count), full=whole)
        under_way = [begun.full.name] if begun.full else []
        under_way += [begun.measuring.title] if begun.measuring else []
        said = f"Under way: {'; '.join(under_way)}." if under_way else "All of it is there already."
        inform(f"{said} {begun.left_out}".strip(), "Baselines")

    @told
    def ask(keys: str) -> str:
        started = baselines.enough(one_of(keys))
        return there("runs", name=",".join(str(run.id) for run in started[:MOST_RUNS]))

    shell.soon(begin.click(start, [chosen, shots, full], None, concurrency_id="control", **WORKING))
    asked = enough.click(ask, chosen, shell.go, concurrency_id="control", **WORKING)
    shell.soon(asked)
    close_sheet(asked, _KEY)
    shots.change(lambda keys, count: _table(shell.workbench, keys, count), [chosen, shots], table)
    shell.refresh(lambda keys, count: _table(shell.workbench, keys, count), [chosen, shots], [table])


def _table(workbench: Workbench, keys: str, shots: int) -> str:
    found = runs_of(workbench, keys)
    return table_html(workbench.baselines.table(found[0].id or 0, int(shots))) if len(found) == 1 else ""


def table_html(lines: Sequence[Baseline]) -> str:
    """A column for each, since the sheet is narrow, with the scores that any of them has."""
    scores = list(dict.fromkeys(name for line in lines for name in line.scores))
    figures: list[tuple[str, Callable[[Baseline], str]]] = [
        ("Validation loss", lambda line: number(line.validation_loss)),
        *((name, functools.partial(_score, name)) for name in scores),
        ("Trained parameters", lambda line: "–" if line.parameters is None else f"{line.parameters:,}"),
        ("File", lambda line: _size(line.file_bytes)),
        ("Peak memory", lambda line: _size(line.peak_bytes)),
        ("Seconds a step", lambda line: number(line.step_seconds, 3)),
        ("State", lambda line: escape(": ".join(filter(None, (line.state, line.note))))),
    ]
    head = "".join(f"<th scope='col'>{_name(line)}</th>" for line in lines)
    body = "".join(
        f"<tr><th scope='row'>{escape(label)}</th>{''.join(f'<td>{shown(line)}</td>' for line in lines)}</tr>"
        for label, shown in figures
    )
    return (
        "<div class='wide' tabindex='0'><table class='rows baselines'>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _name(line: Baseline) -> str:
    return link(line.name, "runs", name=line.run.id) if line.run else escape(line.name)


def _score(name: str, line: Baseline) -> str:
    return number(line.scores.get(name), 1)


def _size(count: int | None) -> str:
    return "–" if count is None else size(count) if count else "0"
