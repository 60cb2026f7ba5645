"""PEFT as the oracle: the same files give the same logits both ways, the same start the same losses."""

import pytest
import torch
from peft import IA3Config, LoHaConfig, PromptTuningConfig, get_peft_model

from core.data.formats import Example
from core.errors import InvalidAdapter
from core.events import StepDone
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.peft.files import load_adapter, save_adapter
from core.train.batches import MicroBatch, RunData, Shape, collate
from core.train.config import TrainConfig
from core.train.group import TrainingGroup, alone
from core.train.group_objective import GroupObjective
from core.train.memory import ExecutionPlan, Tier
from core.train.objectives.supervised import KIND
from core.train.step import MicroBatchStep
from tests.core.helpers import (
    load,
    logits,
    new_peft,
    peft_from,
    peft_loss,
    plain_model,
    random_adapter,
    request,
    token_rows,
)

SUPERVISED = GroupObjective(KIND, [KIND.options()])

ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 4)},
        ),
    )
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
    torch.testing.assert_close(
        logits(peft_from(any_model, tmp_path)), _our_logits(base, adapter), atol=1e-5, rtol=1e-5
    )


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
    torch.testing.assert_close(
        logits(peft_from(tiny_llama, tmp_path / "ours")), logits(model), atol=1e-5, rtol=1e-5
    )


def test_twenty_steps_from_the_same_start_give_the_same_losses(any_model, tmp_path):
    lora = LoraConfig(rank=4, alpha=8)
    train = TrainConfig(
        max_steps=20, micro_batch_size=2, gradient_accumulation_steps=2, learning_rate=5e-3, weight_decay=0.01
    )
    base = load(any_model)
    group = TrainingGroup(base, [request(base, ROWS, lora, train, validation_rows=0)])
    events = []
    for event in alone(group):
        if not events and group.runs and not (tmp_path / "adapter_config.json").exists():
            save_adapter(tmp_path, group.adapter("run"))
        if isinstance(event, StepDone):
            events.append(event)
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
    losses = []
    for rate, step in zip(
        rates, RunData(token_rows(base, ROWS, validation_rows=0), train).steps(), strict=False
    ):
        optimiser.zero_grad()
        total = 0.0
        for part in step.micro_batches:
            loss = peft_loss(model, part)
            (loss * part.weight).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        losses.append(total / step.supervised)
    return losses


@pytest.mark.parametrize(("packed", "tier"), [(False, Tier.KEEP), (True, Tier.KEEP), (True, Tier.FULL)])
def test_gradients_equal_pefts_for_every_factor(any_model, tmp_path, packed, tier):
    base = load(any_model)
    adapter = random_adapter(base)
    save_adapter(tmp_path, adapter)
    rows = token_rows(base, ROWS[:3], 128)
    part = MicroBatch(rows, [(0,), (1, 2)] if packed else [(0,), (1,), (2,)], 1.0)
    shape = Shape(1, 2, 128, packed=packed, supervised=256, segments=8, fixed=False)
    bank = AdapterBank(base.layers, list(adapter.layers), 1, adapter.rank, trainable=True)
    bank.load(0, adapter)
    MicroBatchStep(base, bank, ExecutionPlan(tier, False), SUPERVISED).train(collate([part], shape))
    model = peft_from(any_model, tmp_path)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    peft_loss(model, part).backward()
    theirs = dict(model.named_parameters())
    for path, factors in bank.factors.items():
        for ours, letter in ((factors.A, "A"), (factors.B, "B")):
            expected = theirs[f"base_model.model.{path}.lora_{letter}.default.weight"].grad
            torch.testing.assert_close(ours.grad[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoHaConfig(r=2, target_modules=["q_proj"]), r"describes a 'LOHA' adapter.*convert_to_lora"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), r"a 'IA3' adapter.*merge_and_unload"),
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            r"a 'PROMPT_TUNING' adapter.*a soft prompt, which changes no weights",
        ),
    ],
)
def test_peft_adapters_of_a_kind_we_do_not_have_are_refused(tiny_llama, tmp_path, config, said):
    get_peft_model(plain_model(tiny_llama), config).save_pretrained(tmp_path)
    base = load(tiny_llama)
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(tmp_path, base.layer_shapes, base.head)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modules_to_save": ["norm"]}, r"carries model\.layers\.0\.input_layernorm\.weight whole.*Merge it"),
        (
            {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
            r"adapts the input embedding .*embed_tokens.*DoRA can be on linear layers only",
        ),
    ],
)
def test_what_peft_trains_beside_and_we_do_not_is_called_what_it_is(tiny_qwen, tmp_path, options, said):
    options = {"target_modules": ["q_proj"], **options}
    new_peft(tiny_qwen, **options).save_pretrained(tmp_path, save_embedding_layers=False)
    base = load(tiny_qwen)
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(tmp_path, base.layer_shapes, base.head, base.wholes)
