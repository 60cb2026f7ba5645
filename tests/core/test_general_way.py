"""The general way: several runs at once, and answers in a running batch, by transformers' own passes and
caches.
"""

import random

import pytest
import torch
from transformers import CONFIG_MAPPING

from core.adapter_source import AdapterSource
from core.base_model.agreement import _cut_down, _parameters
from core.base_model.fingerprint import fingerprint, stat_key
from core.base_model.source import BaseSource
from core.data.formats import Example
from core.engine import AnswerRequest, Engine
from core.errors import InvalidConfig
from core.events import EvalDone, StepDone
from core.generate.config import GenerationConfig
from core.generate.scoring import answer_ids
from core.lora.config import LoraConfig
from core.lora.peft.files import save_adapter
from core.train.batches import MicroBatch, RunData, Shape
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from core.train.padded import collate_padded, fixed_length
from tests.conftest import _save
from tests.core.families import GENERAL, long_rope, tiny_model
from tests.core.helpers import load, peft_from, random_adapter, request, token_rows, train_alone
from tests.core.test_joining import ADAPTERS, Asked, _alone, _bank, _batch, _random_row

SHARED = {"micro_batch_size": 2, "max_length": 96, "learning_rate": 5e-3, "max_steps": 4}
KINDS = {
    "hybrid": ("qwen3_5_text", GENERAL["qwen3_5_text"]),
    "state space": ("mamba2", GENERAL["mamba2"]),
    "windows and caps": ("gemma2", {}),
    "long rope": ("phi3", long_rope(15)),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tokenizer, tmp_path_factory):
    family, values = KINDS[request.param]
    return _save(tiny_model(family, **values), tokenizer, tmp_path_factory.mktemp(family) / family)


@pytest.fixture(scope="module")
def base(folder):
    return load(folder)


LARGE = {
    "bamba": ({"attn_layer_indices": [9, 18, 27]}, "layers_block_type"),
    "granitemoehybrid": ({"layer_types": [*["mamba"] * 5, "attention"] * 5 + ["mamba"] * 2}, "layer_types"),
    "jamba": ({}, "layers_block_type"),
    "llama4_text": ({}, "layer_types"),
    "qwen3_next": ({}, "layer_types"),
}


@pytest.mark.parametrize("family", LARGE)
def test_a_large_base_is_compared_by_few_layers_of_each_kind(family):
    values, kinds = LARGE[family]
    whole = CONFIG_MAPPING[family](**values)
    small = _cut_down(whole)
    assert set(getattr(small, kinds)) == set(getattr(whole, kinds))
    assert small.num_hidden_layers <= 3
    assert _parameters(small) < 0.05 * _parameters(whole)


def _rows(word, count):
    asked = [
        ({"role": "user", "content": f"{word} {at}"}, f"{word} fine " * (1 + at % 4)) for at in range(count)
    ]
    return [
        Example(at, (one, {"role": "assistant", "content": answer})) for at, (one, answer) in enumerate(asked)
    ]


def _figures(events):
    return [event.loss for event in events if isinstance(event, (StepDone, EvalDone))]


def test_runs_learn_together_what_each_learns_alone(base):
    runs = {
        "plain": (_rows("hello", 12), LoraConfig(rank=4), TrainConfig(seed=1, **SHARED)),
        "small": (_rows("the lazy fox", 9), LoraConfig(rank=2, alpha=8), TrainConfig(seed=2, **SHARED)),
        "another kind": (_rows("world", 7), LoraConfig(rank=2, kind="dora"), TrainConfig(seed=3, **SHARED)),
    }
    group = TrainingGroup(
        base, [request(base, *parts, key=key, validation_rows=2) for key, parts in runs.items()]
    )
    events = {key: [] for key in runs}
    for key, event in group.run():
        events[key].append(event)
    for key, parts in runs.items():
        _, alone = train_alone(base, *parts, validation_rows=2)
        assert _figures(events[key]) == pytest.approx(_figures(alone), rel=1e-4)
        assert _figures(alone)[-1] < _figures(alone)[0]


def test_passes_of_few_lengths_learn_the_same(base, monkeypatch):
    """As on an accelerator, where a shape that comes again may be captured."""
    rows, how = _rows("the lazy fox", 9), (LoraConfig(rank=2), TrainConfig(seed=2, **SHARED))
    _, wanted = train_alone(base, rows, *how, validation_rows=2)
    shapes, of = [], Shape.of

    def fixed(data, **others):
        shapes.append(of(data, **{**others, "fixed": True}))
        return shapes[-1]

    monkeypatch.setattr(Shape, "of", fixed)
    _, found = train_alone(base, rows, *how, validation_rows=2)
    assert shapes
    assert _figures(found) == pytest.approx(_figures(wanted), rel=1e-5)


