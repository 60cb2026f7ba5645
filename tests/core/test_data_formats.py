"""Data formats: which one rows are in, and what it makes of them."""

import io

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.detection import detect_file
from core.data.mapping import mapping_of
from core.errors import InvalidData
from tests.core.data_files import MESSAGES, lines, take, written


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        ({"messages": MESSAGES}, "messages", ["user", "assistant"]),
        ({"conversations": MESSAGES}, "messages", ["user", "assistant"]),
        (
            {"messages": [{"role": "developer", "content": "s"}, *MESSAGES]},
            "messages",
            ["system", "user", "assistant"],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "s",
            },
            "sharegpt",
            ["system", "user", "assistant"],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "function_call", "value": '{"name": "f"}'},
                    {"from": "observation", "value": "1"},
                    {"from": "gpt", "value": "b"},
                ],
                "tools": "[]",
            },
            "sharegpt",
            ["user", "assistant", "tool", "assistant"],
        ),
        ({"instruction": "a", "input": "b", "output": "c"}, "alpaca", ["user", "assistant"]),
        ({"instruction": "a", "output": "c", "system": "s"}, "alpaca", ["system", "user", "assistant"]),
        (
            {"instruction": "a", "output": "c", "history": [["q", "r"]]},
            "alpaca",
            ["user", "assistant", "user", "assistant"],
        ),
        ({"prompt": "a", "completion": "b"}, "prompt and completion", ["user", "assistant"]),
        (
            {"prompt": [MESSAGES[0]], "completion": [MESSAGES[1]]},
            "prompt and completion",
            ["user", "assistant"],
        ),
        ({"question": "a", "answer": "b"}, "prompt and completion", ["user", "assistant"]),
        (
            {"query": "a", "response": "b", "persona": "s"},
            "prompt and completion",
            ["system", "user", "assistant"],
        ),
        ({"problem": "a", "solution": "b"}, "prompt and completion", ["user", "assistant"]),
        ({"inputs": "a", "targets": "b"}, "prompt and completion", ["user", "assistant"]),
        ({"Question": "a", "Answer": 7}, "prompt and completion", ["user", "assistant"]),
        ({"text": "a", "category": "b"}, "text and label", ["user", "assistant"]),
        ({"id": 1, "parent_id": None, "role": "prompter", "text": "a"}, "linked rows", ["user", "assistant"]),
        ({"text": "a b c"}, "text", []),
    ],
)
def test_each_format_is_detected(tmp_path, row, form, turns):
    more = {"id": 2, "parent_id": 1, "role": "assistant", "text": "b"}
    summary, rows, found = take(
        tmp_path, "a.jsonl", lines(row, more) if form == "linked rows" else lines(row)
    )
    assert summary.mapping["format"] == form
    assert [message["role"] for message in rows[0].messages] == turns
    assert found == []


def test_alpaca_joins_instruction_and_input(tmp_path):
    _, rows, _ = take(tmp_path, "a.jsonl", lines({"instruction": "add", "input": "1 2", "output": "3"}))
    assert rows[0].messages[0]["content"] == "add\n1 2"


def test_content_blocks_become_text(tmp_path):
    blocks = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    _, rows, _ = take(
        tmp_path, "a.jsonl", lines({"messages": [{"role": "user", "content": blocks}, MESSAGES[1]]})
    )
    assert rows[0].messages[0]["content"] == "one two"


def test_a_turn_of_weight_zero_carries_no_loss(tmp_path):
    turns = [MESSAGES[0], MESSAGES[1] | {"weight": 0}, MESSAGES[0], MESSAGES[1] | {"loss": True}]
    _, rows, found = take(tmp_path, "a.jsonl", lines({"messages": turns}, {"messages": turns[:2]}))
    assert rows[0].untrained == {1}
    assert found[0][:2] == (2, "untrained")


