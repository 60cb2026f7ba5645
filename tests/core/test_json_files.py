"""JSON as people save it: lists of turns, lists under a key, one limit for the length of a row."""

import json

import pytest

from core.errors import InvalidData
from tests.core.data_files import GOOD, MESSAGES, lines, take

_TALKS = [[{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}] for i in range(3)]
_SHARED = [[{"from": "human", "value": f"a{i}"}, {"from": "gpt", "value": f"b{i}"}] for i in range(3)]
_PAIRS = [{"prompt": f"a{i}", "completion": f"b{i}"} for i in range(3)]


def _said(rows):
    return [[turn["content"] for turn in row.messages] for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(*_TALKS)),
        ("a.jsonl", "\n" + lines(*_TALKS).replace("\n", "\n\n")),
        ("a.json", lines(*_TALKS)),
        ("a.json", json.dumps(_TALKS)),
        ("a.jsonl", json.dumps(_TALKS)),
        ("a.json", json.dumps(_TALKS, indent=1)),
        ("a.json", json.dumps({"data": _TALKS})),
        ("a.jsonl", lines(*_SHARED)),
        ("a.json", json.dumps(_SHARED)),
        ("a.json", json.dumps({"train": _PAIRS})),
        ("a.json", json.dumps({"train": _PAIRS}, indent=1)),
        ("a.jsonl", json.dumps({"train": _PAIRS})),
        ("a.jsonl", json.dumps({"train": _PAIRS}, indent=1)),
        ("a.json", json.dumps({"version": "1", "authors": [{"name": "A"}], "examples": _PAIRS})),
        ("a.json", json.dumps({"topic": {"a": [1]}, "qa_pairs": _PAIRS})),
        ("a.json", json.dumps({"by": ["A", "B"], "rows": _PAIRS})),
    ],
)
def test_rows_are_found_where_people_put_them(tmp_path, name, content):
    _, rows, found = take(tmp_path, name, content)
    assert (_said(rows), found) == ([[f"a{i}", f"b{i}"] for i in range(3)], [])


def test_lines_that_end_in_cr_alone_are_told_so(tmp_path):
    with pytest.raises(
        InvalidData, match="lines of the file end in CR alone; save it with line ends of Unix"
    ):
        take(tmp_path, "a.jsonl", lines(GOOD, GOOD).replace("\n", "\r"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(_TALKS[0])),
        ("a.json", json.dumps(_TALKS[0], indent=2)),
        ("a.jsonl", json.dumps(_TALKS[0]) + "\n"),
        ("a.json", json.dumps({"messages": _TALKS[0]}, indent=2)),
        ("a.json", json.dumps({"id": 7, "conversations": _SHARED[0]}, indent=2)),
        ("a.jsonl", json.dumps({"messages": _TALKS[0]})),
    ],
)
def test_a_lone_conversation_is_one_row(tmp_path, name, content):
    _, rows, _ = take(tmp_path, name, content)
    assert _said(rows) == [["a0", "b0"]]


def test_linked_rows_in_a_list_stay_rows(tmp_path):
    rows = [
        {"id": 1, "parent_id": None, "role": "user", "text": "q"},
        {"id": 2, "parent_id": 1, "role": "assistant", "text": "a"},
    ]
    _, stored, _ = take(tmp_path, "a.json", json.dumps(rows))
    assert _said(stored) == [["q", "a"]]


def test_lists_beside_the_training_rows_are_left_unread_with_a_word(tmp_path):
    content = {"validation": _PAIRS[:1], "train": _PAIRS, "test": _PAIRS[:2]}
    summary, rows, _ = take(tmp_path, "a.json", json.dumps(content), near=False)
    assert len(rows) == 3
    assert "Left unread: a.json: validation, a.json: test." in summary.hints


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"en": _PAIRS, "de": _PAIRS}, "holds several lists, 'en', 'de'; keep the one"),
        ({"test": _PAIRS}, "holds no list of rows"),
        ({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "a", "1": "b"}}, "holds columns, not rows"),
        ([["a", "b"]], "Row 1 is a list; expected an object with named columns, or a list of turns"),
    ],
)
def test_an_object_without_clear_rows_says_what_it_holds(tmp_path, content, said):
    with pytest.raises(InvalidData, match=said):
        take(tmp_path, "a.json", json.dumps(content))


def test_pythons_quotes_are_named(tmp_path):
    with pytest.raises(InvalidData, match=r"not valid JSON .Python's quotes; write it with json.dumps"):
        take(tmp_path, "a.jsonl", "{'prompt': 'p', 'completion': 'c'}\n")


def test_rows_that_are_single_turns_are_no_question_and_answer(tmp_path):
    with pytest.raises(InvalidData, match="Each row is a single turn"):
        take(tmp_path, "a.jsonl", lines(*_TALKS[0], *_TALKS[1]))


def _long_csv(text):
    return f'messages,n\n"{_cell(GOOD)}",1\n"{text}",2\n"{_cell(GOOD)}",3\n'


def _cell(row):
    return json.dumps(row["messages"]).replace('"', '""')


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lambda text: lines(GOOD, {"messages": text}, GOOD | {"n": 1})),
        ("a.json", lambda text: json.dumps([GOOD, {"messages": text}, GOOD | {"n": 1}])),
        ("a.json", lambda text: json.dumps({"train": [GOOD, {"messages": [text, {}]}, GOOD]})),
        ("a.csv", _long_csv),
    ],
)
def test_a_row_that_is_too_long_costs_itself_alone_in_every_kind_of_file(tmp_path, name, content):
    text = 'x\\"[é' * 3_000_000 if name == "a.json" else "xé" * 12_000_000
    _, rows, found = take(tmp_path, name, content(text), near=False)
    assert (len(rows), found[0][1]) == (3, "unreadable")
    assert "MB long; a row may have 32 MB" in found[0][2]
    assert [one.fault for one in rows.all_stored()] == ["", "unreadable", ""]


def test_a_row_below_the_limit_is_taken(tmp_path):
    long = {"messages": [MESSAGES[0], MESSAGES[1] | {"content": "x" * 30_000_000}]}
    _, rows, found = take(tmp_path, "a.json", json.dumps([GOOD, long]), near=False)
    assert (len(rows), found) == (2, [])


def test_where_a_line_is_cut_short_is_told_within_the_line(tmp_path):
    _, _, found = take(tmp_path, "a.jsonl", '{"prompt": "a"\n' + lines(GOOD))
    assert found[0][2] == "Line 1 is not valid JSON (Expecting ',' delimiter at column 15)."
