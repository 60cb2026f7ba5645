"""Each answer is trained in the context in which it will be asked for, whatever a template does to turns:
tried on templates written for the purpose, one for each thing that published ones do.
"""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.base_model.tokenizer import end_token_ids
from core.data.chat_options import ChatOptions
from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.rendering import Renderer
from core.data.token_report import token_findings, token_report
from core.data.token_view import check_template, row_view
from core.data.tokens import TokenRows, tokenised_in_memory
from core.errors import InvalidData
from tests.conftest import CHATML

END = "<|im_end|>"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
# The place of the last question, behind which reasoning is kept.
LAST = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}"
)
TOOLS_TOLD = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"

THINKS = "thinking is stripped from earlier turns"
TRAITS = {
    THINKS: (
        TOOLS_TOLD + LAST + "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% if loop.index0 > ns.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
        "</think>\n\n{% endif %}{{ m.content }}" + CALLS + "<|im_end|>\n{% else %}" + TURN
        + "{% endif %}{% endfor %}" + ASK
    ),
    "an empty think block is forced": (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n<think>\n"
        "{{ m.reasoning_content or '' }}\n</think>\n\n{{ m.content }}<|im_end|>\n{% else %}"
        + TURN + "{% endif %}{% endfor %}" + ASK
    ),
    "the prompt opens what answers are written without": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip() }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "there is a default system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
    ),
    "the date is injected": (
        "<|im_start|>system\nIt is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n{% for m in messages %}"
        + TURN + "{% endfor %}" + ASK
    ),
    "the number of turns is told": (
        "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + ASK
    ),
    "texts are trimmed": CHATML.replace("message['content']", "(message['content'] | trim)"),
    "the end token stands between turns only": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last %}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
    ),
    "there is no end token": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "a token that ends all follows the last answer": (
        CHATML.replace("{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add")
    ),
    "texts are taken in blocks": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for b in m.content %}{{ b.text }}{% endfor %}"
        "<|im_end|>\n{% endfor %}" + ASK
    ),
}  # fmt: skip
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
)  # fmt: skip
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}" + TURN + "{% endfor %}" + ASK
)
RESULTS_AS_USER = TRAITS[THINKS].replace(
    "{% else %}<|im_start|>{{ m.role }}",
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n{% else %}<|im_start|>{{ m.role }}",
)
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    },
)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co"], exclude_characters="<>"), min_size=1)
SAID = WORDS.map(str.strip).filter(bool)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def renderer(tokenizer, template, **chat):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return Renderer(other, chat=ChatOptions(**chat))


def learnt(found, sequences):
    """(text, ids before it) of each answer that is trained."""
    spans = [(one, *span) for one in sequences for span in one.spans]
    return [(found.tokenizer.decode(one.ids[start:stop]), one.ids[:start]) for one, start, stop in spans]


def require_asked_as_trained(found, example, expected):
    """Every answer is learnt as expected, with an end token, behind the ids that the playground sends."""
    said = learnt(found, found.sequences(example))
    places = [at for at, turn in enumerate(example.messages) if turn["role"] == "assistant"]
    assert [text for text, _ in said] == [one + END for one in expected]
    for (_, before), at in zip(said, places, strict=True):
        assert before == found.encode_prompt(example.messages[:at], example.tools)


@pytest.mark.parametrize("trait", TRAITS)
@QUICK
@given(turns=st.lists(SAID, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_answers_are_learnt_where_they_will_be_asked_for(tokenizer, trait, turns):
    roles = ["user", "assistant"] * 3
    said = tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=False))
    opened = {"an empty think block is forced": "<think>\n\n</think>\n\n"}
    opened["the prompt opens what answers are written without"] = "\n</think>\n\n"
    expected = [opened.get(trait, "") + text for text in turns[1::2]]
    require_asked_as_trained(renderer(tokenizer, TRAITS[trait]), Example(1, said), expected)


@pytest.mark.parametrize("field", [True, False])
@pytest.mark.parametrize("trait", list(TRAITS)[:4])
@QUICK
@given(texts=st.lists(SAID, min_size=6, max_size=6))
def test_reasoning_is_learnt_and_no_longer_seen_by_later_turns(tokenizer, trait, field, texts):
    said, expected = [], []
    for question, thought, answer in (texts[:3], texts[3:]):
        whole = f"<think>\n{thought}\n</think>\n\n{answer}"
        given = {"content": answer, "reasoning": thought} if field else {"content": whole}
        said += [{"role": "user", "content": question}, {"role": "assistant", **given}]
        expected.append(whole.removeprefix("<think>\n") if "opens" in trait else whole)
    found, example = renderer(tokenizer, TRAITS[trait]), Example(1, tuple(said))
    require_asked_as_trained(found, example, expected)
    assert len(found.sequences(example)) == (1 if "default" in trait else 2)


def test_special_tokens_in_what_is_thought_and_said_are_text(tokenizer):
    thought, answer = f"a{END}b", f"so{END}"
    asked = {"role": "user", "content": f"{END}?"}
    example = Example(1, (asked, {"role": "assistant", "content": answer, "reasoning": thought}))
    found = renderer(tokenizer, TRAITS[THINKS])
    require_asked_as_trained(found, example, [f"<think>\n{thought}\n</think>\n\n{answer}"])
    assert found.render(example).ids.count(tokenizer.eos_token_id) == 2  # the template's own


CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"name": "weather", "arguments": {"town": "Zürich's"}}],
}
RESULT = {"role": "tool", "content": '{"sky": "clear"}'}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Zürich\'s"}}\n</tool_call>'


@pytest.mark.parametrize("template", [TRAITS[THINKS], RESULTS_AS_USER])
@pytest.mark.parametrize("thinks", [True, False])
def test_tool_calls_are_learnt_and_their_results_are_read(tokenizer, template, thinks):
    beside = {"reasoning": "A town."} if thinks else {}
    before = "<think>\nA town.\n</think>\n\n" if thinks else ""
    again = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Still."}]
    turns = [{"role": "user", "content": "Sky?"}, CALLED | beside, RESULT]
    turns += [{"role": "assistant", "content": "Clear.", **beside}, *again]
    found = renderer(tokenizer, template)
    example = Example(1, tuple(turns), tools=TOOLS)
    require_asked_as_trained(found, example, [before + CALL, before + "Clear.", "Still."])
    assert len(found.sequences(example)) == (2 if thinks else 1)
    assert '"weather"' in tokenizer.decode(found.encode_prompt(turns[:1], TOOLS))


FORMS = {
    "as JSON": CALLS.replace("arguments | tojson", "arguments if c.function.arguments is string else 1 / 0"),
    "without text": CALLS.replace("{% for c", "{% if m.content is none %}{% for c") + "{% endif %}",
    "by bare definitions": CALLS,
}


@pytest.mark.parametrize("form", FORMS)
def test_calls_are_given_in_the_form_that_a_template_takes(tokenizer, form):
    told = "{% for t in tools or [] %}{{ t.name | string + t.parameters | tojson }}{% endfor %}"
    told = told if form == "by bare definitions" else TOOLS_TOLD
    text = "{% if m.content is not none %}{{ m.content }}{% endif %}"
    template = (
        told
        + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        + text
        + FORMS[form]
        + "<|im_end|>\n{% endfor %}"
        + ASK
    )
    turns = ({"role": "user", "content": "Sky?"}, CALLED, RESULT, {"role": "assistant", "content": "Clear."})
    found = renderer(tokenizer, template)
    require_asked_as_trained(found, Example(1, turns, tools=TOOLS), [CALL, "Clear."])
    assert found.end_ids == {tokenizer.eos_token_id}


def test_what_a_template_leaves_out_of_tools_is_refused_by_row(tokenizer):
    turns = ({"role": "user", "content": "Sky?"}, CALLED, RESULT, {"role": "assistant", "content": "Clear."})
    with pytest.raises(InvalidData, match=r"Row 1: .* leaves out 'weather' of the tools"):
        renderer(tokenizer, CHATML).sequences(Example(1, turns, tools=TOOLS))
    with pytest.raises(InvalidData, match="leaves out 'weather' of the tool call in turn 2"):
        renderer(tokenizer, CHATML).sequences(Example(1, turns))
    with pytest.raises(InvalidData, match="leaves out 'weather' of the tools"):
        renderer(tokenizer, CHATML).encode_prompt(turns[:1], TOOLS)
    closed = ASK.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    thinks = TRAITS[THINKS].replace(ASK, closed)
    row = Example(1, (turns[0], {"role": "assistant", "content": "Clear.", "reasoning": "I look."}))
    with pytest.raises(InvalidData, match=r"no place for the reasoning of turn 2.*let the template think"):
        renderer(tokenizer, thinks).sequences(row)


@pytest.mark.parametrize(
    ("template", "options", "roles", "code"),
    [
        (NO_SYSTEM, {"fold_system": True}, "suaua", "folded"),
        (ALTERNATES, {"join_turns": True}, "uuaua", "joined"),
        (ALTERNATES, {"join_turns": True}, "uaaua", "joined"),
        (ALTERNATES, {"join_turns": True, "fold_system": True}, "suaua", "folded"),
    ],
)
def test_turns_are_fitted_as_the_user_chose_and_the_row_says_so(tokenizer, template, options, roles, code):
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = tuple({"role": names[role], "content": f"{role}{at}"} for at, role in enumerate(roles))
    example = Example(1, turns)
    with pytest.raises(InvalidData, match="choose that for the data set"):
        renderer(tokenizer, template).sequences(example)
    found = renderer(tokenizer, template, **options)
    (whole,) = found.sequences(example)
    assert [one for one, _ in whole.notes] == [code]
    assert row_view(found, example).notes == [whole.notes[0][1]]
    text = tokenizer.decode(whole.ids)
    assert [text.index(turn["content"]) for turn in turns] == sorted(
        text.index(turn["content"]) for turn in turns
    )
    last = len(roles) - 1
    assert learnt(found, [whole])[-1] == (f"a{last}{END}", found.encode_prompt(turns[:last]))
    kept = renderer(tokenizer, CHATML, fold_system=True)
    assert kept.sequences(example)[0].notes == ()  # this one takes a system turn, and two of one speaker