@pytest.mark.parametrize(
    ("row", "count", "hint"),
    [
        ({"messages": MESSAGES, "prompt": "p", "completion": "c"}, 2, ""),
        ({"prompt": "p", "response": "r", "answer": "a"}, 2, ""),
        ({"context": "c", "question": "q", "answer": "a"}, 3, ""),
        ({"text": "t", "prompt": "p", "completion": "c"}, 2, ""),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, 1, "Preferences"),
        ({"instuction": "a", "output": "b"}, 1, "'instuction' looks like a misspelled 'instruction'"),
        ({"instruction": "a", "inptu": "x", "output": "b"}, 1, "'inptu' looks like a misspelled 'input'"),
        ({"question": "q", "answer": "a", "sytem": "s"}, 1, "'sytem' looks like a misspelled 'system'"),
        ({"frage": "a", "antwort": "b"}, 2, ""),
        ({"a": "1", "b": "2", "c": "3"}, 0, ""),
    ],
)
def test_what_is_not_clear_is_left_to_the_user(tmp_path, row, count, hint):
    (tmp_path / "a.jsonl").write_text(lines(row))
    found = detect_file(tmp_path / "a.jsonl")
    assert found.chosen is None
    assert len(found.candidates) == count
    assert hint in " ".join((*found.near_misses, *found.hints))
    with pytest.raises(InvalidData, match=hint or "choose what|no usable columns"):
        found.require("a.jsonl")


def test_rows_of_tokens_are_told_to_be_none_of_text(tmp_path):
    path = written(tmp_path, "a.jsonl", lines({"input_ids": [1, 2], "labels": [-100, 2]}))
    with pytest.raises(
        InvalidData, match=r"'input_ids' holds the tokens of some base, .* give the text"
    ) as no:
        detect_file(path).require("a.jsonl")
    assert "misspelled" not in str(no.value)


def test_context_and_question_go_together_by_a_template(tmp_path):
    row = {"context": "It rains.", "question": "Wet?", "answer": "Yes."}
    (tmp_path / "a.jsonl").write_text(lines(row))
    mapping = detect_file(tmp_path / "a.jsonl").candidates[0].mapping
    _, rows, _ = take(tmp_path, "b.jsonl", lines(row), mapping)
    assert rows[0].messages[0]["content"] == "It rains.\n\nWet?"


def test_columns_that_are_not_used_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines({"question": "q", "answer": "a", "topic": "t"}))
    found = detect_file(tmp_path / "a.jsonl")
    assert found.chosen is not None
    assert found.hints == ("Columns that are not used: 'topic'.",)


@pytest.mark.parametrize("column", ["idx", "qid", "uid", "contents", "persons", "cat", "outputs"])
def test_other_columns_do_not_stand_in_the_way(tmp_path, column):
    (tmp_path / "a.jsonl").write_text(lines({"question": "q", "answer": "a", column: "x"}))
    assert detect_file(tmp_path / "a.jsonl").chosen is not None


def test_columns_that_come_late_do_not_vanish_without_a_word(tmp_path):
    rows = [{"instruction": f"i{n}", "output": "o"} for n in range(300)]
    late = [row | {"input": "important", "system": "s", "extra": 1} for row in rows[:100]]
    summary, _, found = take(tmp_path, "a.jsonl", lines(*rows, *late), near=False)
    said = [detail for number, code, detail in found if code == "unused_column"]
    assert said == [f"The column {name!r}, which 100 rows have, is not used." for name in ("input", "system")]
    assert summary.hints == ["Columns that are not used: 'input', 'system', 'extra'."]


def test_a_falsy_input_is_kept(tmp_path):
    rows = [{"instruction": "Even?", "input": value, "output": "yes"} for value in (0, "", None, False)]
    _, stored, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert [one.messages[0]["content"] for one in list(stored)[:3]] == ["Even?\n0", "Even?", "Even?"]
    assert (4, "missing", "input is true or false; expected text.") in found


def test_a_cycle_above_a_linked_row_is_a_fault(tmp_path):
    parents = {"A": "B", "B": "A", "C": "A", "D": "C", "x": "", "y": "x"}
    rows = [
        {"id": key, "parent_id": above, "role": "user" if key in "ACx" else "assistant", "text": key}
        for key, above in parents.items()
    ]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows))
    assert [(number, code) for number, code, _ in found] == [(4, "unreadable")]
    assert "its own ancestor" in found[0][2]


def test_a_second_separator_in_a_line_is_pointed_out(tmp_path):
    _, rows, found = take(tmp_path, "a.txt", "q || a || b\nr || c\n", mapping_of([], [], "||"))
    assert (rows[0].messages[1]["content"], found[0][:2]) == ("a || b", (1, "separator"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("→", "→"), ("：", "："), ("\\t", "\t"), ("\\x1f", "\x1f"), ("\\", "\\"), ("é\\t", "é\t")],
)
def test_a_separator_may_be_any_text(tmp_path, typed, meant):
    content = "".join(f"q{i}{meant}a{i}\n" for i in range(3))
    _, rows, found = take(tmp_path, "a.txt", content, mapping_of([], [], typed))
    assert [one["content"] for one in rows[2].messages] == ["q2", "a2"]
    assert found == []