def test_a_batch_takes_over_the_content_of_another_of_its_shape(base):
    if not base.way.together:
        pytest.skip("rows of many lengths have passes of many shapes here")
    data = RunData(token_rows(base, _rows("hello", 12), 96), TrainConfig(**SHARED), may_pack=False)
    shape = Shape.of([data], runs=1, blocks=2, fixed=True)
    one, other = (
        collate_padded([MicroBatch(data.rows, [(at,), (at + 1,)], 1.0)], shape, base.way) for at in (0, 2)
    )
    assert one.key() == other.key()
    assert not torch.equal(one.passes[0], other.passes[0])
    one.copy_(other)
    assert torch.equal(one.passes[0], other.passes[0])
    assert torch.equal(one.targets, other.targets)


def test_lengths_on_an_accelerator_are_few_and_little_is_in_vain():
    lengths = {longest: fixed_length(longest, 5000) for longest in range(1, 5001)}
    assert all(longest <= length <= 5000 for longest, length in lengths.items())
    assert all(length <= 1.125 * longest for longest, length in lengths.items() if longest >= 512)
    assert len(set(lengths.values())) < 48


@pytest.mark.parametrize("option", ["packing", "compile"])
def test_what_the_general_way_does_not_know_is_refused(base, option):
    train = TrainConfig(**SHARED, **{option: "on"})
    with pytest.raises(InvalidConfig, match=f"{option} = on cannot be used with .* the general way"):
        train_alone(base, _rows("hello", 8), LoraConfig(rank=2), train)


def test_rows_are_not_packed_by_themselves(base):
    many = TrainConfig(max_length=96, epochs=90)
    run = TrainingGroup(base, [request(base, _rows("a", 40), LoraConfig(rank=2), many)])
    next(run.run())
    assert not run.runs[0].data.packed


def test_whatever_joins_and_leaves_each_answer_is_the_one_it_gets_alone(base, monkeypatch):
    monkeypatch.setattr(base, "end_token_ids", set)
    bank = _bank(base, [random_adapter(base, seed=seed) for seed in range(ADAPTERS)])
    chance, batch, every = random.Random(5), _batch(base, bank), []
    under_way = []
    while len(every) < 5 or under_way:
        if len(every) < 5:
            asked = Asked(base, batch, [_random_row(chance) for _ in range(chance.randint(1, 3))])
            every.append(asked)
            under_way.append(asked)
        under_way = [one for one in under_way if one.step()]
    for one in every:
        assert one.ids == [_alone(base, bank, wanted).ids[0] for wanted in one.requests]
    assert batch.held_bytes == 0


def test_a_row_that_has_no_room_is_read_again_and_goes_on_as_it_was(base, monkeypatch):
    monkeypatch.setattr(base, "end_token_ids", set)
    bank = _bank(base, [random_adapter(base, seed=seed) for seed in range(ADAPTERS)])
    requests = [_random_row(random.Random(seed)) for seed in range(6)]
    a_token, a_row = base.cache_bytes
    batch = _batch(base, bank, 6 * 128 * (a_token + 8) + 6 * a_row)
    found = Asked(base, batch, requests).finish().ids
    assert found == [_alone(base, bank, one).ids[0] for one in requests]


def test_the_engine_answers_tells_likely_tokens_and_scores(folder, base, tmp_path):
    source = BaseSource("tiny", folder, fingerprint(folder), stat_key(folder))
    adapter = random_adapter(load(folder, source.fingerprint))
    save_adapter(tmp_path, adapter)
    engine, speaker = (
        Engine(torch.device("cpu"), torch.float32),
        AdapterSource("mine", lambda: folder, "mine", source.fingerprint, "tiny", adapter),
    )
    asked = [{"role": "user", "content": "hello"}]
    config = GenerationConfig(max_tokens=5, temperature=0.0)
    decoder = engine.answer(
        source, [AnswerRequest(asked, one, config, likeliest=3) for one in (None, speaker)]
    )
    told = [event for events in decoder.steps() for event in events]
    assert {event.row for event in told} == {0, 1}
    assert all(len(event.logprobs) == 4 for event in told)
    found = engine.score(source, [None, speaker], asked, "hello world")
    ids, start = answer_ids(engine.base, asked, "hello world", ended=True)
    with torch.no_grad():
        wanted = peft_from(folder, tmp_path)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [float(wanted[at - 1, ids[at]]) for at in range(start, len(ids))]
    assert [token.logprob for token in found[1].tokens] == pytest.approx(own, abs=1e-3)
