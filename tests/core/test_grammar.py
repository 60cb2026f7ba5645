"""Answers that are held to a form: jsonschema and Python's own expressions judge them."""

import json
import re

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from core.errors import InvalidConfig, InvalidInput
from core.generate.config import GenerationConfig
from core.generate.decode import Decoder, RowRequest
from core.generate.grammar import form_of, require_possible
from core.lora.bank import AdapterBank
from tests.core.helpers import load

PROMPT = [5, 6, 7, 8]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blüe"]}, "maxItems": 3},
        "kept": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "kept"],
    "additionalProperties": False,
}
SCHEMAS = {
    "object": PERSON,
    "choice": {"enum": ["yes", "no", 3, None]},
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    "nested": {
        "$defs": {
            "leaf": {
                "type": "object",
                "properties": {"at": {"const": 7}},
                "required": ["at"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "minItems": 1,
        "maxItems": 2,
    },
}


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture(scope="module")
def answers(base):
    """(text, why it ended) of the plain base's answers to some configurations, in one batch."""
    bank = AdapterBank(base.layers, [path for path in base.layers if path != base.head], 1, 4)

    def ask(*configs, prompt=PROMPT, ends=None):
        decoder = Decoder(base, bank, [RowRequest(prompt, 0, config) for config in configs], ends=ends)
        found = [["", ""] for _ in configs]
        for events in decoder.steps():
            for event in events:
                found[event.row][0] += event.text
                found[event.row][1] = event.reason
        return found

    return ask


def _held_to(schema, **options):
    return GenerationConfig(json_schema=json.dumps(schema), **{"max_tokens": 900, "top_p": 1.0} | options)


def _ids(base, text):
    return base.tokenizer.encode(text, add_special_tokens=False)


def _taken(form, ids):
    return [form.take(one) for one in ids]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_json_of_the_schema_however_they_are_sampled(answers, name):
    schema = SCHEMAS[name]
    configs = [_held_to(schema, temperature=heat, seed=seed) for heat in (0.0, 1.0, 3.0) for seed in range(4)]
    configs += [_held_to(schema, temperature=2.0, top_k=40), _held_to(schema, temperature=2.0, top_p=0.9)]
    whole = [text for text, reason in answers(*configs) if reason == "end"]
    for text in whole:
        jsonschema.validate(json.loads(text), schema)
    assert len(whole) > len(configs) / 2  # chance may fill the context with white space
    assert len(set(whole)) > 1


@pytest.mark.parametrize("pattern", [r"[a-f]{3}-\d+\.", r"(?i)yes|no", r"[^a-z]{4}", r"ü+ß"])
def test_answers_match_the_pattern_from_end_to_end(answers, pattern):
    configs = [GenerationConfig(pattern=pattern, temperature=1.0, max_tokens=60, seed=at) for at in range(6)]
    whole = [text for text, reason in answers(*configs) if reason == "end"]
    assert len(whole) >= 3
    assert all(re.fullmatch(pattern, text) for text in whole)


def test_greedy_equals_transformers_held_to_the_same_words(base, answers, tiny_llama):
    oracle = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    words = ["the quick brown fox", "the lazy dog", "hello world"]
    ends = {base.tokenizer.convert_tokens_to_ids("<|im_end|>")}

    def allowed(_, ids):
        said = base.tokenizer.decode(ids[len(PROMPT) :])
        if said in words:
            return sorted(ends)
        following = range(3, base.model.config.vocab_size)
        return [
            one
            for one in following
            if any(word.startswith(said + base.tokenizer.decode([one])) for word in words)
        ]

    expected = oracle.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=40,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        eos_token_id=sorted(ends),
    )[0, len(PROMPT) :]
    config = GenerationConfig(pattern="|".join(words), temperature=0.0, max_tokens=40)
    found = answers(config, ends=ends)
    assert found == [[base.tokenizer.decode(expected, skip_special_tokens=True), "end"]]


def test_the_end_may_come_where_the_answer_is_whole_and_nowhere_else(base):
    ends = {base.tokenizer.convert_tokens_to_ids("<|im_end|>"), 7}
    form = form_of(GenerationConfig(pattern="the( the)*"), base.tokenizer, PROMPT, ends)
    size = base.model.config.vocab_size
    assert not form.allowed(size)[list(ends)].any()
    assert not any(_taken(form, _ids(base, "the")))
    assert form.allowed(size)[list(ends)].all()
    assert form.allowed(size + 5)[size:].tolist() == [False] * 5
    assert _taken(form, [min(ends)]) == [False]


def test_rows_beside_it_and_log_probabilities_are_as_without(base, answers):
    free = [GenerationConfig(temperature=heat, max_tokens=20, seed=3) for heat in (0.0, 1.2)]
    held = _held_to({"enum": ["hello"]}, temperature=0.0)
    assert answers(free[0], held, free[1])[::2] == answers(*free)
    bank = AdapterBank(base.layers, [path for path in base.layers if path != base.head], 1, 4)
    told = []
    for config in (held, GenerationConfig(temperature=0.0, max_tokens=1)):
        decoder = Decoder(base, bank, [RowRequest(PROMPT, 0, config, likeliest=3)])
        told.append(next(event for events in decoder.steps() for event in events).logprobs)
    assert told[0][1:] == told[1][1:]
    assert told[0][0][0].startswith('"')


def test_thinking_that_the_prompt_begins_is_thought_to_its_end_first(base):
    config, size = _held_to({"enum": ["yes"]}), base.model.config.vocab_size
    begun = _ids(base, "how are you<think>\n")
    form = form_of(config, base.tokenizer, begun, [])
    assert form.allowed(size) is None
    _taken(form, _ids(base, "a < b, </th ink> fine "))
    assert form.allowed(size) is None
    _taken(form, _ids(base, "</think>"))
    assert form.allowed(size).nonzero()[0].tolist() == [
        one for one in range(3, size) if '"yes"'.startswith(base.tokenizer.decode([one]))
    ]
    assert _taken(form, _ids(base, '"yes"'))[-1] is True
    over = form_of(config, base.tokenizer, _ids(base, "<think>\nfine</think>\n\n"), [])
    assert over.allowed(size) is not None


def test_what_no_answer_can_be_held_to_is_refused(base, answers):
    with pytest.raises(InvalidInput, match=r"cannot be held to this JSON schema: .*not"):
        answers(_held_to({"type": "object", "not": {"type": "object"}}))
    with pytest.raises(InvalidInput, match=r"cannot be held to the pattern '\(yes': .*"):
        require_possible(GenerationConfig(pattern="(yes"))
    with pytest.raises(InvalidConfig, match=r"json_schema is not JSON .* an object is expected"):
        GenerationConfig(json_schema="{")
    with pytest.raises(InvalidConfig, match=r"json_schema is \[1\]; an object is expected"):
        GenerationConfig(json_schema="[1]")
    with pytest.raises(InvalidConfig, match=r"json_schema and pattern are both given"):
        GenerationConfig(json_schema="{}", pattern="a")
    form = form_of(GenerationConfig(pattern="abc"), base.tokenizer, PROMPT, [])
    with pytest.raises(InvalidInput, match="cannot be held to its form any further"):
        form.take(_ids(base, "d")[0])


def test_what_the_grammar_cannot_be_written_of_is_refused():
    for held in (
        GenerationConfig(json_schema='{"const": "\\ud800"}'),
        GenerationConfig(json_schema='{"const": 1' + "0" * 400 + "}"),
        GenerationConfig(pattern="\ud800"),
    ):
        with pytest.raises(InvalidInput, match=r"cannot be held to (this JSON schema|the pattern)"):
            require_possible(held)


def test_faults_on_the_way_are_told_in_a_sentence(base):
    endless = form_of(_held_to({"$ref": "#"}), base.tokenizer, PROMPT, [])
    endless.allowed(base.model.config.vocab_size)
    with pytest.raises(InvalidInput, match=r"any further: nothing matches what it asks for next$"):
        endless.take(5)
    form = form_of(GenerationConfig(pattern="abc"), base.tokenizer, PROMPT, [])
    with pytest.raises(InvalidInput, match="any further") as raised:
        form.take(_ids(base, "d")[0])
    assert "<state>" not in str(raised.value)


@pytest.mark.parametrize("decoder", [decoders.WordPiece("##"), decoders.Metaspace(), None])
def test_a_tokenizer_whose_tokens_stand_for_unknown_bytes_is_refused(decoder):
    own = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1}, unk_token="<unk>"))
    if decoder is not None:
        own.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")
    with pytest.raises(InvalidInput, match=r"cannot be held to a form: which bytes .* Ask without"):
        form_of(GenerationConfig(pattern="yes"), tokenizer, [1], [])


def test_an_answer_does_not_end_in_its_thought(base):
    end, size = base.tokenizer.convert_tokens_to_ids("<|im_end|>"), base.model.config.vocab_size
    begun = _ids(base, "how are you<think>\n")
    form = form_of(_held_to({"enum": ["yes"]}), base.tokenizer, begun, {end})
    assert (~form.allowed(size)).nonzero()[0].tolist() == [end]
    _taken(form, _ids(base, "fine</think>"))
    assert not form.allowed(size)[end]
    _taken(form, _ids(base, '"yes"'))
    assert form.allowed(size).nonzero()[0].tolist() == [end]
