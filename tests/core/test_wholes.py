"""Embedding, head and biases of an adapter's own beside its factors, with PEFT as the oracle."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.adapter_slots import AdapterSlots
from core.base_model.skeleton import skeleton
from core.base_model.stored import has_tensor
from core.base_model.stored_wholes import stored_wholes
from core.combine.combining import Part, combine, resize
from core.combine.config import CombineConfig
from core.data.formats import Example
from core.errors import InvalidAdapter, InvalidConfig
from core.events import Prepared, RunFailed, StepDone, TrainingDone
from core.gguf.check import check_merged_gguf
from core.gguf.write import write_adapter_gguf, write_merged_gguf
from core.lora.adapter import LayerFactors
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.equal_scales import with_one_scale
from core.lora.foreign.fit import BaseFacts, fit
from core.lora.foreign.look import look
from core.lora.kinds import ADAPTER_KINDS
from core.lora.kinds.lora import LoraOptions
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import load_adapter, save_adapter, save_checked
from core.lora.targets import training_bytes
from core.merge.merge import merge_into_base
from core.merge.verify import differing_tensors, verify_merge
from core.options import NoOptions
from core.reporting import silent
from core.train import loss
from core.train.base_shape import BaseShape
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.estimate import DataShape, estimate
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions
from tests.conftest import VOCABULARY
from tests.core.helpers import (
    CLOSE,
    PROBE,
    load,
    load_float64,
    logits,
    peft_from,
    peft_loss,
    plain_model,
    random_adapter,
    token_rows,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers"),
    pytest.mark.filterwarnings("ignore:.*has no bias"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys"),
    pytest.mark.filterwarnings("ignore:.*LoRA tensor.*have invalid shape"),
]
ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 4)},
        ),
    )
    for i in range(20)
]
BOTH = "embedding,head"


@dataclass(frozen=True)
class Case:
    """What is trained whole, here and as PEFT's configuration says it."""

    lora: dict[str, Any] = dataclasses.field(default_factory=dict)
    own: dict[str, Any] = dataclasses.field(default_factory=dict)

    def options(self, rank: int = 4, lora: Any = (), **train: Any) -> TrainingOptions:
        config = LoraConfig(**{"rank": rank, "alpha": 8, **self.lora, **dict(lora)})
        usual = {"micro_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 96}
        settings = {**usual, "learning_rate": 5e-3, "weight_decay": 0.01, **train}
        own = ADAPTER_KINDS.get(config.kind).options(**self.own)
        return TrainingOptions(config, TrainConfig(**settings), own)


CASES = {
    "modules": Case({"modules_to_save": BOTH}),
    "all biases": Case({"bias": "all", "target_modules": "v_proj,c_attn"}),
    "targeted biases": Case({"bias": "lora_only"}),
    "biases on B": Case({}, {"lora_bias": True}),
    "all of it": Case({"modules_to_save": BOTH, "bias": "all"}, {"lora_bias": True}),
}
MODELS = {"modules": "tiny_llama", "all biases": "tiny_gpt2", "targeted biases": "tiny_qwen"}
"""Tied; Conv1D, norms with biases and tied; biases on some layers and untied."""


@pytest.fixture(params=["modules", "all biases", "targeted biases", "biases on B", "all of it"])
def case(request) -> str:
    return request.param


@pytest.fixture
def model(request, case):
    return request.getfixturevalue(MODELS.get(case, "tiny_gpt2" if case == "all of it" else "tiny_qwen"))


def _options(base, case, **train):
    names = ("c_attn",) if "c_attn" in str(base.layer_shapes) else ("v_proj",)
    targets = {"target_modules": names[0]} if case == "all biases" else {}
    return CASES[case].options(4, targets, **train)


def _train(base, runs, save_at=None, folder=None, resume=None):
    """Losses, starts and ends by key."""
    requests = [
        RunRequest(key, token_rows(base, ROWS, options.train.max_length, 2), options, resume=resume)
        for key, options in runs.items()
    ]
    group, starts, steps, ends = TrainingGroup(base, requests), {}, {}, {}
    for key, event in group.run():
        assert not isinstance(event, RunFailed), event.error
        if isinstance(event, Prepared):
            starts[key] = group.adapter(key), event
        if isinstance(event, StepDone):
            steps.setdefault(key, []).append(event)
            if event.step == save_at:
                save_adapter(folder, group.adapter(key), modules=base.layer_shapes)
                group.state(key).save(folder)
        if isinstance(event, TrainingDone):
            ends[key] = group.adapter(key)
    return starts, steps, ends


def _loaded(base, folder):
    return load_adapter(folder, base.layer_shapes, base.head, base.wholes)


def _close(one, other, **tolerance):
    assert one.head.keys() == other.head.keys()
    for name, tensor in one.head.items():
        torch.testing.assert_close(tensor, other.head[name], msg=name, **tolerance)
    for path, layer in one.layers.items():
        for name, tensor in layer.tensors.items():
            torch.testing.assert_close(tensor, other.layers[path].tensors[name], **tolerance)


@torch.no_grad()
def _ours(base, *adapters):
    bank = loaded_bank(base.layers, adapters)
    with bank.use():
        return base.model(input_ids=PROBE.repeat(len(adapters), 1), use_cache=False).logits


def _moved(base, case, seed=0):
    """An adapter of this case with numbers that all differ from the base's."""
    ((start, _),) = _train(base, {"run": _options(base, case, max_steps=1, seed=seed)})[0].values()
    generator = torch.Generator().manual_seed(seed)
    moved: dict[int, torch.Tensor] = {}
    head = {
        name: moved.setdefault(one.data_ptr(), one + torch.randn(one.shape, generator=generator) * 0.05)
        for name, one in start.head.items()
    }
    layers = {
        path: LayerFactors(layer.A, torch.randn(layer.B.shape, generator=generator) * 0.05, layer.scale)
        for path, layer in start.layers.items()
    }
    return dataclasses.replace(start, head=head, layers=layers)


# Training.


def test_twenty_steps_give_pefts_losses_and_pefts_numbers(case, model, tmp_path):
    base = load(model)
    options = _options(base, case, max_steps=20)
    starts, steps, ends = _train(base, {"run": options})
    start, prepared = starts["run"]
    save_adapter(tmp_path, start, modules=base.layer_shapes)
    theirs = PeftModel.from_pretrained(plain_model(model), tmp_path, is_trainable=True).eval()
    trained = {name: one for name, one in theirs.named_parameters() if one.requires_grad}
    assert prepared.trainable_parameters == sum(one.numel() for one in trained.values())
    found = _peft_losses(theirs, trained, base, options, steps["run"])
    assert [one.loss for one in steps["run"]] == pytest.approx(found, abs=1e-4)
    assert found[-1] < found[0] - 0.1
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    _close(_loaded(base, tmp_path / "theirs"), ends["run"], atol=2e-3, rtol=1e-2)


def _peft_losses(model, trained, base, options, steps):
    """A plain loop with PEFT's model over the same batches at the same rates; biases do not decay."""
    decay = options.train.weight_decay
    groups = [
        {"params": [one], "weight_decay": 0.0 if name.endswith("bias") else decay}
        for name, one in trained.items()
    ]
    optimiser = torch.optim.AdamW(groups)
    rows, losses = token_rows(base, ROWS, options.train.max_length, 2), []
    for done, step in zip(steps, RunData(rows, options.train).steps(), strict=False):
        optimiser.zero_grad()
        total = 0.0
        for part in step.micro_batches:
            found = peft_loss(model, part)
            (found * part.weight).backward()
            total += float(found.detach())
        torch.nn.utils.clip_grad_norm_(list(trained.values()), options.train.max_grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = done.learning_rate
        optimiser.step()
        losses.append(total / step.supervised)
    return losses


def test_together_and_beside_plain_lora_each_learns_what_it_learns_alone(case, model, monkeypatch):
    """With so few positions of logits at a time that a head's output comes in several parts."""
    monkeypatch.setattr(loss, "_chunk", lambda hidden, head: 24)
    base = load_float64(model)
    runs = {
        "first": _options(base, case, max_steps=3),
        "plain": Case().options(rank=3, max_steps=2, seed=5),
        "second": _options(base, case, max_steps=3, seed=7, learning_rate=2e-3),
    }
    _, _, together = _train(base, runs)
    for key, options in runs.items():
        _close(together[key], _train(base, {key: options})[2][key], atol=1e-6, rtol=1e-6)


def test_lora_on_a_head_learns_together_what_it_learns_alone(tiny_qwen, monkeypatch):
    monkeypatch.setattr(loss, "_chunk", lambda hidden, head: 24)
    base, case = load_float64(tiny_qwen), Case({"target_modules": "v_proj,lm_head"})
    runs = {name: case.options(max_steps=2, seed=seed) for seed, name in enumerate(("one", "two"))}
    _, _, together = _train(base, runs)
    for key, options in runs.items():
        _close(together[key], _train(base, {key: options})[2][key], **{**CLOSE, "atol": 1e-6})


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(case, model, tmp_path):
    base = load(model)
    options = _options(base, case, max_steps=5, gradient_accumulation_steps=2)
    whole = _train(base, {"run": options}, save_at=3, folder=tmp_path)[2]["run"]
    resume = _loaded(base, tmp_path), RunState.load(tmp_path)
    _close(_train(base, {"run": options}, resume=resume)[2]["run"], whole, atol=0, rtol=0)


def test_the_base_is_as_it_was_and_a_fresh_adapter_changes_nothing(case, model):
    base = load(model)
    before = {name: one.clone() for name, one in base.model.named_parameters()}
    plain = logits(base.model)
    starts, _, _ = _train(base, {"run": _options(base, case, max_steps=2)})
    after = {name.replace(".base.", "."): one for name, one in base.model.named_parameters()}
    assert all(torch.equal(one, after[name.replace(".base.", ".")]) for name, one in before.items())
    torch.testing.assert_close(_ours(base, starts["run"][0]), plain, atol=1e-6, rtol=1e-6)
    assert torch.equal(logits(base.model), plain)


# Files, answers, merges.


def test_files_go_both_ways_and_compute_the_same_in_peft(case, model, tmp_path):
    base = load(model)
    adapter = _moved(base, case)
    save_checked(tmp_path, adapter, base.layer_shapes, base.head, wholes=base.wholes)
    theirs = peft_from(model, tmp_path)
    assert (_ours(base, adapter) - logits(base.model)).abs().max() > 1e-2
    torch.testing.assert_close(_ours(base, adapter), logits(theirs), atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again = _loaded(base, tmp_path / "theirs")
    _close(again, adapter, atol=0, rtol=0)
    assert again.parameter_count == adapter.parameter_count


@pytest.mark.parametrize("kind", ["dora", "miss", "adalora", "pissa"])
def test_other_kinds_carry_modules_and_biases_in_pefts_format_too(tiny_qwen, kind, tmp_path):
    base = load(tiny_qwen)
    bias = {} if kind == "miss" else {"bias": "lora_only"}  # PEFT keeps none beside MiSS
    case = Case({"kind": kind, "modules_to_save": BOTH, "rank": 2, **bias})
    (adapter,) = _train(base, {"run": case.options(max_steps=2)})[2].values()
    save_checked(tmp_path, adapter, base.layer_shapes, base.head, wholes=base.wholes)
    ours = _ours(base, adapter)
    torch.testing.assert_close(ours, logits(peft_from(tiny_qwen, tmp_path)), atol=1e-4, rtol=1e-4)
    weights = {name for name in adapter.head if name.endswith(".weight")}
    assert weights == {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(adapter.head) - 2 == (6 if bias else 0)


def test_several_answer_side_by_side_as_each_does_alone(case, model):
    base = load(model)
    adapters = [_moved(base, case, 1), None, random_adapter(base), _moved(base, case, 2)]
    together = _ours(base, *adapters).chunk(len(adapters))
    for one, found in zip(adapters, together, strict=True):
        alone = _ours(base, one) if one is not None else logits(base.model)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    bank, slots = loaded_bank(base.layers, adapters), torch.tensor([3, 1, 0, 2])
    with bank.use(slots), torch.no_grad():
        chosen = base.model(input_ids=PROBE.repeat(4, 1), use_cache=False).logits.chunk(4)
    for found, slot in zip(chosen, slots.tolist(), strict=True):
        torch.testing.assert_close(found, together[slot], atol=1e-5, rtol=1e-5)


def test_merged_it_computes_what_it_does_live(case, model, tmp_path):
    base, made = load(model), skeleton(model)
    adapter = with_one_scale(_moved(base, case))
    (target := tmp_path / "merged").mkdir()
    bias_on_b = bool(CASES[case].own)
    if bias_on_b and case == "biases on B":  # all linear layers, and of these some have no bias
        with pytest.raises(InvalidAdapter, match="hold no bias for"):
            merge_into_base(model, adapter, made.transposed, target, silent, {})
        return
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    written = merge_into_base(model, adapter, made.transposed, target, silent, {})
    assert verify_merge(model, adapter, target, silent).passed
    assert not differing_tensors(model, adapter, made.transposed, target)
    assert written.merged_tensors > len(adapter.layers)
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(theirs), _ours(base, adapter), atol=1e-4, rtol=1e-4)


def test_a_gguf_of_the_merged_model_holds_them_and_one_of_the_adapter_is_refused(tiny_llama, tmp_path):
    base, made = load(tiny_llama), skeleton(tiny_llama)
    adapter, file = _moved(base, "modules"), tmp_path / "merged.gguf"
    write_merged_gguf(tiny_llama, adapter, made.transposed, file, silent, "mine", "float32")
    assert check_merged_gguf(tiny_llama, adapter, made.transposed, file, "float32", silent).passed
    stored = {one.name: one.data for one in gguf.GGUFReader(file).tensors}["token_embd.weight"]
    assert torch.equal(torch.from_numpy(stored.copy()), adapter.head["model.embed_tokens.weight"])
    with pytest.raises(InvalidAdapter, match=r"llama\.cpp's file of an adapter would leave them out"):
        write_adapter_gguf(tiny_llama, adapter, tmp_path / "alone.gguf", "mine")


def test_the_engine_gives_each_slot_what_is_its_own(tiny_llama):
    """A bank whose pass was captured is not changed under it: it is built anew."""
    base = load(tiny_llama)
    slots = AdapterSlots(base)
    plain = random_adapter(base)
    for number in range(9):
        before = slots.bank
        source = _Source(f"d{number}", _moved(base, "modules", number) if number % 4 == 1 else plain)
        place = slots.seat(source)()
        assert slots.bank.has_wholes(place) == bool(source.weights.wholes)
        assert (slots.bank is not before) or not source.weights.wholes
    assert sum(slots.bank.has_wholes(slot) for slot in range(9)) == 2


@dataclass(frozen=True)
class _Source:
    digest: str
    weights: Any
    name: str = "its own"


# What is refused, and what is told before.


@pytest.mark.parametrize("named", ["embedding", "head"])
def test_one_of_a_tied_pair_is_refused_and_both_are_one(tiny_llama, named):
    base = load(tiny_llama)
    with pytest.raises(InvalidConfig, match=r"tied.*Set modules_to_save to embedding,head"):
        base.wholes.trained(LoraConfig(modules_to_save=named), list(base.layers), {})
    found = base.wholes.trained(LoraConfig(modules_to_save=BOTH), list(base.layers), {})
    assert found == {"model.embed_tokens.weight": (VOCABULARY, 32)}
    (adapter,) = _train(base, {"run": CASES["modules"].options(max_steps=2)})[2].values()
    assert adapter.is_tied
    assert adapter.head["lm_head.weight"] is adapter.head["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"bias": "all"}, "This model has no bias, so bias=all would train nothing"),
        ({"bias": "lora_only"}, "None of the targeted layers"),
        ({"modules_to_save": "norm,lm_head"}, "modules_to_save takes embedding and head"),
    ],
)
def test_what_would_train_nothing_is_refused(tiny_llama, lora, said):
    base = load(tiny_llama)
    with pytest.raises(InvalidConfig, match=said):
        base.wholes.trained(LoraConfig(**lora), list(base.layers), {})


def test_a_head_that_is_trained_whole_gets_no_lora_as_well(tiny_qwen):
    base = load(tiny_qwen)
    with pytest.raises(InvalidConfig, match="lm_head is trained whole"):
        base.wholes.trained(LoraConfig(modules_to_save="head"), ["lm_head"], {})


def test_a_bias_on_all_outputs_and_a_choice_of_parts_exclude_each_other(tiny_gpt2):
    config = LoraConfig(target_modules="c_attn", enable_lora="c_attn=q")
    with pytest.raises(InvalidConfig, match="lora_bias is trained on all outputs"):
        load(tiny_gpt2).wholes.trained(config, ["c_attn"], {"c_attn": 96})


def test_pefts_copies_of_a_tied_pair_that_parted_are_refused(tiny_llama, tmp_path):
    settings = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]}
    model = get_peft_model(plain_model(tiny_llama), PeftConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.1)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(InvalidAdapter, match="trained without ensure_weight_tying"):
        _loaded(load(tiny_llama), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["lm_head", "norm"]}, "modules_to_save names norm"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "was trained whole, but .* does not hold it"),
        ({"modules_to_save": "lm_head"}, "it names modules"),
        ({"bias": "all"}, "q_proj.bias was trained whole, but"),
        ({"lora_bias": True}, "lora_B.bias was trained whole, but"),
        ({"bias": "some"}, "takes none or all or lora_only"),
        ({"modules_to_save": None}, "no LoRA factor"),
    ],
)
def test_files_that_do_not_hold_what_they_say_are_refused(tiny_qwen, changes, said, tmp_path):
    base = load(tiny_qwen)
    (adapter,) = _train(base, {"run": Case({"modules_to_save": "head"}).options(max_steps=1)})[2].values()
    save_adapter(tmp_path, adapter, modules=base.layer_shapes)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InvalidAdapter, match=said):
        _loaded(base, tmp_path)


