"""Adapters on experts, from the command line's plan to a merged model, on bases whose files keep them in two
ways.
"""

import json

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base
from tests.app.test_wholes import result
from tests.conftest import _save
from tests.core.families import tiny_model
from tests.workbenches import QUICK

CHOSEN = {**QUICK, "target_modules": "query-value", "target_parameters": "experts", "learning_rate": 1e-2}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_planned_trained_answer_leave_and_come_in_again(
    workbench, float32_engine, checked_here, tokenizer, tmp_path, family
):
    folder = _save(tiny_model(family), tokenizer, tmp_path / family)
    result(workbench, "add_model", origin=str(folder), name="mixture")
    options = TrainingOptions.parse(CHOSEN)
    plan = workbench.training.estimate("mixture", "data", options)
    sets = [part for key, value in CHOSEN.items() for part in ("--set", f"{key}={value}")]
    home = ["--home", str(workbench.settings.home), "--json"]
    planned = CliRunner().invoke(app, ["preflight", "--base", "mixture", "--data", "data", *sets, *home])
    assert json.loads(planned.stdout)["targets"] == [plan.target_sentence]
    assert "experts.gate_up_proj × 2, experts.down_proj × 2" in plan.target_sentence

    run = workbench.training.start("mixture", "data", options, "taught")
    assert workbench.runs.wait(run.id).state == "finished"
    taught = workbench.registry.find(Adapter, "taught")
    assert taught.parameters == plan.trainable_parameters
    assert taught.base_fingerprint == workbench.registry.find(Base, "mixture").fingerprint
    for form in ("peft", "safetensors"):
        given = {"adapter": "taught", "config": {"format": form}, "folder": str(tmp_path / form)}
        assert result(workbench, "export_adapter", **given)["verdict"] == "passed"
    result(workbench, "import_adapter", folder=str(tmp_path / "peft"), name="back", look=False)
    result(workbench, "resize_adapter", adapter="taught", rank=1, name="less")
    greedy, texts = GenerationConfig(max_tokens=6, temperature=0.0), dict.fromkeys(range(4), "")
    asked = [[{"role": "user", "content": "hello"}]] * 4
    for token in workbench.chats.answer("mixture", ["taught", "back", None, "less"], asked, greedy):
        texts[token.row] += token.text
    assert texts[0] == texts[1] != texts[2]