def test_separated_lines(tmp_path):
    content = "name : A | food : B||A serves B .\nname : C||C it is .\nno separator here\n" + "x||y\n" * 30
    found = detect_file(written(tmp_path, "a.txt", content))
    assert [one.mapping.format for one in found.candidates] == ["separated lines", "text"]
    _, rows, faults = take(tmp_path, "b.txt", content, found.candidates[0].mapping, near=False)
    assert [one["content"] for one in rows[0].messages] == ["name : A | food : B", "A serves B ."]
    assert faults[0][:2] == (3, "missing")


def test_linked_rows_make_a_conversation_for_each_leaf(tmp_path):
    rows = [
        {"id": "a", "parent_id": None, "role": "prompter", "text": "q1"},
        {"id": "c", "parent_id": "b", "role": "prompter", "text": "q2"},
        {"id": "b", "parent_id": "a", "role": "assistant", "text": "a1"},
        {"id": "d", "parent_id": "c", "role": "assistant", "text": "a2"},
        {"id": "e", "parent_id": "a", "role": "assistant", "text": "other"},
    ]
    _, found, _ = take(tmp_path, "a.jsonl", lines(*rows))
    said = {one.row: [message["content"] for message in one.messages] for one in found}
    assert said == {4: ["q1", "a1", "q2", "a2"], 5: ["q1", "other"]}


@pytest.mark.parametrize("numbers", ["1,,user,q\n2,1.0,assistant,a\n", "1.0,,user,q\n2.0,1,assistant,a\n"])
def test_linked_rows_whose_numbers_were_written_as_floats(tmp_path, numbers):
    """As pandas does with a column in which some are missing."""
    _, found, faults = take(tmp_path, "a.csv", f"id,parent_id,role,text\n{numbers}")
    assert [message["content"] for message in found[0].messages] == ["q", "a"]
    assert faults == []


def test_a_root_is_a_row_whose_parent_is_nan(tmp_path):
    rows = (
        '{"id": 1, "parent_id": NaN, "role": "user", "text": "q"}\n'
        '{"id": 2, "parent_id": 1.0, "role": "assistant", "text": "a"}\n'
    )
    _, found, _ = take(tmp_path, "a.jsonl", rows)
    assert [message["content"] for message in found[0].messages] == ["q", "a"]


def test_linked_pairs_of_question_and_answer(tmp_path):
    rows = [
        {"id": 1, "parent_id": "", "prompt": "q1", "answer": "a1"},
        {"id": 2, "parent_id": 1, "prompt": "q2", "answer": "a2"},
    ]
    _, found, _ = take(tmp_path, "a.jsonl", lines(*rows))
    assert [message["content"] for message in found[0].messages] == ["q1", "a1", "q2", "a2"]


def _message(role, text, *replies, **more):
    return {"message_id": text, "role": role, "text": text, **more, "replies": list(replies)}


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_tree_of_messages_is_a_conversation_for_each_way_to_a_leaf(tmp_path, wrapped):
    late = _message("prompter", "q2", _message("assistant", "a2"))
    tree = _message("prompter", "q1", _message("assistant", "a1", late), _message("assistant", "b1", rank=1))
    row = (
        {"message_tree_id": 1, "prompt": tree}
        if wrapped
        else tree | {"message_tree_id": 1, "parent_id": None}
    )
    summary, rows, found = take(tmp_path, "a.jsonl", lines(row))
    assert summary.mapping["format"] == "message tree"
    said = [[turn["content"] for turn in one.messages] for one in rows]
    assert said == [["q1", "a1", "q2", "a2"], ["q1", "b1"]]
    assert found == [(1, "unused_key", "The key 'rank' of turn 2 is not used.")]


def test_a_broken_tree_is_a_fault_of_its_row(tmp_path):
    rows = [{"prompt": _message("prompter", "q", _message("assistant", "a"))} for _ in range(3)]
    rows += [{"prompt": "a text"}, {"prompt": _message("prompter", "q", "a text")}]
    mapping = mapping_of(["tree=prompt"])
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows), mapping, near=False)
    said = [one[2] for one in found if one[1] == "missing"]
    assert said[0] == "prompt is text; expected a message with its replies."
    assert said[1].startswith("turns is a list that holds text")


