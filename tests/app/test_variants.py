"""Adapter kinds beside LoRA in the service and on the command line: trained, converted, asked."""

import json

from typer.testing import CliRunner

from app.cli.main import app
from app.shared.bases import shapes_of
from app.web.sections.train.option_groups import groups
from core.generate.config import GenerationConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.peft.files import load_adapter
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base
from tests.workbenches import QUICK


def test_a_trained_miss_becomes_a_lora_that_answers_the_same(workbench):
    run = workbench.training.start(
        "llama", "data", TrainingOptions.parse({**QUICK, "kind": "miss"}), "shards"
    )
    assert workbench.runs.wait(run.id).state == "finished"
    home = ["--home", str(workbench.settings.home), "--json"]
    done = CliRunner().invoke(app, ["adapters", "convert", "shards", "--name", "plain", *home])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["kind"], found["name"]) == (0, "MiSS", "plain")
    row, base = workbench.registry.find(Adapter, "plain"), workbench.registry.find(Base, "llama")
    weights = load_adapter(workbench.registry.blobs.verify(row.digest), shapes_of(base), base.head)
    assert (weights.kind, row.source, row.parents[0]["name"]) == ("lora", "converted", "shards")
    asked = [[{"role": "user", "content": "hello"}]] * 2
    greedy = GenerationConfig(max_tokens=6, temperature=0.0)
    texts = {0: "", 1: ""}
    for token in workbench.chats.answer("llama", ["shards", "plain"], asked, greedy):
        texts[token.row] += token.text
    assert texts[0] == texts[1]
    refused = CliRunner().invoke(app, ["adapters", "convert", "plain", "--name", "more", *home])
    assert (refused.exit_code, "is a LoRA already" in json.loads(refused.stdout)["error"]) == (1, True)


def test_the_form_offers_every_kind_with_its_help_and_its_own_options():
    fields = {option["name"]: option for group in groups() for option in group["options"]}
    offered = {name: said for name, _, said in fields["kind"]["choices"]}
    assert offered == {name: kind.help for name, kind in ADAPTER_KINDS.all().items()}
    assert fields["freeze_a"]["only"] == ("kind", "lora")
    assert "40.4 %" in fields["freeze_a"]["help"]
