"""A base that goes the general way, in the workbench: added, shown, trained on, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.web.sections.models.section import facts_html
from core.errors import InvalidConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Run
from tests.conftest import _save
from tests.core.families import tiny_model
from tests.workbenches import STEADY, do_job, finish

LONG = {"max_length": 128, "epochs": 200}  # so much that short rows would be packed on the quick way


@pytest.fixture
def capped(workbench, tokenizer, tmp_path):
    """A Gemma 2, which caps its scores, in the registry."""
    folder = _save(tiny_model("gemma2"), tokenizer, tmp_path / "capped")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "capped"}).state == "finished"
    return workbench.registry.find(Base, "capped")


def test_the_way_is_told_with_what_it_costs(workbench, capped):
    assert (capped.way, workbench.registry.find(Base, "llama").way) == ("general", "quick")
    assert "general way: transformers&#x27; own passes" in facts_html(workbench, capped)
    told = CliRunner().invoke(
        app, ["models", "show", "capped", "--home", str(workbench.settings.home), "--json"]
    )
    assert "training and answers are slower" in json.loads(told.stdout)["computed"]


def test_the_plan_does_not_pack_and_what_needs_it_is_refused(workbench, capped):
    options = TrainingOptions.parse(LONG)
    assert workbench.training.estimate("llama", "data", options).packed
    assert not workbench.training.estimate("capped", "data", options).packed
    with pytest.raises(InvalidConfig, match=r"packing = on cannot be used with capped"):
        workbench.training.start("capped", "data", TrainingOptions.parse({"packing": "on"}))


def test_a_run_on_it_ends_with_an_adapter(workbench, capped, session):
    run = workbench.training.start(
        "capped", "data", TrainingOptions.parse({**STEADY, "max_steps": 3}), "soft"
    )
    finish(session.next())
    assert workbench.registry.get(Run, run.id).state == "finished"
    assert workbench.registry.find(Adapter, "soft").base_fingerprint == capped.fingerprint


def test_a_model_that_reads_pictures_is_a_base_for_text(workbench, tokenizer, tmp_path, session):
    folder = _save(tiny_model("smolvlm"), tokenizer, tmp_path / "eyes")
    assert do_job(workbench, "add_model", {"origin": str(folder), "name": "eyes"}).state == "finished"
    plan = workbench.training.estimate("eyes", "data", TrainingOptions.parse(STEADY))
    workbench.training.start("eyes", "data", TrainingOptions.parse({**STEADY, "max_steps": 2}), "seen")
    finish(session.next())
    assert workbench.registry.find(Adapter, "seen").parameters == plan.trainable_parameters
