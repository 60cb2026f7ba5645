"""Bringing an adapter in: a dropped file or a folder's path, first looked at, then kept as what was found."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.job_result import said_of, starts_job
from app.web.parts.panes import bar, close_sheet
from app.web.parts.routes import link
from app.web.parts.shell import WORKING, Shell, refusal, told
from storage.registry import Registry
from storage.tables import FINISHED, Base, Job

_ANY = "the one that fits"
_JOBS = 8  # among the newest of which the look is found that failed imports came after


def adapter_import(shell: Shell) -> None:
    """Lay out the form and bind its handlers."""
    workbench = shell.workbench
    files = gr.File(
        label="A .zip or .safetensors file, with adapter_config.json beside it if there is one",
        file_count="multiple",
        file_types=[".zip", ".safetensors", ".json"],
        height=140,
    )
    folder = gr.Textbox(value="", label="Or a folder or file on this machine", info="Only read.")
    with gr.Row(equal_height=True):
        alpha = gr.Textbox(value="", label="Alpha", info="Only where the files do not say theirs.")
        which = gr.Textbox(value="", label="Which one", info="Of several adapters in one file.")
    with bar():
        look = gr.Button("Look at it", variant="primary", size="md", scale=0)
    said, preview = gr.HTML(), gr.HTML()
    with gr.Column():  # always there: Gradio may lose that it became visible before its section was opened
        name = gr.Textbox(value="", label="Name", info="Empty: the file's.")
        base = gr.Dropdown([], label="Base model", interactive=True)
        with bar():
            keep = gr.Button("Keep it", variant="primary", size="md", scale=0)
    looked = gr.State(0)
    begun = gr.State(0)  # the newest import that this page has started

    def start_looking(given: list[str] | None, path: str, stated: str, one: str) -> Job:
        origin, shown = _origin(workbench.settings.uploads, given, path)
        return workbench.adapters.look_at(origin, alpha=_alpha(stated), which=one.strip(), shown=shown)

    def show(before: int, now: str | None, own: int) -> tuple[object, ...]:
        words, job = what_was_looked_at(workbench.registry, own)
        if job is None:
            return 0, words, "", gr.skip()
        bases = _bases(workbench, job.result, now if job.id == before else None)
        return job.id, words, found_html(job.result), bases

    shell.refresh(show, [looked, base, begun], [looked, said, preview, base])
    starts_job(shell, look.click, start_looking, [files, folder, alpha, which], begun=begun)
    starts_job(shell, folder.submit, start_looking, [files, folder, alpha, which], begun=begun)

    def start_with_files(given: list[str] | None, stated: str, one: str) -> Job | None:
        return start_looking(given, "", stated, one) if _weights(given) else None

    starts_job(shell, files.upload, start_with_files, [files, alpha, which], begun=begun)

    @told
    def start(number: int, wanted: str, on: str | None) -> tuple[str, int | None]:
        return "", _keep(workbench, number, wanted.strip(), on).id

    kept = keep.click(start, [looked, name, base], [name, begun], **WORKING)
    close_sheet(kept, "import-adapter")
    shell.soon(kept)


def what_was_looked_at(registry: Registry, own: int) -> tuple[str, Job | None]:
    """What to say of the newest import, and the look whose findings can be kept, if there is one.

    Why one gave nothing is said where it was asked for alone: `own` is the newest import of this page.
    """
    jobs = registry.jobs.of("import_adapter", limit=_JOBS)
    if not jobs:
        return "", None
    newest = jobs[0]
    said = said_of(newest) if newest.active or newest.id == own else ""
    if newest.arguments["look"]:
        return said, newest if newest.state == FINISHED else None
    if newest.state == FINISHED:  # what was looked at before it has been kept
        return "", None
    return said, _look_for(newest, jobs)


def _look_for(kept: Job, jobs: Sequence[Job]) -> Job | None:
    """The look at what an import that was refused wanted to keep."""
    looks = [one for one in jobs if one.arguments["look"] and one.state == FINISHED]
    return next((one for one in looks if one.arguments["folder"] == kept.arguments["folder"]), None)


def _keep(workbench: Workbench, number: int, name: str, on: str | None) -> Job:
    """Import what was looked at. Raises a refusal, NameTaken, NotFound."""
    if not number:
        raise refusal("Look at an adapter first, and keep it when what it is stands here.")
    if not fits(workbench.registry.get(Job, number).result):
        raise refusal("It fits no base model that is here; add its own under Models, and look at it again.")
    if not on:
        raise refusal("It fits several base models, and does not record which is its own; choose one.")
    looked = workbench.registry.get(Job, number).arguments
    about = {key: looked[key] for key in ("alpha", "which", "shown")}
    return workbench.adapters.import_files(Path(looked["folder"]), name, None if on == _ANY else on, **about)


def fits(found: dict[str, Any]) -> bool:
    """Whether there is a base model here for what was found."""
    return any(one["fits"] for one in found["bases"])


def _bases(workbench: Workbench, found: dict[str, Any], now: str | None) -> object:
    """The bases that it fits. Where these are several models, none is chosen for the user."""
    names = [one["name"] for one in found["bases"] if one["fits"]]
    known = {row.name: row.fingerprint for row in workbench.registry.all(Base)}
    one_model = len({known[name] for name in names if name in known}) < 2
    choices = [*([_ANY] if one_model else []), *names]
    if now in choices:
        return gr.Dropdown(choices=choices)
    return gr.Dropdown(choices=choices, value=_ANY if one_model else None)


def _origin(uploads: Path, given: list[str] | None, path: str) -> tuple[Path, str]:
    """What is to be imported, and what it is called. Files that belong together are put into one folder."""
    if path.strip():
        origin = Path(path.strip()).expanduser()
        return origin, origin.resolve().name
    files, weights = [Path(one) for one in given or []], _weights(given)
    if len(weights) != 1:
        raise refusal("Drop one .zip or .safetensors file, or give the path of a folder.")
    together = Path(uploads) / f"adapter-{weights[0].parent.name}"
    if len(files) == 1:
        return weights[0], weights[0].name
    together.mkdir(exist_ok=True)
    for one in files:
        name = "adapter_config.json" if one.suffix.lower() == ".json" else "adapter_model.safetensors"
        (together / name).write_bytes(one.read_bytes())
    return together, weights[0].name


def _weights(given: list[str] | None) -> list[Path]:
    """Those of the dropped files that are not a configuration."""
    return [Path(one) for one in given or [] if Path(one).suffix.lower() != ".json"]


def _alpha(stated: str) -> float | None:
    if not stated.strip():
        return None
    try:
        return float(stated)
    except ValueError:
        raise refusal(f"Alpha is {stated[:40]!r}; give a number, or leave it empty.") from None


def found_html(found: dict[str, Any]) -> str:
    """What the files are, and which base models they fit."""
    rows = "".join(
        f"<tr><td>{escape(one['name'])}</td><td><span class='state {'good' if one['fits'] else 'calm'}'>"
        f"{'fits' if one['fits'] else 'does not fit'}</span></td><td>{escape(one['why'])}</td></tr>"
        for one in found["bases"]
    )
    head = "<thead><tr><th>Base model</th><th>Fits</th><th>Why</th></tr></thead>"
    table = f"<table class='rows'>{head}<tbody>{rows}</tbody></table>" if rows else ""
    add = link("Add the one that it was made for", "models")
    advice = f"<p class='fault'>It fits no base model here. {add} first, then look at it again.</p>"
    sentence = f"<p class='lead'>{escape(found['sentence'])}</p>"
    return f"<div class='card'><h3>What this is</h3>{sentence}{table}</div>{'' if fits(found) else advice}"
