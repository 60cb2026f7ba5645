"""The chosen data set: its report, its rows with their tokens, its statistics, its split and versions."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.service.datasets import ALL, ERRORS, FILTERS, WARNINGS, BaseCheck
from app.web.parts.catalogue import Catalogue
from app.web.parts.markup import conversation
from app.web.parts.shell import QUIET, WORKING, Shell, choose_from, inform, refusal, told, values_of
from app.web.sections.data.charts import bars, histogram, table
from app.web.sections.data.data_markup import (
    csv_link,
    findings_html,
    kinds_html,
    template_html,
    token_facts_html,
    tokens_html,
    versions_html,
)
from core.base_model.templates import TEMPLATES
from core.data.findings import ERROR, KINDS, WARNING, codes_of
from core.data.split import COUNT, NONE, SHARE, Split
from core.train.config import TrainConfig
from storage.errors import NotFound
from storage.tables import Base, Dataset

_PAGE = 25
_EVERYTHING = "all findings"
_BATCH = TrainConfig().micro_batch_size * TrainConfig().gradient_accumulation_steps
_LENGTH = TrainConfig().max_length


class DetailPanel:
    """Lays itself out where it is made, and follows a catalogue's choice."""

    def __init__(self, shell: Shell, catalogue: Catalogue) -> None:
        self._workbench, self._chosen = shell.workbench, catalogue.chosen
        self._datasets = shell.workbench.datasets
        with gr.Column(visible=False) as self._panel:
            with gr.Row(equal_height=True, elem_classes="asked"):
                self._base = gr.Dropdown([], label="Base model to check with", interactive=True, scale=2)
                self._length = gr.Number(
                    _LENGTH, label="Max length (tokens)", precision=0, minimum=8, scale=1, min_width=140
                )
                self._check = gr.Button("Check with this base", scale=1, min_width=180)
            with gr.Tabs():
                with gr.Tab("Report"):
                    self._report_tab()
                with gr.Tab("Rows and tokens"):
                    self._rows_tab()
                with gr.Tab("Statistics"):
                    self._statistics_tab()
                with gr.Tab("Split and versions"):
                    self._versions_tab()
        self._bind(shell, catalogue)

    # Layout.

    def _report_tab(self) -> None:
        self._kinds = gr.HTML()
        with gr.Row(equal_height=True):
            self._out_errors = gr.Button(
                "Leave out all rows with errors", variant="primary", scale=1, min_width=240
            )
            self._out_kind = gr.Button("Leave out the rows shown", scale=1, min_width=200)
            self._back = gr.Button("Bring all back", scale=1, min_width=140)
            self._csv = gr.HTML()
        self._finding = gr.Dropdown(
            [_EVERYTHING], value=_EVERYTHING, label="Show", interactive=True, elem_id="finding-filter"
        )
        self._findings = gr.HTML(elem_classes="findings")

    def _rows_tab(self) -> None:
        self._row = gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=440):
                with gr.Row(equal_height=True):
                    self._filter = gr.Dropdown(
                        list(FILTERS), value=ALL, label="Rows", interactive=True, scale=2, min_width=160
                    )
                    self._page = gr.Number(1, label="Page", precision=0, minimum=1, scale=1, min_width=90)
                self._count = gr.Markdown(elem_classes="quiet")
                self._list = gr.Dataframe(
                    headers=["№", "Row", "Part", "Finding", "Text"],
                    interactive=False,
                    show_label=False,
                    label="Rows",
                    column_widths=["11%", "11%", "16%", "24%", "38%"],
                    wrap=True,
                    max_height=620,
                    elem_id="row-list",
                )
            with gr.Column(scale=1, min_width=440):
                self._row_title = gr.Markdown("Choose a row on the left.")
                with gr.Tabs():
                    with gr.Tab("Tokens"):
                        self._template_try = gr.Dropdown(
                            [("the base's", ""), *((name, name) for name in TEMPLATES)],
                            value="",
                            label="Chat template",
                            visible=False,
                            interactive=True,
                            info="This base has none of its own: try one here, then use it for the base.",
                        )
                        self._template_use = gr.Button("Use this template for the base", visible=False)
                        self._tokens = gr.HTML()
                    with gr.Tab("Conversation"):
                        self._conversation = gr.HTML()
                    with gr.Tab("Edit"):
                        gr.Markdown(
                            "Roles: system, user, assistant, tool; or one line with the role text.",
                            elem_classes="quiet",
                        )
                        self._turns = gr.Dataframe(
                            headers=["Role", "Text"],
                            interactive=True,
                            row_count=2,
                            column_count=2,
                            wrap=True,
                            show_label=False,
                            label="Turns",
                            column_widths=["110px", "auto"],
                            elem_id="turns",
                        )
                        with gr.Row():
                            self._save = gr.Button("Save as a new version", variant="primary", min_width=160)
                            self._append = gr.Button("Add as a new row", min_width=130)
                            self._drop = gr.Button("Leave this row out", min_width=130)
                            self._undrop = gr.Button("Bring this row back", min_width=130)

    def _statistics_tab(self) -> None:
        self._facts = gr.HTML()
        self._templates = gr.HTML()
        self._figures: list[gr.Plot] = []
        self._tables: list[gr.HTML] = []
        for label in (
            "Tokens a row",
            "Share of a row that carries loss",
            "Turns a row, of all rows read",
            "Turns by role",
            "Labels",
        ):
            with gr.Row():
                self._figures.append(gr.Plot(label=label, scale=3, visible=False))
                self._tables.append(gr.HTML(elem_classes="beside", visible=False))

    def _versions_tab(self) -> None:
        with gr.Row(equal_height=True):
            self._kind = gr.Radio(
                [("share", SHARE), ("number", COUNT), ("none", NONE)],
                value=SHARE,
                label="Validation rows by",
                scale=2,
            )
            self._amount = gr.Number(
                5, label="Share in %, or number of rows", minimum=0, scale=1, min_width=150
            )
            self._seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90)
            self._stratify = gr.Checkbox(False, label="Stratified by label", scale=1, min_width=140)
            self._resplit = gr.Button("Split anew", scale=1, min_width=120)
        self._versions = gr.HTML()
        with gr.Row(equal_height=True):
            self._number = gr.Number(1, label="Version", precision=0, minimum=1, scale=0, min_width=110)
            self._go_back = gr.Button("Go back to this version", scale=0, min_width=190)

    # Wiring.

    def _bind(self, shell: Shell, catalogue: Catalogue) -> None:
        about = [self._chosen, self._base, self._length]
        report = [self._kinds, self._finding, self._findings, self._csv]
        rows = [self._list, self._count]
        row = [self._row_title, self._tokens, self._conversation, self._turns]
        charts = [*self._figures, *self._tables]
        statistics = [self._facts, self._templates, self._template_try, self._template_use, *charts]

        def bases(now: str) -> gr.Dropdown:
            return choose_from([one.name for one in self._workbench.registry.all(Base)], now)

        shell.refresh(bases, [self._base], [self._base])
        outputs = [self._panel, *report, *rows, *statistics, self._versions]
        catalogue.also(self._everything, [*about, self._finding, self._filter, self._page], outputs)
        gr.on(
            [self._base.change, self._length.change],
            self._everything,
            [*about, self._finding, self._filter, self._page],
            outputs,
            **QUIET,
        )
        self._check.click(told(self._start_check), about, None, **WORKING)
        self._finding.input(self._report_list, [*about, self._finding], self._findings, **QUIET)
        gr.on(
            [self._filter.input, self._page.input],
            self._rows,
            [*about, self._filter, self._page],
            rows,
            **QUIET,
        )
        chosen = self._list.select(_clicked, None, self._row, **QUIET)
        chosen.then(told(self._show_row), [*about, self._row, self._template_try], row, **WORKING)
        self._template_try.input(
            told(self._show_row), [*about, self._row, self._template_try], row, **WORKING
        )
        self._template_use.click(told(self._use_template), [self._base, self._template_try], None, **WORKING)
        turns = [self._chosen, self._row, self._turns]
        for button, handler, inputs in (
            (self._out_errors, self._leave_out_errors, about),
            (self._out_kind, self._leave_out_kind, [*about, self._finding]),
            (self._back, lambda name: self._datasets.bring_back(name), [self._chosen]),
            (self._save, self._save_row, turns),
            (self._append, self._append_row, turns),
            (
                self._drop,
                lambda name, at: self._datasets.leave_out(name, rows=[at]),
                [self._chosen, self._row],
            ),
            (self._undrop, lambda name, at: self._datasets.bring_back(name, [at]), [self._chosen, self._row]),
            (
                self._resplit,
                self._split_anew,
                [self._chosen, self._kind, self._amount, self._seed, self._stratify],
            ),
            (
                self._go_back,
                lambda name, number: self._datasets.go_back(name, int(number or 0)),
                [self._chosen, self._number],
            ),
        ):
            catalogue.follow(
                button.click(_silently(told(handler)), inputs, None, concurrency_id="data-change", **WORKING)
            )

    # What is shown.

    def _everything(
        self, name: str, base: str | None, length: float, finding: str, shown: str, page: float
    ) -> list[Any]:
        row = self._dataset(name)
        if row is None:
            count = 4 + 2 + 4 + len(self._figures) + len(self._tables) + 1
            return [gr.Column(visible=False), *[gr.skip()] * count]
        checked = self._checked(row, base, length)
        return [
            gr.Column(visible=True),
            *self._report(row, base, length, checked, finding),
            *self._row_list(row, checked, shown, page),
            *self._statistics(row, base, checked),
            versions_html(self._workbench.registry.datasets.versions(row.id or 0)),
        ]

    def _dataset(self, name: str) -> Dataset | None:
        try:
            return self._workbench.registry.find(Dataset, name) if name else None
        except NotFound:
            return None

    def _model(self, base: str | None) -> Base | None:
        return next((one for one in self._workbench.registry.all(Base) if one.name == base), None)

    def _checked(self, row: Dataset, base: str | None, length: float) -> BaseCheck | None:
        model = self._model(base)
        return self._datasets.checked(row, model, int(length or _LENGTH)) if model else None

    def _report(
        self, row: Dataset, base: str | None, length: float, checked: BaseCheck | None, finding: str
    ) -> list[Any]:
        opened = self._datasets.open(row)
        counts = opened.findings.counts() | (checked.findings.counts() if checked else {})
        kinds = [(f"{KINDS[code].title} ({count:,})", code) for code, count in counts.items()]
        choices = [(_EVERYTHING, _EVERYTHING), (ERRORS, ERRORS), (WARNINGS, WARNINGS), *kinds]
        now = finding if finding in values_of(choices) else _EVERYTHING
        return [
            kinds_html(opened, checked),
            choose_from(choices, finding, _EVERYTHING),
            findings_html(opened, checked, _codes(now), row.source_name),
            csv_link(row, base, length) if checked else csv_link(row),
        ]

    def _report_list(self, name: str, base: str | None, length: float, finding: str) -> str:
        row = self._dataset(name)
        if row is None:
            return ""
        return findings_html(
            self._datasets.open(row), self._checked(row, base, length), _codes(finding), row.source_name
        )

    def _rows(self, name: str, base: str | None, length: float, shown: str, page: float) -> list[Any]:
        row = self._dataset(name)
        return (
            self._row_list(row, self._checked(row, base, length), shown, page)
            if row
            else [gr.skip(), gr.skip()]
        )

    def _row_list(self, row: Dataset, checked: BaseCheck | None, shown: str, page: float) -> list[Any]:
        start = _PAGE * (max(1, int(page or 1)) - 1)
        lines, total = self._datasets.lines(row, shown, start=start, count=_PAGE, base=checked)
        cells = [
            [
                str(line.index + 1),
                str(line.number),
                line.part,
                ", ".join(dict.fromkeys(KINDS[code].title for code, _ in line.findings)),
                line.said[:80],
            ]
            for line in lines
        ]
        return [
            gr.Dataframe(value=cells),
            f"{total:,} rows on {-(-total // _PAGE):,} page{'s' if total > _PAGE else ''}",
        ]

    def _show_row(self, name: str, base: str | None, length: float, index: int, template: str) -> list[Any]:
        row = self._dataset(name)
        if row is None:
            return ["", "", "", gr.skip()]
        stored = self._datasets.row(row, index)
        example = stored.example
        shown = [{"row": stored.number, "messages": list(example.messages), "text": example.text}]
        turns = [[one["role"], one["content"]] for one in example.messages] or [
            ["text", example.text or stored.raw]
        ]
        if stored.fault:
            about = [finding.detail for finding in self._datasets.open(row).findings.about([index])]
            shown = [{"row": stored.number, "fault": " ".join(about)}]
            raw = table(("What stands in the file",), [(stored.raw,)]) if stored.raw else ""
            return [
                f"**Row {stored.number}**",
                "<p class='hint'>A row with an error has no tokens.</p>",
                conversation(shown) + raw,
                turns,
            ]
        if not base:
            return [
                f"**Row {stored.number}**",
                "<p class='hint'>Add a base model to see its tokens.</p>",
                conversation(shown),
                turns,
            ]
        view = self._datasets.tokens(row, base, index, template or None)
        return [f"**Row {stored.number}**", tokens_html(view), conversation(shown), turns]

    def _statistics(self, row: Dataset, base: str | None, checked: BaseCheck | None) -> list[Any]:
        summary = self._datasets.open(row).summary
        model = self._model(base)
        bare = model is not None and not model.has_chat_template
        report = checked.report if checked else None
        parts: list[tuple[Any, tuple[str, ...], list[tuple[Any, ...]]] | None] = [
            _binned(report["lengths"], "tokens", report["max_length"]) if report else None,
            _binned(report["shares"], "share") if report else None,
            *(
                _named(values, title)
                for values, title in (
                    (summary.turns if summary else {}, "turns"),
                    (summary.roles if summary else {}, "role"),
                    (dict(list(summary.labels.items())[:100]) if summary else {}, "label"),
                )
            ),
        ]
        hint = "<p class='hint'>Check with a base to see tokens, lengths, packing and the chat template.</p>"
        return [
            token_facts_html(report, _BATCH) if report else hint,
            template_html(checked.template) if checked else "",
            gr.Dropdown(visible=bare),
            gr.Button(visible=bare),
            *(gr.Plot(value=part[0], visible=True) if part else gr.Plot(visible=False) for part in parts),
            *(
                gr.HTML(value=table(part[1], part[2]), visible=True) if part else gr.HTML(visible=False)
                for part in parts
            ),
        ]

    # What is done.

    def _start_check(self, name: str, base: str | None, length: float) -> None:
        if not name or not base:
            raise refusal("Choose a data set and a base model first.")
        self._workbench.datasets.check(name, base, int(length or _LENGTH))
        inform("The report and the statistics fill in when it is done.", "Checking")

    def _leave_out_errors(self, name: str, base: str | None, length: float) -> None:
        self._datasets.leave_out(
            name,
            codes_of(ERROR),
            base=self._checked(self._workbench.registry.find(Dataset, name), base, length),
        )

    def _leave_out_kind(self, name: str, base: str | None, length: float, finding: str) -> None:
        if finding == _EVERYTHING:
            raise refusal("Choose one kind of finding under Show first.")
        self._datasets.leave_out(
            name,
            _codes(finding),
            base=self._checked(self._workbench.registry.find(Dataset, name), base, length),
        )

    def _save_row(self, name: str, index: int, turns: Any) -> None:
        self._datasets.edit(name, index, _pairs(turns))

    def _append_row(self, name: str, index: int, turns: Any) -> None:
        self._datasets.append(name, _pairs(turns))

    def _split_anew(self, name: str, kind: str, amount: float, seed: float, stratify: bool) -> None:
        share = (amount or 0) / 100 if kind == SHARE else 0.05
        self._datasets.split(name, Split(kind, share, int(amount or 0), int(seed or 0), bool(stratify)))

    def _use_template(self, base: str, template: str) -> None:
        self._workbench.models.choose_template(base, template)
        inform(
            f"{base} is trained and chatted with in the {template or 'plain'} template from now on.", "Chosen"
        )


def _silently(handler: Any) -> Any:
    """The handler without its result: what it changed is shown by what follows it."""

    def run(*values: Any) -> None:
        handler(*values)

    return run


def _clicked(event: gr.SelectData) -> int:
    """The row's place in the data set, also when the list is sorted."""
    return int(event.row_value[0]) - 1


def _codes(finding: str) -> list[str]:
    """The kinds of finding that a choice stands for; none for all."""
    if finding in (ERRORS, WARNINGS):
        return codes_of(ERROR if finding == ERRORS else WARNING)
    return [] if finding == _EVERYTHING else [finding]


def _pairs(turns: Any) -> list[tuple[str, str]]:
    return [(str(role or ""), str(text or "")) for role, text in turns.itertuples(index=False)]


def _binned(bins: list[list[float]], title: str, marked: float | None = None) -> Any:
    rows = [(f"{a:,.3g} to {b:,.3g}", f"{int(count):,}") for a, b, count in bins if count]
    return histogram(bins, title, marked=marked), (title, "rows"), rows


def _named(values: dict[str, int], title: str) -> Any:
    if not values:
        return None
    return (
        bars(values, title, "turns" if title == "role" else "rows"),
        (title, "count"),
        [(name, f"{count:,}") for name, count in values.items()],
    )
