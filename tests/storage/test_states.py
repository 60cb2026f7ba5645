"""What may follow which state of a run or a job: the tables, the docstrings that draw them, the methods."""

import itertools
import re
import threading

import pytest

from storage import jobs, run_states
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import InUse, InvalidTransition, NotFound
from storage.registry import Registry
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    FINISHED,
    IDLE_STATES,
    INTERRUPTED,
    PAUSED,
    PAUSING,
    PREPARING,
    QUEUED,
    RESUMABLE_STATES,
    RUNNING,
    STOPPED,
    UNDER_WAY,
    Job,
    Run,
)

STATES = (*ACTIVE_STATES, PAUSED, FINISHED, STOPPED, FAILED, INTERRUPTED)
JOB_STATES = (QUEUED, RUNNING, FINISHED, STOPPED, FAILED, INTERRUPTED)
SENTENCES = {
    (FINISHED, RUNNING): "Run 1 (mine) is finished and cannot become running; from there it can "
    "become only queued.",
    (PAUSED, RUNNING): "Run 1 (mine) is paused and cannot become running; from there it can become "
    "queued or stopped.",
    (PREPARING, FINISHED): "Run 1 (mine) is preparing and cannot become finished; from there it can become "
    "queued, running, pausing, stopped, failed or interrupted.",
}


@pytest.fixture
def registry(tmp_path):
    found = Registry(Database(tmp_path / "registry.db"), BlobStore(tmp_path / "blobs"))
    yield found
    found.database.close()


@pytest.fixture
def run_in(registry):
    """A function that puts a run's row into a state, whatever it was in."""

    def put(state):
        return registry.save(
            Run(
                id=1,
                name="mine",
                base_id=1,
                base_name="llama",
                base_fingerprint="f",
                dataset_id=1,
                dataset_name="data",
                dataset_digest="d",
                state=state,
            )
        )

    return put


@pytest.fixture
def job_in(registry):
    """The same for a job."""
    return lambda state: registry.save(Job(id=1, kind="export", title="Export mine", state=state))


def _state(registry, table=Run):
    return registry.get(table, 1).state


def _drawn(docstring):
    """The table that a module's docstring draws: for each state those that may follow it."""
    head, *rows = re.findall(r"^    (\w+ +(?:to  [\w ]+|[·● ]+))$", docstring, flags=re.MULTILINE)
    columns = head.split()[2:]
    marks = {row.split()[0]: row.split()[1:] for row in rows}
    assert all(len(found) == len(columns) for found in marks.values())
    return {
        state: {column for column, mark in zip(columns, found, strict=True) if mark == "●"}
        for state, found in marks.items()
    }


@pytest.mark.parametrize(("module", "states"), [(run_states, STATES), (jobs, JOB_STATES)])
def test_the_docstring_draws_the_table_that_the_code_checks(module, states):
    assert _drawn(module.__doc__) == {state: set(then) for state, then in module.TRANSITIONS.items()}
    assert set(module.TRANSITIONS) == set(states)


def test_what_can_be_resumed_is_what_the_queue_may_follow():
    over = set(STATES) - set(ACTIVE_STATES)
    again = {state for state in over if QUEUED in run_states.TRANSITIONS[state]}
    assert again == {*RESUMABLE_STATES, FINISHED}, "a finished one when it is extended"


@pytest.mark.parametrize(("state", "wanted"), list(itertools.product(STATES, STATES)))
def test_a_run_changes_its_state_as_the_table_says(registry, run_in, state, wanted):
    run_in(state)

    def change():
        with registry.database.writing() as session:
            run_states.change_state(session, run_states.run_in(session, 1), wanted, "since")

    if wanted in run_states.TRANSITIONS[state]:
        change()
        run = registry.get(Run, 1)
        assert (run.state, run.reason, run.ended is None) == (wanted, "since", wanted in ACTIVE_STATES)
        assert [one.text for one in registry.measurements.notes(1)] == [f"{wanted.capitalize()}: since"]
        return
    with pytest.raises(InvalidTransition) as refused:
        change()
    assert (_state(registry), list(registry.measurements.notes(1))) == (state, [])
    possible = run_states.TRANSITIONS[state]
    assert str(refused.value).startswith(f"Run 1 (mine) is {state} and cannot become {wanted}; ")
    assert all(one in str(refused.value) for one in possible)
    assert str(refused.value) == SENTENCES.get((state, wanted), str(refused.value))


METHODS = {
    "finished": (FINISHED, lambda runs: runs.finished(1, "", 7)),
    "stopped": (STOPPED, lambda runs: runs.stopped(1, "early", 7)),
    "paused": (PAUSED, lambda runs: runs.paused(1, "after 3 steps")),
    "needs_space": (PAUSED, lambda runs: runs.needs_space(1, "the disk is full", 5)),
    "failed": (FAILED, lambda runs: runs.failed(1, "why")),
    "interrupted": (INTERRUPTED, lambda runs: runs.interrupted(1, "why")),
}


@pytest.mark.parametrize(("name", "state"), list(itertools.product(METHODS, STATES)))
def test_what_the_engine_notes_of_a_run_keeps_to_the_table(registry, run_in, name, state):
    run_in(state)
    wanted, note = METHODS[name]
    if wanted in run_states.TRANSITIONS[state]:
        note(registry.runs)
        run = registry.get(Run, 1)
        assert run.state == wanted
        assert run.adapter_id == (7 if name in ("finished", "stopped") else None)
        assert run.bytes_needed == (5 if name == "needs_space" else 0)
    else:
        with pytest.raises(InvalidTransition):
            note(registry.runs)
        assert _state(registry) == state