def test_a_resized_vocabulary_is_refused_by_its_shape(tiny_qwen, tmp_path):
    base = load(tiny_qwen)
    adapter = _moved(base, "modules")
    larger = {name: torch.cat([one, one[:3]]) for name, one in adapter.head.items()}
    save_adapter(tmp_path, dataclasses.replace(adapter, head=larger), modules=base.layer_shapes)
    with pytest.raises(InvalidAdapter, match="resized vocabulary"):
        _loaded(base, tmp_path)


def test_what_works_on_low_rank_factors_alone_refuses_with_the_reason(case, model):
    base = load(model)
    adapter = _moved(base, case)
    for work in (
        lambda: combine([Part("one", adapter, 1.0)], CombineConfig(), silent),
        lambda: resize(adapter, 2),
    ):
        with pytest.raises(InvalidAdapter, match=r"no low-rank ΔW.*export it merged"):
            work()


def test_its_memory_counts_the_copy_its_gradients_and_two_moments(tiny_llama):
    base = load(tiny_llama)
    options = CASES["modules"].options(max_steps=1)
    group = TrainingGroup(base, [RunRequest("run", token_rows(base, ROWS, 96, 2), options)])
    next(group.run())
    (run,) = group.runs
    factors = training_bytes(base.layer_shapes, run.targets, options.lora, options.kind, 4)
    assert run.state_bytes == factors + 20 * VOCABULARY * 32


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen", "tiny_gpt2"])
def test_names_and_shapes_in_the_files_tell_what_the_model_does(request, name):
    folder = request.getfixturevalue(name)
    base = load(folder)
    found = stored_wholes(folder, base.layer_shapes, base.head, VOCABULARY)
    assert (found.embedding, found.head, found.tied) == (
        base.wholes.embedding,
        base.wholes.head,
        base.wholes.tied,
    )
    head = {f"{found.head}.weight"} if found.tied else set()
    assert {**found.shapes} == {key: one for key, one in base.wholes.shapes.items() if key not in head}
    assert skeleton(folder).wholes == base.wholes


