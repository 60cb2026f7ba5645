"""Mappings by hand."""

import pytest

from core.data.mapping import DataMapping, mapping_of
from core.errors import InvalidConfig
from tests.core.data_files import lines, take


def test_a_mapping_by_hand_with_templates(tmp_path):
    mapping = mapping_of(
        ["label=class"], ["Classify: {words}", "assistant=It is {class}.", "system=Be brief."]
    )
    content = "words,class\nred rose,flower\nblue {sky},thing\n"
    summary, rows, _ = take(tmp_path, "a.csv", content, mapping)
    assert [one["content"] for one in rows[1].messages] == [
        "Be brief.",
        "Classify: blue {sky}",
        "It is thing.",
    ]
    assert summary.labels == {"flower": 1, "thing": 1}


@pytest.mark.parametrize(
    ("pairs", "templates", "said"),
    [
        (["user"], [], "expected role=column"),
        (["wizard=a"], [], "no role 'wizard'"),
        (["user=nothere", "assistant=b"], [], "no column 'nothere'; the file has 'a', 'b'"),
        (["assistant=b"], ["{c}"], "no column 'c'"),
        (["user=a"], [], "needs a column for assistant"),
        (["user=a", "user=b"], [], "user is given twice"),
        (["text=a", "user=b"], [], "'text' has no use for user"),
        (["text=a"], ["Q: {b}"], "'text' has no use for a template for user"),
        (["turns=a", "assistant=b"], [], "has no use for assistant"),
        (["assistant=b"], ["foo=Hello {a}"], "a template can make system, user, assistant, not 'foo'"),
        (["assistant=b"], ["  "], "template for user is empty"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(pairs, templates, said):
    with pytest.raises(InvalidConfig, match=said):
        mapping_of(pairs, templates, columns=["a", "b"])


def test_text_and_label_mean_the_same_by_hand_as_by_detection():
    assert mapping_of(["text=a", "label=b"]).columns == {"user": "a", "assistant": "b", "label": "b"}
    assert mapping_of(["user=a", "assistant=b", "input=c", "history=d"]).format == "alpaca"


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_empty_columns_leave_no_blank_lines_in_a_template_of_columns(tmp_path, empty):
    rows = [
        {"context": "c", "instruction": "i", "input": "x", "response": "r"},
        {"context": empty, "instruction": "i", "input": "x", "response": "r"},
        {"context": empty, "instruction": "i", "input": empty, "response": "r"},
    ]
    mapping = mapping_of(["assistant=response"], ["{context}\n\n{instruction}\n{input}"])
    _, stored, found = take(tmp_path, "a.jsonl", lines(*rows), mapping, near=False)
    said = [row.messages[0]["content"] for row in stored]
    assert (said, found) == (["c\n\ni\nx", "i\nx", "i"], [])


def test_a_missing_question_is_a_fault_and_words_of_a_template_stay(tmp_path):
    rows = [
        {"context": "", "question": "q", "answer": "a"},
        {"context": "c", "question": None, "answer": "a"},
    ]
    mapping = mapping_of(["assistant=answer"], ["{context}\n{question}"])
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows), mapping, near=False)
    assert found == [(2, "missing", "question is missing; expected text.")]
    (tmp_path / "b").mkdir()
    mapping = mapping_of(["assistant=answer"], ["Context: {context}\nQ: {question}"])
    _, stored, _ = take(tmp_path / "b", "a.jsonl", lines(rows[0]), mapping, near=False)
    assert stored[0].messages[0]["content"] == "Context: \nQ: q"


def test_optional_columns_without_a_value_are_left_out(tmp_path):
    row = '{"instruction": "i", "input": NaN, "system": "  ", "output": "o"}\n'
    _, stored, found = take(tmp_path, "a.jsonl", row)
    assert ([turn["content"] for turn in stored[0].messages], found) == (["i", "o"], [])


def test_braces_are_written_twice_in_a_template(tmp_path):
    mapping = mapping_of(["assistant=b"], ['Return {{"a": 1}} for {a}'])
    _, rows, _ = take(tmp_path, "a.csv", "a,b\nx,y\n", mapping)
    assert rows[0].messages[0]["content"] == 'Return {"a": 1} for x'


@pytest.mark.parametrize(
    ("form", "columns", "templates", "separator", "special_tokens"),
    [
        ("messages", {"system": "s", "turns": "m"}, {}, "", False),
        ("sharegpt", {"turns": "c", "label": "l"}, {"system": "Be brief."}, "", False),
        ("alpaca", {"assistant": "o", "history": "h", "input": "i", "user": "q"}, {}, "", False),
        ("prompt and completion", {"assistant": "b"}, {"user": "{a}?"}, "", False),
        ("text and label", {"assistant": "l", "label": "l", "user": "t"}, {}, "", False),
        ("text", {"text": "t"}, {}, "", True),
        ("separated lines", {"text": "text"}, {}, "||", False),
        ("linked rows", {"content": "t", "id": "i", "parent": "p", "role": "r"}, {}, "", False),
    ],
)
def test_a_mapping_that_was_stored_before_the_formats_were_files_is_read(
    form, columns, templates, separator, special_tokens
):
    stored = {
        "format": form,
        "columns": columns,
        "templates": templates,
        "separator": separator,
        "special_tokens": special_tokens,
    }
    assert DataMapping.parse(stored).to_dict() == stored
