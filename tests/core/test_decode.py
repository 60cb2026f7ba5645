"""Decoding: transformers as the oracle, rows that do not disturb each other, streaming."""

import pytest
import torch
from tokenizers import decoders
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM

from core.errors import InvalidInput
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.one_token import DecodingState
from core.lora.bank import AdapterBank
from tests.conftest import VOCABULARY, _save
from tests.core.helpers import load, peft_from, random_adapter

GREEDY = GenerationConfig(max_tokens=24, temperature=0.0)
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17], [20]]


def _ids(base, bank, requests):
    decoder = Decoder(base, bank, requests)
    rows = {row.index: row for row in decoder._rows}
    for _ in decoder.steps():
        pass
    return [rows[index].ids for index in range(len(requests))]


def _bank(base, adapters):
    bank = AdapterBank(base.layers, [p for p in base.layers if p != base.head], len(adapters) + 1, 4)
    for slot, adapter in enumerate(adapters, start=1):
        bank.load(slot, adapter)
    return bank


def test_greedy_equals_transformers(any_model):
    base = load(any_model)
    oracle = AutoModelForCausalLM.from_pretrained(any_model, dtype=torch.float32).eval()
    found = _ids(base, _bank(base, []), [RowRequest(prompt, 0, GREEDY) for prompt in PROMPTS])
    for prompt, ids in zip(PROMPTS, found, strict=True):
        expected = oracle.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ]
        assert ids == expected.tolist()


@pytest.mark.parametrize("temperature", [1e-18, 1e-21, 1e-40, 5e-324])
def test_next_to_no_temperature_takes_the_likeliest_too(tiny_llama, temperature):
    base = load(tiny_llama)
    cold = GenerationConfig(max_tokens=24, temperature=temperature, top_p=1.0, seed=3)
    bank = _bank(base, [])
    found = _ids(base, bank, [RowRequest(prompt, 0, cold) for prompt in PROMPTS])
    assert found == _ids(base, bank, [RowRequest(prompt, 0, GREEDY) for prompt in PROMPTS])


def test_rows_with_different_adapters_equal_each_alone(any_model, tmp_path):
    from core.lora.peft.files import save_adapter

    base = load(any_model)
    adapters = [random_adapter(base, seed=seed) for seed in range(3)]
    bank = _bank(base, adapters)
    together = _ids(
        base,
        bank,
        [RowRequest(prompt, slot, GREEDY) for prompt, slot in zip(PROMPTS, (0, 1, 2, 3), strict=True)],
    )
    for prompt, slot, ids in zip(PROMPTS, (0, 1, 2, 3), together, strict=True):
        assert ids == _ids(base, bank, [RowRequest(prompt, slot, GREEDY)])[0]
    save_adapter(tmp_path, adapters[1])
    peft = peft_from(any_model, tmp_path).generate(
        input_ids=torch.tensor([PROMPTS[2]]), max_new_tokens=24, do_sample=False
    )
    assert together[2] == peft[0, len(PROMPTS[2]) :].tolist()
    assert len({tuple(ids) for ids in together}) > 1


def test_a_seed_gives_the_same_answer_whoever_shares_the_batch(tiny_llama):
    base = load(tiny_llama)
    bank = _bank(base, [random_adapter(base)])
    config = GenerationConfig(max_tokens=12, temperature=1.0, seed=5)
    alone = _ids(base, bank, [RowRequest(PROMPTS[0], 1, config)])[0]
    other = RowRequest(PROMPTS[1], 0, GenerationConfig(max_tokens=12, temperature=2.0, seed=9))
    assert _ids(base, bank, [other, RowRequest(PROMPTS[0], 1, config)])[1] == alone
    assert (
        _ids(
            base, bank, [RowRequest(PROMPTS[0], 1, GenerationConfig(max_tokens=12, temperature=1.0, seed=6))]
        )[0]
        != alone
    )


def test_streamed_pieces_join_to_the_whole_text(tiny_llama):
    base = load(tiny_llama)
    decoder = Decoder(base, _bank(base, []), [RowRequest(PROMPTS[0], 0, GREEDY)])
    row = decoder._rows[0]
    events = [event for step in decoder.steps() for event in step]
    ids = [one for one in row.ids if one not in base.end_token_ids()]
    assert "".join(event.text for event in events) == base.tokenizer.decode(ids, skip_special_tokens=True)
    assert [event.finished for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].reason in ("end", "length")