# Factors on an embedding.


EMBEDDED = Case({"target_modules": "v_proj,embed_tokens"})


def test_an_embedding_learns_what_pefts_does_and_merges(tiny_qwen, tmp_path):
    base, made, options = load(tiny_qwen), skeleton(tiny_qwen), EMBEDDED.options(max_steps=10)
    starts, steps, ends = _train(base, {"run": options})
    start, prepared = starts["run"]
    torch.testing.assert_close(_ours(base, start), logits(base.model), atol=1e-6, rtol=1e-6)
    save_adapter(tmp_path, start, modules=base.layer_shapes)
    theirs = PeftModel.from_pretrained(plain_model(tiny_qwen), tmp_path, is_trainable=True).eval()
    trained = {name: one for name, one in theirs.named_parameters() if one.requires_grad}
    assert prepared.trainable_parameters == sum(one.numel() for one in trained.values())
    found = _peft_losses(theirs, trained, base, options, steps["run"])
    assert [one.loss for one in steps["run"]] == pytest.approx(found, abs=1e-4)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    again = _loaded(base, tmp_path / "theirs")
    torch.testing.assert_close(_ours(base, again), logits(theirs), atol=1e-5, rtol=1e-5)
    _close(again, ends["run"], atol=2e-3, rtol=1e-2)
    (target := tmp_path / "merged").mkdir()
    for path in tiny_qwen.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    merge_into_base(tiny_qwen, again, made.transposed, target, silent, {})
    assert verify_merge(tiny_qwen, again, target, silent).passed


