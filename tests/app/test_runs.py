"""The queue, what is asked of runs under way, samples, alerts, checkpoints as adapters,
comparing, presets.
"""

import math
from dataclasses import replace

import pytest
from sqlmodel import col, update

from app.service.comparing import compare
from app.service.presets import read_options
from app.shared.errors import MeasuringEnded
from app.web.parts.curve import run_news
from core.base_model.source import BaseSource
from core.errors import InvalidConfig, InvalidInput
from core.train.training_options import TrainingOptions
from storage.checkpoints import best_checkpoint
from storage.errors import InUse, NotFound
from storage.tables import INTERRUPTED, Adapter, Point, Run
from tests.workbenches import QUICK, finish, wait_for

PROMPTS = {"sample_prompts": "hello\n how are you ", "sample_tokens": 4}


def _get(workbench, run_id):
    return workbench.registry.get(Run, run_id)


def _notes(workbench, run_id, kind=None):
    return [note.text for note in workbench.registry.measurements.notes(run_id) if kind in (None, note.kind)]


def _until(session, workbench, run_id, step):
    while (
        len([point for point in workbench.registry.measurements.points(run_id) if point.loss is not None])
        < step
    ):
        assert session.advance()
        session.flush()


# The queue.


@pytest.fixture
def queue(workbench, monkeypatch):
    """Four runs that wait; b and d may train together."""
    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    for name in "abcd":
        workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), name, together=name in "bd")
    return lambda: [run.name for run in workbench.registry.queue.waiting()]


def test_waiting_runs_are_moved_removed_and_paused(workbench, queue):
    workbench.runs.move(4, 0)
    assert queue() == ["d", "a", "b", "c"]
    workbench.runs.move(1, 2)
    workbench.runs.move(4, 99)
    assert queue() == ["b", "a", "c", "d"]
    workbench.runs.remove(1)
    assert queue() == ["b", "c", "d"]
    with pytest.raises(NotFound):
        workbench.runs.move(1, 0)
    workbench.runs.pause(2)
    assert queue() == ["c", "d"]
    with pytest.raises(InUse, match="is paused; only a run that waits can be moved"):
        workbench.runs.move(2, 0)
    workbench.runs.resume(2)
    assert queue() == ["c", "d", "b"], "who comes back stands at the end"


def test_runs_that_allow_it_train_together_and_the_others_alone(workbench, queue):
    def taken():
        return [run.name for run in workbench.registry.queue.next()]

    assert taken() == ["a"]
    workbench.runs.stop(1)
    assert taken() == ["b", "d"]
    workbench.runs.move(3, 0)
    assert taken() == ["c"]


def test_a_run_that_cannot_share_waits_for_its_own_turn(workbench, session):
    workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "small", together=True)
    workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_length": 16}), "short", together=True
    )
    finish(session.next())
    assert [(run.name, run.state) for run in reversed(workbench.registry.all(Run))] == [
        ("small", "finished"),
        ("short", "queued"),
    ]
    assert "waits for its own turn" in _get(workbench, 2).reason
    finish(session.next())
    assert _get(workbench, 2).state == "finished"


def test_a_failed_run_does_not_hold_up_the_next(workbench, session):
    workbench.training.start(
        "llama",
        "data",
        TrainingOptions.parse({**QUICK, "learning_rate": 1.0, "max_steps": 50, "max_grad_norm": 0}),
        "wild",
    )
    workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "tame")
    first = session.next()
    first._records[1].run.config["lora"]["target_modules"] = "no_such_layer"
    finish(first)
    assert _get(workbench, 1).state == "failed"
    finish(session.next())
    assert _get(workbench, 2).state == "finished"


