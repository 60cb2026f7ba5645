"""Embedding and head of an adapter's own, from the command line's plan to a merged model."""

import json

from typer.testing import CliRunner

from app.cli.main import app
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter
from tests.workbenches import QUICK, do_job

CHOSEN = {
    **QUICK,
    "target_modules": "query-value",
    "modules_to_save": "embedding,head",
    "learning_rate": 1e-2,
}


def result(workbench, kind, **arguments):
    job = do_job(workbench, kind, arguments)
    assert job.state == "finished", job.message
    return job.result


def test_what_is_trained_whole_is_planned_answers_leaves_and_comes_in_again(
    workbench, float32_engine, checked_here, tmp_path
):
    sets = [part for key, value in CHOSEN.items() for part in ("--set", f"{key}={value}")]
    home = ["--home", str(workbench.settings.home), "--json"]
    planned = CliRunner().invoke(app, ["preflight", "--base", "llama", "--data", "data", *sets, *home])
    hit = CliRunner().invoke(app, ["models", "targets", "llama", "--set", "rank=2", *home])
    assert json.loads(hit.stdout)["rows"][-1] == {
        "choice": "Query and value",
        "target_modules": "q_proj,v_proj",
        "layers": "q_proj × 2, v_proj × 2",
        "parameters": 2 * 2 * (32 + 32 + 32 + 16),
    }
    options = TrainingOptions.parse(CHOSEN)
    plan = workbench.training.estimate("llama", "data", options)
    assert plan.target_sentence == (
        f"q_proj × 2, v_proj × 2, and 10,240 parameters whole · {plan.trainable_parameters:,} trainable"
    )
    assert json.loads(planned.stdout)["targets"] == [plan.target_sentence]

    run = workbench.training.start("llama", "data", options, "taught")
    assert workbench.runs.wait(run.id).state == "finished"
    assert workbench.registry.find(Adapter, "taught").parameters == plan.trainable_parameters
    folder = tmp_path / "peft"
    for form, target in (("peft", folder), ("safetensors", tmp_path / "merged")):
        given = {"adapter": "taught", "config": {"format": form}, "folder": str(target)}
        assert result(workbench, "export_adapter", **given)["verdict"] == "passed"
    result(workbench, "import_adapter", folder=str(folder), name="back", look=False)
    greedy, texts = GenerationConfig(max_tokens=6, temperature=0.0), {0: "", 1: "", 2: ""}
    asked = [[{"role": "user", "content": "hello"}]] * 3
    for token in workbench.chats.answer("llama", ["taught", "back", None], asked, greedy):
        texts[token.row] += token.text
    assert texts[0] == texts[1] != texts[2]
    refused = do_job(workbench, "resize_adapter", {"adapter": "taught", "rank": 1, "name": "less"})
    assert "no low-rank ΔW" in refused.message
