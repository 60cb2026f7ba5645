"""What stands beside a turn's text: flags of training are obeyed, and nothing vanishes without a word."""

import json

import numpy as np
import pytest

from tests.core.data_files import MESSAGES, lines, take

ASKED, ANSWERED = MESSAGES


@pytest.mark.parametrize(
    ("flag", "learnt"),
    [
        ({"train": False}, False),
        ({"training": False}, False),
        ({"trainable": 0}, False),
        ({"train_on_turn": "false"}, False),
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"loss": False}, False),
        ({"loss_weight": 0.0}, False),
        ({"loss_mask": 0}, False),
        ({"masked": True}, False),
        ({"train": False, "weight": 0, "masked": True}, False),
        ({"train": True}, True),
        ({"loss_weight": 1.0}, True),
        ({"masked": False}, True),
        ({"weight": None}, True),
        ({"train_detail": [], "train": True}, True),
    ],
)
def test_the_flags_of_the_common_tools_say_whether_a_turn_is_trained_on(tmp_path, flag, learnt):
    turns = [ASKED, ANSWERED | flag, ASKED, ANSWERED]
    _, rows, found = take(tmp_path, "a.jsonl", lines({"messages": turns}))
    assert (rows[0].untrained, found) == (frozenset() if learnt else {1}, [])


def test_flags_count_in_every_spelling_of_a_conversation(tmp_path):
    wrong = {"from": "gpt", "value": "wrong", "train": False}
    turns = [{"from": "human", "value": "q"}, wrong, {"from": "human", "value": "r"}]
    turns.append({"from": "gpt", "value": "right", "train": True})
    _, rows, found = take(tmp_path, "a.jsonl", lines({"conversations": turns, "system": "s"}))
    assert (rows[0].untrained, found) == ({2}, [])
    (tmp_path / "b").mkdir()
    completion = [ANSWERED | {"weight": 0}, ASKED, ANSWERED]
    _, rows, found = take(tmp_path / "b", "b.jsonl", lines({"prompt": [ASKED], "completion": completion}))
    assert (rows[0].untrained, found) == ({1}, [])


def test_answers_in_a_prompt_are_given_and_not_learnt(tmp_path):
    row = {"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED]}
    _, rows, _ = take(tmp_path, "a.jsonl", lines(row))
    assert ([turn["role"] for turn in rows[0].messages], rows[0].untrained) == (
        ["user", "assistant"] * 2,
        {1},
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ({"weight": 0.5}, "The weight of turn 2 is 0.5; expected the number 0 or 1"),
        ({"loss_mask": [0, 1]}, "The loss_mask of turn 2 is a list"),
        ({"weight": -1}, "The weight of turn 2 is -1"),
        ({"train": "maybe"}, "The train of turn 2 is text"),
        (
            {"train": True, "weight": 0},
            "The flags of turn 2 contradict each other: train is True and weight is 0",
        ),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
            "Turn 2 is trained in parts",
        ),
    ],
)
def test_a_weight_that_cannot_be_obeyed_is_a_fault_of_its_row(tmp_path, flag, said):
    _, _, found = take(
        tmp_path, "a.jsonl", lines({"messages": MESSAGES}, {"messages": [ASKED, ANSWERED | flag]})
    )
    assert found[0][:2] == (2, "weight")
    assert said in found[0][2]


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_reasoning_of_a_turn_that_is_no_answer_does_not_vanish(tmp_path, role):
    turn = {"role": role, "content": "Zwolle", "thinking": "about zebras"}
    turns = [turn, ASKED, ANSWERED] if role == "system" else [ASKED, ANSWERED, turn, ANSWERED]
    _, rows, found = take(tmp_path, "a.jsonl", lines({"messages": turns}))
    at = turns.index(turn)
    assert "reasoning" not in rows[0].messages[at]
    assert found == [(1, "unused_key", f"The key 'thinking' of turn {at + 1} is not used.")]


