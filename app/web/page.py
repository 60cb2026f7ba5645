"""The page: rail and masthead, what is under way, and one section for each part of the work."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.answers import check_answers
from app.web.parts.head import live_head
from app.web.parts.kept import kept_states
from app.web.parts.keys import keys_sheet
from app.web.parts.rail import rail
from app.web.parts.routes import router
from app.web.parts.shell import QUIET_QUEUED, Shell, count_of
from app.web.sections.adapters import section as adapters
from app.web.sections.data import section as data
from app.web.sections.export import section as export
from app.web.sections.home import section as home
from app.web.sections.models import section as models
from app.web.sections.playground import section as playground
from app.web.sections.runs import section as runs
from app.web.sections.settings import section as settings
from app.web.sections.train import section as train

_PARTS = (home, models, data, train, runs, adapters, playground, export, settings)
_AT = "(section, seen) => [section, seen, performance.now()]"
_ALWAYS = (playground.TAB,)  # opened with a wish of another section, which a refresh then would undo


def build_page(workbench: Workbench) -> gr.Blocks:
    """All of the page, bound to one Workbench."""
    with gr.Blocks(title="LoRA Workbench", analytics_enabled=False, fill_width=True) as page:
        rail([(part.TAB, part.TITLE) for part in _PARTS])
        head = live_head(workbench)
        go = router()
        # Outside of the tabs: each child of gr.Tabs counts as a tab.
        section, changed = gr.State((_PARTS[0].TAB, 0.0)), gr.State("")
        changes = {part.TAB: gr.State("") for part in _PARTS}
        clock = gr.Number(visible=False)  # carries the browser's time of a click
        with gr.Tabs(elem_id="sections"):
            shell = Shell(workbench, page, changed, go)
            for part in _PARTS:
                with gr.Tab(part.TITLE, id=part.TAB) as tab:
                    first = part is _PARTS[0]
                    if first:
                        shell = replace(shell, kept=kept_states())
                    # The others are brought up to date as they are opened.
                    triggers = [page.load] if first else []
                    own = replace(shell, changed=changes[part.TAB], refreshes=[], triggers=triggers)
                    part.build(own)
                    own.follow()
                opened = functools.partial(_opened, workbench, part.TAB)
                one_at_a_time = QUIET_QUEUED | {"concurrency_id": "section"}
                tab.select(
                    opened,
                    [section, changes[part.TAB], clock],
                    [section, changes[part.TAB]],
                    js=_AT,
                    **one_at_a_time,
                )
        keys_sheet()
        _keep_up_to_date(shell, head, section, changes)
        _describe_once(page)
    check_answers(page)
    return page


def _describe_once(page: gr.Blocks) -> None:
    """Have components and events described when all are there, and not four times until the page is served:
    each takes a tenth of a second.
    """
    page.default_config.get_config = functools.cache(page.default_config.get_config)  # type: ignore[method-assign]


def _opened(
    workbench: Workbench, tab: str, before: tuple[str, float], seen: str, at: float
) -> tuple[object, ...]:
    """A section was opened: it is brought up to date, and kept so.

    On a busy machine what was opened first may arrive last.
    """
    count = workbench.changes()
    now_open = gr.skip() if at < before[1] else (tab, at)
    return now_open, gr.skip() if count == count_of(seen) or tab in _ALWAYS else count


def _keep_up_to_date(shell: Shell, head: gr.HTML, section: gr.State, changes: Mapping[str, gr.State]) -> None:
    """One look at the registry for the whole page, and news for the sections only where there is any.

    Most sections hear that the registry has changed while they are open, or when they are opened: a browser
    that brings all of them up to date at once is busy for a second.
    """

    def tell(now_open: tuple[str, float], everywhere: str, *seen: str) -> list[object]:
        count = shell.workbench.changes()
        following = (now_open[0], *_ALWAYS)
        return [
            gr.skip() if count == count_of(everywhere) else count,
            *[
                count if count != count_of(known) and tab in following else gr.skip()
                for tab, known in zip(changes, seen, strict=True)
            ],
        ]

    states = [shell.changed, *changes.values()]
    on_the_way = QUIET_QUEUED | {"trigger_mode": "always_last"}
    head.submit(tell, [section, *states], states, concurrency_limit=None, **on_the_way)
