"""The engine process: trains queued rows, answers, and leaves the registry right however it ends."""

import json
import os
import signal
import time

import pytest

from app.service.workbench import Workbench
from app.shared import wire
from app.shared.errors import EngineUnavailable
from app.web.parts.head import masthead_html
from core.errors import InvalidConfig, WorkbenchError, WrongBase
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.errors import NameTaken, NotFound
from storage.tables import Adapter, Run
from tests.workbenches import QUICK, do_job, wait_for

LONG = {**QUICK, "max_steps": 5000}
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = GenerationConfig(max_tokens=8, temperature=0.0)


def _state(workbench, run):
    return workbench.registry.get(Run, run.id).state


def _steps(workbench, run):
    return [point.step for point in workbench.registry.measurements.points(run.id) if point.loss is not None]


def _engine_pid(workbench):
    return workbench.engine.status()["pid"]


def test_a_queued_run_is_trained_and_leaves_an_adapter(workbench):
    run = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "first")
    states = []
    run = workbench.runs.wait(run.id, lambda seen: states.append(seen.state))
    assert run.state == "finished"
    assert states[-1] == "finished"
    adapter = workbench.registry.get(Adapter, run.adapter_id)
    assert (adapter.name, adapter.steps, adapter.base_fingerprint) == ("first", 6, run.base_fingerprint)
    assert _steps(workbench, run) == [1, 2, 3, 4, 5, 6]
    points = workbench.registry.measurements.points(run.id)
    assert all(
        p.learning_rate and p.grad_norm and p.tokens_per_second and p.memory_bytes
        for p in points
        if p.loss is not None
    )
    assert [p.step for p in points if p.validation_loss is not None] == [0, 1, 2, 3, 4, 5, 6]
    assert any(
        "22 rows to train on" in note.text or "23 rows to train on" in note.text
        for note in workbench.registry.measurements.notes(run.id)
    )
    second = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK))
    third = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK))
    assert workbench.runs.wait(third.id).state == "finished"
    assert {_state(workbench, second), _state(workbench, third)} == {"finished"}
    assert workbench.registry.names(Adapter) == {"first", "data", "data-2"}


def test_stopping_in_mid_training_leaves_a_usable_adapter(workbench):
    run = workbench.training.start("llama", "data", TrainingOptions.parse(LONG), "long")
    wait_for(lambda: len(_steps(workbench, run)) >= 2)
    workbench.runs.stop(run.id)
    run = workbench.runs.wait(run.id)
    assert run.state == "stopped"
    assert "the adapter is kept" in run.reason
    tokens = list(workbench.chats.answer("llama", [None, "long"], [HELLO, HELLO], GREEDY))
    assert {token.row for token in tokens if token.finished} == {0, 1}


def test_a_killed_engine_leaves_the_run_interrupted_with_a_reason_and_the_next_run_works(workbench):
    run = workbench.training.start("llama", "data", TrainingOptions.parse(LONG), "doomed")
    wait_for(lambda: _steps(workbench, run))
    os.kill(_engine_pid(workbench), signal.SIGKILL)
    run = workbench.runs.wait(run.id)
    assert run.state == "interrupted"
    assert "killed (SIGKILL" in run.reason
    again = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "again")
    assert workbench.runs.wait(again.id).state == "finished"


def test_closing_the_app_leaves_the_run_going_and_the_next_start_shows_it(
    settings, workbench, zygote, tmp_path
):
    """A first app in a process of its own queues a run and ends; a second one finds it under way."""
    log = tmp_path / "log"
    first = zygote.start("tests.closing_app", [str(settings.home), json.dumps(LONG)], log)
    assert first.wait() == 0, log.read_text()
    (run,) = workbench.registry.all(Run)
    before = wait_for(lambda: _steps(workbench, run))
    wait_for(lambda: len(_steps(workbench, run)) > len(before))
    second = Workbench(settings)
    second.look_after()
    assert _state(second, run) == "running"
    second.runs.stop(run.id)
    assert second.runs.wait(run.id).state == "stopped"
    second.close()


def test_the_engine_ends_when_nobody_needs_it(workbench, monkeypatch):
    workbench.engine.keep_attached()
    pid = _engine_pid(workbench)
    run = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "one")
    workbench.runs.wait(run.id)
    time.sleep(1)
    assert _engine_pid(workbench) == pid
    workbench.engine.detach()
    wait_for(lambda: not workbench.engine.alive, 60)


@pytest.mark.parametrize("when", ["before it is told", "after it was told"])
def test_a_page_that_is_closed_while_it_attaches_to_an_engine_lets_go_of_it(workbench, monkeypatch, when):
    """A thread starts the engine while the page opens, which may be closed at once."""
    workbench.engine.ensure()
    send = wire.send

    def send_and_leave(connection, message):
        if when.startswith("after"):
            send(connection, message)
        workbench.engine.detach()
        if when.startswith("before"):
            send(connection, message)

    with monkeypatch.context() as patch:
        patch.setattr(wire, "send", send_and_leave)
        workbench.engine._keep = True
        workbench.engine._attach()
    assert workbench.engine._attachment is None


