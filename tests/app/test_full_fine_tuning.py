"""Full fine-tuning in the service: planned, trained, chatted with, exported, refused where it cannot be."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.errors import InvalidConfig
from core.generate.config import GenerationConfig
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base, Job, Run
from tests.workbenches import QUICK, do_job, finish

FULL = {**QUICK, "kind": "full"}


@pytest.fixture
def full(workbench, session):
    """A run of full fine-tuning that was paused on the way, and its weights under the name "whole"."""
    run = workbench.training.start("llama", "data", TrainingOptions.parse(FULL), "whole")
    finish(session.next())
    found = workbench.registry.get(Run, run.id)
    assert found.state == "finished", found.reason
    return found


def test_the_plan_counts_weights_gradients_and_moments(workbench):
    base = workbench.registry.find(Base, "llama")
    whole, lora = (
        workbench.training.estimate("llama", "data", TrainingOptions(LoraConfig(kind=kind), TrainConfig()))
        for kind in ("full", "lora")
    )
    assert whole.trainable_parameters == base.parameters
    more = whole.trainable_parameters - lora.trainable_parameters
    assert whole.memory_bytes - lora.memory_bytes == 18 * more
    some = TrainingOptions(LoraConfig(kind="full", layers_to_transform="1"), TrainConfig())
    assert workbench.training.estimate("llama", "data", some).trainable_parameters < base.parameters / 2


def test_it_is_kept_chatted_with_and_exported_like_any_other(workbench, full, checked_here, tmp_path):
    row, base = workbench.registry.find(Adapter, "whole"), workbench.registry.find(Base, "llama")
    assert (row.parameters, row.rank_in_words) == (base.parameters, "whole weights")
    assert row.base_fingerprint == base.fingerprint
    assert row.size_bytes == pytest.approx(4 * base.parameters, rel=0.1)
    greedy = GenerationConfig(max_tokens=4, temperature=0.0)
    asked = [[{"role": "user", "content": "hello"}]] * 2
    texts = {0: "", 1: ""}
    for token in workbench.chats.answer("llama", [None, "whole"], asked, greedy):
        texts[token.row] += token.text
    assert texts[0] != texts[1]

    folder = tmp_path / "merged"
    job = do_job(workbench, "export_adapter", _export("whole", folder))
    assert (job.state, job.result["verdict"]) == ("finished", "passed"), job.message
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = workbench.registry.blobs.path(row.digest) / "adapter_model.safetensors"
    from safetensors.torch import load_file

    stored = load_file(weights)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[f"base_model.model.{name}"])
    card = (folder / "README.md").read_text()
    assert "after full fine-tuning" in card
    assert "LoRA adapter" not in card


def _export(name: str, folder, **config) -> dict:
    return {"adapter": name, "folder": str(folder), "config": {"format": "safetensors", **config}}


def test_what_it_cannot_be_is_refused_with_what_can_be_done(workbench, full, tmp_path):
    cases = {
        "resize_adapter": {"adapter": "whole", "rank": 1},
        "convert_adapter": {"adapter": "whole", "name": "lora"},
        "inspect_adapter": {"adapter": "whole"},
        "combine_adapters": {
            "parts": [{"name": "whole", "weight": 1.0}] * 2,
            "config": {"method": "linear", "rank": 2},
        },
    }
    for kind, arguments in cases.items():
        with pytest.raises(InvalidConfig, match=r"whole weights without factors.*exported merged"):
            workbench.jobs.start(kind, arguments)
    for format in ("peft", "gguf-adapter"):
        with pytest.raises(InvalidConfig, match="choose safetensors"):
            workbench.jobs.start("export_adapter", _export("whole", tmp_path / "x", format=format))
    assert not workbench.registry.all(Job)[3:]


def test_it_waits_for_its_own_turn(workbench, session):
    options = [TrainingOptions.parse({**FULL, "kind": kind}) for kind in ("lora", "full")]
    runs = [workbench.training.start("llama", "data", one, together=True) for one in options]
    finish(session.next())
    states = [workbench.registry.get(Run, run.id) for run in runs]
    assert [one.state for one in states] == ["finished", "queued"]
    assert "by itself" in states[1].reason
    finish(session.next())
    assert workbench.registry.get(Run, runs[1].id).state == "finished"
