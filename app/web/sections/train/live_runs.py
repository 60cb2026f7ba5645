"""The runs that are under way beside the form, each a link to its own view, and those that finished last."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import duration, number, state_badge
from app.web.parts.routes import link
from storage.errors import NotFound
from storage.tables import FINISHED, STOPPED, Adapter, Point, Run

_MOST = 12
_MOST_FINISHED = 3
_LOOKED_AT = 30  # runs, among which finished ones are looked for
_FOLLOW = """
let timer = null, asking = false;
async function ask() {
  clearTimeout(timer);
  let soon = false;
  if (window.workbench.seen(element) && document.visibilityState === 'visible' && !asking) {
    asking = true;
    try {
      const now = await server.live(0);
      if (now !== props.value) props.value = now;
      soon = now.includes('data-active');
    } catch (error) { console.warn('The runs could not be asked for; trying again.', error); soon = true; }
    asking = false;
  }
  if (soon) timer = setTimeout(ask, 1000);
}
const later = () => setTimeout(ask, 50);
for (const news of ['workbench-changed', 'workbench-route', 'resize']) addEventListener(news, later);
document.addEventListener('visibilitychange', ask);
ask();
"""


def live_runs(workbench: Workbench) -> gr.HTML:
    """A component that keeps itself up to date while it is seen."""

    def live(_: object) -> str:
        return live_html(workbench)

    return gr.HTML("", js_on_load=_FOLLOW, server_functions=[live], elem_id="live-runs")


def live_html(workbench: Workbench) -> str:
    """All of it."""
    registry = workbench.registry
    runs = registry.runs.active()
    points = registry.measurements.last_points([run.id or 0 for run in runs])
    cards = [_active(run, points.get(run.id or 0)) for run in runs[:_MOST]]
    if len(runs) > _MOST:
        cards.append(f"<p class='hint'>{link(f'and {len(runs) - _MOST} more', 'runs')}</p>")
    now = "".join(cards) or "<div class='empty'>No run is active. Start one, and it shows here.</div>"
    return f"<h3>Active runs</h3>{now}{_finished(workbench)}"


def _active(run: Run, point: Point | None) -> str:
    total = run.details.get("total_steps")
    share = min(1.0, point.step / total) if point and total else None
    said = [f"step {point.step:,} of {total:,}"] if point and total else []
    said += [f"loss {number(point.loss)}"] if point else []
    said += [f"{duration(point.seconds_left)} left"] if point and point.seconds_left is not None else []
    title = f"{link(run.name, 'runs', name=run.id or 0)} {state_badge(run.state)}"
    figures = escape(" · ".join(said) or "waits for its turn")
    bar = f"<span class='bar'><i style='width:{100 * (share or 0):.0f}%'></i></span>"
    return f"<div class='live-run' data-active><div>{title}</div>{bar}<small>{figures}</small></div>"


def _finished(workbench: Workbench) -> str:
    newest = workbench.registry.all(Run, limit=_LOOKED_AT)
    ended = [run for run in newest if run.state in (FINISHED, STOPPED)][:_MOST_FINISHED]
    cards = "".join(_ended(workbench, run) for run in ended)
    return f"<h3>Newest finished</h3>{cards}" if cards else ""


def _ended(workbench: Workbench, run: Run) -> str:
    try:
        adapter = workbench.registry.get(Adapter, run.adapter_id or 0)
        chat = link(workbench.classifiers.try_words(adapter), "playground", adapter=adapter.name)
    except NotFound:  # it kept none, or that was deleted since
        chat = "<span class='quiet'>its adapter is not here</span>"
    title = link(run.name, "runs", name=run.id or 0)
    return f"<div class='live-run'><div>{title} {state_badge(run.state)}</div><small>{chat}</small></div>"
