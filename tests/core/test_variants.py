"""The adapter kinds beside plain LoRA: PEFT as the oracle, together as alone, resumed as never stopped."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, MissConfig, get_peft_model
from peft import LoraConfig as PeftConfig
from peft.tuners.lora.conversion import convert_to_lora
from safetensors.torch import load_file, save_file

from core.base_model.skeleton import skeleton
from core.combine.combining import Part, combine, compare_parents, resize
from core.combine.config import CombineConfig
from core.data.formats import Example
from core.errors import InvalidAdapter, InvalidConfig
from core.events import Prepared, RanksDone, RunFailed, StepDone, TrainingDone
from core.export.cards import Provenance
from core.export.config import split_export_options
from core.export.duties import PASSED, Exported, Exporting
from core.export.exporting import export
from core.export.formats import EXPORT_FORMATS, Written
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.gguf.write import adapter_tensors
from core.lora.adapter import LayerFactors
from core.lora.anatomy import anatomy, compare_subspaces
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.lora.foreign.fit import fit
from core.lora.foreign.look import look
from core.lora.foreign.take import take
from core.lora.kinds import ADAPTER_KINDS
from core.lora.layer import LoraLinear
from core.lora.low_rank import decompose_dense
from core.lora.mixed_bank import MixedBank, loaded_bank
from core.lora.peft.files import load_adapter, save_adapter
from core.merge.verify import differing_tensors, verify_merge
from core.reporting import silent
from core.train.batches import RunData
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.run import RunRequest
from core.train.run_state import RunState
from core.train.training_options import TrainingOptions
from tests.conftest import make_llama
from tests.core.helpers import (
    PROBE,
    load,
    load_float64,
    logits,
    new_peft,
    peft_from,
    peft_loss,
    plain_model,
    poison,
    random_adapter,
    token_rows,
)

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
ABOUT = Provenance("base", "f" * 64, "mit", "mine", "a" * 64, "data", {"rank": 4}, 1.5, None)
TRAIN: dict[str, Any] = {
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_length": 96,
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
}


@dataclass(frozen=True)
class Case:
    """A kind with options of its own."""

    kind: str
    own: dict[str, Any] = dataclasses.field(default_factory=dict)
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)

    def options(self, rank: int = 4, lora: Any = (), **train: Any) -> TrainingOptions:
        config = LoraConfig(**{"kind": self.kind, "rank": rank, "alpha": 8, **self.lora, **dict(lora)})
        own = ADAPTER_KINDS.get(self.kind).options(**self.own)
        return TrainingOptions(config, TrainConfig(**{**TRAIN, **train}), own)


CASES = {
    "lora-fa": Case("lora", {"freeze_a": True}),
    "dora": Case("dora"),
    "miss": Case("miss"),
    "pissa": Case("pissa"),
    "olora": Case("olora"),
    "adalora": Case("adalora", {"rank_hold": 0.2, "rank_settle": 0.25, "rank_every": 2}),
}
TRAINED = {"lora-fa": ["lora_B"], "dora": ["lora_"], "miss": ["miss_"]}
"""What learns of PEFT's parameters."""
PLAIN = Case("lora")


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def _request(base, options, key="run", validation_rows=0, **about) -> RunRequest:
    rows = token_rows(base, ROWS, options.train.max_length, validation_rows)
    return RunRequest(key, rows, options, **about)


@dataclass
class Trained:
    """What came of runs, by key."""

    start: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: dict[str, list[StepDone]] = dataclasses.field(default_factory=dict)
    ranks: list[tuple[int, Any]] = dataclasses.field(default_factory=list)

    def losses(self, key="run"):
        return [one.loss for one in self.steps[key]]


