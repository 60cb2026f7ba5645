"""Mappings by hand."""

import pytest

from core.data.mapping import DataMapping, mapping_of
from core.errors import InvalidConfig
from tests.core.data_files import take


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
