"""What is sampled under min-p and under penalties for used tokens, held against transformers' logits."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.sampling import Sampler, choose
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


WAYS = [
    {},
    {"temperature": 0.4},
    {"temperature": 1.7, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 5},
    {"top_k": 9, "top_p": 0.6, "min_p": 0.1},
    {"temperature": 2.0, "min_p": 0.2},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 2000},
    {"top_k": 1500, "top_p": 0.7},
    {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.4},
]


def _config(seed, options):
    return GenerationConfig(**{"temperature": 1.0, "top_p": 1.0, "seed": seed} | options)


def _left(logits, ids, options):
    """What transformers' own processors leave of the probabilities."""
    config = _config(0, options)
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(MinPLogitsWarper(config.min_p))
    return steps(ids[None], logits[None].clone())[0].softmax(-1)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_tokens_come_as_often_as_transformers_leaves_them_probable(options):
    generator, count = torch.Generator().manual_seed(3), 4000
    logits, ids = torch.randn(2500, generator=generator) * 2.5, torch.tensor([7, 8, 9])
    expected = _left(logits, ids, options)
    samplers = [Sampler(_config(seed, options), len(ids)) for seed in range(count)]
    found = choose(samplers, logits.expand(count, -1), lambda _: ids).bincount(minlength=2500)
    assert not found[expected == 0].any()
    rare = count * expected < 5  # these are taken for one
    found, expected = (torch.cat([one[~rare], one[rare].sum()[None]]) for one in (found, expected))
    error = (count * expected * (1 - expected)).sqrt()
    assert ((found - count * expected).abs() <= 4 * error).all()


def test_each_row_of_a_batch_gets_what_it_gets_alone():
    generator = torch.Generator().manual_seed(4)
    logits, ids = torch.randn(4 * len(WAYS), 2500, generator=generator), torch.tensor([7, 8, 9])
    configs = [_config(seed, WAYS[seed % len(WAYS)]) for seed in range(len(logits) - 1)]
    configs.append(GenerationConfig(temperature=0.0))

    def chosen(places):
        samplers = [Sampler(configs[at], len(ids)) for at in places]
        return [choose(samplers, logits[places], lambda _: ids).tolist() for _ in range(3)]

    together = chosen(list(range(len(logits))))
    alone = [chosen([at]) for at in range(len(logits))]
    assert together == [[one[turn][0] for one in alone] for turn in range(3)]
    assert together[0] != together[1]


def test_what_is_not_finite_breaks_no_batch(monkeypatch):
    logits = torch.randn(len(WAYS), 2500, generator=torch.Generator().manual_seed(5))
    logits[::2], logits[1, 5] = float("nan"), float("inf")
    samplers = [Sampler(_config(at, options), 1) for at, options in enumerate(WAYS)]
    found = choose(samplers, logits, lambda _: torch.tensor([3]))
    assert ((found >= 0) & (found < 2500)).all()
    monkeypatch.setattr("core.generate.sampling._NUMBERS_AT_ONCE", 5000)
    again = [Sampler(_config(at, options), 1) for at, options in enumerate(WAYS)]
    sound = logits.isfinite().all(-1)
    assert torch.equal(choose(again, logits, lambda _: torch.tensor([3]))[sound], found[sound])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_last_part_of_the_whole_is_still_a_token_that_is_left(options, monkeypatch):
    monkeypatch.setattr("random.Random.random", lambda _: 1 - 2**-53)  # which is 1 in float32
    logits, ids = torch.randn(8, 2500, generator=torch.Generator().manual_seed(6)) * 2.5, torch.tensor([7])
    found = choose([Sampler(_config(at, options), 1) for at in range(8)], logits, lambda _: ids)
    for row, token in zip(logits, found.tolist(), strict=True):
        assert _left(row, ids, options)[token] > 0