def test_an_embedding_learns_together_what_it_learns_alone_and_goes_on(tiny_qwen, tmp_path):
    base = load(tiny_qwen)
    runs = {
        "one": EMBEDDED.options(max_steps=4),
        "plain": Case().options(rank=2, max_steps=2),
        "two": EMBEDDED.options(2, max_steps=3, seed=4),
    }
    _, _, together = _train(base, runs)
    for key, options in runs.items():
        alone = _train(base, {key: options}, save_at=2, folder=tmp_path)[2][key]
        _close(together[key], alone, atol=1e-5, rtol=1e-5)
        if key == "one":
            resume = _loaded(base, tmp_path), RunState.load(tmp_path)
            _close(_train(base, {key: options}, resume=resume)[2][key], alone, atol=0, rtol=0)
    adapters = [together["two"], None, together["one"]]
    found = _ours(base, *adapters).chunk(3)
    for one, own in zip(adapters, found, strict=True):
        alone = logits(base.model) if one is None else _ours(base, one)
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)
    slots = AdapterSlots(base)
    assert "model.embed_tokens" not in slots.bank._layers
    slots.seat(_Source("d", together["one"]))()
    assert "model.embed_tokens" in slots.bank._layers


@pytest.mark.parametrize(
    ("name", "lora", "own", "said"),
    [
        ("tiny_llama", {}, {}, r"the output head of this model, too \(tied\)"),
        ("tiny_qwen", {"kind": "dora"}, {}, "on one there is only plain LoRA: no DoRA"),
        ("tiny_qwen", {}, {"freeze_a": True}, "on one there is only plain LoRA"),
        ("tiny_qwen", {"modules_to_save": "embedding"}, {}, "embed_tokens is trained whole"),
    ],
)
def test_an_embedding_that_cannot_have_factors_is_refused(request, name, lora, own, said):
    base = load(request.getfixturevalue(name))
    options = Case({"target_modules": "embed_tokens", **lora}, own).options()
    group = TrainingGroup(base, [RunRequest("run", token_rows(base, ROWS, 96, 2), options)])
    ((_, event),) = group.run()
    assert isinstance(event, RunFailed)
    with pytest.raises(InvalidConfig, match=said):
        raise event.error


