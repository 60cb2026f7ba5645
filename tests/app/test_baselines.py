"""The baselines beside a run: what is begun for its table, and what the table says."""

import json

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.service.baselines import full_options, ranked_options
from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.workbenches import QUICK, finish

OPTIONS = {**QUICK, "eval_steps": 3, "packing": "off"}


@pytest.fixture
def run(workbench, session):
    """A finished LoRA run, whose first evaluation is that of the plain base."""
    queued = workbench.training.start("llama", "data", TrainingOptions.parse(OPTIONS), "mine")
    finish(session.next())
    return workbench.registry.get(Run, queued.id)


def test_the_table_holds_a_run_against_what_it_has_to_beat(workbench, session, run, jobs_here):
    begun = workbench.baselines.begin(run.id, 2)
    assert (begun.full.name, begun.measuring.state, begun.left_out) == ("mine full", "finished", "")
    finish(session.next())
    lines = workbench.baselines.table(run.id, 2)
    assert [line.name for line in lines] == [
        "LoRA, rank 2: mine",
        "Full fine-tuning: mine full",
        "Plain base",
        "2 examples in the prompt",
    ]
    mine, full, base, prompted = lines
    assert full.parameters > mine.parameters > base.parameters == 0
    assert full.file_bytes > mine.file_bytes > base.file_bytes == 0
    assert mine.step_seconds > 0
    assert full.peak_bytes > 0
    first = next(
        one.validation_loss
        for one in workbench.registry.measurements.points(run.id)
        if one.validation_loss is not None
    )
    assert base.validation_loss == pytest.approx(first, abs=1e-4)
    assert prompted.validation_loss != base.validation_loss
    assert "tokens longer" in prompted.note
    assert full.validation_loss != mine.validation_loss
    again = workbench.baselines.begin(run.id, 2)
    assert (again.full, again.measuring) == (None, None)


def test_full_fine_tuning_that_does_not_fit_is_left_out_with_figures(workbench, run, jobs_here, monkeypatch):
    monkeypatch.setattr(workbench.engine, "status", lambda: {"memory_bytes": 1 << 20})
    begun = workbench.baselines.begin(run.id)
    assert begun.full is None
    assert "GiB" in begun.left_out
    assert [line.state for line in workbench.baselines.table(run.id)][1] == "not started"


def test_full_fine_tuning_that_has_failed_is_told_with_its_reason_and_begun_anew(workbench, run, jobs_here):
    failed = workbench.baselines.begin(run.id, 2).full
    failed.state, failed.reason = "failed", "no row fits"
    workbench.registry.save(failed)
    line = workbench.baselines.table(run.id, 2)[1]
    assert (line.run.id, line.state, line.note) == (failed.id, "failed", "no row fits")
    assert workbench.baselines.begin(run.id, 2).full.id != failed.id


def test_the_command_prints_the_same_table(workbench, run, jobs_here):
    workbench.baselines.begin(run.id, 2, full=False)
    home = ["--home", str(workbench.settings.home), "--json"]
    done = CliRunner().invoke(app, ["baselines", str(run.id), "--shots", "2", "--no-full", *home])
    rows = json.loads(done.stdout)["rows"]
    assert rows == [line.record() for line in workbench.baselines.table(run.id, 2)]
    assert rows[2]["validation_loss"] > 0
    assert (done.exit_code, rows[1]["state"]) == (0, "not started")


@pytest.mark.parametrize("command", ["baselines", "costs"])
def test_a_command_whose_full_fine_tuning_has_failed_shows_its_table_and_has_failed(
    workbench, run, jobs_here, monkeypatch, command
):
    failed = workbench.baselines.begin_full(run)[0]
    failed.state, failed.reason = "failed", "no row fits"
    workbench.registry.save(failed)
    monkeypatch.setattr("app.cli.baselines.open_workbench", lambda home: workbench)
    monkeypatch.setattr(workbench.baselines, "begin_full", lambda run: (failed, ""))
    done = CliRunner().invoke(app, [command, str(run.id), "--json"])
    assert {"baselines": "no row fits", "costs": "Peak memory"}[command] in done.stdout
    assert done.exit_code == 1


