"""Log-probabilities of a given answer against transformers' own logits of merged weights."""

import math

import pytest
import torch

from core.adapter_source import AdapterSource, blend
from core.base_model.fingerprint import fingerprint, stat_key
from core.base_model.source import BaseSource
from core.data.formats import Example
from core.engine import Engine
from core.errors import InvalidAdapter, InvalidInput, PromptTooLong
from core.generate.one_token import DecodingState
from tests.core.helpers import load, plain_model, random_adapter

ASKED = [{"role": "user", "content": "hello"}]
ANSWER = "fine, thanks — naïve"
SAID = [*ASKED, {"role": "assistant", "content": ANSWER}]


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture(scope="module")
def source(tiny_llama):
    return BaseSource(tiny_llama.name, tiny_llama, fingerprint(tiny_llama), stat_key(tiny_llama), template="")


@pytest.fixture(scope="module")
def engine():
    return Engine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sources(base, source):
    def make(name, seed):
        weights = random_adapter(base, rank=2 + seed, seed=seed)
        return AdapterSource(name, lambda: source.folder, name, source.fingerprint, source.name, weights)

    one, other = make("one", 1), make("other", 2)
    return {"one": [(one, 1.0)], "mix": [(one, 0.5), (other, -1.0)]}


@torch.no_grad()
def _by_transformers(folder, base, parts):
    """Log-probabilities [answer, vocabulary] by a model with the weights merged in, and the answer's ids."""
    model = plain_model(folder)
    for one, weight in parts:
        for path, layer in one.weights.layers.items():
            model.get_submodule(path).weight.add_(weight * layer.delta_weight())
    rendered = base.renderer.render(Example(0, tuple(SAID)))
    start, stop = rendered.spans[-1]
    logits = model(input_ids=torch.tensor([rendered.ids])).logits[0, start - 1 : stop - 1]
    return logits.log_softmax(-1), rendered.ids[start:stop]


def test_scores_are_those_of_transformers_with_merged_weights(engine, source, sources, base, tiny_llama):
    asked = {"base": [], **sources}
    speakers = [blend(name, parts) for name, parts in asked.items()]
    found = engine.score(source, speakers, ASKED, ANSWER)
    plain, ids = _by_transformers(tiny_llama, base, [])
    for one, parts in zip(found, asked.values(), strict=True):
        wanted, _ = _by_transformers(tiny_llama, base, parts)
        own = wanted.gather(1, torch.tensor(ids)[:, None])[:, 0]
        far = (wanted.exp() * (wanted - plain)).sum(-1)
        assert [token.logprob for token in one.tokens] == pytest.approx(own.tolist(), abs=1e-4)
        assert [token.kl for token in one.tokens] == pytest.approx(far.tolist(), abs=1e-4)
        top = [[value for _, value in token.likeliest] for token in one.tokens]
        torch.testing.assert_close(torch.tensor(top), wanted.topk(5).values, atol=1e-4, rtol=1e-4)
        assert one.total == pytest.approx(float(own.sum()), abs=1e-3)
        assert one.perplexity == pytest.approx(math.exp(-float(own.mean())), rel=1e-4)
        assert [part["digest"] for part in one.weights["parts"]] == [each.digest for each, _ in parts]
    assert found[0].tokens[3].kl == 0 < found[1].tokens[3].kl
    assert found[0].tokens[0].text in ANSWER
    assert found[0].tokens[-1].text == base.tokenizer.eos_token


def test_an_answer_that_was_cut_off_is_scored_without_its_end(engine, source):
    (whole,), (cut,) = (engine.score(source, [None], ASKED, ANSWER, ended=ended) for ended in (True, False))
    assert [token.text for token in cut.tokens] == [token.text for token in whole.tokens[:-1]]
    assert cut.total == pytest.approx(whole.total - whole.tokens[-1].logprob, abs=1e-4)


def test_speakers_are_read_in_one_batch_and_a_long_answer_in_parts(engine, source, sources, monkeypatch):
    seen, prefill = [], DecodingState.prefill
    monkeypatch.setattr(
        DecodingState, "prefill", lambda self, ids, start: seen.append(ids.shape) or prefill(self, ids, start)
    )
    speakers = [None, *(blend(name, parts) for name, parts in sources.items())]
    whole = engine.score(source, speakers, ASKED, ANSWER)
    assert [rows for rows, _ in seen] == [len(speakers) + 1]  # and the base to compare with
    for name, value in {"_NUMBERS": 1, "_READ": 7, "_TOKENS_TOGETHER": 40}.items():
        monkeypatch.setattr(f"core.generate.scoring.{name}", value)
    parts = engine.score(source, speakers, ASKED, ANSWER)
    for one, other in zip(whole, parts, strict=True):
        for name in ("logprob", "kl"):
            values = [[getattr(token, name) for token in scored.tokens] for scored in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_what_cannot_be_scored_is_refused(engine, source, sources, base):
    with pytest.raises(InvalidInput, match="There is no answer to score"):
        engine.score(source, [None], ASKED, "")
    with pytest.raises(PromptTooLong, match=r"is \d,\d{3} tokens long; this model reads at most 256"):
        engine.score(source, [None], ASKED, "far too long " * 99)
    biased = AdapterSource("b", None, "b", source.fingerprint, "", random_adapter(base, seed=4))
    biased.weights.head["x.bias"] = torch.ones(1)
    with pytest.raises(InvalidAdapter, match="b cannot be part of a blend"):
        engine.score(source, [blend("mix", [(biased, 0.5)])], ASKED, ANSWER)
