"""Requests that join a running batch and leave it: each answers as it does alone."""

import random
from dataclasses import replace
from weakref import WeakSet

import pytest
import torch

from core.adapter_source import AdapterSource
from core.base_model.fingerprint import fingerprint, stat_key
from core.base_model.source import BaseSource
from core.data.formats import Example
from core.engine import AnswerRequest, Engine
from core.errors import InvalidInput
from core.events import TrainingDone
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.one_token import DecodingState
from core.generate.prompt_reading import Reading
from core.generate.running import RunningBatch, rows_are_apart
from core.generate.state_pool import StatePool
from core.generate.state_size import MOST_ROWS, bytes_a_token
from core.lora.adapter import LayerFactors
from core.lora.bank import AdapterBank
from core.lora.config import LoraConfig
from core.train.config import TrainConfig
from tests.core.helpers import load, random_adapter, request

ADAPTERS = 3


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture(scope="module")
def bank(base):
    return _bank(base, [random_adapter(base, seed=seed) for seed in range(ADAPTERS)])


def _bank(base, adapters):
    targets = [path for path in base.layers if path != base.head]
    bank = AdapterBank(base.layers, targets, len(adapters) + 1, 4)
    for slot, adapter in enumerate(adapters, start=1):
        bank.load(slot, adapter)
    return bank


def _batch(base, bank, most_bytes=None):
    return RunningBatch(base, lambda: bank, StatePool(base), most_bytes)


class Asked:
    """A request that was joined to a batch, and what came of it."""

    def __init__(self, base, batch, requests):
        self.requests, self.decoder = requests, Decoder(base, None, requests, batch=batch)
        self.rows = {row.index: row for row in self.decoder._rows}
        self.texts, self.counts = [""] * len(requests), [0] * len(requests)
        self.reasons = {}
        self._steps = self.decoder.steps()

    def step(self):
        """Take what has arrived, or move the batch on. Whether there is more to come."""
        events = next(self._steps, None)
        for event in events or []:
            self.texts[event.row] += event.text
            self.counts[event.row] += 1
            assert event.tokens == self.counts[event.row]
            if event.finished:
                self.reasons[event.row] = event.reason
        return events is not None

    def finish(self):
        while self.step():
            pass
        return self

    @property
    def ids(self):
        return [self.rows[index].ids for index in range(len(self.requests))]


def _alone(base, bank, request):
    return Asked(base, _batch(base, bank), [request]).finish()


def _random_row(chance):
    config = GenerationConfig(
        max_tokens=chance.randint(1, 24),
        temperature=chance.choice([0.0, 0.0, 0.9]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.3]),
        presence_penalty=chance.choice([0.0, 0.0, 0.7]),
        min_p=chance.choice([0.0, 0.1]),
        seed=chance.randint(0, 99),
    )
    prompt = [chance.randint(3, 60) for _ in range(chance.choice([1, 5, 17, 40, 70]))]
    return RowRequest(prompt, chance.randint(0, ADAPTERS), config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("places", [None, 5])
def test_whatever_joins_and_leaves_each_answer_is_the_one_it_gets_alone(
    base, bank, monkeypatch, seed, places
):
    """places: with a bound in which so many rows fit, so that rows wait, and are read again."""
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 16)
    chance = random.Random(seed)
    batch = _batch(base, bank, places and places * 128 * bytes_a_token(base))
    under_way, every, cancelled = [], [], set()
    while len(every) < 12 or under_way:
        if len(every) < 12 and chance.random() < 0.5:
            asked = Asked(base, batch, [_random_row(chance) for _ in range(chance.randint(1, 3))])
            under_way.append(asked)
            every.append(asked)
        if under_way and chance.random() < 0.08:
            one = chance.choice(under_way)
            row = chance.choice([None, *range(len(one.requests))])
            cancelled |= {(one, index) for index in one.rows if row in (None, index)}
            one.decoder.cancel(row)
        under_way = [one for one in under_way if one.step()]
    assert batch.held_bytes == 0
    for one in every:
        for index, wanted in enumerate(one.requests):
            expected = _alone(base, bank, wanted)
            if index in one.reasons:
                assert one.ids[index] == expected.ids[0]
                assert one.texts[index] == expected.texts[0]
                assert one.reasons[index] == expected.reasons[0]
            else:
                assert (one, index) in cancelled
                assert one.ids[index] == expected.ids[0][: len(one.ids[index])]