def test_answers_stream_side_by_side_and_equal_each_alone(workbench, trained):
    for name in ("a", "bb"):
        trained(name)

    def ask(speakers):
        texts = [""] * len(speakers)
        for token in workbench.chats.answer("llama", speakers, [HELLO] * len(speakers), GREEDY):
            texts[token.row] += token.text
        return texts

    together = ask([None, "a", "bb"])
    assert together == [ask([None])[0], ask(["a"])[0], ask(["bb"])[0]]
    assert len(set(together)) == 3


def test_a_chat_streams_while_a_run_trains(workbench, trained):
    trained("a")
    run = workbench.training.start("llama", "data", TrainingOptions.parse(LONG), "busy")
    wait_for(lambda: _steps(workbench, run))
    tokens = list(workbench.chats.answer("llama", [None, "a"], [HELLO, HELLO], GREEDY))
    assert {token.row for token in tokens if token.finished} == {0, 1}
    assert _state(workbench, run) == "running"
    seen = len(_steps(workbench, run))
    wait_for(lambda: len(_steps(workbench, run)) > seen)
    workbench.runs.stop(run.id)
    workbench.runs.wait(run.id)


def test_one_answer_is_cancelled_and_the_others_go_on(workbench, trained):
    trained("a")
    config = GenerationConfig(max_tokens=230, temperature=0.0)
    counts, ended = [0, 0], set()
    for token in workbench.chats.answer("llama", [None, "a"], [HELLO, HELLO], config, name="both"):
        counts[token.row] += 1
        ended |= {token.row} if token.finished else set()
        if counts == [1, 1]:
            workbench.chats.cancel("both", 0)
    alone = list(workbench.chats.answer("llama", ["a"], [HELLO], config))
    assert counts[1] == len(alone) > counts[0] + 5
    assert ended == {1}


def test_a_sweep_trains_at_once_and_every_run_is_its_own(workbench):
    runs = workbench.training.sweep(
        "llama", "data", TrainingOptions.parse(QUICK), {"rank": ["2", "4"], "seed": ["1", "2"]}, "grid"
    )
    assert [run.name for run in runs] == [
        f"grid rank={rank} seed={seed}" for rank in (2, 4) for seed in (1, 2)
    ]
    runs = workbench.runs.wait_all([run.id for run in runs])
    assert {run.state for run in runs} == {"finished"}
    adapters = [workbench.registry.get(Adapter, run.adapter_id) for run in runs]
    assert [adapter.rank for adapter in adapters] == [2, 2, 4, 4]
    assert len({adapter.digest for adapter in adapters}) == 4
    assert max(run.started for run in runs) < min(run.ended for run in runs)
    assert any(
        "4 adapters train at once" in note.text for note in workbench.registry.measurements.notes(runs[0].id)
    )
    alone = workbench.runs.wait(
        workbench.training.start(
            "llama", "data", TrainingOptions.parse({**QUICK, "rank": 4, "seed": 2}), "alone"
        ).id
    )
    theirs = [
        [point.loss for point in workbench.registry.measurements.points(one.id) if point.loss is not None]
        for one in (runs[3], alone)
    ]
    assert theirs[0] == pytest.approx(theirs[1], abs=1e-4)


def test_one_run_of_a_sweep_is_stopped_and_the_other_finishes(workbench):
    runs = workbench.training.sweep(
        "llama", "data", TrainingOptions.parse(QUICK), {"max_steps": ["200", "5000"]}, "two"
    )
    wait_for(lambda: _steps(workbench, runs[1]))
    workbench.runs.stop(runs[1].id)
    first, second = workbench.runs.wait_all([run.id for run in runs])
    assert (first.state, second.state) == ("finished", "stopped")
    assert workbench.registry.get(Adapter, second.adapter_id).steps < 5000


def test_one_run_of_a_sweep_diverges_and_the_other_finishes(workbench):
    options = {**QUICK, "max_steps": 120, "max_grad_norm": 0, "alpha": 512, "use_rslora": True}
    runs = workbench.training.sweep(
        "llama", "data", TrainingOptions.parse(options), {"learning_rate": ["0.001", "1.0"]}, "two"
    )
    states = {
        run.config["train"]["learning_rate"]: run for run in workbench.runs.wait_all([run.id for run in runs])
    }
    assert states[0.001].state == "finished"
    assert (states[1.0].state, "diverged" in states[1.0].reason) == ("failed", True)


def test_a_sweep_is_queued_whole_or_not_at_all(workbench):
    before = len(workbench.registry.all(Run))
    with pytest.raises(InvalidConfig, match="'nope'"):
        workbench.training.sweep(
            "llama", "data", TrainingOptions.parse(QUICK), {"target_modules": ["v_proj", "nope"]}
        )
    assert len(workbench.registry.all(Run)) == before


