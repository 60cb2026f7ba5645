"""Which tokens are trained on: the assistant's text and its end token, exactly."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from core.base_model.templates import TEMPLATES
from core.data.formats import Example
from core.data.rendering import IGNORE, Renderer
from core.errors import InvalidData

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)


def _supervised(tokenizer, rendered):
    return tokenizer.decode([label for label in rendered.labels if label != IGNORE])


def _conversation(*turns):
    roles = ["user", "assistant"] * len(turns)
    return Example(
        1, tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False))
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, answer=TEXT)
def test_supervised_tokens_are_the_answer_and_its_end_token(tokenizer, question, answer):
    rendered = Renderer(tokenizer).render(_conversation(question, answer))
    assert _supervised(tokenizer, rendered) == f"{answer}<|im_end|>"


def test_every_answer_of_a_conversation_is_trained_on(tokenizer):
    rendered = Renderer(tokenizer).render(_conversation("a", "one", "b", "two"))
    assert _supervised(tokenizer, rendered) == "one<|im_end|>two<|im_end|>"


def test_an_answer_that_repeats_the_question_is_found_in_its_own_turn(tokenizer):
    rendered = Renderer(tokenizer).render(_conversation("same", "same"))
    assert _supervised(tokenizer, rendered) == "same<|im_end|>"
    first = next(i for i, label in enumerate(rendered.labels) if label != IGNORE)
    assert rendered.ids[:first] == Renderer(tokenizer).encode_prompt([{"role": "user", "content": "same"}])


def test_training_starts_from_the_ids_that_the_playground_sends(tokenizer):
    rendered = Renderer(tokenizer).render(_conversation("hello", "fine"))
    prompt = Renderer(tokenizer).encode_prompt([{"role": "user", "content": "hello"}])
    assert rendered.ids[: len(prompt)] == prompt


def test_a_template_without_end_tokens_gets_one(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["plain"])
    rendered = Renderer(tokenizer).render(_conversation("a", "b"))
    assert [label for label in rendered.labels if label != IGNORE][-1] == tokenizer.eos_token_id
    assert _supervised(tokenizer, rendered) == "b<|im_end|>"


def test_a_template_without_any_end_token_gets_one_behind_the_last_answer(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    rendered = Renderer(tokenizer).render(_conversation("a", "b"))
    assert rendered.labels[-1] == rendered.ids[-1] == tokenizer.eos_token_id
    assert _supervised(tokenizer, rendered) == "b<|im_end|>"


def test_where_a_template_rewrites_earlier_turns_each_answer_is_a_sequence(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}{% if "
        "add_generation_prompt %}A{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renderer, talk = Renderer(tokenizer), _conversation("a", "b", "c", "d")
    found = renderer.sequences(talk)
    assert [_supervised(tokenizer, one) for one in found] == ["b<|im_end|>", "d<|im_end|>"]
    assert [code for code, _ in found[0].notes] == ["several_sequences"]
    for one, at in zip(found, (1, 3), strict=True):
        assert one.ids[: one.spans[0][0]] == renderer.encode_prompt(talk.messages[:at])


def test_a_template_that_refuses_says_so(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system please') }}")
    with pytest.raises(InvalidData, match="no system please"):
        Renderer(tokenizer).render(_conversation("a", "b"))


def test_plain_text_is_trained_on_whole(tokenizer):
    text = Example(1, text="the quick brown fox " * 20)
    whole = Renderer(tokenizer).render(text)
    assert whole.labels == whole.ids
    assert whole.ids[-1] == tokenizer.eos_token_id


# Any text, with the known templates; with the starter's own tokenizer in tests/core/test_starter_rows.py.

PIECES = st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "\n\n", " ", "###", "Assistant:", "<|eot_id|>"])
ROWDY = (
    st.lists(st.characters(exclude_categories=["Cs"]) | PIECES, min_size=1, max_size=30)
    .map("".join)
    .filter(str.strip)
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(ROWDY, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_supervised_tokens_decode_to_the_answers_whatever_they_hold(tokenizer, name, turns):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = TEMPLATES[name]
    renderer = Renderer(plain)
    rendered = renderer.render(_conversation(*turns))
    found = [plain.decode(rendered.ids[start:stop]) for start, stop in rendered.spans]
    assert found == [answer + plain.eos_token for answer in turns[1::2]]
    for count in range(1, len(turns), 2):
        prompt = renderer.encode_prompt(_conversation(*turns[:count]).messages)
        assert rendered.ids[: len(prompt)] == prompt


def test_special_tokens_inside_a_text_are_text(tokenizer):
    renderer = Renderer(tokenizer)
    rendered = renderer.render(_conversation("x<|im_end|>y", "a<|im_start|>b"))
    specials = [token for token in rendered.ids if token in (1, 2)]
    clean = renderer.render(_conversation("xy", "ab"))
    assert specials == [token for token in clean.ids if token in (1, 2)]
    assert _supervised(tokenizer, rendered) == "a<|im_start|>b<|im_end|>"
    prompt = renderer.encode_prompt(_conversation("x<|im_end|>y").messages)
    assert rendered.ids[: len(prompt)] == prompt


@pytest.mark.parametrize(("meant", "specials"), [(False, 1), (True, 3)])
def test_special_tokens_in_plain_text_are_special_only_where_they_are_meant(tokenizer, meant, specials):
    rendered = Renderer(tokenizer, special_tokens=meant).render(
        Example(1, text="<|im_start|>user hi<|im_end|> more")
    )
    assert sum(token in (1, 2) for token in rendered.ids) == specials


def test_answers_of_weight_zero_carry_no_loss_and_keep_their_ids(tokenizer):
    whole, silent = _conversation("a", "one", "b", "two"), _conversation("a", "one", "b", "two")
    silent = Example(silent.row, silent.messages, untrained=frozenset({1}))
    renderer = Renderer(tokenizer)
    assert _supervised(tokenizer, renderer.render(silent)) == "two<|im_end|>"
    assert renderer.render(silent).ids == renderer.render(whole).ids


def test_tokenizers_that_put_a_space_in_front_are_rendered_whole():
    """As Llama 2's: a piece tokenised by itself would begin with a space of its own."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    backend.train_from_iterator(
        ["hello there my friend \n [INST] [/INST] How are you? Fine, thanks."] * 50, trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] "
        "+ ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    renderer = Renderer(tokenizer)
    rendered = renderer.render(_conversation("How are you", "Fine, thanks.", "hello", "hello there"))
    whole = tokenizer(
        "<s>[INST] How are you [/INST] Fine, thanks.</s>[INST] hello [/INST] hello there</s>",
        add_special_tokens=False,
    )
    assert rendered.ids == whole["input_ids"]
    assert [tokenizer.decode(rendered.ids[a:b]).strip() for a, b in rendered.spans] == [
        "Fine, thanks.</s>",
        "hello there</s>",
    ]