def _long(prompt, slot=0, tokens=40, **more):
    return RowRequest(list(prompt), slot, GenerationConfig(max_tokens=tokens, temperature=0.0, **more))


@pytest.fixture
def endless(base, monkeypatch):
    """No token ends an answer."""
    monkeypatch.setattr(base, "end_token_ids", set)


@pytest.fixture
def forwards(base):
    """How many rows each forward pass was over, in order."""
    seen = []
    handle = base.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    yield seen
    handle.remove()


def test_a_newcomer_joins_at_the_next_token_and_all_share_its_pass(base, bank, endless, forwards):
    batch = _batch(base, bank)
    first = Asked(base, batch, [_long([5, 6, 7])])
    for _ in range(4):
        first.step()
    second = Asked(base, batch, [_long([8, 9], slot=1)])
    forwards.clear()
    first.step()
    assert second.step()
    assert (first.counts, second.counts) == ([5], [1])
    assert forwards == [1, 1]  # the first row's token, and the newcomer's prompt
    first.step(), second.step()
    assert (first.counts, second.counts) == ([6], [2])
    assert forwards[2:] == [2]


def test_others_get_a_token_between_two_pieces_of_a_long_prompt(base, bank, endless, monkeypatch):
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 16)
    batch = _batch(base, bank)
    first = Asked(base, batch, [_long([5, 6, 7])])
    first.step()
    second = Asked(base, batch, [_long(range(3, 67), slot=2)])  # four pieces
    for count in range(2, 5):
        first.step(), second.step()
        assert (first.counts, second.counts) == ([count], [0])
    first.step(), second.step()
    assert (first.counts, second.counts) == ([5], [1])


def test_a_row_that_ends_frees_its_place_at_once(base, bank, endless, forwards):
    batch = _batch(base, bank)
    asked = Asked(base, batch, [_long([5, 6], tokens=limit) for limit in (2, 20, 2, 20)])
    other = Asked(base, batch, [_long([7, 8], slot=3, tokens=200)])
    for _ in range(3):
        asked.step(), other.step()
    largest = batch.held_bytes
    forwards.clear()
    asked.step()
    assert forwards == [3]
    asked.decoder.cancel()
    other.step(), other.step()
    assert forwards[-1] == 1
    assert batch.held_bytes <= largest // 2
    other.decoder.cancel()
    assert batch.held_bytes == 0


@pytest.fixture
def held(monkeypatch):
    """The bytes of all states that are there, after each that was made."""
    there, seen, make = WeakSet(), [], DecodingState.__init__

    def watched(self, *args, **more):
        make(self, *args, **more)
        there.add(self)
        seen.append(sum(one.bytes for one in there))

    monkeypatch.setattr(DecodingState, "__init__", watched)
    return seen


@pytest.fixture
def tokens_read(monkeypatch):
    """How many prompt tokens were read, one entry for each pass."""
    seen, prefill = [], DecodingState.prefill
    monkeypatch.setattr(
        DecodingState, "prefill", lambda self, ids, at: seen.append(ids.numel()) or prefill(self, ids, at)
    )
    return seen


def test_a_prompt_that_rows_share_is_read_once_and_copied(base, bank, tokens_read, monkeypatch):
    prompt = [chance % 50 + 3 for chance in range(40)]
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 20)  # of which two may be read at a time
    hot = [RowRequest(prompt, 1, GenerationConfig(max_tokens=9, temperature=1.5, seed=n)) for n in range(3)]
    requests = [*hot, RowRequest(prompt, 2, GREEDY, {"parts": ["another"]})]
    alone = [_alone(base, bank, one).ids[0] for one in requests]
    assert sum(tokens_read) == 4 * 40
    tokens_read.clear()
    assert Asked(base, _batch(base, bank), requests).finish().ids == alone
    assert sum(tokens_read) == 2 * 40
    assert len({tuple(ids) for ids in alone[:3]}) == 3