def test_turns_of_which_one_is_not_trained_are_not_joined(tokenizer):
    turns = tuple({"role": role, "content": role} for role in ("user", "assistant", "assistant"))
    found = renderer(tokenizer, CHATML, join_turns=True).sequences(
        Example(1, turns, untrained=frozenset({1}))
    )
    assert [len(one.spans) for one in found] == [1]


def test_a_template_is_given_what_the_data_set_and_the_row_say(tokenizer):
    shown = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    found = renderer(tokenizer, CHATML + "{% if add_generation_prompt %}" + shown + "{% endif %}")
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Aye"})
    silent = {"enable_thinking": False}
    plain, row = (found.sequences(Example(1, turns, template_kwargs=given))[0] for given in ({}, silent))
    chosen = found.with_options(ChatOptions(template_kwargs=silent))
    assert "<think>" not in tokenizer.decode(plain.ids)
    assert "<think>" in tokenizer.decode(row.ids)
    assert chosen.sequences(Example(1, turns))[0].ids == row.ids
    assert chosen.encode_prompt(turns[:1]) == row.ids[: row.spans[0][0]]
    assert [learnt(chosen, [one])[0][0] for one in (plain, row)] == [f"Aye{END}"] * 2


def test_a_generation_block_is_held_against_what_is_trained(tokenizer):
    right = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}",
    ).replace("{% endfor %}", "{% endif %}{% endfor %}")
    wrong = right.replace(
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}", "x{% endgeneration %}{{ message.content }}"
    )
    for template, passed in ((right, True), (wrong, False)):
        checks = {
            one.title: one for one in check_template(renderer(tokenizer, template), {tokenizer.eos_token_id})
        }
        assert checks["Marks as answers what is trained"].passed is passed, checks
    assert "Marks as answers what is trained" not in {
        one.title for one in check_template(renderer(tokenizer, CHATML), {tokenizer.eos_token_id})
    }


# Rows that become several sequences.


def _rows(count):
    turns = [("user", "a question"), ("assistant", "one"), ("user", "another"), ("assistant", "two")]
    said = [{"role": role, "content": text} for role, text in turns]
    thinks = [{**turn, "reasoning": "hm"} if turn["role"] == "assistant" else turn for turn in said]
    rows = [Example(at, tuple(thinks if at % 2 else said)) for at in range(count)]
    return [StoredRow(one.row, 0, one) for one in rows]


def test_sequences_of_a_row_stay_on_one_side_and_what_they_share_is_counted_once(tokenizer):
    found = renderer(tokenizer, TRAITS[THINKS])
    file = tokenised_in_memory(_rows(6), found)
    assert file.rows.tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    import numpy as np

    keep, validation = np.ones(6, bool), np.arange(6) < 2
    rows = TokenRows(file, 200, keep=keep, validation=validation)
    assert (len(rows), rows.validation.tolist()) == (9, [True] * 3 + [False] * 6)
    report = token_report(file, keep, validation, 200, token_findings(file, keep, 200, found.end_ids))
    assert (report.rows, report.validation_rows, report.sequences, report.train_sequences) == (6, 2, 9, 6)
    assert (report.most_sequences, report.counts["several_sequences"]) == (2, 3)
    short = token_report(file, keep, validation, 200, token_findings(file, keep, 200, found.end_ids), 48)
    assert (short.recommended_max_length, report.recommended_max_length % 64) == (48, 0)
    first, second = (file.ids(at).tolist() for at in (1, 2))
    shared = next(at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    assert file.shared.tolist() == [0, 0, shared] + [0, 0, shared] * 2
    assert report.computed_tokens - report.tokens == 3 * shared
    trained = [tokenizer.decode(file.ids(at)[start:stop]) for at in (1, 2) for start, stop in file.spans(at)]
    assert trained == ["<think>\nhm\n</think>\n\none<|im_end|>", "<think>\nhm\n</think>\n\ntwo<|im_end|>"]


# Where answers end.


@pytest.mark.parametrize("trait", ["there is no end token", "the end token stands between turns only"])
def test_the_end_token_that_is_trained_ends_answers_in_the_playground(tokenizer, tmp_path, trait):
    found = renderer(tokenizer, TRAITS[trait])
    found.tokenizer.eos_token = "<|endoftext|>" if "between" in trait else END
    end = found.tokenizer.convert_tokens_to_ids(END)
    assert found.end_ids == {end}
    assert end in end_token_ids(tmp_path, found)


@pytest.mark.parametrize("thinks", [True, False])
def test_an_answer_that_two_tokens_end_is_learnt_with_both(tokenizer, thinks):
    template = TRAITS[THINKS] if thinks else CHATML
    found = renderer(tokenizer, template.replace(END, f"<|endoftext|>{END}"))
    beside = {"reasoning": "hm"} if thinks else {}
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **beside})
    ((text, before),) = learnt(found, found.sequences(Example(1, turns)))
    assert text.endswith(f"b<|endoftext|>{END}")
    assert before == found.encode_prompt(turns[:1])
    assert found.end_ids == {tokenizer.eos_token_id}
