"""Answers that are compared, ranked or judged are never trained on as plain ones."""

import pytest

from app.shared.data_import import ImportRequest, read_rows
from core.data.dataset_file import Findings
from core.data.detection import detect_file
from core.errors import InvalidData
from tests.core.data_files import MESSAGES, lines, take, written

ASKED, ANSWERED = MESSAGES
_GPT = {"from": "gpt", "value": "good"}
_PAIR = {"prompt": "p", "completion": "c"}

NOTHING_OFFERED = [
    ({"messages": MESSAGES, "label": True}, {"messages": MESSAGES, "label": False}),
    ({"messages": MESSAGES, "kto_tag": True},),
    ({"prompt": "p", "preference": {"chosen": "a", "rejected": "b"}},),
    ({"question": "q", "answer": {"preferred": "a", "dispreferred": "b"}},),
    (_PAIR | {"label": False},),
    (_PAIR | {"label": 1}, _PAIR | {"label": 0}),
    ({"question": "q", "answer": "a", "is_correct": False},),
    ({"prompt": "p", "response": "r", "thumbs": "up"}, {"prompt": "p", "response": "s", "thumbs": "down"}),
    (_PAIR | {"upvotes": 5}, {"prompt": "p", "completion": "d", "upvotes": 1}),
    (_PAIR | {"reward": -0.5},),
    (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": _GPT, "rejected": _GPT},
        {
            "conversations": [{"from": "human", "value": "q"}, _GPT, {"from": "human", "value": "r"}],
            "chosen": _GPT,
            "rejected": _GPT,
        },
    ),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},),
    ({"question": "q", "response_j": "a", "response_k": "b"},),
    ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1},),
    ({"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 1, "score_1": -1},),
    ({"instruction": "q", "input": "", "output_1": "a", "output_2": "b", "preference": 2},),
    ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1},),
    ({"conversation_a": MESSAGES, "conversation_b": MESSAGES, "winner": "model_a"},),
    ({"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED], "non_preferred_output": [ANSWERED]},),
    ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]},),
    ({"messages": [ASKED, ANSWERED | {"label": False}]},),
    ({"prompt": "p", "winner": "a", "loser": "b"},),
    ({"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},),
    ({"instruction": "p", "completions": [{"response": "a", "overall_score": 1}] * 2, "output": "a"},),
]
CHOSEN_OFFERED = [
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, ["p", "a"]),
    ({"prompt": "p", "chosen": "a"}, ["p", "a"]),
    ({"prompt": "p", "chosen": [ANSWERED], "rejected": [ANSWERED]}, ["p", "hello"]),
    ({"prompt": "p", "chosen": MESSAGES, "rejected": MESSAGES, "score_chosen": 9.0}, ["hi", "hello"]),
    ({"chosen": MESSAGES, "rejected": MESSAGES}, ["hi", "hello"]),
    ({"prompt": "p", "messages": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}, ["hi", "hello"]),
    ({"messages": MESSAGES, "rejected_response": "b"}, ["hi", "hello"]),
    ({"instruction": "i", "input": "x", "chosen": "a", "rejected": "b"}, ["i\nx", "a"]),
    ({"question": "q", "system": "s", "chosen": "a", "rejected": "b"}, ["s", "q", "a"]),
]


@pytest.mark.parametrize("rows", [*NOTHING_OFFERED, *((row,) for row, _ in CHOSEN_OFFERED)])
def test_preferences_in_any_form_are_recognised_and_not_taken(tmp_path, rows):
    found = detect_file(written(tmp_path, "a.jsonl", lines(*rows)))
    assert found.chosen is None
    with pytest.raises(InvalidData, match=r"Preferences .* cannot be trained on yet"):
        found.require("a.jsonl")
    if rows in NOTHING_OFFERED:
        assert found.candidates == ()


@pytest.mark.parametrize(("row", "said"), CHOSEN_OFFERED)
def test_the_chosen_answers_alone_are_trained_on_when_somebody_says_so(tmp_path, row, said):
    mapping = detect_file(written(tmp_path, "a.jsonl", lines(row))).candidates[0].mapping
    _, rows, _ = take(tmp_path, "b.jsonl", lines(row), mapping)
    assert [turn["content"] for turn in rows[0].messages] == said


def test_true_and_false_in_a_csv_are_judgements_too(tmp_path):
    content = "prompt,completion,label\np,c,True\nq,d,False\n"
    assert detect_file(written(tmp_path, "a.csv", content)).preferences


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "t", "label": "positive"}, {"text": "u", "label": "negative"}],
        [{"text": "t", "label": 1}, {"text": "u", "label": 0}],
        [{"messages": MESSAGES, "label": "billing"}],
        [_PAIR | {"score": 0.7}, {"prompt": "q", "completion": "d", "score": 0.9}],
        [_PAIR | {"is_english": True}],
        [
            {
                "question": "q",
                "answer": "B",
                "answer_a": "x",
                "answer_b": "y",
                "answer_c": "z",
                "answer_d": "w",
            }
        ],
        [{"question": "q", "answer": "a", "answers": ["a", "b"]}],
        [{"question": "q", "answer": "a", "preferred_language": "en"}],
    ],
)
def test_labels_scores_and_choices_of_other_kinds_do_not_stand_in_the_way(tmp_path, rows):
    found = detect_file(written(tmp_path, "a.jsonl", lines(*rows)))
    assert (found.preferences, found.chosen is not None) == ("", True)


def test_every_file_of_an_import_is_looked_at_and_a_choice_is_kept_in_the_report(tmp_path):
    plain = written(tmp_path, "a.jsonl", lines(*[{"prompt": f"p{i}", "completion": "c"} for i in range(3)]))
    judged = written(tmp_path, "b.jsonl", lines(_PAIR | {"label": False}))
    files, staging = [str(plain), str(judged)], tmp_path / "staging"
    with pytest.raises(InvalidData, match=r"b\.jsonl: Preferences \('label' says"):
        read_rows(ImportRequest(files), staging, tmp_path / "rows")
    assert not (tmp_path / "rows").exists()
    mapping = {"format": "prompt and completion", "columns": {"user": "prompt", "assistant": "completion"}}
    summary = read_rows(ImportRequest(files, mapping=mapping), tmp_path / "again", tmp_path / "rows")
    said = [one for one in Findings.read(tmp_path / "rows").some() if one.code == "preferences"]
    assert (summary.rows, [one.index for one in said]) == (4, [-1])
    assert said[0].detail in summary.hints