def _train(base, requests, save_at=None, folder=None) -> Trained:
    """Train to the end; what a checkpoint holds is written after step `save_at`."""
    group, found = TrainingGroup(base, requests), Trained()
    for key, event in group.run():
        assert not isinstance(event, RunFailed), event.error
        if isinstance(event, Prepared):
            found.start[key] = group.adapter(key)
        if isinstance(event, StepDone):
            found.steps.setdefault(key, []).append(event)
            if event.step == save_at:
                save_adapter(folder, group.adapter(key))
                group.state(key).save(folder)
        if isinstance(event, RanksDone):
            found.ranks.append((event.step, dict(event.ranks)))
        if isinstance(event, TrainingDone):
            found.adapters[key] = group.adapter(key)
    return found


def _same(one, other, **tolerance) -> None:
    assert one.layers.keys() == other.layers.keys()
    for path, layer in one.layers.items():
        assert layer.scale == pytest.approx(other.layers[path].scale)
        for name, tensor in layer.tensors.items():
            torch.testing.assert_close(tensor, other.layers[path].tensors[name], **tolerance)


def test_together_and_beside_plain_lora_it_learns_what_it_learns_alone(tiny_llama, case):
    base = load_float64(tiny_llama)
    runs = {
        "first": case.options(max_steps=4),
        "plain": PLAIN.options(rank=3, max_steps=2, seed=5),
        "second": case.options(2, {"target_modules": "q_proj,down_proj"}, max_steps=3, seed=7),
    }
    solo = {key: _train(base, [_request(base, options, key)]) for key, options in runs.items()}
    together = _train(base, [_request(base, options, key) for key, options in runs.items()])
    for key, alone in solo.items():
        assert together.losses(key) == pytest.approx(alone.losses(key), rel=1e-5)
        _same(together.adapters[key], alone.adapters[key], atol=1e-5, rtol=1e-5)


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tiny_gpt2, case, tmp_path):
    base = load(tiny_gpt2)
    options = case.options(max_steps=6, gradient_accumulation_steps=2)
    whole = _train(base, [_request(base, options)], save_at=4, folder=tmp_path).adapters["run"]
    resume = load_adapter(tmp_path, base.layer_shapes, base.head), RunState.load(tmp_path)
    _same(_train(base, [_request(base, options, resume=resume)]).adapters["run"], whole, atol=0, rtol=0)


def _peft_losses(model, base, options, steps, trained):
    """A plain PEFT training loop over the same batches at the same rates; `trained` says what learns."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=options.train.weight_decay)
    rows, losses = token_rows(base, ROWS, options.train.max_length, 0), []
    for done, step in zip(steps, RunData(rows, options.train).steps(), strict=False):
        optimiser.zero_grad()
        total = 0.0
        for part in step.micro_batches:
            loss = peft_loss(model, part)
            (loss * part.weight).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, options.train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = done.learning_rate
        optimiser.step()
        losses.append(total / step.supervised)
    return losses


@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_from_the_same_start_give_pefts_losses(any_model, name, tmp_path):
    base, options = load(any_model), CASES[name].options(max_steps=20)
    found = _train(base, [_request(base, options)])
    start, trained = found.start["run"], TRAINED[name]
    if not _peft_can(name, base):
        start, trained = start.as_lora(), ["lora_B"]
    save_adapter(tmp_path, start)
    theirs = _peft_losses(peft_from(any_model, tmp_path), base, options, found.steps["run"], trained)
    assert found.losses() == pytest.approx(theirs, abs=1e-4)
    assert found.losses()[-1] < found.losses()[0] - 0.1


def _peft_can(name, base):
    """PEFT's MiSS takes no Conv1D; there the LoRA that it stands for is the oracle."""
    return name != "miss" or not any(layer.transposed for layer in base.layers.values())


def test_lora_fa_leaves_a_as_it_was_drawn(tiny_llama):
    base = load(tiny_llama)
    found = _train(base, [_request(base, CASES["lora-fa"].options(max_steps=3))])
    for path, layer in found.adapters["run"].layers.items():
        assert layer.A.equal(found.start["run"].layers[path].A)
        assert layer.B.any()