@pytest.mark.parametrize("column", ["tools", "weight", "images", "chat_template_kwargs", "rationale"])
def test_columns_that_other_tools_train_with_are_a_finding_where_they_have_a_value(tmp_path, column):
    rows = [
        {"messages": MESSAGES},
        {"messages": MESSAGES, column: "some"},
        {"messages": MESSAGES, column: []},
    ]
    mapping = mapping_of(["turns=messages"])
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows), mapping, near=False)
    said = [detail for _, code, detail in found if code == "unused_column"]
    assert said == [f"The column {column!r}, which 1 row has, is not used."]


def test_unused_columns_of_parquet_are_said_though_they_are_not_read(tmp_path):
    sink = io.BytesIO()
    columns = {"prompt": ["p", "q"], "completion": ["c", "d"], "tools": [None, "f"], "empty": [None, None]}
    columns["topic"] = ["a", "b"]
    pyarrow.parquet.write_table(pa.table(columns), sink)
    summary, _, found = take(tmp_path, "a.parquet", sink.getvalue(), near=False)
    assert summary.hints == ["Columns that are not used: 'tools', 'topic'."]
    assert [one[2] for one in found] == ["The column 'tools', which 1 row has, is not used."]


def test_earlier_turns_beside_a_question_of_any_name_are_taken(tmp_path):
    row = {"query": "q2", "response": "a2", "history": [["q1", "a1"]], "system": "s"}
    _, rows, found = take(tmp_path, "a.jsonl", lines(row))
    assert ([turn["content"] for turn in rows[0].messages], found) == (["s", "q1", "a1", "q2", "a2"], [])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"role": ["user"], "content": ["q"]}, "'messages' holds an object; expected turns"),
        ([{"user": "q"}, {"assistant": "a"}], "'messages' holds turns with 'user'; expected turns"),
        ([], "'messages' holds an empty list"),
        ("[{'role': 'user', 'content': 'cut", "'messages' holds text; expected turns"),
    ],
)
def test_what_stands_in_a_column_instead_of_turns_is_said(tmp_path, value, said):
    with pytest.raises(InvalidData, match=said):
        take(tmp_path, "a.jsonl", lines({"messages": value}))


@pytest.mark.parametrize(
    "columns",
    [("question", "answer"), ("text", "label"), ("instruction", "output"), ("system", "question", "answer")],
)
def test_a_column_without_a_name_is_none_of_the_roles_that_have_no_column(tmp_path, columns):
    """pandas writes its index so, unless it is told not to."""
    rows = "".join(f"{at}," + ",".join(f"{name} {at}" for name in columns) + "\n" for at in range(3))
    summary, found, findings = take(tmp_path, "rows.csv", f",{','.join(columns)}\n{rows}")
    assert not findings
    assert len(found) == 3
    assert any("not used: ''" in hint for hint in summary.hints)
    assert [turn["content"] for turn in found[1].messages] == [f"{name} 1" for name in columns]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([["joy", "fear"], [], ["joy"]], ['["joy", "fear"]', "[]", '["joy"]']),
        ([["ü, x"], ["b"], ["b"]], ['["ü, x"]', '["b"]', '["b"]']),
        ([True, False, True], ["true", "false", "true"]),
        ([1, 0, 1], ["1", "0", "1"]),
    ],
)
@pytest.mark.parametrize("column", ["labels", "label"])
def test_labels_may_be_lists_or_yes_and_no(tmp_path, values, said, column):
    rows = lines(*({"text": f"text {at}", column: value} for at, value in enumerate(values)))
    summary, found, findings = take(tmp_path, "rows.jsonl", rows)
    assert not findings
    assert summary.mapping["format"] == "text and label"
    assert [one.messages[1]["content"] for one in found] == said
    assert [one.label for one in found] == said


def test_a_list_of_objects_is_no_label(tmp_path):
    rows = lines({"text": "one", "label": [{"id": 1}]}, {"text": "two", "label": "b"})
    _, _, findings = take(tmp_path, "rows.jsonl", rows)
    assert [row for row, _, _ in findings] == [1]
