"""A template is a stranger's program: whatever it does ends within seconds, with a sentence about the row."""

import copy
import os
import signal
import time

import pytest
from transformers.utils import chat_template_utils

from core.data import templating
from core.data.formats import Example
from core.data.rendering import Renderer
from core.data.template_process import environment
from core.data.templating import Conversation, apply_template, apply_templates
from core.errors import InvalidData
from tests.conftest import CHATML

TURNS = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Fine"})
MANY = "range(100000)"
LOOP = "{% for a in " + MANY + " %}"
GROW = "{% set n = namespace(s='ab') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
SORT = "{% set x = " + MANY + " | map('string') | sort(reverse=true) | list %}"
BOMBS = {
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "much text": LOOP * 2 + "abcdefgh" + "{% endfor %}" * 2,
    "center": "{{ 'a'.center(2000000000) }}",
    "a large range": "{% for a in range(10**9) %}{% endfor %}",
    "a repeated text": "{{ 'a' * 10**9 }}",
    "a power": "{{ 7 ** (10 ** 9) > 1 }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros": "{% macro m(n) %}{{ m(n + 1) if n < 99 }}{{ m(n + 1) if n < 99 }}{% endmacro %}{{ m(0) }}",
    "width": "{{ '%2000000000d' % 1 }}",
    "format": "{{ '{:>2000000000}'.format(1) }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "join": "{{ (['b' * 100000] * 100000) | join('a' * 1000) }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'a' * 100000) }}",
    "doubling": GROW,
    "sorting": LOOP + SORT + "{% endfor %}",
    "one slow call": "{{ ('<' * 3000000) | striptags }}",
}


def refusing(when):
    return "{% if " + when + " %}{{ raise_exception('no') }}{% endif %}" + CHATML


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A tenth of the time, and one failure is enough to give a template up."""
    monkeypatch.setattr(templating, "SECONDS", 0.2)
    monkeypatch.setattr(templating, "MOST_STOPPED", 1)


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


@pytest.mark.parametrize("name", BOMBS)
def test_every_bomb_ends_with_a_sentence_about_its_row(tokenizer, name):
    start = time.monotonic()
    with pytest.raises(InvalidData, match=r"^Row 3: .*chat template") as refused:
        Renderer(with_template(tokenizer, BOMBS[name] + CHATML)).render(Example(3, TURNS))
    assert time.monotonic() - start < 15
    said = str(refused.value)
    assert not any(word in said for word in ("Error", "object", "sandbox", "MAX_RANGE", "str"))
    assert said.endswith(".")
    assert apply_template(tokenizer, TURNS, add_generation_prompt=False) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nFine<|im_end|>\n"
    )


def test_one_row_that_hangs_does_not_take_its_neighbours_with_it(tokenizer, monkeypatch):
    monkeypatch.setattr(templating, "MOST_STOPPED", 3)
    hangs = "{% if messages[0]['content'] == 'no' %}{{ ('<' * 3000000) | striptags }}{% endif %}" + CHATML
    turns = [({**TURNS[0], "content": content}, TURNS[1]) for content in ("yes", "no", "yes")]
    found = apply_templates(with_template(tokenizer, hangs), [Conversation(one) for one in turns])
    assert [isinstance(one, InvalidData) for one in found] == [False, True, False]


def test_a_template_that_never_ends_is_given_up_not_tried_for_every_row(tokenizer):
    rows = [Example(number, TURNS) for number in range(600)]
    start = time.monotonic()
    found = list(Renderer(with_template(tokenizer, BOMBS["nested loops"])).render_many(rows))
    assert all(isinstance(one, InvalidData) for one in found)
    assert time.monotonic() - start < 15


def test_a_process_that_says_nothing_is_ended_and_the_next_is_watched_as_well(tokenizer, monkeypatch):
    real = templating._started

    def stopped():
        process = real()
        os.kill(process.pid, signal.SIGSTOP)  # its time is not counted then
        return process

    monkeypatch.setattr(templating, "_PROCESS", templating._TemplateProcess())
    monkeypatch.setattr(templating, "_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(templating, "_started", stopped)
    for text in ("one", "two"):
        with pytest.raises(InvalidData, match="does not come to an end"):
            apply_template(with_template(tokenizer, text), TURNS, add_generation_prompt=False)
    monkeypatch.setattr(templating, "_WAIT_SECONDS", 30)
    monkeypatch.setattr(templating, "_started", real)
    three = with_template(tokenizer, "three")
    found = [apply_template(three, TURNS, add_generation_prompt=False) for _ in "ab"]
    templating._PROCESS._forget()
    assert found == ["three"] * 2


@pytest.mark.parametrize(
    ("template", "roles", "said"),
    [
        ("{{ raise_exception('Only user and assistant') }}", "ua", "it says 'Only user and assistant"),
        ("{{ messages[0]['calls'][0]['id'] }}", "ua", "it asks for 'calls', which these turns"),
        ("{{ messages[9].content }}", "ua", "it asks for (something that|'9', which) these turns"),
        ("{{ user_name.first }}", "ua", "it asks for 'user_name', which no chat program"),
        ("a\n{{ messages + 1 }}", "ua", r"computes with something .* \(line 2\)"),
        ("{{ messages[0]['content']() }}", "ua", "computes with something"),
        ("a\n{% for m in %}", "ua", r"is faulty \(line 2\): .* Mend the template in the base's folder"),
        ("{{ ''.__class__.__mro__ }}", "ua", "may not do|do not have"),
        (refusing("messages[0].role == 'system'"), "sua", "Put the text of the system turn in front"),
        (refusing("messages[0].role == messages[1].role"), "uuaua", "Join neighbouring turns of one role"),
        (
            refusing("messages[0].role == 'system' or messages[0].role == messages[1].role"),
            "suua",
            "Put the text of the system turn .*; and join neighbouring turns of one role",
        ),
        (refusing("messages[0].role == 'assistant'"), "aua", "Begin with a user's turn"),
        (refusing("messages[0].role != 'user'"), "aua", "Begin with a user's turn"),
    ],
)  # fmt: skip
def test_what_a_template_says_becomes_a_sentence(tokenizer, template, roles, said):
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = tuple({"role": names[role], "content": f"text {at}"} for at, role in enumerate(roles))
    with pytest.raises(InvalidData, match=f"^Row 5: .*({said})") as refused:
        Renderer(with_template(tokenizer, template)).render(Example(5, turns))
    assert not any(word in str(refused.value) for word in ("object", "Error", "list", "dict", "NoneType"))


def test_our_environment_is_that_of_transformers(tokenizer):
    template = (
        "{{ bos_token }}{% set ns = namespace(n=0) %}  {% for m in messages %}\n"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}\n"
        "{%- generation %}{{ m | tojson }}{{ m.content | tojson(indent=2) }}{% endgeneration %}\n"
        "{{ dict(a=1) | tojson }}{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is none }}"
        "{{ ns.n }}{{ undefined_one }}{{ m.content.split('l')[-1].strip() | title }}é\n{% endfor %}"
        "{% if add_generation_prompt %}ask{% endif %}{{ eos_token }}{{ pad_token }}"
    )
    other = with_template(tokenizer, template)
    turns = [*TURNS, {"role": "user", "content": 'Ö "x" \\ \ud83d'}]
    for asks in (False, True):
        wanted = other.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)
        assert apply_template(other, turns, add_generation_prompt=asks) == wanted
    theirs = chat_template_utils._compile_jinja_template(template)
    assert set(environment().globals) == set(theirs.environment.globals)
    assert set(environment().filters) == set(theirs.environment.filters)