def test_every_state_is_noted_with_its_time_and_reason(workbench, session):
    run_id, training = session("mine")
    _until(training, workbench, run_id, 3)
    workbench.runs.pause(run_id)
    assert _get(workbench, run_id).state == "pausing"
    finish(training)
    workbench.runs.resume(run_id)
    finish(session.next())
    states = [
        note.text.split(":")[0]
        for note in workbench.registry.measurements.notes(run_id)
        if note.kind == "state"
    ]
    assert states == [
        "Queued",
        "Preparing",
        "Running",
        "Pausing",
        "Paused",
        "Queued",
        "Preparing",
        "Running",
        "Finished",
    ]
    assert any(text.startswith("Paused: after ") for text in _notes(workbench, run_id, "state"))


def test_a_run_under_way_cannot_be_removed_and_a_removed_one_leaves_its_adapter(workbench, session):
    run_id, training = session("mine")
    _until(training, workbench, run_id, 12)
    with pytest.raises(InUse, match="is running; stop or pause it first"):
        workbench.runs.remove(run_id)
    finish(training)
    digests = {one.state_digest for one in workbench.registry.checkpoints.of(run_id)}
    workbench.runs.remove(run_id)
    assert workbench.registry.all(Run) == []
    assert workbench.registry.find(Adapter, "mine").run_id is None
    workbench.registry.blobs.verify(workbench.registry.find(Adapter, "mine").digest)
    for digest in digests:
        with pytest.raises(NotFound):
            workbench.registry.blobs.path(digest)


# Changes, samples, alerts.


def test_learning_rate_and_length_change_on_the_way_and_a_resume_repeats_it(workbench, session):
    run_id, training = session("mine", max_steps=0, epochs=4, micro_batch_size=4)
    _until(training, workbench, run_id, 5)
    workbench.runs.change(run_id, {"learning_rate": "0.002", "epochs": 3})
    training._looked = 0.0
    training.advance()
    run = _get(workbench, run_id)
    (change,) = run.changes
    assert change["values"] == {"learning_rate": 0.002, "epochs": 3.0}
    assert _notes(workbench, run_id, "change") == [
        f"From step {change['step'] + 1} on: learning_rate 0.002, epochs 3"
    ]
    finish(training)
    points = [point for point in workbench.registry.measurements.points(run_id) if point.loss is not None]
    total = run.details["total_steps"]
    assert points[-1].step == total
    assert points[change["step"]].learning_rate <= 0.002 < points[change["step"] - 1].learning_rate
    digest = workbench.registry.find(Adapter, "mine").digest
    row = _get(workbench, run_id)  # as if it had been interrupted just before its end
    row.state = INTERRUPTED
    workbench.registry.save(row)
    workbench.registry.queue.again(run_id)
    finish(session.next())
    assert workbench.registry.find(Adapter, "mine-2").digest == digest
    assert workbench.runs.options(run_id)["learning_rate"] == 0.002
    with pytest.raises(InUse, match="is finished"):
        workbench.runs.change(run_id, {"epochs": 9})


def test_prompts_are_answered_at_each_evaluation_and_when_asked(workbench, session):
    run_id, training = session("mine", **PROMPTS)
    _until(training, workbench, run_id, 13)
    workbench.runs.sample(run_id)
    training._looked = 0.0
    finish(training)
    samples = workbench.registry.measurements.samples(run_id)
    assert {one.prompt for one in samples} == {"hello", "how are you"}
    steps = sorted({one.step for one in samples})
    assert {0, 10, 20, 30} < set(steps)
    assert len(steps) == 5
    assert all(one.text for one in samples)
    assert not _get(workbench, run_id).sample_requested
    with pytest.raises(InUse, match="is finished, so there is nothing to sample"):
        workbench.runs.sample(run_id)
    silent, _ = session("silent")
    with pytest.raises(InvalidConfig, match="without sample prompts"):
        workbench.runs.sample(silent)


def test_samples_do_not_change_what_is_learnt(workbench, session):
    for name, options in (("silent", {}), ("asked", PROMPTS)):
        finish(session(name, **options)[1])
    assert (
        workbench.registry.find(Adapter, "silent").digest == workbench.registry.find(Adapter, "asked").digest
    )