# Files, answers, merges.

KINDS = ["dora", "miss", "adalora"]
"""Those with files of their own."""


def _adapter(base, name, rank=4, seed=0):
    """One that changes something on every layer."""
    group = TrainingGroup(base, [_request(base, CASES[name].options(rank, seed=seed))])
    next(group.run())
    adapter = group.adapter("run")
    generator = torch.Generator().manual_seed(seed)
    layers = {
        path: dataclasses.replace(layer, tensors=_moved(layer.tensors, generator))
        for path, layer in adapter.layers.items()
    }
    return dataclasses.replace(adapter, layers=layers)


def _moved(tensors, generator):
    return {
        name: one if name == "fold" else one + 0.1 * torch.randn(one.shape, generator=generator)
        for name, one in tensors.items()
    }


def _our_logits(base, adapter):
    with loaded_bank(base.layers, [adapter]).use():
        return logits(base.model)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_here_loads_in_peft(any_model, name, tmp_path):
    base = load(any_model)
    adapter = _adapter(base, name)
    (tmp_path / "theirs").mkdir()
    written = adapter if _peft_can(name, base) else adapter.as_lora()
    save_adapter(tmp_path / "theirs", written, modules=base.layer_shapes)
    save_adapter(tmp_path, adapter, modules=base.layer_shapes)
    ours = _our_logits(base, adapter)
    assert (ours - logits(base.model)).abs().max() > 0.01
    torch.testing.assert_close(ours, logits(peft_from(any_model, tmp_path / "theirs")), atol=1e-5, rtol=1e-5)
    _same(load_adapter(tmp_path, base.layer_shapes, base.head), adapter, atol=0, rtol=0)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"use_dora": True, "rank_pattern": {".*[0-9].*": 2}}]
)
def test_what_peft_writes_loads_here(any_model, options, tmp_path):
    model = new_peft(any_model, **options)
    model.save_pretrained(tmp_path)
    base = load(any_model)
    adapter = load_adapter(tmp_path, base.layer_shapes, base.head)
    assert adapter.kind == "dora"
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_merged_it_computes_what_it_does_live(any_model, name, tmp_path):
    base = load(any_model)
    adapter = _adapter(base, name)
    what = Exporting(any_model, skeleton(any_model), adapter, ABOUT, *split_export_options({}))
    written = export(what, tmp_path / "merged", silent)
    torch.testing.assert_close(
        logits(plain_model(tmp_path / "merged")), _our_logits(base, adapter), atol=1e-4, rtol=1e-4
    )
    assert written["merged_tensors"] == len(adapter.layers)
    assert verify_merge(any_model, adapter, tmp_path / "merged", silent).passed
    assert not differing_tensors(any_model, adapter, what.skeleton.transposed, tmp_path / "merged")


@pytest.mark.parametrize("name", KINDS)
def test_it_answers_beside_lora_and_the_plain_base_in_one_batch(tiny_llama, name):
    base = load(tiny_llama)
    adapters = {
        "own": _adapter(base, name),
        "lora": random_adapter(base),
        "other": _adapter(base, name, 2, 1),
    }
    alone = {key: _answers(base, loaded_bank(base.layers, [one]), [0])[0] for key, one in adapters.items()}
    plain = _answers(base, None, [0])[0]
    assert len({tuple(one) for one in (*alone.values(), plain)}) == 4
    bank = MixedBank(
        base.layers, sorted(adapters["own"].layers), 4, {"lora": 4, adapters["own"].answering().kind: 4}
    )
    for slot, one in enumerate(adapters.values(), 1):
        bank.load(slot, one)
    assert _answers(base, bank, [2, 0, 1, 3]) == [alone["lora"], plain, alone["own"], alone["other"]]
    bank.load(1, adapters["lora"])  # a slot that changes its kind keeps nothing of what it held
    bank.load(2, adapters["own"])
    assert _answers(base, bank, [1, 2]) == [alone["lora"], alone["own"]]


