"""The starter model in 4 bits on the CPU: compared with transformers, trained, resumed, merged."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from core.data.formats import Example
from core.events import StepDone
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_adapter
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions
from tests.core.helpers import load, logits, token_rows
from tests.core.test_quantised_merge import exported

pytestmark = pytest.mark.starter
STEPS, SAVED = 3, 1
ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"What is {i} and {i + 1}?"},
            {"role": "assistant", "content": f"Aye, it be {2 * i + 1}, matey!"},
        ),
    )
    for i in range(16)
]


def _train(base, folder, resume=None):
    """The adapter at the end, and the losses; saved on the way where nothing is resumed."""
    train = TrainConfig(max_steps=STEPS, micro_batch_size=2, gradient_accumulation_steps=1, packing="off")
    options = TrainingOptions(LoraConfig(rank=8, alpha=16, dropout=0.1), train)
    group = TrainingGroup(base, [RunRequest("run", token_rows(base, ROWS, 64, 0), options, resume)])
    losses, adapter = [], None
    for event in alone(group):
        if group.runs:
            adapter = group.adapter("run")
        if isinstance(event, StepDone):
            losses.append(event.loss)
            due = resume is None and event.step >= SAVED and not list(folder.iterdir())
            if due and group.told("run", event.step):
                save_adapter(folder, group.adapter("run"))
                group.state("run").save(folder)
    return adapter, losses


def test_the_starter_in_4_bits(starter_folder, tmp_path):
    base = load(starter_folder, quantisation="nf4")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    loading = {"quantization_config": how, "dtype": torch.float32, "device_map": {"": "cpu"}}
    theirs = AutoModelForCausalLM.from_pretrained(starter_folder, **loading).train()
    found, wanted = logits(base.model), logits(theirs)
    del theirs
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3

    (tmp_path / "saved").mkdir()
    whole, losses = _train(base, tmp_path / "saved")
    assert losses[-1] < losses[0]
    resume = load_adapter(tmp_path / "saved", base.layer_shapes, base.head), RunState.load(tmp_path / "saved")
    again, _ = _train(base, tmp_path / "saved", resume)
    assert all(
        again.layers[path].tensors[name].equal(tensor)
        for path, layer in whole.layers.items()
        for name, tensor in layer.tensors.items()
    )

    _, facts = exported(starter_folder, whole, tmp_path / "merged", merge_onto="nf4")
    assert facts["energy_kept"] >= 0.95
    assert 0.05 < facts["base_difference"] < 0.15
