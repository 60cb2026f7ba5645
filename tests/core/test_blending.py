"""Blends answer with the exact weighted sum of ΔW, from factors in memory, whatever ranks and targets."""

import gc
from dataclasses import replace
from weakref import ref

import pytest
import torch

from core.adapter_slots import AdapterMemory, AdapterSlots, bytes_of
from core.adapter_source import AdapterSource, BlendSource, blend, weights_told
from core.combine.blending import blended
from core.combine.combining import Part
from core.engine import AnswerRequest, Engine
from core.errors import InvalidAdapter
from core.generate.config import GenerationConfig
from core.lora.adapter import LayerWeights
from core.lora.peft.files import save_adapter
from tests.core.helpers import PROBE, as_shards, load, logits, peft_from, plain_model, random_adapter

WEIGHTS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, -0.5)]
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load(tiny_llama)


def _cut(adapter, *words):
    """Only the layers whose paths hold one of these."""
    layers = {path: one for path, one in adapter.layers.items() if any(word in path for word in words)}
    return replace(adapter, layers=layers)


@pytest.fixture(scope="module")
def pair(base):
    """Different ranks, scales and targets."""
    first = _cut(random_adapter(base, rank=2, alpha=4.0, seed=1), "q_proj", "v_proj", "up_proj")
    return first, _cut(random_adapter(base, rank=5, alpha=8.0, seed=2), "q_proj", "down_proj")


def _source(base, name, weights):
    return AdapterSource(name, lambda: base.folder, f"digest of {name}", base.fingerprint, "llama", weights)


def _sources(base, pair, weights):
    return [(_source(base, name, one), w) for name, one, w in zip("ab", pair, weights, strict=True)]


@torch.no_grad()
def _ours(base, source):
    """Logits with what the engine's slots make of it."""
    slots = AdapterSlots(base)
    place = slots.seat(source)() if source else 0
    with slots.bank.use(torch.tensor([place])):
        return base.model(input_ids=PROBE).logits


@torch.no_grad()
def _dense(folder, pair, weights):
    """Logits of transformers' own model with the sum of ΔW in its weights."""
    model = plain_model(folder)
    for adapter, weight in zip(pair, weights, strict=True):
        for path, layer in adapter.layers.items():
            model.get_submodule(path).weight.add_(weight * layer.delta_weight())
    return logits(model)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_blend_is_the_dense_sum_in_transformers_own_model(base, tiny_llama, pair, weights):
    found = _ours(base, blend("mix", _sources(base, pair, weights)))
    torch.testing.assert_close(found, _dense(tiny_llama, pair, weights), atol=1e-5, rtol=1e-5)
    if 0.0 in weights:
        alone = _source(base, "alone", pair[weights.index(1.0)])
        torch.testing.assert_close(found, _ours(base, alone), atol=0, rtol=0)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 2.0), (0.7, 0.3)])
def test_a_blend_is_pefts_own_concatenation(base, tiny_llama, pair, weights, tmp_path):
    for name, adapter in zip("ab", pair, strict=True):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapter)
    peft = peft_from(tiny_llama, tmp_path / "a")
    peft.load_adapter(tmp_path / "b", adapter_name="b")
    peft.add_weighted_adapter(["default", "b"], list(weights), "mix", combination_type="cat")
    peft.set_adapter("mix")
    found = _ours(base, blend("mix", _sources(base, pair, weights)))
    torch.testing.assert_close(found, logits(peft), atol=1e-5, rtol=1e-5)


def test_kinds_whose_delta_is_a_product_are_blended_and_others_named_with_the_reason(base, pair):
    shards = as_shards(random_adapter(base, rank=2, seed=3))
    parts = [Part("shards", shards, 0.5), Part("a", pair[0], -1.0)]
    path = next(iter(pair[0].layers))
    dense = 0.5 * shards.low_rank()[path].delta_weight() - pair[0].layers[path].delta_weight()
    torch.testing.assert_close(blended(parts).layers[path].delta_weight(), dense, atol=1e-5, rtol=1e-5)
    lengths = {
        path: LayerWeights({**one.tensors, "m": torch.ones(one.B.shape[0])}, one.scale)
        for path, one in pair[0].layers.items()
    }
    dora = replace(pair[0], kind="dora", layers=lengths)
    with pytest.raises(InvalidAdapter, match=r"long cannot be part of a blend\. .*DoRA.*do not add up"):
        blended([Part("long", dora, 0.5), Part("a", pair[0], 0.5)])
    biased = replace(pair[0], head={f"{path}.bias": torch.ones(1)})
    with pytest.raises(InvalidAdapter, match=r"biased cannot be part of a blend\. It has whole parameters"):
        blended([Part("biased", biased, 1.0)])