def test_a_question_that_thinks_in_a_block_is_refused(tmp_path):
    blocks = [{"type": "thinking", "thinking": "about zebras"}, {"type": "text", "text": "hi"}]
    turns = [{"role": "user", "content": blocks}, ANSWERED]
    _, _, found = take(tmp_path, "a.jsonl", lines({"messages": MESSAGES}, {"messages": turns}))
    said = "Turn 1 thinks in a block and is the user's; only an answer can."
    assert found == [(2, "missing", said)]


def test_a_question_that_is_marked_for_training_is_pointed_out(tmp_path):
    _, _, found = take(tmp_path, "a.jsonl", lines({"messages": [ASKED | {"weight": 1}, ANSWERED]}))
    assert found == [(1, "only_answers", "Turn 1 is marked for training, and is the user's.")]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"trian": False}, "unused_key", "The key 'trian' of turn 2 is not used."),
        ({"timestamp": 5}, "unused_key", "The key 'timestamp' of turn 2 is not used."),
        ({"text": "other"}, "unused_key", "The key 'text' of turn 2 is not used."),
        ({"images": ["a.png"]}, "ignored_part", "The images of turn 2 are not used."),
    ],
)
def test_a_key_without_a_use_is_a_finding(tmp_path, more, code, said):
    _, _, found = take(
        tmp_path, "a.jsonl", lines({"messages": MESSAGES}, {"messages": [ASKED, ANSWERED | more]})
    )
    assert (2, code, said) in found
    (tmp_path / "pairs").mkdir()
    pair = {"prompt": [ASKED], "completion": [ANSWERED | more]}
    _, _, found = take(tmp_path / "pairs", "a.jsonl", lines(pair))
    assert [one[1] for one in found] == [code]


def test_keys_without_a_value_are_no_finding(tmp_path):
    empty = {"name": None, "tool_calls": [], "images": "", "tool_call_id": None, "score": float("nan")}
    _, _, found = take(tmp_path, "a.jsonl", lines({"messages": [ASKED | empty, ANSWERED | empty]}))
    assert found == []


@pytest.mark.parametrize("key", ["text", "value"])
def test_blocks_of_text_are_joined_whatever_their_key(tmp_path, key):
    blocks = [{"type": "text", key: "one "}, {"type": "text", key: "two"}]
    _, rows, found = take(tmp_path, "a.jsonl", lines({"messages": [ASKED | {"content": blocks}, ANSWERED]}))
    assert (rows[0].messages[0]["content"], found) == ("one two", [])


def test_a_block_that_is_no_text_is_named(tmp_path):
    block = {"type": "image", "value": "hm"}
    _, _, found = take(
        tmp_path,
        "a.jsonl",
        lines({"messages": MESSAGES}, {"messages": [ASKED, ANSWERED | {"content": [block]}]}),
    )
    assert found[0][:2] == (2, "missing")
    assert "something other than text (image)" in found[0][2]


def _as_pandas(turns):
    """As pandas writes a column of lists that came from Parquet: NumPy's print, without commas."""
    cells = np.empty(len(turns), object)
    cells[:] = turns
    return str(cells)


@pytest.mark.parametrize("printed", [repr, json.dumps, _as_pandas, lambda turns: repr(np.array(turns))])
def test_turns_in_a_cell_of_a_table_are_read_as_python_prints_them(tmp_path, printed):
    turns = [ASKED | {"content": "it's \"me\",\n{'a': 1} {}"}, ANSWERED | {"weight": 0}, ASKED, ANSWERED]
    cell = printed(turns).replace('"', '""')
    _, rows, found = take(tmp_path, "a.csv", f'id,messages\n1,"{cell}"\n')
    assert [turn["content"] for turn in rows[0].messages] == [turn["content"] for turn in turns]
    assert (rows[0].untrained, found) == ({1}, [])


def test_message_lists_in_the_cells_of_prompt_and_completion_are_turns_and_other_lists_are_text(tmp_path):
    asked, answered, other = repr([ASKED]), repr([ANSWERED]), "[{'name': 'x'}]"
    content = f'prompt,completion\n"{asked}","{answered}"\nlist,"{other}"\n'
    _, rows, _ = take(tmp_path, "a.csv", content)
    assert [turn["content"] for row in rows for turn in row.messages] == ["hi", "hello", "list", other]
