"""A base in 4 or 8 bits: its numbers are bitsandbytes' own, and all that is done on it is what is done on a
plain base with these numbers.
"""

import shutil
import weakref

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from core.base_model.load import decoder_layers
from core.base_model.quantisation import INT8, NF4
from core.base_model.quantised_load import quantise, quantised_layers
from core.data.formats import Example
from core.errors import InvalidConfig, InvalidModel
from core.events import RunFailed, StepDone, TrainingDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.peft.files import load_adapter, save_adapter
from core.lora.quantised import dequantised as dense
from core.lora.quantised_ops import quantised_linear, quantised_linear_frozen_a
from core.train.batches import MicroBatch, Shape, collate
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.group_objective import GroupObjective
from core.train.memory import ExecutionPlan, Tier
from core.train.objectives.supervised import KIND as SUPERVISED
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.step import MicroBatchStep
from core.train.training_options import TrainingOptions
from tests.core.helpers import CPU, load, logits, peft_loss, random_adapter, token_rows

HOW = {
    NF4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    INT8: BitsAndBytesConfig(load_in_8bit=True),
}
KINDS = [kind for kind in ADAPTER_KINDS.names if not ADAPTER_KINDS.get(kind).whole]
ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(12)
]


def _by_transformers(folder, how):
    """As transformers loads it. In training mode, since bitsandbytes rounds to bfloat16 on some CPUs else."""
    load = AutoModelForCausalLM.from_pretrained
    return load(folder, quantization_config=HOW[how], dtype=torch.float32, device_map={"": "cpu"}).train()


@pytest.fixture(scope="module")
def plain_twins(tiny_llama, tmp_path_factory):
    """Plain bases with the numbers that bitsandbytes and transformers make of the tiny Llama."""
    found = {}
    for how in HOW:
        folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp(how) / how)
        numbers = _by_transformers(tiny_llama, how).dequantize(dtype=torch.float32).state_dict()
        plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        plain.load_state_dict(numbers)
        plain.save_pretrained(folder)
        found[how] = load(folder)
    return found


@pytest.fixture(scope="module")
def quantised(tiny_llama):
    """The tiny Llama in each way, to train on."""
    return {how: load(tiny_llama, quantisation=how) for how in HOW}


@pytest.mark.parametrize("how", HOW)
def test_logits_are_those_of_transformers_with_bitsandbytes(any_model, how):
    base = load(any_model, quantisation=how)
    found, wanted, plain = map(logits, (base.model, _by_transformers(any_model, how), load(any_model).model))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert float((found - plain).norm() / plain.norm()) > 1e-3
    assert len(quantised_layers(base.model)) == len([path for path in base.layers if path != base.head])


@pytest.mark.parametrize("how", HOW)
def test_a_plain_model_quantised_bit_by_bit_is_the_one_that_transformers_quantises(any_model, how):
    model = AutoModelForCausalLM.from_pretrained(any_model, dtype=torch.float32)
    for layer in decoder_layers(model):
        quantise(layer, model.get_output_embeddings(), how, CPU)
    quantise(model, model.get_output_embeddings(), how, CPU)
    found, wanted = map(quantised_layers, (model, load(any_model, quantisation=how).model))
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert all(map(torch.equal, one.packed.tensors, other.packed.tensors))
        assert (one.shape, one.transposed) == (other.shape, other.transposed)


def _request(base, key, kind="lora", own=None, resume=None, **train):
    """A run with dropout; two adapters of these share a batch."""
    names = ("modules_to_save", "bias", "target_modules")
    whole = {name: train.pop(name) for name in names if name in train}
    lora = LoraConfig(rank=key, alpha=8, kind=kind, dropout=train.pop("dropout", 0.2), **whole)
    shared = {"micro_batch_size": 2, "max_length": 64, "packing": "on", "learning_rate": 5e-3, "max_steps": 3}
    options = TrainingOptions(lora, TrainConfig(**{**shared, "seed": key, **train}), **(own or {}))
    return RunRequest(key, token_rows(base, ROWS, 64, 0), options, resume)