def test_early_stopping_ends_the_run_keeps_the_best_and_says_why(workbench, session):
    run_id, training = session(
        "mine",
        max_steps=300,
        learning_rate=0.5,
        max_grad_norm=0,
        eval_steps=3,
        patience=2,
        save_steps=0,
        stop_on="no-improvement",
        keep_best=True,
    )
    finish(training)
    run, adapter = _get(workbench, run_id), workbench.registry.find(Adapter, "mine")
    assert run.state == "stopped"
    assert run.reason.startswith("no-improvement: Step ")
    judged = {
        point.step: point.validation_loss
        for point in workbench.registry.measurements.points(run_id)
        if point.validation_loss and point.step
    }
    best = min(judged, key=lambda step: judged[step])
    assert (adapter.steps, adapter.validation_loss) == (best, judged[best])
    assert any("no better validation loss" in text for text in _notes(workbench, run_id, "alert"))


def test_a_run_whose_last_validation_loss_is_no_number_keeps_its_best(workbench, session, monkeypatch):
    run_id, training = session("mine", max_steps=12, eval_steps=3, save_steps=0, keep_best=True)
    finish_run = training._finish
    monkeypatch.setattr(
        training, "_finish", lambda record, done: finish_run(record, replace(done, validation_loss=math.nan))
    )
    finish(training)
    best = best_checkpoint(workbench.registry.checkpoints.of(run_id))
    adapter = workbench.registry.find(Adapter, "mine")
    assert (adapter.digest, adapter.validation_loss) == (best.adapter_digest, best.validation_loss)


def test_an_alert_that_only_tells_lets_the_run_go_on(workbench, session):
    run_id, training = session("mine", learning_rate=0.5, max_grad_norm=0, eval_steps=3, patience=2)
    finish(training)
    assert _get(workbench, run_id).state == "finished"
    assert _notes(workbench, run_id, "alert")


def test_a_change_that_lies_behind_the_run_is_refused(workbench, session):
    run_id, training = session("mine")
    _until(training, workbench, run_id, 12)
    with pytest.raises(InvalidConfig, match=r"at step 12 already.*To end it now, stop it"):
        workbench.runs.change(run_id, {"max_steps": 5})
    workbench.runs.change(run_id, {"max_steps": 20})
    training._looked = 0.0
    finish(training)
    assert workbench.registry.measurements.last_point(run_id).step == 20


def test_a_pause_does_not_wait_for_sample_prompts(workbench, session):
    run_id, training = session("mine", sample_prompts="hello", sample_tokens=200, eval_steps=10)
    while "Answering the sample prompts at step 10" not in _notes(workbench, run_id):
        training.advance()
    workbench.runs.pause(run_id)
    training._looked = 0.0
    finish(training)
    assert _get(workbench, run_id).state == "paused"
    assert {one.step for one in workbench.registry.measurements.samples(run_id)} == {0}
    elsewhere = BaseSource("another base", workbench.settings.home, "b" * 64, "")
    assert session.engine.free_for(elsewhere), "an answer that was given up must not keep the base"


# Checkpoints.


def test_a_checkpoint_becomes_an_adapter(workbench, session):
    run_id, training = session("mine")
    _until(training, workbench, run_id, 22)
    kept = workbench.runs.keep(run_id)
    assert (kept.name, kept.steps, kept.run_id) == ("mine step 20", 20, run_id)
    assert workbench.runs.keep(run_id, 10, "early").steps == 10
    with pytest.raises(NotFound, match="no checkpoint at step 11; there are checkpoints at step 20, 10"):
        workbench.runs.keep(run_id, 11)
    finish(training)
    workbench.runs.remove(run_id)
    for name in ("mine step 20", "early"):
        workbench.registry.blobs.verify(workbench.registry.find(Adapter, name).digest)