def test_all_linear_leaves_the_embedding_out_and_a_tied_file_is_refused(tiny_llama, tmp_path):
    base = load(tiny_llama)
    assert "model.embed_tokens" not in base.wholes.targetable(base.layer_shapes, LoraConfig(), NoOptions())
    settings = {"target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(plain_model(tiny_llama), PeftConfig(**settings))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(InvalidAdapter, match=r"the output head, too\s+\(tied\)"):
        _loaded(base, tmp_path)


def test_an_own_scale_in_each_layer_folds_into_b_and_its_bias(tiny_qwen):
    base = load(tiny_qwen)
    adapter = _moved(base, "biases on B")
    layers = {
        path: LayerFactors(layer.A, layer.B, layer.scale * (1 + number % 3))
        for number, (path, layer) in enumerate(adapter.layers.items())
    }
    uneven = dataclasses.replace(adapter, layers=layers)
    assert (_ours(base, uneven) - _ours(base, adapter)).abs().max() > 1e-2
    for same in (with_one_scale(uneven), uneven.as_lora()):
        torch.testing.assert_close(_ours(base, same), _ours(base, uneven), atol=1e-5, rtol=1e-5)


def test_compiled_biases_compute_and_learn_what_they_do_as_they_are_written(tiny_gpt2):
    base, path = load(tiny_gpt2), "transformer.h.0.attn.c_attn"
    config, own = LoraConfig(rank=2, bias="all", target_modules="c_attn"), LoraOptions(lora_bias=True)
    shapes = base.wholes.trained(config, [path], {path: 96})
    bank = AdapterBank(base.layers, [path], 2, 2, trainable=True, head=shapes, wholes=base.wholes)
    for slot in range(2):
        stored = {name: base.layers.stored(name) for name in shapes}
        bank.initialise(slot, config, own, [path], slot, stored)
    bank.flat[:, : bank.layout.trained_size] += 0.1
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(1))
    for module in map(base.layers.place, (path, "transformer.h.0.ln_1", "transformer.h.0.attn.c_proj")):
        found = []
        for run in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
            with bank.use():
                run(x).square().sum().backward()
            found.append(bank.grad.clone())
            bank.grad.zero_()
        assert found[0].any()
        torch.testing.assert_close(*found)
    torch._dynamo.reset()