def test_another_base_cannot_take_the_engine_from_a_training(workbench, other_llama):
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    run = workbench.training.start("llama", "data", TrainingOptions.parse(LONG), "busy")
    wait_for(lambda: _steps(workbench, run))
    with pytest.raises(WorkbenchError, match="llama is trained on right now"):
        list(workbench.chats.answer("other", [None], [HELLO], GREEDY))
    workbench.runs.stop(run.id)
    assert workbench.runs.wait(run.id).state == "stopped"


def test_an_adapter_of_another_base_is_refused_with_both_names(workbench, trained, other_llama):
    trained("mine")
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    with pytest.raises(
        WrongBase, match=r"mine was made for llama \(.*\), not for other.*It fits llama: choose that"
    ):
        workbench.chats.answer("other", ["mine"], [HELLO], GREEDY)


def test_a_run_that_diverges_fails_with_the_reason_and_the_next_one_works(workbench):
    options = {**QUICK, "learning_rate": 1.0, "max_grad_norm": 0, "alpha": 65536, "max_steps": 200}
    run = workbench.runs.wait(
        workbench.training.start("llama", "data", TrainingOptions.parse(options), "wild").id
    )
    assert (run.state, "diverged" in run.reason) == ("failed", True)
    again = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "calm")
    assert workbench.runs.wait(again.id).state == "finished"


def test_data_damaged_on_disk_is_noticed_before_training(workbench):
    from storage.tables import Dataset

    path = workbench.registry.blobs.path(workbench.registry.find(Dataset, "data").rows_digest) / "rows.arrow"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    run = workbench.runs.wait(workbench.training.start("llama", "data", TrainingOptions.parse(QUICK)).id)
    assert (run.state, "has changed on disk" in run.reason) == ("failed", True)


def test_the_masthead_says_what_the_engine_waits_for(workbench, monkeypatch):
    idle = {
        "device": "CPU",
        "resident": None,
        "dtype": None,
        "notice": "",
        "disk_full": False,
        "measuring": False,
    }
    monkeypatch.setattr(workbench.engine, "status", lambda: idle)
    assert "disk" not in masthead_html(workbench)
    monkeypatch.setattr(workbench.engine, "status", lambda: idle | {"disk_full": True, "measuring": True})
    said = masthead_html(workbench)
    assert "The disk is full: training waits until there is room" in said
    assert "Measuring a run" in said


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base": "absent"}, NotFound),
        ({"dataset": "absent"}, NotFound),
        ({"options": {"rnk": 1}}, InvalidConfig),
        ({"options": {"target_modules": "nope"}}, InvalidConfig),
        ({"name": "taken"}, NameTaken),
    ],
)
def test_a_run_that_cannot_start_is_refused_at_once(workbench, trained, change, error):
    trained("taken")
    given = {"base": "llama", "dataset": "data", "options": QUICK, "name": "", **change}
    with pytest.raises(error):
        workbench.training.start(
            given["base"], given["dataset"], TrainingOptions.parse(given["options"]), given["name"]
        )
    assert workbench.registry.all(Run) == []
    assert not workbench.engine.alive


def test_two_clients_share_one_engine(settings, workbench):
    other = Workbench(settings)
    workbench.engine.ensure()
    other.engine.ensure()
    assert _engine_pid(workbench) == _engine_pid(other)
    other.close()


def test_strangers_without_the_key_are_refused(settings, workbench):
    from multiprocessing import AuthenticationError
    from multiprocessing.connection import Client

    workbench.engine.ensure()
    about = json.loads(settings.engine_file.read_text())
    assert settings.engine_file.stat().st_mode & 0o077 == 0
    with pytest.raises((AuthenticationError, OSError, EOFError)):
        Client(tuple(about["address"]), authkey=b"guess")
    assert workbench.engine.status() is not None


def test_an_engine_that_cannot_start_says_why_and_blocks_nothing(workbench, monkeypatch):
    monkeypatch.setenv("LORA_WORKBENCH_DTYPE", "float9")
    with pytest.raises(EngineUnavailable, match="'float9'; use float32 or bfloat16"):
        workbench.training.start("llama", "data", TrainingOptions.parse(QUICK))
    workbench.look_after()
    (run,) = workbench.registry.all(Run)
    assert (run.state, "float9" in run.reason) == ("failed", True)


def test_a_frozen_engine_is_noticed(workbench, monkeypatch):
    monkeypatch.setattr("app.shared.engine_client._PATIENCE_SECONDS", 0.5)
    workbench.engine.ensure()
    pid = _engine_pid(workbench)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert workbench.engine.status() is None
        assert workbench.engine.alive
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_for(workbench.engine.status)


def test_a_run_on_another_base_waits_for_an_answer_to_end(workbench, other_llama):
    do_job(workbench, "add_model", {"origin": str(other_llama), "name": "other"})
    answer = workbench.chats.answer(
        "llama", [None], [HELLO], GenerationConfig(max_tokens=200, temperature=0.0)
    )
    next(answer)
    run = workbench.training.start("other", "data", TrainingOptions.parse(QUICK))
    list(answer)
    assert workbench.runs.wait(run.id).state == "finished"