def test_a_run_goes_on_by_itself_once_for_each_piece_of_progress(workbench, session):
    run_id, training = session("mine", resume_at_start=True)
    _until(training, workbench, run_id, 12)
    workbench.registry.runs.interrupt_all("the engine was killed")
    assert workbench.runs.resume_what_can() == [run_id]
    workbench.registry.queue.claim(run_id)
    workbench.registry.runs.interrupt_all("the engine was killed again")
    assert workbench.runs.resume_what_can() == [], "it came no further, so it would die again"
    workbench.registry.queue.again(run_id)
    finish(session.next())
    assert _get(workbench, run_id).state == "finished"
    other, training = session("other")
    _until(training, workbench, other, 12)
    workbench.registry.runs.interrupt_all("the engine was killed")
    assert workbench.runs.resume_what_can() == [], "nobody asked for it"


# Measuring, comparing, presets, the page's news.


def test_what_a_run_would_take_is_measured_in_the_engine(workbench):
    found, offered = workbench.training.measure(
        "llama", "data", [TrainingOptions.parse({**QUICK, "max_length": 64})]
    )
    assert (found["fits"], found["squeezed"], found["steps"], offered) == (True, False, 6, [])
    assert 0 < found["peak_bytes"] < found["total_bytes"]
    several, _ = workbench.training.measure(
        "llama", "data", [TrainingOptions.parse({**QUICK, "rank": rank}) for rank in (2, 4)]
    )
    assert several["together"] == 2
    assert (
        workbench.runs.wait(
            workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "after").id
        ).state
        == "finished"
    )
    long = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "max_steps": 5000}), "long"
    )
    wait_for(lambda: _get(workbench, long.id).state == "running")
    with pytest.raises(Exception, match="A run is under way"):
        workbench.training.measure("llama", "data", [TrainingOptions.parse(QUICK)])
    workbench.runs.stop(long.id)


def test_measuring_tells_how_far_it_is_and_can_be_ended(workbench):
    wanted = [TrainingOptions.parse({**QUICK, "max_length": 64})]
    *told, (found, _) = workbench.training.measuring("llama", "data", wanted, "mine")
    assert told[0][0]["text"].startswith("Loading llama and reading 24 rows")
    shares = [about["share"] for about, _ in told if about["share"] is not None]
    assert 0 < shares[0] < shares[-1] < 1
    assert found["fits"]

    many = [TrainingOptions.parse({**QUICK, "rank": rank, "max_length": 64}) for rank in range(1, 33)]
    measuring = workbench.training.measuring("llama", "data", many, "mine")
    next(measuring)
    workbench.training.end_measuring("mine")
    with pytest.raises(MeasuringEnded):
        list(measuring)
    wait_for(lambda: not workbench.engine.status()["measuring"])
    assert workbench.engine.status()["memory_bytes"] > 0
    workbench.training.end_measuring("mine")  # nothing is measured any more, and nobody minds

    workbench.training.end_measuring("early")  # which is heard first, as it may be
    with pytest.raises(MeasuringEnded):
        list(workbench.training.measuring("llama", "data", wanted, "early"))


def test_whoever_goes_away_ends_what_is_measured_for_them(workbench):
    wanted = [TrainingOptions.parse({**QUICK, "rank": rank, "max_length": 64}) for rank in range(1, 9)]
    measuring = workbench.training.measuring("llama", "data", wanted)
    next(measuring)
    measuring.close()
    wait_for(lambda: not workbench.engine.status()["measuring"])
    assert workbench.training.measure("llama", "data", wanted[:1])[0]["fits"]


def test_the_plan_knows_what_an_earlier_run_has_shown(workbench, session):
    options = TrainingOptions.parse({**QUICK, "max_length": 64})
    assert workbench.training.estimate("llama", "data", options).seconds is None
    run_id, training = session("mine", max_steps=12, max_length=64)
    finish(training)
    last = workbench.registry.measurements.last_point(run_id)
    plan = workbench.training.estimate("llama", "data", options)
    assert plan.tokens / plan.steps == pytest.approx(last.tokens / 12, rel=0.15)
    assert plan.seconds > plan.tokens / (last.tokens / last.seconds), "evaluations take their time too"