def test_the_beginning_that_rows_share_is_read_once(base, bank, tokens_read, monkeypatch):
    monkeypatch.setattr("core.generate.prompt_reading._WORTH", 10)
    monkeypatch.setattr("core.generate.running._READ_TOGETHER_ELSEWHERE", 99)
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 16)
    system = [chance % 50 + 3 for chance in range(40)]
    prompts = [[*system, at + 3, *range(3, 3 + at)] for at in range(4)]
    prompts += [prompts[3], [*prompts[3][:42], 9, 9], system, system[:20], [7, 7]]
    others = [[*system[::-1], at + 9, 5] for at in range(3)]
    requests = [RowRequest(prompt, 1, GREEDY) for prompt in prompts]
    requests += [RowRequest(prompt, 2, GREEDY) for prompt in others]
    alone = [_alone(base, bank, one).ids[0] for one in requests]
    tokens_read.clear()
    found = Asked(base, _batch(base, bank), requests).finish()
    assert found.ids == alone
    assert sum(tokens_read) <= 264, tokens_read  # of the 528 that twelve rows of up to 44 tokens are
    assert len({tuple(ids) for ids in alone}) > 4


def test_memory_keeps_to_its_bound_and_who_has_no_room_waits_in_order(base, bank, endless, held, monkeypatch):
    read, begin = [], Reading.__init__

    def begins(self, base, bank, rows, graphs):
        read.extend(rows)
        assert all(row.number < other.number for row in rows for other in batch._waiting)
        begin(self, base, bank, rows, graphs)

    monkeypatch.setattr(Reading, "__init__", begins)
    most = 8 * 128 * bytes_a_token(base)
    batch = _batch(base, bank, most)
    asked = [Asked(base, batch, [_long([5, 6, at + 3], slot=at % 4, tokens=70)]) for at in range(14)]
    first_tokens, under_way = [], list(asked)
    while under_way:
        under_way = [one for one in under_way if one.step()]
        first_tokens += [one for one in asked if one.counts[0] and one not in first_tokens]
        assert batch.held_bytes <= most
    assert max(held) <= most
    assert first_tokens == asked
    assert len(read) > len(asked)  # rows outgrew the room, and were read again
    for one in asked:
        assert one.ids == _alone(base, bank, one.requests[0]).ids


