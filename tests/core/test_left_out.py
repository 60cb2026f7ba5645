"""A reading of the rows that would leave a column of text out asks."""

import pytest

from core.data.detection import detect_file
from core.errors import InvalidData
from tests.core.data_files import MESSAGES, lines, take, written


def _detected(tmp_path, *rows):
    return detect_file(written(tmp_path, "a.jsonl", lines(*rows)))


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ([{"prompt": "p", "text": "t"}], ("prompt",)),
        ([{"instruction": "Write a poem", "text": "t"}], ("instruction",)),
        ([{"text": "a story", "target": "t"}], ("target",)),
        ([{"text": "Paris is in France", "answer": "Paris"}], ("answer",)),
        ([{"text": "t", "title": "T"}], ("title",)),
        ([{"text": "t", "system": "s"}], ("system",)),
        ([{"text": "t", "Prompt": "p"}], ("Prompt",)),
        ([{"text": "t", "prompt": {"text": "p", "replies": []}}], ("prompt",)),
        (
            [{"text": f"t{i}", "essay_topic": f"Why the number {i} is odd"} for i in range(5)],
            ("essay_topic",),
        ),
        ([{"question": "q", "answer": "a", "passage": "It rains."}], ("passage",)),
        ([{"question": "q", "answer": "a", "rationale": "since"}], ("rationale",)),
        (
            [{"question": f"q{i}", "answer": "a", "paper": f"We show that {i} holds"} for i in range(5)],
            ("paper",),
        ),
        ([{"text": "t", "label": "l", "title": "T"}], ("title",)),
        ([{"messages": MESSAGES, "context": "It rains."}], ("context",)),
        ([{"messages": MESSAGES, "instructions": "Be brief."}], ("instructions",)),
    ],
)
def test_a_column_of_text_is_not_left_out_without_a_question(tmp_path, rows, left):
    found = _detected(tmp_path, *rows)
    assert (found.left_out, found.chosen) == (left, None)
    assert found.candidates
    with pytest.raises(InvalidData, match=f"'{left[0]}' holds text that would be left out"):
        found.require("a.jsonl")


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"text": f"t{i}", "id": i, "url": f"https://a.b/the long page {i}", "date": "1 May"}
            for i in range(5)
        ],
        [{"text": f"t{i}", "source": "the common crawl of May"} for i in range(5)],
        [{"question": f"q{i}", "answer": "a", "source_file": f"the file number {i}"} for i in range(5)],
        [{"question": "q", "answer": "a", "difficulty": "hard"}],
        [{"messages": MESSAGES, "prompt": "hi"}],
        [{"messages": MESSAGES, "title": "Saying hello to somebody"}],
        [{"messages": MESSAGES, "prompt": "", "context": None}],
        [
            {
                "prompt": "What is it?",
                "completion": "It is me.",
                "whole": "### Q: What is it? ### A: It is me.",
            }
        ],
        [{"text": "Q: How many sides has a cube? A: Six.", "question": "How many sides has a cube?"}],
    ],
)
def test_remarks_and_what_stands_in_the_row_anyhow_are_no_question(tmp_path, rows):
    found = _detected(tmp_path, *rows)
    assert (found.left_out, found.chosen is not None) == ((), True)


def test_both_ways_to_use_the_column_are_offered(tmp_path):
    row = {"prompt": "p", "text": "t"}
    said = []
    for number, one in enumerate(_detected(tmp_path, row).candidates):
        (tmp_path / str(number)).mkdir()
        _, rows, _ = take(tmp_path / str(number), "a.jsonl", lines(row), one.mapping)
        said.append([turn["content"] for turn in rows[0].messages] or rows[0].text)
    assert said == ["t", ["p", "t"], ["t", "p"]]


def test_three_columns_that_ask_are_offered_together(tmp_path):
    row = {"instruction": "i", "input": "x", "context": "c", "response": "r"}
    mapping = _detected(tmp_path, row).candidates[0].mapping
    _, rows, _ = take(tmp_path, "b.jsonl", lines(row), mapping)
    assert rows[0].messages[0]["content"] == "c\n\ni\n\nx"
