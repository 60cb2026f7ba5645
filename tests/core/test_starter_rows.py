"""What is trained on with the starter model's own tokenizer: 1,000 random rows for each chat template."""

import json
import random
from functools import cache
from importlib import resources

import pytest

from core.base_model.templates import TEMPLATES
from core.base_model.tokenizer import end_token_ids, load_tokenizer
from core.data.formats import Example
from core.data.rendering import Renderer
from core.data.token_view import check_template, row_view

pytestmark = pytest.mark.starter
NASTY = [
    "<|im_end|>",
    "<|endoftext|>",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "日本語",
    "👩‍🚀",
    "é",
    "\u200b",
    "### Assistant:",
    "```python\n",
    "1,234",
    "…",
]


@cache
def _rows(count):
    """The random conversations, made once for all templates."""
    return tuple(_random_rows(count))


def _random_rows(count):
    """Random conversations of words of the sample data and of what often goes wrong."""
    text = (resources.files("assets") / "captain_conversations.jsonl").read_text(encoding="utf-8")
    words = [
        word
        for line in text.splitlines()
        for message in json.loads(line)["messages"]
        for word in message["content"].split()
    ]
    chance = random.Random(0)

    def said():
        parts = [
            chance.choice(words) if chance.random() < 0.8 else chance.choice(NASTY)
            for _ in range(chance.randint(1, 30))
        ]
        return chance.choice(["", " ", "\n"]) + " ".join(parts) + "x" + chance.choice(["", " ", "\n"])

    for number in range(count):
        system = [{"role": "system", "content": said()}] if chance.random() < 0.3 else []
        turns = [
            {"role": role, "content": said()}
            for _ in range(chance.randint(1, 3))
            for role in ("user", "assistant")
        ]
        yield Example(number, (*system, *turns))


@pytest.mark.parametrize("name", ["its own", *TEMPLATES])
def test_supervised_tokens_decode_to_the_answers_exactly(starter_folder, name):
    tokenizer = load_tokenizer(starter_folder)
    if name != "its own":
        tokenizer.chat_template = TEMPLATES[name]
    renderer, rows = Renderer(tokenizer), _rows(1000)
    for row, rendered in zip(rows, renderer.render_last(rows), strict=True):
        found = [
            tokenizer.decode(rendered.ids[start:stop], clean_up_tokenization_spaces=False)
            for start, stop in rendered.spans
        ]
        answers = [message["content"] for message in row.messages if message["role"] == "assistant"]
        assert found == [f"{answer}<|im_end|>" for answer in answers]
        prompt = renderer.encode_prompt(row.messages[:-1])
        assert rendered.ids[: len(prompt)] == prompt


def test_the_starters_template_passes_its_check(starter_folder):
    renderer = Renderer(load_tokenizer(starter_folder))
    checks = check_template(renderer, end_token_ids(starter_folder, renderer), list(_rows(20)))
    assert [check.passed for check in checks] == [True] * 6


def test_a_row_is_shown_token_by_token(starter_folder):
    messages = (
        {"role": "user", "content": "Hi <|im_end|> there"},
        {"role": "assistant", "content": "Ahoy 日本!"},
    )
    (view,) = row_view(Renderer(load_tokenizer(starter_folder)), Example(1, messages)).sequences
    assert (view.count, view.trained) == (len(view.tokens), sum(token.trained for token in view.tokens))
    assert "".join(token.text for token in view.tokens if token.trained).startswith("Ahoy")
    assert view.tokens[-2].text == "<|im_end|>"
    assert view.tokens[-2].trained
    assert (
        sum(token.text == "<|im_end|>" for token in view.tokens if token.special) == 3
    )  # system, user, assistant: not the typed one
    begins = [at for at, token in enumerate(view.tokens) if token.begins]
    assert len(begins) == 2
    assert view.tokens[begins[1]].text == "<|im_start|>"