@pytest.mark.parametrize("name", KINDS)
def test_it_leaves_as_pefts_folder_and_comes_in_again(tiny_llama, name, tmp_path):
    base = load(tiny_llama)
    adapter, chosen = _adapter(base, name), split_export_options({"format": "peft"})
    what = Exporting(tiny_llama, skeleton(tiny_llama), adapter, ABOUT, *chosen)
    form, target = EXPORT_FORMATS.get("peft"), tmp_path / "out"
    assert export(what, target, silent)["tensors"] == len(adapter.layers) * (1 if name == "miss" else 3)
    label = ADAPTER_KINDS.get(name).label
    assert form.warnings(what) == [
        f"PEFT loads {label}; vLLM, llama.cpp and others that know LoRA alone do not."
    ]
    told = [program for program, _ in form.commands(Written(target, "x.safetensors", "x", 4, "base"))]
    assert told == ["PEFT and transformers, in Python"]
    checked = Exported(target, tiny_llama, what.skeleton, adapter, *chosen, "")
    finding = form.check(checked, silent)
    assert finding.verdict == PASSED, finding.sentence
    (tmp_path / "staging").mkdir()
    for extra in {one.name for one in target.iterdir()} - {
        "adapter_config.json",
        "adapter_model.safetensors",
    }:
        (target / extra).unlink()
    found = look(take(target, tmp_path / "staging"))
    assert found.evidence.sentence().startswith(f"{label} in PEFT layout")
    _same(fit(found, base.layer_shapes, base.head), adapter, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["miss", "adalora"])
def test_what_is_low_rank_leaves_for_llama_cpp_as_the_lora_that_it_is(tiny_llama, name, tmp_path):
    base = load(tiny_llama)
    adapter = _adapter(base, name)
    chosen = split_export_options({"format": "gguf-adapter"})
    what = Exporting(tiny_llama, skeleton(tiny_llama), adapter, ABOUT, *chosen)
    export(what, tmp_path / "out", silent)
    checked = Exported(tmp_path / "out", tiny_llama, what.skeleton, adapter, *chosen, "")
    assert EXPORT_FORMATS.get("gguf-adapter").check(checked, silent).verdict == PASSED


def _answers(base, bank, slots):
    greedy = GenerationConfig(max_tokens=12, temperature=0)
    decoder = Decoder(base, bank, [RowRequest([5, 9, 30, 7], slot, greedy) for slot in slots])
    rows = {row.index: row for row in decoder._rows}
    for _ in decoder.steps():
        pass
    return [rows[index].ids for index in range(len(slots))]


# DoRA.


def test_dora_changes_nothing_before_it_learns_and_has_a_length_for_each_output(any_model):
    base = load(any_model)
    before = logits(base.model)
    group = TrainingGroup(base, [_request(base, CASES["dora"].options())])
    next(group.run())
    with group.bank.use():
        assert torch.equal(logits(base.model), before)
    for path, layer in group.adapter("run").layers.items():
        weight = base.layers[path].weight
        rows = weight.T if base.layers[path].transposed else weight
        torch.testing.assert_close(layer.tensors["m"], rows.norm(dim=1))


def test_what_needs_low_rank_factors_says_why_dora_is_none_and_what_is_exact(tiny_llama):
    base = load(tiny_llama)
    parts = [Part("one", _adapter(base, "dora"), 1.0), Part("two", random_adapter(base), 1.0)]
    for work in (
        lambda: combine(parts, CombineConfig(), silent),
        lambda: compare_parents(parts),
        lambda: resize(parts[0].adapter, 2),
        lambda: anatomy(parts[0].adapter),
        lambda: compare_subspaces(parts[0].adapter, parts[1].adapter),
        lambda: dict(adapter_tensors(None, parts[0].adapter)),
    ):
        with pytest.raises(InvalidAdapter, match=r"DoRA is none: .* do not add up. Merging it .* is exact"):
            work()


