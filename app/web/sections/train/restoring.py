"""What the form says when the page opens: what it said before, or what an address wishes; and what bases,
data sets and runs another section wants in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Self

import gradio as gr

from app.service.usual import usual_base, usual_data
from app.service.workbench import Workbench
from app.shared.bases import closest_base
from app.web.parts.routes import wish
from app.web.parts.shell import QUIET, QUIET_QUEUED, Shell, choose_from, inform, told
from app.web.sections.train.form import NO_PRESET, TrainForm
from app.web.sections.train.form_values import FormValues
from app.web.sections.train.planning import shown_plan
from storage.errors import NotFound
from storage.tables import Adapter, Base, Dataset, Run

TAB = "train"
_KEEP = "(...all) => all[5] ? JSON.stringify(all.slice(0, 6)) : all[6]"  # not before it is restored

_WISHED = """(kept, ...held) => [kept, ...['base', 'data', 'from', 'on'].map(
    (what, at) => window.workbench.wished[`train ${what}`] ?? held[at])]"""


@dataclass(frozen=True)
class Kept:
    """The form as it is kept, in the order of TrainForm.all."""

    base: str | None = None
    dataset: str | None = None
    preset: str = ""
    name: str = ""
    together: bool = False
    options: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """What the browser has kept; nothing at first."""
        return cls(*json.loads(text)) if text else cls()


def bind_keeping(shell: Shell, form: TrainForm, plan: gr.HTML) -> None:
    """Keep the form in the browser; first shown, it is as it was, and as an address wishes from then on."""
    workbench = shell.workbench
    kept = shell.kept["train"]
    wishes = {what: wish(TAB, what) for what in ("base", "data", "from", "on")}

    @told
    def open_with(was: str, *wished: str) -> tuple[object, ...]:
        before = _opened(workbench, was)
        try:
            now = _granted(workbench, before, dict(zip(wishes, wished, strict=True)))
        except NotFound as error:  # the rest of the form is brought back all the same
            inform(str(error), "Look again")
            now = before
        return _shown(workbench, now, plan=True)

    # Not when the page opens: Gradio drops what it is given for a section that has not been shown yet.
    inputs, outputs = [kept, *wishes.values()], [*form.all, plan, form.anyway]
    form.options.focus(open_with, inputs, outputs, js=_WISHED, **QUIET_QUEUED)
    for what, wished in wishes.items():
        _bind_wish(workbench, form, what, wished)
    fields = (form.base, form.dataset, form.preset, form.name, form.together)
    changes = [form.options.submit, *(one.change for one in fields)]
    gr.on(changes, None, [*form.all, kept], kept, js=_KEEP, **QUIET)


def _bind_wish(workbench: Workbench, form: TrainForm, what: str, wished: gr.HTML) -> None:
    @told
    def bring(value: str, *now: object) -> tuple[object, ...]:
        form_now = Kept(*now)  # type: ignore[arg-type]
        if not form_now.options:
            return tuple(gr.skip() for _ in now)  # it is filled next, with what is wished
        return _shown(workbench, _granted(workbench, form_now, {what: value}))

    wished.submit(bring, [wished, *form.all], form.all, **QUIET_QUEUED)


def bind_choices(shell: Shell, form: TrainForm) -> None:
    """Offer the base models and data sets that there are."""
    registry = shell.workbench.registry

    def show(base: str | None, dataset: str | None, options: str) -> tuple[object, ...]:
        if not options:
            return gr.skip(), gr.skip()  # the page is opening
        bases, sets = [row.name for row in registry.all(Base)], [row.name for row in registry.all(Dataset)]
        first_base = base if base else usual_base(shell.workbench)
        first_data = dataset if dataset else usual_data(registry)
        return (
            choose_from(bases, base, first_base if first_base in bases else None),
            choose_from(sets, dataset, first_data if first_data in sets else None),
        )

    shell.refresh(show, form.training, [form.base, form.dataset])


def _opened(workbench: Workbench, was: str) -> Kept:
    """The form as it was, without what has gone since."""
    registry, before = workbench.registry, Kept.read(was)
    return replace(
        before,
        options=FormValues.read(before.options).write(),
        base=before.base if before.base in registry.names(Base) else usual_base(workbench),
        dataset=before.dataset if before.dataset in registry.names(Dataset) else usual_data(registry),
    )


def _granted(workbench: Workbench, now: Kept, wishes: dict[str, str]) -> Kept:
    """The form with what is wished of it, as far as it is there; else it is said what is not."""
    registry = workbench.registry
    if number := wishes.get("from"):
        now = _as_run(workbench, now, int(number) if number.isdigit() else 0)
    if name := wishes.get("on"):
        adapter = registry.find(Adapter, name)
        now = _on_top_of(adapter, closest_base(registry, adapter), now)
    base, data = wishes.get("base"), wishes.get("data")
    return replace(
        now,
        base=registry.find(Base, base).name if base else now.base,
        dataset=registry.find(Dataset, data).name if data else now.dataset,
    )


def _on_top_of(adapter: Adapter, base: Base | None, now: Kept) -> Kept:
    """The form with this adapter to learn on, and its base."""
    form = FormValues.read(now.options)
    changed = replace(form, changed={**form.changed, "on_top_of": adapter.name})
    return replace(now, options=changed.write(), base=base.name if base else now.base)


def _as_run(workbench: Workbench, now: Kept, number: int) -> Kept:
    """The form with the base, the data set and all options of a run."""
    registry = workbench.registry
    run = registry.get(Run, number)
    options = FormValues(f"run {number}", workbench.runs.options(number)).write()
    base = run.base_name if run.base_name in registry.names(Base) else None
    data = run.dataset_name if run.dataset_name in registry.names(Dataset) else None
    gone = [name for name, found in ((run.base_name, base), (run.dataset_name, data)) if not found]
    if gone:
        inform(f"{' and '.join(gone)} of run {number}: not here any more; choose another.", "Look again")
    return replace(now, preset="", options=options, base=base or now.base, dataset=data or now.dataset)


def _shown(workbench: Workbench, kept: Kept, *, plan: bool = False) -> tuple[object, ...]:
    registry = workbench.registry
    presets = [NO_PRESET, *((one.name, one.name) for one in workbench.presets.usable())]
    preset = kept.preset if kept.preset in [value for _, value in presets] else ""
    shown = (
        gr.Dropdown(choices=[row.name for row in registry.all(Base)], value=kept.base),
        gr.Dropdown(choices=[row.name for row in registry.all(Dataset)], value=kept.dataset),
        gr.Dropdown(choices=presets, value=preset),
        kept.name,
        kept.together,
        kept.options,
    )
    return (*shown, *shown_plan(workbench, kept.base, kept.dataset, kept.options)) if plan else shown