@pytest.mark.parametrize("state", STATES)
def test_what_people_ask_of_a_run_in_any_state(registry, run_in, state):
    def asked(ask):
        run_in(state)
        try:
            ask(1)
        except InUse:
            return None
        run = registry.get(Run, 1)
        return run.state, run.stop_requested, run.pause_requested

    over = state not in ACTIVE_STATES
    stops = dict.fromkeys(IDLE_STATES, (STOPPED, False, False)) | dict.fromkeys(
        UNDER_WAY, (state, True, False)
    )
    assert asked(registry.requests.stop) == stops.get(state, (state, False, False)), "over: left as it is"
    pauses = {
        QUEUED: (PAUSED, False, False),
        PREPARING: (PAUSING, False, True),
        RUNNING: (PAUSING, False, True),
        PAUSING: (PAUSING, False, False),
        PAUSED: (PAUSED, False, False),
    }
    assert asked(registry.requests.pause) == pauses.get(state)
    resumed = (QUEUED if over else state, False, False)
    assert asked(registry.queue.again) == (None if state == FINISHED else resumed)
    extended = asked(lambda run_id: registry.queue.extend(run_id, {"epochs": 9.0}))
    assert extended == ((QUEUED, False, False) if state == FINISHED else None)
    assert (asked(registry.requests.save) is None) == (state != RUNNING)
    assert (asked(registry.requests.sample) is None) == (state != RUNNING)


def test_a_stop_is_remembered_while_a_run_pauses_and_forgotten_when_it_goes_on(registry, run_in):
    run_in(RUNNING)
    registry.requests.pause(1)
    registry.requests.stop(1)
    registry.runs.paused(1, "after 3 steps")
    assert _state(registry) == PAUSED
    run = registry.queue.again(1)
    assert (run.state, run.stop_requested, run.pause_requested) == (QUEUED, False, False)


def test_a_run_that_was_asked_to_pause_can_be_put_back_and_waits(registry, run_in):
    run_in(QUEUED)
    assert registry.queue.claim(1)
    registry.requests.pause(1)
    registry.queue.put_back(1, "waits for its own turn")
    assert (_state(registry), registry.get(Run, 1).started) == (QUEUED, None)
    assert registry.queue.claim(1)
    registry.runs.begin(1, {})
    assert registry.get(Run, 1).pause_requested, "the engine pauses it when it has begun"
    registry.runs.paused(1, "before the first step")


def test_a_run_begins_once_it_is_prepared_and_not_when_it_is_to_pause(registry, run_in):
    for state, then in ((PREPARING, RUNNING), (PAUSING, PAUSING)):
        run_in(state)
        registry.runs.begin(1, {"total_steps": 3})
        assert (_state(registry), registry.get(Run, 1).details) == (then, {"total_steps": 3})


def test_of_a_claim_and_a_stop_at_once_one_comes_first(registry, run_in):
    for _ in range(20):
        run_in(QUEUED)
        claimed = []
        both = [
            threading.Thread(target=lambda found=claimed: found.append(registry.queue.claim(1))),
            threading.Thread(target=lambda: registry.requests.stop(1)),
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        run = registry.get(Run, 1)
        assert (claimed, run.state, run.stop_requested) in [
            ([True], PREPARING, True),
            ([False], STOPPED, False),
        ]


JOB_METHODS = {
    "begin": (RUNNING, lambda found: found.begin(1)),
    "finish": (FINISHED, lambda found: found.finish(1, {"name": "a"})),
    "fail": (FAILED, lambda found: found.fail(1, "why")),
}


@pytest.mark.parametrize(("name", "state"), list(itertools.product(JOB_METHODS, JOB_STATES)))
def test_a_job_changes_its_state_as_the_table_says(registry, job_in, name, state):
    job_in(state)
    wanted, note = JOB_METHODS[name]
    if wanted in jobs.TRANSITIONS[state]:
        note(registry.jobs)
        job = registry.get(Job, 1)
        assert (job.state, job.ended is None) == (wanted, wanted == RUNNING)
    else:
        said = rf"^Job 1 \(Export mine\) is {state} and cannot become {wanted}; "
        with pytest.raises(InvalidTransition, match=said):
            note(registry.jobs)
        assert _state(registry, Job) == state


def test_a_job_that_is_over_cannot_be_stopped_and_reports_no_more(registry, job_in):
    for state in JOB_STATES:
        job_in(state)
        registry.jobs.report(1, "Reading", 0.5)
        registry.jobs.stop(1, "Cancelled")
        job = registry.get(Job, 1)
        active = state in ACTIVE_STATES
        assert (job.state, job.message) == ((STOPPED, "Cancelled") if active else (state, ""))
        assert job.fraction == (0.5 if state == RUNNING else None)
    with pytest.raises(NotFound, match="There is no job 2"):
        registry.jobs.stop(2, "Cancelled")


def test_a_job_is_interrupted_only_in_the_state_in_which_its_process_was_missed(registry, job_in):
    seen = job_in(QUEUED)
    registry.jobs.begin(1)
    registry.jobs.interrupt(seen, "its process is gone")
    assert _state(registry, Job) == RUNNING, "it has begun meanwhile"
    seen = registry.get(Job, 1)
    registry.jobs.finish(1, {})
    registry.jobs.interrupt(seen, "its process is gone")
    assert _state(registry, Job) == FINISHED, "it has ended meanwhile"
    registry.jobs.interrupt(job_in(RUNNING), "its process is gone")
    assert registry.get(Job, 1).message == "its process is gone"
    registry.jobs.begin(1)
    assert _state(registry, Job) == RUNNING, "it was only slow"
