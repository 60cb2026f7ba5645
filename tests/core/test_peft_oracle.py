"""PEFT as the oracle: the same files give the same logits both ways, the same start the same losses."""

import pytest
import torch

from core.config import LoraConfig, TrainConfig
from core.data.formats import Example
from core.data.render import prepare
from core.errors import InvalidAdapter
from core.events import StepDone
from core.lora.inject import AdapterBank
from core.lora.peft_format import load_adapter, save_adapter
from core.train.batches import collate, plan_steps, split_rows
from core.train.loss import summed_loss
from core.train.trainer import Trainer
from tests.core.helpers import load, logits, new_peft, peft_from, random_adapter

ROWS = [
    Example(i, ({"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "fine thanks " * (1 + i % 4)}))
    for i in range(24)
]


def _our_logits(base, adapter):
    bank = AdapterBank(base.layers, list(adapter.layers), 1, adapter.highest_rank)
    bank.load(0, adapter)
    with bank.use():
        return logits(base.model)


def test_an_adapter_from_here_loads_in_peft(any_model, tmp_path):
    base = load(any_model)
    adapter = random_adapter(base)
    save_adapter(tmp_path, adapter)
    torch.testing.assert_close(logits(peft_from(any_model, tmp_path)), _our_logits(base, adapter), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    ],
    ids=["plain", "rslora", "two targets", "patterns", "one layer"],
)
def test_an_adapter_from_peft_loads_here(tiny_llama, tmp_path, options):
    model = new_peft(tiny_llama, **options)
    model.save_pretrained(tmp_path)
    base = load(tiny_llama)
    adapter = load_adapter(tmp_path, base.layer_shapes, base.head)
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_qwen"])
def test_an_adapter_from_peft_loads_here_on_other_architectures(request, name, tmp_path):
    folder = request.getfixturevalue(name)
    model = new_peft(folder)
    model.save_pretrained(tmp_path)
    base = load(folder)
    adapter = load_adapter(tmp_path, base.layer_shapes, base.head)
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)


def test_what_peft_wrote_is_written_back_the_same(tiny_llama, tmp_path):
    """A round trip through our format keeps patterns and rsLoRA's scale."""
    model = new_peft(tiny_llama, rank_pattern={"q_proj": 2}, use_rslora=True)
    model.save_pretrained(tmp_path / "theirs")
    base = load(tiny_llama)
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", load_adapter(tmp_path / "theirs", base.layer_shapes, base.head))
    torch.testing.assert_close(logits(peft_from(tiny_llama, tmp_path / "ours")), logits(model), atol=1e-5, rtol=1e-5)


def test_twenty_steps_from_the_same_start_give_the_same_losses(any_model, tmp_path):
    lora = LoraConfig(rank=4, alpha=8)
    train = TrainConfig(max_steps=20, micro_batch_size=2, gradient_accumulation_steps=2, learning_rate=5e-3, validation_share=0,
                        weight_decay=0.01)  # fmt: skip
    base = load(any_model)
    trainer = Trainer(base, iter(ROWS), lora, train)
    save_adapter(tmp_path, trainer.adapter())
    events = [event for event in trainer.run() if isinstance(event, StepDone)]
    theirs = _peft_losses(any_model, tmp_path, base, train, [event.learning_rate for event in events])
    assert [event.loss for event in events] == pytest.approx(theirs, abs=1e-4)
    assert events[-1].loss < events[0].loss - 0.1


def _peft_losses(folder, adapter, base, train, rates):
    """A plain PEFT training loop over the same batches with torch's AdamW."""
    model = peft_from(folder, adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=train.weight_decay)
    rows = split_rows(prepare(iter(ROWS), base.tokenizer, train.max_length).rows, 0, train.seed).train
    losses = []
    for rate, step in zip(rates, plan_steps(rows, train), strict=False):
        supervised = sum(row.supervised for batch in step for row in batch)
        optimiser.zero_grad()
        total = 0.0
        for batch in step:
            inputs = collate(batch, 2, torch.device("cpu"))
            out = model(input_ids=inputs.ids, attention_mask=inputs.mask).logits
            loss = torch.nn.functional.cross_entropy(
                out[:, :-1].flatten(0, 1), inputs.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            (loss / supervised).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        losses.append(total / supervised)
    return losses


def test_gradients_equal_pefts_for_every_factor(any_model, tmp_path):
    base = load(any_model)
    adapter = random_adapter(base)
    save_adapter(tmp_path, adapter)
    batch = collate(prepare(iter(ROWS[:3]), base.tokenizer, 128).rows, 2, torch.device("cpu"))
    bank = AdapterBank(base.layers, list(adapter.layers), 1, adapter.rank)
    bank.load(0, adapter)
    with bank.use():
        summed_loss(base.model, batch).backward()
    model = peft_from(any_model, tmp_path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    summed_loss(model, batch).backward()
    theirs = dict(model.named_parameters())
    for path, factors in bank.factors.items():
        for ours, letter in ((factors.A, "A"), (factors.B, "B")):
            expected = theirs[f"base_model.model.{path}.lora_{letter}.default.weight"].grad
            torch.testing.assert_close(ours.grad[0], expected, atol=1e-4, rtol=1e-4)


def test_peft_adapters_of_a_kind_we_do_not_have_are_refused(tiny_llama, tmp_path):
    new_peft(tiny_llama, use_dora=True).save_pretrained(tmp_path)
    base = load(tiny_llama)
    with pytest.raises(InvalidAdapter, match="DoRA"):
        load_adapter(tmp_path, base.layer_shapes, base.head)