def test_weights_that_count_nothing_leave_who_they_leave(base, pair):
    sources = _sources(base, pair, (1.0, 0.0))
    assert blend("mix", sources) is sources[0][0]
    assert blend("mix", [(sources[0][0], 0.0)]) is None
    half = blend("mix", [(sources[0][0], 0.5)])
    assert isinstance(half, BlendSource)
    assert weights_told(half, base)["parts"] == [{"name": "a", "digest": "digest of a", "weight": 0.5}]
    assert half.digest != blend("mix", [(sources[0][0], 0.25)]).digest


@pytest.fixture
def stored(base, pair, tmp_path):
    """Both in files; and a list that grows by a name with each reading."""
    read = []

    def folder(name):
        read.append(name)
        return tmp_path / name

    found = {}
    for name, adapter in zip("ab", pair, strict=True):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, adapter)
        found[name] = AdapterSource(name, lambda name=name: folder(name), name, base.fingerprint, "llama")
    return found, read


def test_a_slider_that_moves_reads_no_file_and_leaves_nothing_behind(base, stored):
    (sources, read), slots = stored, AdapterSlots(base)
    first = bank = None
    for step in range(12):
        mix = blend("mix", [(sources["a"], 1.0), (sources["b"], step / 8)])
        slots.forget_blends(keep=[mix.digest] if mix else ())
        assert slots.seat(mix)()
        if step == 3:
            first, bank = ref(slots.loaded[mix.digest][1]), slots.bank
    assert read == ["a", "b"]
    assert len(slots.loaded) == 2  # a by itself, at 0, and the last
    assert slots.bank is bank
    gc.collect()
    assert first() is None


def test_a_bank_that_a_wide_blend_left_behind_is_made_narrow_again(base):
    slots = AdapterSlots(base)
    wide = [(_source(base, f"w{at}", random_adapter(base, rank=24, seed=at)), 0.5) for at in range(4)]
    slots.seat(blend("mix", wide))()
    assert slots.bank.ranks["lora"] == 96
    slots.forget_blends()
    slots.seat(_source(base, "small", random_adapter(base, rank=2, seed=9)))()
    assert slots.bank.ranks["lora"] == 16


def test_adapters_that_lost_their_slot_are_read_from_memory_within_its_bound(base, stored, monkeypatch):
    monkeypatch.setattr("core.adapter_slots.ADAPTER_SLOTS", 1)
    sources, read = stored
    slots = AdapterSlots(base)
    for name in "ababab":
        assert slots.seat(sources[name])() == 1
    assert read == ["a", "b"]
    size = max(bytes_of(slots.memory.of(one, base)) for one in sources.values())
    slots, narrow = None, AdapterSlots(base, AdapterMemory(most_bytes=size))
    read.clear()
    gc.collect()
    for name in "aabab":
        narrow.seat(sources[name])()
        assert narrow.memory.bytes <= size
    assert read == ["a", "b", "a", "b"]


def test_the_engine_answers_with_blends_beside_others_and_tells_which_weights(tiny_llama, base, pair):
    from core.base_model.fingerprint import fingerprint, stat_key
    from core.base_model.source import BaseSource

    where = BaseSource("llama", tiny_llama, fingerprint(tiny_llama), stat_key(tiny_llama), template="")
    engine, config = Engine(torch.device("cpu"), torch.float32), GenerationConfig(max_tokens=6, temperature=0)

    def source(name, weights):
        return replace(_source(base, name, weights), base_fingerprint=where.fingerprint)

    parts = [(source("a", pair[0]), 0.5), (source("b", pair[1]), -1.0)]
    baked = source("baked", blended([Part("a", pair[0], 0.5), Part("b", pair[1], -1.0)]))
    speakers = [None, parts[0][0], blend("mix", parts), baked]
    decoder = engine.answer(where, [AnswerRequest(HELLO, one, config) for one in speakers])
    rows, events = list(decoder._rows), [event for step in decoder.steps() for event in step]
    assert rows[2].ids == rows[3].ids != rows[0].ids
    for row in rows:
        mine = [event for event in events if event.row == row.index]
        assert [bool(event.weights) for event in mine] == [True, *[False] * (len(mine) - 2), True]
        assert mine[0].weights["base"] == where.fingerprint
        assert mine[-1].seconds_to_first == mine[0].seconds_to_first > 0
        assert mine[0].tokens_per_second == 0 < mine[-1].tokens_per_second
    told = [[(one["digest"], one["weight"]) for one in row.weights["parts"]] for row in rows]
    assert told[:3] == [[], [("digest of a", 1.0)], [("digest of a", 0.5), ("digest of b", -1.0)]]
