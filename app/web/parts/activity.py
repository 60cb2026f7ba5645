"""What is under way, each with its bar and a way to end it, and what ended lately, with the next step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from app.jobs.kinds import JOBS
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS
from app.web.parts.markup import duration, state_badge
from app.web.parts.routes import link
from core.errors import WorkbenchError
from storage.tables import FINISHED, QUEUED, STOPPED, Adapter, Job, Run

_FAILURE_SECONDS = 24 * 3600.0  # how long a job that failed stays in sight, unless it is put away
_DONE_SECONDS = 120.0
_MOST_RUNS = 3
_MOST_ENDED = 100  # of each kind
_KNOWN_SHARE = 0.05  # of a job, from which on the rest of its time can be told


def activity_html(workbench: Workbench) -> str:
    """Runs and jobs that are under way, then what ended lately, the newest first: finished with its next
    step, failed with its reason. The page folds all but the newest away behind their count (head.js).
    """
    now = time.time()
    registry = workbench.registry
    lines = [*_runs_under_way(workbench), *[job_line(job, now) for job in registry.jobs.active()]]
    notices = _ended_lately(workbench, now)
    lines += [f"<div class='notices'>{''.join(notices)}</div>"] if notices else []
    return f"<div class='activity'>{''.join(lines)}</div>"


def _ended_lately(workbench: Workbench, now: float) -> list[str]:
    registry, done = workbench.registry, now - _DONE_SECONDS
    ended = [(job.ended or 0, _job_done(job)) for job in registry.jobs.finished(done, _MOST_ENDED)]
    failed = registry.jobs.failed(now - _FAILURE_SECONDS, _MOST_ENDED)
    ended += [(job.ended or 0, _job_failed(job)) for job in failed]
    ended += [(run.ended or 0, _run_ended(workbench, run)) for run in registry.runs.ended(done, _MOST_ENDED)]
    return [line for _, line in sorted(ended, key=lambda one: one[0], reverse=True)]


def end_work(workbench: Workbench, key: str) -> str:
    """End a job, or stop a run and keep what it has learned, by its key: job-3, run-7. Returns what to say of
    it, also of a refusal.
    """
    what, _, number = key.partition("-")
    try:
        if what == "run":
            run = workbench.registry.get(Run, int(number))
            workbench.runs.stop(int(number))
            return f"{run.name} stops at its next step; what it has learned is kept."
        job = workbench.registry.get(Job, int(number))
        workbench.jobs.cancel(job)
        return f"{job.title}: cancelled. Nothing was added."
    except USER_ERRORS as error:
        return str(error)


def _runs_under_way(workbench: Workbench) -> list[str]:
    runs = [run for run in workbench.registry.runs.active() if run.state != QUEUED]
    lines = [_run_line(workbench, run) for run in runs[:_MOST_RUNS]]
    if len(runs) > _MOST_RUNS:
        more = link(f"{len(runs) - _MOST_RUNS} more runs train at once", "runs")
        lines.append(f"<div class='job'><span>{more}</span></div>")
    return lines


def _run_line(workbench: Workbench, run: Run) -> str:
    point = workbench.registry.measurements.last_point(run.id or 0)
    total = run.details.get("total_steps")
    share = min(1.0, point.step / total) if point and total else None
    said = f"step {point.step:,} of {total:,}" if point and total else run.state
    left = duration(point.seconds_left) if point and point.seconds_left is not None else ""
    title = link(run.name, "runs", name=run.id or 0)
    return _line(f"run-{run.id}", title, said, share, left, f"Stop {run.name} and keep it", "Stop and keep")


def job_line(job: Job, now: float) -> str:
    """One job: what it does, how far it is, how long it still takes, and its Cancel."""
    title = f"<b>{escape(job.title)}</b>"
    return _line(
        f"job-{job.id}",
        title,
        job.message,
        job.fraction,
        _time_left(job, now),
        f"Cancel: {job.title}",
        "Cancel",
    )


def line_here(job: Job) -> str:
    """The same where a job was started, such as in a sheet, which covers what stands at the top. The page
    brings it up to date with its line there (head.js).
    """
    line = _line(f"job-{job.id}", "Under way", job.message, job.fraction, "", f"Cancel {job.title}", "Cancel")
    return f"<div class='job-here'>{line}</div>"


def _time_left(job: Job, now: float) -> str:
    if job.fraction is None or not _KNOWN_SHARE < job.fraction < 1:
        return ""
    return duration((now - job.created) * (1 - job.fraction) / job.fraction)


def _line(key: str, title: str, said: str, share: float | None, left: str, ends: str, word: str) -> str:
    known = share is not None
    done = f"{100 * (share or 0):.0f} %" if known else "…"
    width = f"width:{100 * (share or 0):.0f}%"
    bar = f"<span class='bar {'' if known else 'unknown'}'><i style='{width}'></i></span>"
    end = f"<button type='button' class='small' data-end='{key}' aria-label='{escape(ends)}'>{word}</button>"
    return (
        f"<div class='job' data-share='{share if known else ''}'><span class='job-said'>{title} "
        f"<span class='quiet'>{escape(said)}</span></span>{bar}"
        f"<span class='job-share'>{done}{f' · {left} left' if left else ''}</span>{end}</div>"
    )


def _job_done(job: Job) -> str:
    try:
        steps = JOBS.get(job.kind).next_steps(job.result)
    except (WorkbenchError, KeyError):  # of a kind that is not here any more, or of an earlier version
        steps = ()
    return _notice(
        _ended_key(job),
        "good",
        FINISHED,
        escape(job.title),
        "",
        [link(one.words, one.section, **one.about) for one in steps],
    )


def _ended_key(job: Job) -> str:
    """Not that of a job with its number in another home folder, which may have been put away."""
    return f"job-{job.id}-{job.ended:.0f}"


def _job_failed(job: Job) -> str:
    return _notice(_ended_key(job), "bad", job.state, escape(job.title), job.message, [])


def _run_ended(workbench: Workbench, run: Run) -> str:
    links = [link("Show it", "runs", name=run.id or 0)]
    if run.adapter_id is not None:
        try:
            adapter = workbench.registry.get(Adapter, run.adapter_id)
            links = [
                link(workbench.classifiers.try_words(adapter), "playground", adapter=adapter.name),
                *links,
                link("Export", "export", adapter=adapter.name),
            ]
        except USER_ERRORS:  # the adapter was deleted since
            links = links[:1]
    good = run.state in (FINISHED, STOPPED)
    return _notice(
        f"run-{run.id}-{run.ended:.0f}",
        "good" if good else "bad",
        run.state,
        escape(run.name),
        run.reason,
        links,
    )


def _notice(key: str, kind: str, state: str, title: str, why: str, links: Sequence[str]) -> str:
    """A line about what has ended; the page lets it be put away."""
    role = "alert" if kind == "bad" else "status"
    said = escape(why)
    return (
        f"<div class='notice {kind}' role='{role}' data-notice='{key}'>{state_badge(state)} <b>{title}</b> "
        f"<span class='notice-why'>{said}</span><span class='notice-next'>{''.join(links)}</span>"
        "<button type='button' class='small' data-dismiss aria-label='Put this away'>✕</button></div>"
    )
