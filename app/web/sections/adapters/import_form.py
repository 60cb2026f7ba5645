"""Bringing an adapter in: a dropped file or a folder's path, first looked at, then imported."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.web.parts.job_result import job_button
from app.web.parts.shell import Shell, choose_from, refusal
from storage.tables import Base, Job

_ANY = "the one that fits"


def adapter_import(shell: Shell) -> None:
    """Lay out the form and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        files = gr.File(
            label="A .zip or .safetensors file, with adapter_config.json beside it if there is one",
            file_count="multiple",
            file_types=[".zip", ".safetensors", ".json"],
            height=140,
            scale=2,
        )
        folder = gr.Textbox(value="", label="Or a folder or file on this machine", info="Only read.", scale=2)
    with gr.Row(equal_height=True, elem_classes="asked"):
        name = gr.Textbox(value="", label="Name", placeholder="the file's", scale=2)
        base = gr.Dropdown([_ANY], value=_ANY, label="Base model", interactive=True, scale=2)
        alpha = gr.Textbox(value="", label="Alpha", placeholder="if the files do not say", scale=1)
        which = gr.Textbox(value="", label="Which one", placeholder="of several in a file", scale=1)
        look = gr.Button("Look at it", scale=0, min_width=120)
        take = gr.Button("Import", variant="primary", scale=0, min_width=120, elem_id="import-adapter")
    said, result = gr.HTML(), gr.HTML()

    def offer(now: str) -> object:
        names = [_ANY, *[row.name for row in workbench.registry.all(Base)]]
        return choose_from(names, now, _ANY)

    shell.refresh(offer, [base], [base])

    def start_looking(given: list[str] | None, path: str, stated: str, one: str) -> Job:
        origin, shown = _origin(workbench.settings.uploads, given, path)
        return workbench.adapters.look_at(origin, alpha=_alpha(stated), which=one.strip(), shown=shown)

    def start(given: list[str] | None, path: str, wanted: str, on: str, stated: str, one: str) -> Job:
        origin, shown = _origin(workbench.settings.uploads, given, path)
        named = None if on == _ANY else on
        return workbench.adapters.import_files(
            origin, wanted.strip(), named, alpha=_alpha(stated), which=one.strip(), shown=shown
        )

    def render(found: dict[str, Any]) -> tuple[object, ...]:
        return (found_html(found),)

    job_button(shell, look, start_looking, [files, folder, alpha, which], render, said, [result])
    job_button(shell, take, start, [files, folder, name, base, alpha, which], render, said, [result])


def _origin(uploads: Path, given: list[str] | None, path: str) -> tuple[Path, str]:
    """What is to be imported, and what it is called. Files that belong together are put into one folder."""
    if path.strip():
        origin = Path(path.strip()).expanduser()
        return origin, origin.resolve().name
    files = [Path(one) for one in given or []]
    weights = [one for one in files if one.suffix.lower() != ".json"]
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
    table = (
        "<table class='rows'><thead><tr><th>Base "
        f"model</th><th></th><th>Why</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    done = (
        f"<p class='lead'>Imported as <b>{escape(found['name'])}</b> for {escape(found['base'])}.</p>"
        if found.get("name")
        else ""
    )
    warned = f"<p class='fault'>{escape(found['warning'])}</p>" if found.get("warning") else ""
    return f"{done}{warned}<p>{escape(found['sentence'])}</p>{table if found['bases'] else ''}"