def test_runs_are_compared_by_what_differs(workbench, session):
    for name, options in (("slow", {"learning_rate": 1e-5}), ("quick", {"learning_rate": 1e-2, "rank": 4})):
        finish(session(name, **options)[1])
    found = compare(workbench.registry, [1, 2])
    assert [one.run.name for one in found.rows] == ["quick", "slow"]
    assert found.differing == ["rank", "learning_rate"]
    assert found.rows[0].options == {"rank": 4, "learning_rate": 1e-2}
    assert found.same["alpha"] == 32.0
    best = found.rows[0]
    losses = [
        point.validation_loss
        for point in workbench.registry.measurements.points(2)
        if point.validation_loss is not None
    ]
    assert (best.steps, best.best_validation_loss, best.validation_loss) == (30, min(losses), losses[-1])
    assert best.tokens
    assert best.seconds
    with pytest.raises(NotFound):
        compare(workbench.registry, [1, 9])


def test_a_comparison_says_what_its_order_is_worth(workbench, session):
    for name, options in (("long", {}), ("short", {"max_length": 16}), ("blind", {"learning_rate": 0.02})):
        finish(session(name, **options)[1])
    with workbench.registry.database.writing() as connection:
        connection.execute(
            update(Point).where(col(Point.run_id) == 3).values(validation_loss=None, loss=0.01)
        )
    measured, shorter, blind = (workbench.registry.get(Run, number) for number in (1, 2, 3))
    assert compare(workbench.registry, [measured.id]).caveats == []
    (tokens,) = compare(workbench.registry, [measured.id, shorter.id]).caveats
    assert tokens.startswith("The runs differ in max_length: their losses are means over different tokens")
    found = compare(workbench.registry, [blind.id, measured.id])
    assert (found.rows[0].run.name, found.rows[1].best_validation_loss) == ("long", None)
    assert found.rows[1].score < found.rows[0].score
    assert found.caveats == ["Without a validation loss, and therefore last: blind."]


def test_a_preset_is_saved_over_the_one_of_its_name_and_no_other(workbench):
    presets = workbench.presets
    presets.save("Exp A", TrainingOptions.parse({"rank": 4}))
    with pytest.raises(InvalidInput, match=r"'Exp A' has the file that 'exp-a' would have, exp-a\.toml"):
        presets.save("exp-a", TrainingOptions.parse({"rank": 5}))
    assert presets.find("Exp A").options["rank"] == 4
    copied = workbench.settings.presets / "brought.toml"
    copied.write_text('name = "mine"\nrank = 6\n')
    assert presets.save("mine", TrainingOptions.parse({"rank": 7})) == copied
    assert presets.find("mine").options["rank"] == 7