def test_memory_follows_what_is_written_and_not_what_could_be(base, bank, endless):
    batch = _batch(base, bank)
    asked = Asked(base, batch, [_long([5, 6], tokens=250)])
    sizes = []
    while asked.step():
        sizes.append(batch.held_bytes // bytes_a_token(base))
    assert sizes[0] == 64
    assert max(sizes) == 256


def test_more_rows_than_fit_into_a_batch_wait(base, bank, endless, forwards):
    batch = _batch(base, bank)
    asked = Asked(base, batch, [_long([5], tokens=3) for _ in range(MOST_ROWS + 6)])
    asked.finish()
    assert max(forwards) <= MOST_ROWS
    assert asked.counts == [3] * (MOST_ROWS + 6)


def test_numbers_that_are_not_finite_end_one_request_and_spoil_nothing(base, endless):
    broken = random_adapter(base, seed=1)
    path = next(iter(broken.layers))
    factors = broken.layers[path]
    nan = LayerFactors(torch.full_like(factors.A, torch.nan), factors.B, factors.scale)
    bank = _bank(base, [random_adapter(base, seed=0), replace(broken, layers={**broken.layers, path: nan})])
    batch = _batch(base, bank)
    good = Asked(base, batch, [_long([5, at + 6], slot=at % 2) for at in range(5)])
    good.step()
    bad = Asked(base, batch, [_long(range(4, 44), slot=2), _long([9], slot=1)])
    good.step()
    with pytest.raises(InvalidInput, match="holds NaN or infinite numbers"):
        bad.finish()
    assert bad.decoder.finished
    late = Asked(base, batch, [_long([7, 8], slot=1)])  # in the place that the broken row had
    while late.step() | good.step():
        pass
    for one in (good, late):
        for ids, wanted in zip(one.ids, one.requests, strict=True):
            assert ids == _alone(base, bank, wanted).ids[0]


def test_what_breaks_a_pass_reaches_everybody_and_the_next_request_is_answered(base, bank, monkeypatch):
    batch = _batch(base, bank)
    asked = [Asked(base, batch, [_long([5, 6])]) for _ in range(2)]
    for one in asked:
        one.step()
    with monkeypatch.context() as broken:
        broken.setattr(DecodingState, "step", lambda *_: 1 / 0)
        for one in asked:
            with pytest.raises(ZeroDivisionError):
                one.step()
    assert batch.held_bytes == 0
    late = Asked(base, batch, [_long([5, 6])])
    late.finish()
    assert late.ids == _alone(base, bank, _long([5, 6])).ids


def test_a_prompt_for_which_memory_is_too_small_ends_alone(base, bank, monkeypatch):
    batch = _batch(base, bank)
    first = Asked(base, batch, [_long([5, 6])])
    first.step()
    big = Asked(base, batch, [_long([5] * 60)])
    with monkeypatch.context() as full:

        def no_memory(*_):
            raise torch.OutOfMemoryError("none left")

        full.setattr(DecodingState, "prefill", no_memory)
        first.step()
    with pytest.raises(torch.OutOfMemoryError):
        big.step()
    first.finish()
    assert first.ids == _alone(base, bank, first.requests[0]).ids


# Through the engine: adapters, slots, training.

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = GenerationConfig(max_tokens=12, temperature=0.0)


@pytest.fixture
def engine():
    return Engine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def source(tiny_llama):
    return BaseSource(tiny_llama.name, tiny_llama, fingerprint(tiny_llama), stat_key(tiny_llama), template="")


def _adapter(base, source, seed, rank=4, **more):
    weights = random_adapter(base, rank=rank, seed=seed, **more)
    digest = f"{seed}-{rank}"
    return AdapterSource(digest, lambda: source.folder, digest, source.fingerprint, source.name, weights)


def _ask(engine, source, adapter, tokens=12):
    config = replace(GREEDY, max_tokens=tokens)
    decoder = engine.answer(source, [AnswerRequest(HELLO, adapter, config)])
    return decoder, decoder._rows[0], decoder.steps()


def _finish(asked):
    """Step all in turn to their ends; the ids of each."""
    left = list(asked)
    while left:
        left = [one for one in left if next(one[2], None) is not None]
    return [row.ids for _, row, _ in asked]


def test_requests_for_several_adapters_are_one_batch(engine, source, base, endless):
    adapters = [None, *(_adapter(base, source, seed) for seed in range(4))]
    alone = [_finish([_ask(engine, source, one)])[0] for one in adapters]
    asked = [_ask(engine, source, one) for one in adapters]
    assert len({id(decoder._batch) for decoder, *_ in asked}) == 1
    assert _finish(asked) == alone
    assert len({tuple(ids) for ids in alone}) == len(adapters)


def test_sixty_four_requests_over_eight_adapters_answer_as_each_alone_within_their_memory(
    engine, source, base, monkeypatch
):
    adapters = [_adapter(base, source, seed) for seed in range(8)]
    alone = [_finish([_ask(engine, source, one)])[0] for one in adapters]
    assert len({tuple(ids) for ids in alone}) == 8
    most = 16 * 64 * bytes_a_token(base)  # for a quarter of them at once
    engine._batch = None
    monkeypatch.setattr("core.engine.memory_to_train", lambda device: most / 0.25)
    asked = [_ask(engine, source, adapters[at % 8]) for at in range(64)]
    batch, held = asked[0][0]._batch, []
    left = list(asked)
    while left:
        left = [one for one in left if next(one[2], None) is not None]
        held.append(batch.held_bytes)
    assert [row.ids for _, row, _ in asked] == [alone[at % 8] for at in range(64)]
    assert max(held) <= most
    assert batch.held_bytes == batch.waiting == 0


def test_an_adapter_waits_for_a_slot_that_no_row_uses(engine, source, base, monkeypatch):
    monkeypatch.setattr("core.adapter_slots.ADAPTER_SLOTS", 2)
    adapters = [_adapter(base, source, seed) for seed in range(5)]
    alone = [_finish([_ask(engine, source, one)])[0] for one in adapters]
    asked = [
        _ask(engine, source, one, tokens) for one, tokens in zip(adapters, (12, 3, 12, 12, 12), strict=True)
    ]
    batch = asked[0][0]._batch
    next(asked[0][2])
    assert (len(batch.slots_in_use), batch.waiting) == (2, 3)
    late = _ask(engine, source, adapters[0], 2)  # its adapter is there
    next(asked[0][2])
    assert len(late[1].ids) == 1
    found = _finish([*asked, late])
    assert found == [alone[0], alone[1][:3], *alone[2:], alone[0][:2]]


def test_those_whose_adapters_are_there_pass_one_that_waits_only_so_often(
    engine, source, base, endless, monkeypatch
):
    monkeypatch.setattr("core.adapter_slots.ADAPTER_SLOTS", 1)
    monkeypatch.setattr("core.generate.running._MAY_PASS", 3)
    one, other = (_adapter(base, source, seed) for seed in range(2))
    asked = [_ask(engine, source, one, 4), _ask(engine, source, other, 2)]
    next(asked[0][2])
    more = [_ask(engine, source, one, 4) for _ in range(5)]
    next(asked[0][2])
    assert [len(row.ids) for _, row, _ in more] == [1, 1, 1, 0, 0]
    assert all(_finish([*asked, *more]))


def test_a_larger_adapter_joins_while_others_answer(engine, source, base, endless):
    """For which the bank of adapters is made anew."""
    small, large = _adapter(base, source, 1), _adapter(base, source, 2, rank=40, size=0.05)
    alone = [_finish([_ask(engine, source, one, 30)])[0] for one in (small, large)]
    engine = Engine(torch.device("cpu"), torch.float32)
    first = [_ask(engine, source, small, 30) for _ in range(3)]
    for _ in range(5):
        next(first[0][2])
    before = engine._slots.bank
    second = _ask(engine, source, large, 30)  # for which there is a place
    assert _finish([*first, second]) == [alone[0]] * 3 + [alone[1]]
    assert engine._slots.bank is not before


def test_an_adapter_that_fits_no_place_ends_its_own_request(engine, source, base, monkeypatch):
    good = _adapter(base, source, 1)
    first = _ask(engine, source, good)
    next(first[2])
    bad = _ask(engine, source, _adapter(base, source, 2))

    def refuses(*_):
        raise InvalidInput("not for this base")

    with monkeypatch.context() as broken:
        broken.setattr("core.lora.mixed_bank.MixedBank.load", refuses)
        next(first[2])
    with pytest.raises(InvalidInput, match="not for this base"):
        next(bad[2])
    assert len(_finish([first])[0]) > 2


def test_rows_stay_apart_where_company_changes_what_is_computed(engine, source, base, monkeypatch):
    """Rotary embeddings that follow the longest row of a batch."""
    assert rows_are_apart(base)
    config = engine.load_base(source).model.config
    monkeypatch.setattr(config, "rope_parameters", {"rope_type": "longrope"})
    assert not rows_are_apart(engine.base)
    one, other = (_ask(engine, source, None) for _ in range(2))
    assert one[0]._batch is not other[0]._batch
    ids = _finish([one, other])
    assert ids[0] == ids[1]


def _trained(engine, source, base, talk):
    """The adapter of a short run; `talk` is called after each micro-batch."""
    rows = [
        Example(at, ({"role": "user", "content": f"say {at}"}, {"role": "assistant", "content": f"{at} fox"}))
        for at in range(12)
    ]
    train = TrainConfig(max_steps=5, micro_batch_size=2, max_length=64, learning_rate=5e-3)
    group = engine.train(source, [request(base, rows, LoraConfig(rank=4, dropout=0.1), train)])
    adapter = None
    for key, event in group.run():
        if isinstance(event, TrainingDone):
            adapter = group.adapter(key)
        talk()
    return adapter


def test_a_run_learns_the_same_bits_while_requests_come_and_go(engine, source, base, endless):
    silent = _trained(engine, source, base, lambda: None)
    asked, finished = [], []

    def talk():
        if len(asked) < 6:
            asked.append(_ask(engine, source, _adapter(base, source, len(asked) % 3), 4))
        finished.extend(one for one in asked if next(one[2], None) is None)

    found = _trained(engine, source, base, talk)
    assert finished
    assert silent.layers.keys() == found.layers.keys()
    for path, layer in silent.layers.items():
        assert all(one.equal(found.layers[path].tensors[name]) for name, one in layer.tensors.items())