def test_is_lora_enough_sets_up_four_ranks_at_once_and_full_fine_tuning_behind(workbench, session, run):
    started = workbench.baselines.enough(run.id)
    assert [one.name for one in started] == [*(f"mine rank={rank}" for rank in (4, 8, 16, 64)), "mine full"]
    assert len({one.sweep for one in started[:4]}) == 1
    assert started[4].sweep == ""
    assert [one.id for one in workbench.registry.queue.next()] == [one.id for one in started[:4]]
    ratios = {one.config["lora"]["alpha"] / one.config["lora"]["rank"] for one in started[:4]}
    assert ratios == {run.config["lora"]["alpha"] / run.config["lora"]["rank"]}
    full = TrainingOptions.from_dict(started[4].config)
    assert full.train.learning_rate == pytest.approx(0.1 * OPTIONS["learning_rate"])
    assert full.train.max_steps == OPTIONS["max_steps"]
    assert full.lora.target_modules == "all-linear"


def test_options_of_a_run_that_names_patterns_become_those_of_the_others():
    given = {**OPTIONS, "rank": 8, "alpha": 16, "rank_pattern": "q_proj=4", "dropout": 0.1, "freeze_a": True}
    made = Run(
        name="x",
        base_id=1,
        base_name="x",
        base_fingerprint="x",
        dataset_id=1,
        dataset_name="x",
        dataset_digest="x",
        config=TrainingOptions.parse(given).to_dict(),
    )
    ranked = ranked_options(made, 64)
    assert (ranked.lora.rank, ranked.lora.alpha, ranked.lora.rank_pattern) == (64, 128.0, "")
    assert ranked.kind.freeze_a
    full = full_options(made)
    assert (full.lora.kind, full.lora.dropout, full.train.max_steps) == ("full", 0.0, OPTIONS["max_steps"])


def _train(workbench, *arguments):
    home = ["--home", str(workbench.settings.home), "--json"]
    given = ["--set", "max_steps=2", "--set", "target_modules=q_proj"]
    return CliRunner().invoke(
        app, ["train", "--base", "llama", "--data", "data", "--detach", *given, *home, *arguments]
    )


def test_queries_alone_are_refused_with_the_reason_unless_somebody_insists(workbench, session):
    refused = _train(workbench)
    said = json.loads(refused.stdout)
    assert (refused.exit_code, said["kind"]) == (1, "QuestionableRun")
    assert "Queries alone learn clearly less" in said["error"]
    assert "--anyway" in said["error"]
    assert workbench.registry.all(Run) == []
    swept = _train(workbench, "--sweep", "rank=2,4")
    assert (swept.exit_code, json.loads(swept.stdout)["kind"]) == (1, "QuestionableRun")
    assert _train(workbench, "--anyway").exit_code == 0
    assert len(workbench.registry.all(Run)) == 1


def test_what_the_device_found_at_the_start_is_in_the_runs_checklist(workbench, session, run):
    home = ["--home", str(workbench.settings.home), "--json"]
    shown = json.loads(CliRunner().invoke(app, ["runs", "show", str(run.id), *home]).stdout)
    points = {one["name"]: one for one in shown["checklist"]}
    assert points["start"]["state"] == "good"
    assert "Tested on the device" in points["start"]["reason"]
    assert shown["details"]["start_change"] == 0.0
    assert any("at the start is exactly 0" in line for line in shown["log"])
    before = {one.name: one for one in workbench.training.checklist("llama", "data", TrainingOptions())}
    assert before["start"].state == "open"


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": "embed_tokens,lm_head"},
        {"bias": "all"},
        {"on_top_of": "style"},
        {"enable_lora": "c_attn=q+v"},
        {"kind": "dora", "dropout": 0.1},
    ],
)
def test_what_is_trained_beside_factors_stands_in_no_baselines_way(options):
    given = TrainingOptions.parse({"rank": 4, "epochs": 2.0, **options})
    made = Run(name="made", config=given.to_dict())
    full = full_options(made)
    assert (full.lora.kind, full.lora.modules_to_save, full.lora.on_top_of) == ("full", "", "")
    assert (full.lora.bias, full.train.epochs) == ("none", 2.0)
    kept = ranked_options(made, 8).lora
    assert [getattr(kept, name) for name in options] == [*options.values()], "only the rank is another"
