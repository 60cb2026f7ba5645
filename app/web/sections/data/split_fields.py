"""The fields that say which rows of what is imported are kept for validation, and what is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from app.web.parts.shell import FOLLOWING, refusal
from core.data.split import COUNT, FILE, NONE, SHARE, Split
from core.data.zipped import readable

_SPLITS = {
    "a share of the rows": SHARE,
    "a number of rows": COUNT,
    "a file of its own": FILE,
    "none": NONE,
}


@dataclass(frozen=True)
class SplitAsked:
    """What was asked for."""

    split: Split
    validation: Sequence[str]
    near_duplicates: bool


class SplitFields:
    """Lays itself out where it is made. `every` are its fields, in the order of their values."""

    def __init__(self) -> None:
        self._kind = gr.Radio(
            list(_SPLITS.items()), value=SHARE, label="Rows kept for validation", interactive=True
        )
        with gr.Row():
            self._share = gr.Number(5, label="Share (%)", minimum=0.01, maximum=50, min_width=110)
            self._count = gr.Number(
                100, label="Number of rows", precision=0, minimum=1, visible=False, min_width=110
            )
            self._seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
            self._stratify = gr.Checkbox(False, label="Stratified by label", min_width=140)
        self._validation = gr.File(
            label="Validation file",
            file_types=list(readable()),
            file_count="multiple",
            height=110,
            visible=False,
        )
        self._near = gr.Checkbox(True, label="Look for near duplicates (a second pass)")
        parts: list[Component] = [self._share, self._count, self._seed, self._stratify, self._validation]
        self._kind.input(_needed, self._kind, parts, **FOLLOWING)
        self.every: list[Component] = [self._kind, *parts, self._near]


def split_asked(values: Sequence[Any]) -> SplitAsked:
    """What the fields' values ask for. Raises InvalidConfig, and refuses a split by file without a file."""
    kind, share, count, seed, stratify, validation, near = values
    if kind == FILE and not validation:
        raise refusal("Upload the validation file, or choose another way to keep validation rows.")
    split = Split(
        kind,
        (share or 0) / 100 if kind == SHARE else 0.05,
        int(count or 0),
        int(seed or 0),
        bool(stratify),
    )
    return SplitAsked(split, validation if kind == FILE else (), bool(near))


def _needed(kind: str) -> list[Any]:
    """Which fields a way of splitting needs: share, count, seed, stratify, validation file."""
    drawn = kind in (SHARE, COUNT)
    return [
        gr.Number(visible=kind == SHARE),
        gr.Number(visible=kind == COUNT),
        gr.Number(visible=drawn),
        gr.Checkbox(visible=drawn),
        gr.File(visible=kind == FILE),
    ]