class Panicking:
    """A stream whose tokenizer's decoder takes more off a token than it has."""

    def step(self, *_):
        return decoders.Strip(" ", 0, 5).decode([" "])


def test_a_panic_of_the_decoder_ends_the_answer_with_a_sentence(tiny_llama):
    base = load(tiny_llama)
    decoder = Decoder(base, _bank(base, []), [RowRequest(PROMPTS[0], 0, GREEDY)])
    decoder._rows[0].stream = Panicking()
    with pytest.raises(InvalidInput, match="This base's tokenizer fails with this answer"):
        list(decoder.steps())


def test_rows_end_separately(tiny_llama):
    base = load(tiny_llama)
    limits = [2, 7, 4]
    requests = [
        RowRequest(PROMPTS[0], 0, GenerationConfig(max_tokens=limit, temperature=0.0)) for limit in limits
    ]
    found = _ids(base, _bank(base, []), requests)
    assert [len(ids) for ids in found] == limits
    assert found[0] == found[1][:2]


def test_cancelling_ends_the_generation(tiny_llama):
    base = load(tiny_llama)
    decoder = Decoder(base, _bank(base, []), [RowRequest(PROMPTS[0], 0, GREEDY)])
    steps = decoder.steps()
    next(steps)
    decoder.cancel()
    assert list(steps) == []
    assert decoder.finished


def test_one_row_is_cancelled_and_the_others_go_on(tiny_llama):
    base = load(tiny_llama)
    bank = _bank(base, [random_adapter(base)])
    requests = [RowRequest(PROMPTS[0], slot, GREEDY) for slot in (0, 1, 0)]
    alone = _ids(base, bank, requests)
    decoder = Decoder(base, bank, requests)
    rows, counts = {row.index: row for row in decoder._rows}, [0, 0, 0]
    for number, events in enumerate(decoder.steps()):
        for event in events:
            counts[event.row] += 1
        if number == 3:
            decoder.cancel(1)
    assert [rows[0].ids, rows[2].ids] == [alone[0], alone[2]]
    assert (counts[1], rows[1].ids) == (4, alone[1][:4])
    assert decoder.finished


def test_a_long_prompt_is_read_in_pieces_with_the_same_answer(tiny_llama, monkeypatch):
    base = load(tiny_llama)
    bank = _bank(base, [random_adapter(base)])
    requests = [
        RowRequest([5 + i % 40 for i in range(length)], slot, GREEDY)
        for length, slot in ((150, 1), (7, 0), (64, 1))
    ]
    whole = _ids(base, bank, requests)
    monkeypatch.setattr("core.generate.prompt_reading.PREFILL", 64)
    decoder = Decoder(base, bank, requests)
    rows = {row.index: row for row in decoder._rows}
    steps = decoder.steps()
    assert [next(steps), next(steps)] == [[], []]
    assert next(steps)
    list(steps)
    assert [rows[index].ids for index in range(3)] == whole


def test_a_prompt_longer_than_the_context_is_refused(tiny_llama):
    base = load(tiny_llama)
    with pytest.raises(InvalidInput, match="256"):
        Decoder(base, _bank(base, []), [RowRequest([5] * 256, 0, GREEDY)])
    said = {256: "256 tokens long.* so none is left for an answer", 257: "257 tokens long.* at most 256"}
    for length, words in said.items():
        with pytest.raises(InvalidInput, match=words):
            Decoder(base, _bank(base, []), [RowRequest([5] * length, 0, GREEDY)])


@torch.no_grad()
def test_the_first_token_is_drawn_from_what_the_model_makes_of_its_head(tmp_path, tokenizer):
    """Of models that scale their logits too: a temperature means the same for each token."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = GraniteForCausalLM(GraniteConfig(**sizes, num_attention_heads=4, logits_scaling=8.0))
    base = load(_save(model, tokenizer, tmp_path / "granite"))
    ids, state = torch.arange(3, 20)[None], DecodingState(base, None, 1, 32)
    found = state.logits_of(state.prefill(ids, 0)[:, -1], state.slots)
    torch.testing.assert_close(found, base.model(input_ids=ids).logits[:, -1], atol=1e-5, rtol=1e-5)