def test_an_adapter_that_classifies_trains_its_own_head_alone(tiny_llama):
    made = skeleton(tiny_llama)
    shape = BaseShape(made.shapes, made.head, 1, 2, 32, VOCABULARY, made.wholes)
    classifies = TrainConfig(objective="classification")
    for lora, own in (({"bias": "all"}, LoraOptions()), ({}, LoraOptions(lora_bias=True))):
        options = TrainingOptions(LoraConfig(**lora), classifies, own)
        with pytest.raises(InvalidConfig, match="no modules_to_save, bias or lora_bias beside it"):
            estimate(shape, DataShape(10, 40.0), options, bytes_per_weight=4, tokens_per_second=None)
    both = TrainingOptions(LoraConfig(modules_to_save=BOTH, target_modules="v_proj"))
    plain = TrainingOptions(LoraConfig(target_modules="v_proj"))
    whole, without = (
        estimate(shape, DataShape(10, 40.0), one, bytes_per_weight=4, tokens_per_second=None)
        for one in (both, plain)
    )
    assert whole.trainable_parameters - without.trainable_parameters == VOCABULARY * 32
    assert whole.memory_bytes - without.memory_bytes == 20 * VOCABULARY * 32
    assert whole.layer_sentence == "v_proj × 2, and 10,240 parameters whole"


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("tiny_gpt2", lambda key: key.removeprefix("transformer.")),
        ("tiny_qwen", lambda key: f"language_model.{key}"),
    ],
)
def test_files_that_name_the_outermost_module_otherwise_tell_the_same(request, tmp_path, name, renamed):
    folder = request.getfixturevalue(name)
    base, tensors = load(folder), load_file(folder / "model.safetensors")
    save_file({renamed(key): one for key, one in tensors.items()}, tmp_path / "model.safetensors")
    assert stored_wholes(tmp_path, base.layer_shapes, base.head, VOCABULARY) == stored_wholes(
        folder, base.layer_shapes, base.head, VOCABULARY
    )


def test_the_bases_weight_that_peft_saves_beside_factors_must_be_this_bases(tiny_qwen, tmp_path):
    base = load(tiny_qwen)
    settings = {"target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(plain_model(tiny_qwen), PeftConfig(**settings))
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    facts = BaseFacts(has=functools.partial(has_tensor, tiny_qwen))
    fitted = (look(tmp_path), base.layer_shapes, base.head, None, facts, base.wholes)
    assert fit(*fitted).embedding == "model.embed_tokens"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.base_layer.weight"][0] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidAdapter, match=r"whole weight of model\.embed_tokens"):
        fit(*fitted)


@pytest.mark.parametrize("given", ["embed_tokens,lm_head", "head, embedding", "wte,embed_out,lm_head"])
def test_the_models_own_names_of_embedding_and_head_are_understood(given):
    assert set(LoraConfig(modules_to_save=given).whole_names) == {"embedding", "head"}
