"""Split and versions: which rows are kept for validation, and the history of the data set."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.web.parts.shell import FOLLOWING, WORKING, Shell, offered, refusal, told, values_of
from app.web.sections.data.chat_fields import ChatFields, chat_asked, chat_values
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.data_markup import versions_html
from core.data.split import COUNT, NONE, SHARE, Split
from storage.tables import Dataset


def version_tab(shell: Shell, chosen: ChosenData) -> None:
    """Lay out the tab and bind its handlers."""
    datasets, registry = shell.workbench.datasets, shell.workbench.registry
    with gr.Row(equal_height=True, elem_classes="asked"):
        kind = gr.Radio(
            [("share", SHARE), ("number", COUNT), ("none", NONE)],
            value=SHARE,
            label="Validation rows by",
            scale=2,
            min_width=280,
        )
        amount = gr.Number(5, label="Share in %, or number of rows", minimum=0, scale=1, min_width=150)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90)
        stratify = gr.Checkbox(False, label="Stratified by label", scale=1, min_width=140)
        again = gr.Button("Split anew", size="md", scale=1, min_width=120)
    with gr.Accordion("Conversations and chat template", open=False):
        chat = ChatFields()
        fit = gr.Button("Fit conversations so", size="md", scale=0)
    history = gr.HTML()
    with gr.Row(equal_height=True, elem_classes="asked", visible=False) as going_back:
        number = gr.Dropdown([], label="Version", scale=0, min_width=160, interactive=True)
        go_back = gr.Button("Go back to this version", size="md", scale=0, min_width=190)

    def show(name: str, wanted: int | None) -> tuple[object, ...]:
        row = chosen.dataset(name)
        if row is None:
            return (gr.skip(),) * (3 + len(chat.every))
        versions = registry.datasets.versions(row.id or 0)
        earlier = [(f"version {one.number}", one.number) for one in versions if one.number != row.version]
        numbers = values_of(earlier)
        now = wanted if wanted in numbers else next(iter(numbers), None)
        # A field that goes out of sight does not take the value that comes with it, and would tell the old
        # one, which Gradio refuses once it is no choice: nothing of the section would be answered any more.
        offer = offered(earlier, now, wanted) if earlier else gr.skip()
        shown = versions_html(versions), gr.Row(visible=bool(earlier)), offer
        return *shown, *chat_values(datasets.open(row).version.chat)

    def split_anew(name: str, by: str, many: float, start: float, by_label: bool) -> None:
        share = (many or 0) / 100 if by == SHARE else 0.05
        datasets.split(name, Split(by, share, int(many or 0), int(start or 0), bool(by_label)))

    def fitted(name: str, *values: Any) -> None:
        datasets.fit(name, chat_asked(values))

    def back_to(name: str, wanted: int | None) -> None:
        if wanted is None:
            now = registry.find(Dataset, name).version
            raise refusal(f"{name} has version {now} only: there is none to go back to.")
        datasets.go_back(name, wanted)

    shell.refresh(show, [chosen.name, number], [history, going_back, number, *chat.every])
    kind.input(
        lambda by: (gr.Number(visible=by != NONE), gr.Number(visible=by != NONE)),
        kind,
        [amount, seed],
        **FOLLOWING,
    )
    changing = WORKING | {"concurrency_id": "data-change"}
    shell.soon(again.click(told(split_anew), [chosen.name, kind, amount, seed, stratify], None, **changing))
    shell.soon(fit.click(told(fitted), [chosen.name, *chat.every], None, **changing))
    shell.soon(go_back.click(told(back_to), [chosen.name, number], None, **changing))