def test_dora_merges_into_a_narrow_base_with_the_rounding_told(tmp_path, tokenizer):
    folder = make_llama(tmp_path / "narrow", tokenizer)
    weights = {key: one.bfloat16() for key, one in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    base = load(folder)
    adapter = _adapter(base, "dora")
    what = Exporting(folder, skeleton(folder), adapter, ABOUT, *split_export_options({}))
    written = export(what, tmp_path / "merged", silent)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for path, layer in adapter.layers.items():
        own = layer.tensors
        whole = weights[f"{path}.weight"].float() + layer.scale * own["B"] @ own["A"]
        expected = own["m"][:, None] * whole / whole.norm(dim=1, keepdim=True)
        torch.testing.assert_close(merged[f"{path}.weight"], expected.bfloat16(), atol=0, rtol=2**-7)
    assert 0 < written["rounding_loss"] < 0.05


# MiSS.


@pytest.mark.parametrize("rank", [4, 5])
def test_miss_from_peft_loads_here_and_becomes_the_lora_that_peft_makes_of_it(tiny_llama, rank, tmp_path):
    config = MissConfig(r=rank, target_modules=["q_proj", "down_proj"], init_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(plain_model(tiny_llama), config).eval()
    model.save_pretrained(tmp_path)
    base = load(tiny_llama)
    adapter = load_adapter(tmp_path, base.layer_shapes, base.head)
    torch.testing.assert_close(_our_logits(base, adapter), logits(model), atol=1e-5, rtol=1e-5)
    lora, (_, theirs) = adapter.as_lora(), convert_to_lora(model, rank)
    for path, layer in lora.layers.items():
        for name in "AB":
            found = next(one for key, one in theirs.items() if f"{path}.lora_{name}" in key)
            torch.testing.assert_close(layer.tensors[name], found)
    (tmp_path / "lora").mkdir()
    save_adapter(tmp_path / "lora", lora)
    torch.testing.assert_close(
        logits(peft_from(tiny_llama, tmp_path / "lora")), logits(model), atol=1e-5, rtol=1e-5
    )


def _refused(tiny_llama, kind, changes, said, tmp_path):
    """A file of this kind with these settings changed is refused when it is read."""
    base = load(tiny_llama)
    save_adapter(tmp_path, _adapter(base, kind))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(InvalidAdapter, match=said):
        load_adapter(tmp_path, base.layer_shapes, base.head)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_weights": "bat"}, "in the form 'bat'.*convert_to_lora"),
        ({"init_weights": "mini"}, "in the form 'mini'"),
        ({"bias": "all"}, "MiSS takes none"),
        ({"r": 0}, "r is 0"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head"),
        ({"lora_alpha": 8}, "'lora_alpha' is not known"),
    ],
)
def test_forms_of_miss_that_are_not_computed_are_refused_by_name(tiny_llama, changes, said, tmp_path):
    _refused(tiny_llama, "miss", changes, said, tmp_path)


def test_what_miss_cannot_keep_is_refused_before_it_trains(tiny_llama):
    for wrong in ({"use_rslora": True}, {"rank_pattern": "q_proj=2"}, {"alpha_pattern": "q_proj=2"}):
        with pytest.raises(InvalidConfig, match=f"{next(iter(wrong))} is of no use to MiSS"):
            LoraConfig(kind="miss", **wrong)
    group = TrainingGroup(load(tiny_llama), [_request(load(tiny_llama), CASES["miss"].options(40))])
    ((_, event),) = group.run()
    assert "MiSS of rank 40 needs layers with as many inputs, and one has 32" in str(event.error)


def test_miss_combines_with_a_lora_exactly_and_is_cut_and_looked_into(tiny_llama):
    base = load(tiny_llama)
    miss, lora = _adapter(base, "miss"), random_adapter(base)
    both = combine([Part("miss", miss, 1.0), Part("lora", lora, 0.5)], CombineConfig(method="cat"), silent)
    for path, layer in both.adapter.layers.items():
        wanted = miss.low_rank()[path].delta_weight() + 0.5 * lora.layers[path].delta_weight()
        torch.testing.assert_close(layer.delta_weight(), wanted)
    assert resize(miss, 2).energy_lost > 0
    assert {one.rank_held for one in anatomy(miss)} <= {1, 2, 3, 4}


# PiSSA and OLoRA.


def _by_hand(folder, start, adapter, target):
    """PEFT's model as the papers have it: LoRA with these factors, beside a base without the part they start
    as.
    """
    fresh = {
        path: LayerFactors(one["A"], one["B"], adapter.layers[path].scale) for path, one in start.items()
    }
    rank = len(next(iter(fresh.values())).A)
    half = dataclasses.replace(adapter, layers=fresh, rank=rank, alpha=adapter.alpha / 2)
    save_adapter(target, half)
    model = peft_from(folder, target)
    with torch.no_grad():
        for path, layer in fresh.items():
            weight = model.get_submodule(f"base_model.model.{path}").base_layer.weight
            delta = layer.delta_weight()
            weight -= delta if weight.shape == delta.shape and not adapter.fan_in_fan_out else delta.T
    return model


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_what_starts_from_w_gives_the_losses_of_the_papers_residual(any_model, name, tmp_path):
    base, options = load(any_model), CASES[name].options(max_steps=20)
    plain = logits(base.model)
    group = TrainingGroup(base, [_request(base, options)])
    steps, start = [], {}
    for _, event in group.run():
        if isinstance(event, Prepared):
            bank, _ = group.bank.place(0)
            layers = bank.export(0, {path: 4 for path in bank.factors})
            start = {path: layer.tensors for path, layer in layers.items()}
            begun = group.adapter("run")
            with group.bank.use():
                assert torch.equal(logits(base.model), plain)
        if isinstance(event, StepDone):
            steps.append(event)
        if isinstance(event, TrainingDone):
            adapter = group.adapter("run")
    for path, one in start.items():
        assert one["A"].equal(one["A0"])
        weight = base.layers[path].weight.detach()
        W = weight.T if base.layers[path].transposed else weight
        taken = begun.layers[path].scale * one["B"] @ one["A"]
        if name == "pissa":
            U, S, V = torch.linalg.svd(W, full_matrices=False)
            torch.testing.assert_close(taken, (U[:, :4] * S[:4]) @ V[:4], atol=1e-4, rtol=1e-4)
    (tmp_path / "start").mkdir()
    model = _by_hand(any_model, start, begun, tmp_path / "start")
    torch.testing.assert_close(logits(model), plain, atol=1e-4, rtol=1e-4)
    losses = _peft_losses(model, base, options, steps, ["lora_"])
    assert [one.loss for one in steps] == pytest.approx(losses, abs=1e-4)
    assert (adapter.kind, adapter.rank, adapter.alpha) == ("lora", 8, 16.0)
    (tmp_path / "kept").mkdir()
    save_adapter(tmp_path / "kept", adapter)
    ours = _our_logits(base, adapter)
    torch.testing.assert_close(ours, logits(peft_from(any_model, tmp_path / "kept")), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, logits(model.eval()), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_pefts_own_start_takes_the_same_part_of_w(tiny_llama, name):
    base = load(tiny_llama)
    config = PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=name)
    model = get_peft_model(plain_model(tiny_llama), config)
    kind = ADAPTER_KINDS.get(name)
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        theirs = model.get_submodule(f"base_model.model.{path}")
        weight = base.layers[path].weight.detach()
        own = kind.started(kind.start(*base.layer_shapes[path], 4, weight, torch.Generator(), None), 2.0)
        expected = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
        torch.testing.assert_close(own["B"] @ own["A"], expected.detach(), atol=1e-5, rtol=1e-4)


def test_a_rank_that_w_does_not_have_is_refused(tiny_llama):
    base = load(tiny_llama)
    ((_, event),) = TrainingGroup(base, [_request(base, CASES["pissa"].options(17))]).run()
    assert "PiSSA of rank 17 takes as many directions of W" in str(event.error)


def test_a_wide_w_is_cut_quickly_and_nearly_exactly():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(600, 20, generator=generator) @ torch.randn(20, 700, generator=generator)
    W = low + 0.1 * torch.randn(600, 700, generator=generator)
    exact, found = decompose_dense(W, 8), decompose_dense(W, 8, exact_up_to=512)
    torch.testing.assert_close(found.S[:8], exact.S[:8], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        found.truncated(8).delta_weight(), exact.truncated(8).delta_weight(), atol=1e-3, rtol=1e-3
    )


# AdaLoRA.


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT says so of its own files, too
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.*have invalid shape")  # and so of layers without ranks left
def test_adalora_takes_pefts_steps_and_leaves_pefts_ranks(any_model, tmp_path):
    base, options = load(any_model), CASES["adalora"].options(6, max_steps=20)
    found = _train(base, [_request(base, options)])
    config = AdaLoraConfig(
        **{
            "init_r": 6,
            "target_r": 3,
            "tinit": 4,
            "tfinal": 5,
            "total_step": 20,
            "deltaT": 2,
            "lora_alpha": 8,
        },
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(plain_model(any_model), config)
    with torch.no_grad():
        for path, layer in found.start["run"].layers.items():
            for own, theirs in ADAPTER_KINDS.get("adalora").peft_names.items():
                parameter = getattr(model.get_submodule(f"base_model.model.{path}"), theirs)["default"]
                parameter.copy_(layer.tensors[own])
    losses = _adalora_losses(model, base, options, found.steps["run"])
    assert found.losses() == pytest.approx(losses, abs=1e-4)
    left = {key.removesuffix(".lora_E.default"): sum(one) for key, one in config.rank_pattern.items()}
    adapter = found.adapters["run"]
    assert {path: len(layer.tensors["E"]) for path, layer in adapter.layers.items()} == left
    assert sum(left.values()) == 3 * len(left)
    assert len(set(left.values())) > 1
    assert [step for step, _ in found.ranks] == list(range(1, 21))
    assert found.ranks[-1][1] == left
    assert found.ranks[3][1] == dict.fromkeys(left, 6)  # held so far
    totals = [sum(ranks.values()) for _, ranks in found.ranks]
    assert totals == sorted(totals, reverse=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    model.save_pretrained(tmp_path / "theirs")
    read = load_adapter(tmp_path / "theirs", base.layer_shapes, base.head)
    torch.testing.assert_close(_our_logits(base, read), logits(model.eval()), atol=1e-5, rtol=1e-5)
    save_adapter(tmp_path / "ours", adapter, modules=base.layer_shapes)
    ours = logits(peft_from(any_model, tmp_path / "ours"))
    torch.testing.assert_close(ours, _our_logits(base, adapter), atol=1e-5, rtol=1e-5)


def _adalora_losses(model, base, options, steps):
    """PEFT's loop with its penalty and its allocator. The losses are those of the tokens, without penalty."""
    parameters = [one for name, one in model.named_parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=options.train.weight_decay)
    rows, losses = token_rows(base, ROWS, options.train.max_length, 0), []
    for done, step in zip(steps, RunData(rows, options.train).steps(), strict=False):
        optimiser.zero_grad()
        total = 0.0
        for part in step.micro_batches:
            loss = peft_loss(model, part)
            (loss * part.weight).backward()
            total += float(loss.detach())
        out = model(input_ids=PROBE, labels=PROBE)
        tokens = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), PROBE[:, 1:].flatten())
        (out.loss - tokens).backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.train.max_grad_norm)
        optimiser.param_groups[0]["lr"] = done.learning_rate
        optimiser.step()
        model.base_model.update_and_allocate(done.step)
        losses.append(total / step.supervised)
    return losses


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
def test_a_layer_without_ranks_left_loads_merges_and_answers(tiny_llama, tmp_path):
    base = load(tiny_llama)
    adapter = _adapter(base, "adalora")
    path, layer = next(iter(adapter.layers.items()))
    none = {name: one[:, :0] if name == "P" else one[:0] for name, one in layer.tensors.items()}
    layers = {**adapter.layers, path: dataclasses.replace(layer, tensors=none)}
    adapter = dataclasses.replace(adapter, layers=layers)
    save_adapter(tmp_path, adapter)
    read = load_adapter(tmp_path, base.layer_shapes, base.head)
    _same(read, adapter, atol=0, rtol=0)
    ours = _our_logits(base, read)
    torch.testing.assert_close(ours, logits(peft_from(tiny_llama, tmp_path)), atol=1e-5, rtol=1e-5)
    assert not read.low_rank()[path].delta_weight().any()
    lora = read.as_lora()
    torch.testing.assert_close(_our_logits(base, lora), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank_pattern": {"x.lora_E": [True] * 5}}, "which of its 4 triplets are left"),
        ({"rank_pattern": {"x.lora_E": 3}}, "which of its 4 triplets are left"),
        ({"init_r": 0}, "init_r is 0"),
        ({"lora_alpha": "x"}, "lora_alpha is x"),
        ({"alpha_pattern": {"q_proj": 3}}, "one alpha for all layers"),
        ({"use_dora": True}, "not used together with DoRA"),
        ({"bias": "some"}, "AdaLoRA takes none or all or lora_only"),
        ({"something": 1}, "'something' is not known"),
    ],
)
def test_settings_of_adalora_are_checked_by_name(tiny_llama, changes, said, tmp_path):
    _refused(tiny_llama, "adalora", changes, said, tmp_path)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_of_adalora_keep_something(tiny_llama, steps):
    base = load(tiny_llama)
    adapter = _train(base, [_request(base, CASES["adalora"].options(max_steps=steps))]).adapters["run"]
    assert adapter.is_trained()


