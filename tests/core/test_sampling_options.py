"""What is sampled under min-p and under penalties for used tokens, held against transformers' logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.lora.bank import AdapterBank
from tests.core.helpers import load

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def oracle(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def answer(tiny_llama):
    """Answers of the plain base to some configurations, in one batch."""
    base = load(tiny_llama)
    bank = AdapterBank(base.layers, [path for path in base.layers if path != base.head], 1, 4)

    def ask(*configs, prompt=PROMPT):
        decoder = Decoder(base, bank, [RowRequest(prompt, 0, config) for config in configs])
        rows = {row.index: row for row in decoder._rows}
        list(decoder.steps())
        return [rows[at].ids for at in range(len(configs))]

    return ask


@torch.no_grad()
def _next_logits(oracle, ids):
    return oracle(torch.tensor([ids])).logits[0, -1]


def test_min_p_leaves_out_what_is_much_less_likely_than_the_likeliest(oracle, answer):
    chances = (_next_logits(oracle, PROMPT) / 1.5).softmax(-1)
    enough = set((chances >= 0.5 * chances.max()).nonzero()[:, 0].tolist())
    assert 1 < len(enough) < len(chances)

    def first_tokens(**options):
        seeds = range(100)
        configs = [
            GenerationConfig(max_tokens=1, temperature=1.5, top_p=1.0, seed=seed, **options) for seed in seeds
        ]
        return {ids[0] for ids in answer(*configs)}

    assert first_tokens(min_p=0.5) == enough
    assert first_tokens() - enough


def test_min_p_of_one_is_the_likeliest_token(answer):
    hot, greedy = (
        GenerationConfig(max_tokens=16, temperature=5.0, top_p=1.0, min_p=1.0, seed=4),
        GenerationConfig(max_tokens=16, temperature=0.0),
    )
    hot_ids, greedy_ids = answer(hot, greedy)
    assert hot_ids == greedy_ids


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.6), (0.4, 0.3), (-0.5, -0.5)])
def test_tokens_that_the_answer_has_already_lose_what_the_penalties_say(oracle, answer, presence, frequency):
    expected: list[int] = []
    while len(expected) < 24:
        logits = _next_logits(oracle, PROMPT + expected)
        counts = torch.bincount(torch.tensor(expected, dtype=torch.long), minlength=len(logits))
        logits -= presence * (counts > 0) + frequency * counts
        expected.append(int(logits.argmax()))
    options = {"max_tokens": 24, "temperature": 0.0}
    penalised, plain = answer(
        GenerationConfig(**options, presence_penalty=presence, frequency_penalty=frequency),
        GenerationConfig(**options),
    )
    assert penalised == expected
    if presence >= 0:
        assert penalised != plain


def test_tokens_of_the_prompt_are_free(oracle, answer):
    prompts = ([one, other] for one in range(3, 40) for other in range(3, 40))
    repeats = (ids for ids in prompts if int(_next_logits(oracle, ids).argmax()) in ids)
    prompt = next(repeats)
    likeliest = int(_next_logits(oracle, prompt).argmax())
    asked = GenerationConfig(max_tokens=1, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    assert answer(asked, prompt=prompt) == [[likeliest]]