def test_a_template_that_rewrites_an_answer_is_followed_by_its_prompt(tokenizer, monkeypatch):
    """As Qwen3's: the last answer gets a block in front that the generation prompt has not."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{{ m['content'] | replace('secret', '') }}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renderer = Renderer(tokenizer)
    assert (
        _supervised(tokenizer, renderer.render(_conversation("a", "fine")))
        == "<think>\n\n</think>\n\nfine<|im_end|>"
    )
    with pytest.raises(InvalidData, match=r"Row 1: .*leaves out a part of turn 2, the assistant's"):
        renderer.render(_conversation("a", "secretfine"))
    with pytest.raises(InvalidData, match="leaves out a part of turn 2"):
        renderer.render(_conversation("a", "secretfine", "b", "more"))


def test_rows_come_back_in_order_with_the_reason_where_one_fails(tokenizer, monkeypatch):
    refusing = (
        "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
        + tokenizer.chat_template
    )
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    rows = [
        Example(i, _conversation("bad" if i % 5 == 0 else "good", f"answer {i}").messages)
        for i in range(1000)
    ]
    found = list(Renderer(tokenizer).render_many(rows))
    assert [isinstance(one, InvalidData) for one in found] == [i % 5 == 0 for i in range(1000)]
    assert all(
        _supervised(tokenizer, one[0]) == f"answer {i}<|im_end|>" for i, one in enumerate(found) if i % 5
    )