def test_a_step_that_is_left_out_counts_nothing_in_adaloras_budget(tiny_llama, monkeypatch):
    """Of gradients so large that their norm is not finite, though they are."""
    base = load(tiny_llama)
    poison(monkeypatch, at_call=2, times=1e30)
    options = CASES["adalora"].options(max_steps=20, stop_on="", gradient_accumulation_steps=1)
    found = _train(base, [_request(base, options)])
    assert found.adapters["run"].is_trained()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_a_layer_computes_and_learns_what_it_does_as_it_is_written(name, dtype):
    case = CASES[name]
    kind, own, layers = ADAPTER_KINDS.get(case.kind), case.options().kind, {"x": _layer(dtype)}
    bank = AdapterBank(layers, ["x"], 2, 4, kind=kind, trainable=True, frozen=kind.frozen(own))
    for slot in range(2):
        bank.initialise(slot, LoraConfig(kind=case.kind, rank=4), own, ["x"], seed=slot)
    bank.flat[:, : bank.layout.trained_size] += 0.1
    bank.refresh()
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    found = []
    for run in (layers["x"], torch.compile(layers["x"], backend="aot_eager", fullgraph=True)):
        with bank.use():
            y = run(x)
            y.float().square().sum().backward()
        found.append((y, x.grad, bank.grad.clone()))
        assert bank.grad.any()
        bank.grad.zero_()
        x.grad = None
    for written, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, written)
    torch._dynamo.reset()


def _layer(dtype):
    torch.manual_seed(0)
    return LoraLinear(torch.nn.Linear(32, 48).to(dtype))
