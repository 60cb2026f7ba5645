"""The time of answers beside an adapter and merged into the base: what is timed is what is said."""

import pytest
import torch

from core.errors import InvalidInput
from core.generate import latency
from core.generate.decode import Decoder
from core.generate.latency import Load, measure_latency
from core.reporting import silent
from tests.core.helpers import load, random_adapter


@pytest.fixture
def timed(tiny_llama, monkeypatch):
    """What was decoded: model, bank, and how many tokens each row was given."""
    seen = []

    class Watched(Decoder):
        def __init__(self, base, bank, requests, *more, **about):
            super().__init__(base, bank, requests, *more, **about)
            seen.append((base, bank, [0] * len(requests)))

        def steps(self):
            for events in super().steps():
                for event in events:
                    seen[-1][2][event.row] += 1
                yield events

    monkeypatch.setattr(latency, "Decoder", Watched)
    return seen


def test_all_three_answer_in_turns_and_no_row_ends_early(tiny_llama, timed):
    base, merged = load(tiny_llama), load(tiny_llama)
    every = set(range(base.model.config.vocab_size))
    base.end_token_ids = merged.end_token_ids = lambda: every  # each token would end an answer
    found = measure_latency(base, random_adapter(base), merged, silent, [Load(3, 8, 5)], rounds=2)
    (one,) = found
    assert set(one.ways) == {"base", "adapter", "merged"}
    assert [tokens for *_, tokens in timed] == [[5, 5, 5]] * 9  # a first round and two that count
    used = [(model is merged, bank is not None) for model, bank, _ in timed]
    assert used == [(False, False), (False, True), (True, False)] * 3
    assert all(way.first > 0 and way.token > 0 for way in one.ways.values())


def test_the_adapter_is_at_work_while_it_is_timed(tiny_llama):
    base = load(tiny_llama)
    adapter = random_adapter(base)
    ids = torch.arange(8)[None]
    plain = base.model(input_ids=ids, use_cache=False).logits
    with latency.loaded_bank(base.layers, [adapter]).use():
        assert not torch.allclose(base.model(input_ids=ids, use_cache=False).logits, plain)


def test_a_load_beyond_the_context_is_refused(tiny_llama):
    base = load(tiny_llama)
    with pytest.raises(InvalidInput, match="reads at most"):
        measure_latency(base, random_adapter(base), base, silent, [Load(1, base.context_length, 4)], rounds=1)