def test_presets_are_saved_read_by_the_command_line_and_removed(workbench):
    presets = workbench.presets
    assert [one.name for one in presets.all()] == [
        "Quick try",
        "Chat style",
        "Knowledge",
        "Small data",
        "Careful",
    ]
    assert all(one.why and not one.own for one in presets.all())
    path = presets.save(
        "Über alles",
        TrainingOptions.parse({"rank": 3, "sample_prompts": 'say "a"\nand b', "use_rslora": True}),
    )
    saved = read_options(path)
    assert (saved["rank"], saved["sample_prompts"], saved["use_rslora"]) == (3, 'say "a"\nand b', True)
    assert presets.find("über alles").own
    assert presets.find("quick-try").name == "Quick try"
    with pytest.raises(InvalidInput, match="comes with the workbench"):
        presets.save("Quick try", TrainingOptions.parse({}))
    with pytest.raises(InvalidConfig):
        presets.save("bad", TrainingOptions.parse({"rank": 0}))
    (workbench.settings.presets / "broken.toml").write_text("rank = ")
    assert "Über alles" in [one.name for one in presets.all()]
    with pytest.raises(InvalidInput, match="not valid TOML"):
        presets.find("broken")
    presets.remove("broken")
    (workbench.settings.presets / "folder.toml").mkdir()
    (workbench.settings.presets / "list.toml").write_text("name = [1, 2]")
    with pytest.raises(InvalidInput, match=r"name in list\.toml must be text"):
        presets.find("list")
    presets.remove("list")
    (workbench.settings.presets / "by-hand.toml").write_text('name = "Grüße"\nrank = 5\n')
    (workbench.settings.presets / "twin.toml").write_text('name = "Quick try"\nrank = 6\n')
    assert {one.name for one in presets.usable()[5:]} == {"Grüße", "twin.toml", "Über alles"}
    assert presets.find("twin.toml").options == {"rank": 6}
    presets.remove("Grüße")
    assert not (workbench.settings.presets / "by-hand.toml").exists()
    seen = workbench.changes()
    presets.remove("Über alles")
    assert workbench.changes() != seen  # so that pages offer what there is
    with pytest.raises(InvalidInput, match="There is no preset"):
        presets.find("Über alles")


def test_a_page_is_told_what_is_new_and_nothing_twice(workbench, session):
    run_id, training = session("mine", **PROMPTS)
    _until(training, workbench, run_id, 12)

    def ask(after, samples, notes, started):
        return run_news(
            workbench,
            {
                "runs": [[run_id, after]],
                "main": run_id,
                "samples": samples,
                "notes": notes,
                "started": started,
            },
        )

    first = ask(0, 0, 0, None)
    about = first["runs"][0][1]
    assert [row[1] for row in about["points"] if row[2] is not None] == list(
        range(1, len(about["points"]) - 1)
    )
    position = (about["points"][-1][0], first["samples"][-1][0], first["notes"][-1][0], about["started"])
    again = ask(*position)
    assert (again["runs"][0][1]["points"], again["samples"], again["notes"], again["anew"]) == (
        [],
        [],
        [],
        False,
    )
    workbench.registry.runs.interrupt_all("killed")
    workbench.registry.queue.again(run_id)
    finish(session.next())
    after = ask(*position)
    assert after["anew"], "it went on from a checkpoint, so what the page has of samples is not what there is"
    assert [one[1] for one in after["samples"]] == [
        one.step for one in workbench.registry.measurements.samples(run_id)
    ]
    steps = [point.step for point in workbench.registry.measurements.points(run_id) if point.loss is not None]
    assert steps == list(range(1, 31))
    assert ask(0, 0, 0, None)["runs"][0][1]["name"] == "mine"
    assert (
        run_news(workbench, {"runs": [[99, 0]], "main": 99, "samples": 0, "notes": 0})["runs"][0][1]["state"]
        == ""
    )


def test_a_run_goes_on_from_an_earlier_checkpoint_and_forgets_what_lies_behind_it(workbench, session):
    run_id, training = session("mine")
    _until(training, workbench, run_id, 22)
    workbench.registry.runs.interrupt_all("killed")
    newer, older = workbench.registry.checkpoints.of(run_id)
    with pytest.raises(NotFound, match="there are checkpoints at step 20, 10"):
        workbench.runs.resume(run_id, 15)
    assert _get(workbench, run_id).state == INTERRUPTED
    workbench.runs.resume(run_id, 10)
    assert [one.step for one in workbench.registry.checkpoints.of(run_id)] == [10] == [older.step]
    assert max(point.step for point in workbench.registry.measurements.points(run_id)) == 10
    with pytest.raises(NotFound, match="missing"):
        workbench.registry.blobs.verify(newer.state_digest)
    finish(session.next())
    points = workbench.registry.measurements.points(run_id)
    assert [point.step for point in points if point.loss is not None] == list(range(1, 31))
    with pytest.raises(InUse, match="is finished"):
        workbench.runs.resume(run_id, 30)
