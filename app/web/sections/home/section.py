"""Home: the way to the first adapter, what was made lately, and what this machine is."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS
from app.web.parts.panes import bar
from app.web.parts.routes import there
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.home.journey import ALL, NEXT, TO_CHAT, journey_html, start_step, steps_done
from app.web.sections.home.lora_costs import costs_opener, costs_sheet
from app.web.sections.home.other_jobs import other_jobs
from app.web.sections.home.recent import recent_html

TAB, TITLE = "home", "Home"


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    begun = gr.State(
        []
    )  # the steps that follow by themselves, once each, since somebody asked for all of them
    with gr.Row(visible=False, elem_classes="first-steps") as first:
        steps = gr.HTML()
        with gr.Column(scale=0, min_width=240):
            everything = gr.Button("Do all of it", variant="primary", size="md", elem_id="all-steps")
            go = gr.Button(NEXT[0], size="md", elem_id="first-step")
            said = gr.HTML()
    overview = gr.HTML()
    with bar():
        costs_opener()
    costs_sheet(shell)
    other_jobs(shell)

    def show(begun_now: list[int]) -> tuple[object, ...]:
        done, waits, why = steps_done(workbench), _waits(workbench), ""
        if begun_now and done < TO_CHAT and not waits:
            begun_now, why = _go_on(workbench, begun_now, done)
            waits = bool(begun_now)
        label = "Under way …" if waits and done < TO_CHAT else NEXT[min(done, TO_CHAT)]
        hint = "The next steps start by themselves." if begun_now and done < TO_CHAT else ""
        return (
            begun_now,
            gr.Row(visible=done < ALL),
            journey_html(done),
            gr.Button(visible=done < TO_CHAT, interactive=not waits),
            gr.Button(
                label,
                interactive=not waits or done >= TO_CHAT,
                variant="primary" if done >= TO_CHAT else "secondary",
            ),
            f"<p class='{'fault' if why else 'hint'}'>{escape(why or hint)}</p>",
            recent_html(workbench),
        )

    shell.refresh(show, [begun], [begun, first, steps, everything, go, said, overview])

    @told
    def advance() -> object:
        done = steps_done(workbench)
        if done >= TO_CHAT:
            return there("playground")
        start_step(workbench, done)
        return gr.skip()

    @told
    def begin_all() -> list[int]:
        done = steps_done(workbench)
        if done < TO_CHAT and not _waits(workbench):
            start_step(workbench, done)
        return [done]

    shell.soon(go.click(advance, None, shell.go, concurrency_id="first", **WORKING))
    shell.soon(everything.click(begin_all, None, begun, concurrency_id="first", **WORKING))


def _go_on(workbench: Workbench, begun: list[int], done: int) -> tuple[list[int], str]:
    """Begin the next step, unless it was begun before: then it has failed. Returns the steps that were begun,
    none where it does not go on, and why.
    """
    if done in begun:
        return [], "That step did not end well; its reason is at the top. Begin it again when that is mended."
    try:
        start_step(workbench, done)
    except (*USER_ERRORS, OSError) as error:
        return [], plain_sentence(error)
    return [*begun, done], ""


def _waits(workbench: Workbench) -> bool:
    """Whether something is under way that a step would have to wait for."""
    return bool(workbench.registry.jobs.active() or workbench.registry.runs.active())
