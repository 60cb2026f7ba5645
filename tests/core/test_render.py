"""Which tokens are trained on: the assistant's text and its end token, exactly."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.base_model.templates import TEMPLATES
from core.data.formats import Example
from core.data.render import IGNORE, Renderer
from core.errors import InvalidData

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(str.strip)


def _supervised(tokenizer, rendered):
    return tokenizer.decode([label for label in rendered.labels if label != IGNORE])


def _conversation(*turns):
    roles = ["user", "assistant"] * len(turns)
    return Example(1, tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False)))


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
    assert rendered.ids[-1] == tokenizer.eos_token_id
    assert rendered.labels[-1] == tokenizer.eos_token_id
    assert _supervised(tokenizer, rendered) == "b<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, monkeypatch):
    template = "{% for m in messages %}{{ loop.length ~ m['content'] }}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InvalidData, match=r"Row 1.*template changes earlier turns"):
        Renderer(tokenizer).render(_conversation("a", "b", "c", "d"))


def test_a_template_that_refuses_says_so(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system please') }}")
    with pytest.raises(InvalidData, match="no system please"):
        Renderer(tokenizer).render(_conversation("a", "b"))


def test_plain_text_is_trained_on_whole(tokenizer):
    text = Example(1, text="the quick brown fox " * 20)
    whole = Renderer(tokenizer).render(text)
    assert whole.labels == whole.ids
    assert whole.ids[-1] == tokenizer.eos_token_id