def _train(base, requests, at=lambda group, event: None):
    """Loss and gradient norm of each step by run, and the adapters."""
    group, figures, adapters = TrainingGroup(base, requests), {}, {}
    for key, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        if isinstance(event, StepDone):
            figures.setdefault(key, []).append((event.loss, event.grad_norm))
            at(group, event)
        if isinstance(event, TrainingDone):
            adapters[key] = group.adapter(key)
    return figures, adapters


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", [*KINDS, "lora-fa"])
@pytest.mark.parametrize("how", HOW)
def test_every_kind_learns_as_on_a_plain_base_with_these_numbers(quantised, plain_twins, how, kind, dropout):
    own = {"kind": ADAPTER_KINDS.get("lora").options(freeze_a=True)} if kind == "lora-fa" else {}
    kind = kind.removesuffix("-fa")

    def figures(base):
        requests = [_request(base, rank, kind, own, dropout=dropout) for rank in (2, 4)]
        return _train(base, requests)[0]

    found, wanted = figures(quantised[how]), figures(plain_twins[how])
    for rank, one in wanted.items():
        torch.testing.assert_close(torch.tensor(found[rank]), torch.tensor(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", HOW)
def test_layers_without_an_adapter_are_computed_again_in_backward(quantised, how):
    base = quantised[how]
    kept, again = (
        _train(base, [_request(base, 4, target_modules="q_proj,v_proj", gradient_checkpointing=asked)])[0]
        for asked in ("off", "on")
    )
    assert again == kept


def test_whole_parameters_are_trained_beside_a_quantised_base(tiny_llama, tiny_qwen, plain_twins):
    """Embedding and head, which stay plain, and the biases of quantised layers."""
    found, wanted = (
        _train(base, [_request(base, 4, modules_to_save="embedding,head")])[0]
        for base in (load(tiny_llama, quantisation=NF4), plain_twins[NF4])
    )
    torch.testing.assert_close(torch.tensor(found[4]), torch.tensor(wanted[4]), rtol=1e-4, atol=1e-5)
    base = load(tiny_qwen, quantisation=NF4)
    (adapter,) = _train(base, [_request(base, 4, bias="all")])[1].values()
    assert any(not one.equal(base.layers.stored(name)) for name, one in adapter.wholes.items())


@pytest.mark.parametrize("tier", [Tier.KEEP, Tier.FULL])
@pytest.mark.parametrize("how", HOW)
def test_losses_and_gradients_are_pefts(any_model, tmp_path, how, tier):
    base = load(any_model, quantisation=how)
    adapter = random_adapter(base, size=0.1)
    save_adapter(tmp_path, adapter)
    part = MicroBatch(token_rows(base, ROWS[:3], 128), [(0,), (1, 2)], 1.0)
    shape = Shape(1, 2, 128, packed=True, supervised=256, segments=8, fixed=False)
    bank = AdapterBank(base.layers, list(adapter.layers), 1, adapter.rank, trainable=True)
    bank.load(0, adapter)
    goal = GroupObjective(SUPERVISED, [SUPERVISED.options()])
    step = MicroBatchStep(base, bank, ExecutionPlan(tier, False), goal)
    figures = step.train(collate([part], shape))
    model = PeftModel.from_pretrained(_by_transformers(any_model, how), tmp_path, is_trainable=True)
    loss = peft_loss(model, part)
    loss.backward()
    assert float(figures[0, 0]) == pytest.approx(float(loss.detach()), rel=1e-4)
    theirs = dict(model.named_parameters())
    for path, factors in bank.factors.items():
        for ours, letter in ((factors.A, "A"), (factors.B, "B")):
            expected = theirs[f"base_model.model.{path}.lora_{letter}.default.weight"].grad
            torch.testing.assert_close(ours.grad[0], expected, atol=1e-4, rtol=1e-3)


def _answers(base):
    """Greedy, of the plain base and two adapters in one batch."""
    adapters = [random_adapter(base, seed=seed) for seed in range(2)]
    bank = AdapterBank(base.layers, list(adapters[0].layers), 3, 4)
    for slot, adapter in enumerate(adapters, start=1):
        bank.load(slot, adapter)
    config = GenerationConfig(max_tokens=16, temperature=0.0)
    decoder = Decoder(base, bank, [RowRequest([5, 6, 7, 8 + slot], slot, config) for slot in range(3)])
    rows = {row.index: row for row in decoder._rows}
    list(decoder.steps())
    return [rows[at].ids for at in range(3)]


@pytest.mark.parametrize("how", HOW)
def test_answers_are_those_of_a_plain_base_with_these_numbers(tiny_llama, plain_twins, how):
    assert _answers(load(tiny_llama, quantisation=how)) == _answers(plain_twins[how])


@pytest.mark.parametrize("how", HOW)
def test_a_resumed_run_ends_bit_for_bit_like_the_uninterrupted_one(tiny_llama, tmp_path, how):
    base = load(tiny_llama, quantisation=how)

    def save(group, event):
        if event.step >= 3 and not list(tmp_path.iterdir()) and group.told(4, event.step):
            group.state(4).save(tmp_path)
            save_adapter(tmp_path, group.adapter(4))

    whole = _train(base, [_request(base, 4, max_steps=8)], save)[1][4]
    base = load(tiny_llama, quantisation=how)  # as in another process
    resume = load_adapter(tmp_path, base.layer_shapes, base.head), RunState.load(tmp_path)
    resumed = _train(base, [_request(base, 4, max_steps=8, resume=resume)])[1][4]
    for path, layer in whole.layers.items():
        assert layer.A.equal(resumed.layers[path].A)
        assert layer.B.equal(resumed.layers[path].B)


def test_layers_are_quantised_one_after_another_while_they_are_read(tiny_llama, monkeypatch):
    import bitsandbytes.functional

    quantise, alive, most = bitsandbytes.functional.quantize_4bit, set(), []

    def watched(weight, *given, **options):
        alive.add(id(weight))
        weakref.finalize(weight, alive.discard, id(weight))
        most.append(len(alive))
        return quantise(weight, *given, **options)

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", watched)
    base = load(tiny_llama, quantisation=NF4)
    assert len(most) == len(quantised_layers(base.model)) == 14
    assert max(most) <= 2
    assert not any(
        isinstance(layer.base, torch.nn.Linear) for path, layer in base.layers.items() if path != base.head
    )


@pytest.mark.parametrize("how", HOW)
def test_the_operators_keep_what_torch_asks_of_them(tiny_llama, how):
    """Their shapes without numbers, and their derivatives, on which compiled layers and graphs build."""
    packed = quantised_layers(load(tiny_llama, quantisation=how).model)[0].packed
    outputs, inputs = packed.shape
    x, A, B = torch.randn(2, 3, inputs), torch.randn(2, 4, inputs), torch.randn(2, outputs, 4)
    x, A, B = (one.requires_grad_() for one in (x, A, B))
    tensors, work = list(packed.tensors), (A.detach(), B.detach(), torch.ones(2))
    torch.library.opcheck(dense, (tensors, how, outputs, inputs, torch.float32))
    torch.library.opcheck(quantised_linear, (x, tensors, how, outputs, None, A, B, *work))
    torch.library.opcheck(quantised_linear_frozen_a, (x, tensors, how, outputs, None, B, *work))


def test_what_cannot_be_is_said(tiny_llama, encoder, monkeypatch):
    with pytest.raises(InvalidModel, match="quantisation=none"):
        load(encoder, quantisation=NF4)
    with pytest.raises(InvalidConfig, match="kind=full"):
        TrainingOptions.parse({"kind": "full", "quantisation": "nf4"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidConfig, match=r"lora-workbench\[qlora\]"):
        load(tiny_llama, quantisation=NF4)
