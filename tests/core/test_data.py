"""Files of rows: every kind and format, detection, and broken files with the rows at fault."""

import io
import json
import re
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.dataset_file import DatasetFile, Findings
from core.data.detection import detect_file
from core.data.importing import Summary, import_files
from core.data.mapping import DataMapping, mapping_of
from core.data.zipped import Source, sources_of
from core.errors import InvalidConfig, InvalidData

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
GOOD = {"messages": MESSAGES}


def take(tmp_path, name, content, mapping=None, **options):
    """Import one file; its summary, examples and findings as {row number: code}."""
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder = tmp_path / "rows"
    folder.mkdir()
    mapping = mapping or detect_file(source).require(name).mapping
    summary = import_files([Source(source, name)], mapping, folder, **options)
    rows = DatasetFile(folder)
    numbers = rows.column("row")
    found = [
        (numbers[one.index] if one.index >= 0 else 0, one.code, one.detail)
        for one in Findings.read(folder).some()
    ]
    return summary, rows, found


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


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
                    {"from": "function_call", "value": "f()"},
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


def test_a_short_text_stays_one_row(tmp_path):
    mapping = DataMapping("text", {"text": "text"})
    _, rows, _ = take(tmp_path, "a.txt", "Once upon a time.\n\nThe end.", mapping)
    assert [(one.messages, one.text) for one in rows] == [((), "Once upon a time.\n\nThe end.")]


def test_a_long_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    content = "".join(f"line {i} of a long text\n" for i in range(120_000))
    _, rows, _ = take(tmp_path, "a.txt", content, DataMapping("text", {"text": "text"}), near=False)
    assert len(rows) == 3
    assert "".join(one.text for one in rows) == content
    assert all(one.text.endswith("\n") for one in rows)


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
    ("name", "content"),
    [
        ("a.json", json.dumps([{"prompt": "p", "completion": "c"}] * 3)),
        ("a.json", json.dumps({"data": [{"prompt": "p", "completion": "c"}] * 3})),
        (
            "a.json",
            json.dumps(
                {"version": 1, "by": "x, [y]", "data": [{"prompt": "p", "completion": "c"}] * 3, "more": {}}
            ),
        ),
        ("a.json", lines({"prompt": "p", "completion": "c"}) * 3),
        ("a.csv", "prompt,completion\n" + 'p,"c"\n' * 3),
        ("a.csv", "\ufeffprompt;completion\n" + "p;c\n" * 3),
        ("a.tsv", "prompt\tcompletion\n" + "p\tc\n" * 3),
        ("a.jsonl", "\ufeff" + lines({"prompt": "p", "completion": "c"}) * 3 + "\n\n"),
    ],
)
def test_each_kind_of_file_is_read(tmp_path, name, content):
    summary, rows, _ = take(tmp_path, name, content)
    assert summary.rows == 3
    assert rows[2].messages[1]["content"] == "c"


def test_parquet_is_read(tmp_path):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"messages": [MESSAGES] * 3}), sink)
    summary, _, _ = take(tmp_path, "a.parquet", sink.getvalue())
    assert (summary.mapping["format"], summary.rows) == ("messages", 3)


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("a.jsonl", lines(GOOD) + '{"messages": [\n', "unreadable", "Line 2 is not valid JSON"),
        ("a.jsonl", lines(GOOD) + "[1]\n", "unreadable", "Line 2 is a list"),
        ("a.jsonl", lines(GOOD) + "[" * 100_000 + "\n", "unreadable", "nested too deeply|not valid JSON"),
        (
            "a.jsonl",
            lines(GOOD) + '{"messages": ' + "9" * 5000 + "}\n",
            "unreadable",
            "Line 2 cannot be read",
        ),
        (
            "a.jsonl",
            lines(GOOD).encode() + b'{"messages": "\xff"}\n',
            "encoding",
            "Line 2 is not UTF-8: byte 0xff",
        ),
        (
            "a.json",
            json.dumps([GOOD])[:-1] + ', {"messages": }, {"x": 1}]',
            "cut_short",
            "Row 2 is not .* cannot be read",
        ),
        (
            "a.json",
            json.dumps([GOOD])[:-1] + ', {"messages": "unclosed',
            "cut_short",
            "Row 2 is not valid JSON",
        ),
        (
            "a.json",
            json.dumps([GOOD])[:-1]
            + ", "
            + "[" * 90_000
            + "]" * 90_000
            + ", "
            + json.dumps(GOOD | {"n": 2})
            + "]",
            "unreadable",
            "Row 2 is nested too deeply",
        ),
        ("a.json", json.dumps([GOOD])[:-1] + ', {"messages": "\\ud83d b"}]', "missing", "messages is text"),
        (
            "a.jsonl",
            lines(GOOD) + '{"messages": 1, "messages": 2}\n',
            "unreadable",
            "the key 'messages' stands there twice",
        ),
        (
            "a.json",
            json.dumps([GOOD])[:-1] + ', {"a": 1, "a": 2}]',
            "unreadable",
            "the key 'a' stands there twice",
        ),
        ("a.json", json.dumps([GOOD, 5]), "unreadable", "Row 2 is a number"),
        ("a.jsonl", json.dumps([GOOD]) + "\n" + lines(GOOD), "cut_short", "something stands behind the list"),
        (
            "a.csv",
            "prompt,completion\np,c\np,c,d\n",
            "unreadable",
            r"Row 2 \(line 3\) has 3 columns, the header 2",
        ),
        ("a.csv", b"prompt,completion\np,c\n\xff,c\n", "encoding", "not UTF-8: byte 0xff"),
        ("a.csv", 'prompt,completion\np,c\np,"c\n', "unreadable", "Line 3 is not valid CSV"),
        (
            "a.csv",
            'prompt,completion\np,c\n"hello" she said,c\nq,d\n',
            "unreadable",
            "Line 3 is not valid CSV",
        ),
        ("a.jsonl", lines(GOOD, {"messages": MESSAGES[:1]}), "no_answer", "no assistant turn"),
        ("a.jsonl", lines(GOOD, {"messages": [MESSAGES[1]]}), "no_question", "first turn is the assistant"),
        (
            "a.jsonl",
            lines(GOOD, {"messages": [{"role": "wizard", "content": "x"}]}),
            "unknown_role",
            "'wizard' is not known",
        ),
        ("a.jsonl", lines(GOOD, {"messages": [{"content": "x"}]}), "unknown_role", "A turn has no role"),
        (
            "a.jsonl",
            lines(GOOD, {"messages": [MESSAGES[0], {"role": "assistant"}]}),
            "missing",
            "content is missing",
        ),
        (
            "a.jsonl",
            lines(GOOD, {"messages": [MESSAGES[0], MESSAGES[1] | {"weight": 2}]}),
            "missing",
            "the number 0 or 1",
        ),
        (
            "a.jsonl",
            lines(GOOD, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            "missing",
            "other than text",
        ),
        (
            "a.jsonl",
            lines({"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": " "}),
            "empty_answer",
            "empty",
        ),
        (
            "a.jsonl",
            lines({"prompt": "p", "completion": "c"}, {"prompt": "p"}),
            "missing",
            "completion is missing",
        ),
        (
            "a.jsonl",
            lines({"prompt": "p", "completion": "c"}) + '{"prompt": "p", "completion": NaN}\n',
            "missing",
            "is missing",
        ),
        (
            "a.jsonl",
            lines({"prompt": "p", "completion": "c"}) + '{"prompt": "p", "completion": "\\ud800"}\n',
            "encoding",
            "half a character",
        ),
        (
            "a.jsonl",
            lines({"text": "p", "label": "x"}, {"text": "p", "label": None}),
            "missing",
            "label is missing",
        ),
        (
            "a.jsonl",
            lines({"text": "p", "label": "x"}, {"text": "p", "label": [1]}),
            "missing",
            "label is a list",
        ),
        ("a.jsonl", lines({"text": "a"}, {"text": "  "}), "empty_answer", "text is empty"),
        (
            "a.jsonl",
            lines(
                {"instruction": "a", "output": "b", "history": []},
                {"instruction": "a", "output": "b", "history": 5},
            ),
            "missing",
            "history must be a list",
        ),
        (
            "a.jsonl",
            lines(
                {"id": 1, "parent_id": None, "role": "user", "text": "q"},
                {"id": 2, "parent_id": 1, "role": "assistant", "text": "a"},
                {"id": 3, "parent_id": 9, "role": "user", "text": "q"},
            ),
            "missing",
            "parent '9' is not in the file",
        ),
        (
            "a.jsonl",
            lines(
                {"id": 1, "parent_id": None, "role": "user", "text": "q"},
                {"id": 2, "parent_id": 1, "role": "assistant", "text": "a"},
                {"id": 3, "parent_id": 4, "role": "user", "text": "q"},
                {"id": 4, "parent_id": 3, "role": "user", "text": "q"},
            ),
            "unreadable",
            "its own ancestor",
        ),
    ],
)
def test_a_faulty_row_is_kept_with_its_number_and_the_reason(tmp_path, name, content, code, said):
    summary, rows, found = take(tmp_path, name, content)
    faulty = [one for one in found if one[1] == code]
    assert faulty, found
    assert summary.faulty == sum(bool(fault) for fault in rows.column("fault")) >= 1
    assert re.search(said, faulty[0][2]), faulty
    good = [one for one in rows.all_stored() if not one.fault]
    assert good, "the good rows are kept"


def test_row_numbers_are_those_of_the_file(tmp_path):
    content = lines(GOOD) + "\n" + "{\n" + lines(GOOD | {"x": 1}, {"messages": []})
    _, rows, found = take(tmp_path, "a.jsonl", content)
    assert rows.column("row") == [1, 3, 4, 5]
    assert [one[:2] for one in found] == [(3, "unreadable"), (4, "duplicate"), (5, "missing")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", '{"a": 1}', "holds no list of rows"),
        ("a.json", "{]", "holds no list of rows"),
        ("a.json", '[{"a" 1}]', "is not valid JSON"),
        ("a.csv", "pr\xe9ponse,r\nq,a\n".encode("latin-1"), "header is not UTF-8.*Latin-1"),
        ("a.csv", "q,a,,\n1,2,3,4\n", "2 columns without a name"),
        ("a.csv", "colour,shape,size\nred,round,1\n", "'colour', 'shape', 'size'.*Expected messages"),
        ("a.csv", 'prompt,"completion\np,c\n', "none of its first rows|not valid CSV"),
        ("a.csv", "prompt,prompt,completion\na,b,c\n", "several columns called 'prompt'"),
        ("a.parquet", "PAR1 no", "not a readable Parquet"),
        ("a.xlsx", "x", "ending in .xlsx cannot be read"),
        ("a.jsonl", "prompt".encode("utf-16"), "UTF-16"),
        ("a.jsonl", lines({"messages": MESSAGES[:1]}), "none of the 1 rows can be used"),
    ],
)
def test_a_file_that_cannot_be_used_at_all_says_why(tmp_path, name, content, said):
    with pytest.raises(InvalidData, match=said):
        take(tmp_path, name, content)


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


def test_what_stands_beside_the_text_of_a_turn_is_said(tmp_path):
    call = {"role": "assistant", "content": "Let me look", "tool_calls": [{"name": "f"}]}
    silent = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    _, _, found = take(
        tmp_path, "a.jsonl", lines({"messages": [MESSAGES[0], call]}, {"messages": [MESSAGES[0], silent]})
    )
    assert [one[1:] for one in found] == [
        ("ignored_part", "The tool_calls of turn 2 are not used."),
        ("missing", "A turn holds tool_calls and no text; that cannot be trained on yet."),
    ]


def test_a_falsy_input_is_kept(tmp_path):
    rows = [{"instruction": "Even?", "input": value, "output": "yes"} for value in (0, "", None, False)]
    _, stored, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert [one.messages[0]["content"] for one in list(stored)[:3]] == ["Even?\n0", "Even?", "Even?"]
    assert (4, "missing", "input is true or false; expected text.") in found


def test_a_broken_quote_costs_its_own_line_only(tmp_path):
    good = "".join(f"p{i},c{i}\n" for i in range(50))
    content = (
        f'prompt,completion\n{good}"hello" she said,c\n{good.replace("p", "q")}open,"never '
        f"closed\n{good.replace('p', 'r')}"
    )
    _, rows, found = take(tmp_path, "a.csv", content, near=False)
    assert [(number, code) for number, code, _ in found] == [(51, "unreadable"), (102, "unreadable")]
    assert "Line 52" in found[0][2]
    assert "Line 103" in found[1][2]
    assert (len(rows), rows[151].messages[0]["content"]) == (152, "r49")


def test_quoted_line_ends_stay_in_their_cell(tmp_path):
    _, rows, found = take(tmp_path, "a.csv", 'prompt,completion\n"one\ntwo","a, b"\np,c\n')
    assert (rows[0].messages[0]["content"], rows[0].messages[1]["content"], found) == ("one\ntwo", "a, b", [])


def test_numbers_in_arrays_are_read_as_in_lines(tmp_path):
    big = "123456789012345678901234567890"
    _, rows, found = take(
        tmp_path, "a.json", f'[{{"prompt": "p", "completion": {big}}}, {{"prompt": "q", "completion": NaN}}]'
    )
    assert rows[0].messages[1]["content"] == big
    assert found[0][:2] == (2, "missing")


def test_half_a_character_is_found_in_arrays_too(tmp_path):
    _, _, found = take(
        tmp_path,
        "a.json",
        '[{"prompt": "p", "completion": "c"}, {"prompt": "a \\ud83d b", "completion": "c"}]',
    )
    assert found[0][:2] == (2, "encoding")


def test_an_array_under_the_name_of_lines_is_read(tmp_path):
    summary, _, _ = take(tmp_path, "a.jsonl", json.dumps([GOOD, GOOD | {"n": 1}], indent=1))
    assert summary.rows == 2


def test_a_long_array_is_read_across_chunks(tmp_path):
    rows = [{"prompt": f"p{i} " + "é" * 300, "completion": "x" * (i % 5000) + "c"} for i in range(3000)]
    text = json.dumps({"data": rows}, ensure_ascii=False)
    _, stored, found = take(tmp_path, "a.json", text, near=False)
    assert [one.messages[0]["content"] for one in stored] == [row["prompt"] for row in rows]
    assert found == []


def test_parquet_rows_that_python_cannot_hold_are_faults_and_other_columns_do_not_matter(tmp_path):
    sink = io.BytesIO()
    table = pa.table(
        {
            "question": ["q", "r"],
            "answer": pa.array([2**30, 3], pa.date32()),
            "beside": pa.array([2**30] * 2, pa.date32()),
        }
    )
    pyarrow.parquet.write_table(table, sink)
    mapping = mapping_of(["user=question", "assistant=question"])
    summary, _, found = take(tmp_path, "a.parquet", sink.getvalue(), mapping, near=False)
    assert (summary.rows, found) == (2, [])
    (tmp_path / "again").mkdir()
    with pytest.raises(InvalidData, match=r"none of the 2 rows can be used.*Row 1 cannot be read"):
        take(
            tmp_path / "again",
            "a.parquet",
            sink.getvalue(),
            mapping_of(["user=question", "assistant=answer"]),
        )


def test_a_cycle_above_a_linked_row_is_a_fault(tmp_path):
    parents = {"A": "B", "B": "A", "C": "A", "D": "C", "x": "", "y": "x"}
    rows = [
        {"id": key, "parent_id": above, "role": "user" if key in "ACx" else "assistant", "text": key}
        for key, above in parents.items()
    ]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows))
    assert [(number, code) for number, code, _ in found] == [(4, "unreadable")]
    assert "its own ancestor" in found[0][2]


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


def test_a_second_separator_in_a_line_is_pointed_out(tmp_path):
    _, rows, found = take(tmp_path, "a.txt", "q || a || b\nr || c\n", mapping_of([], [], "||"))
    assert (rows[0].messages[1]["content"], found[0][:2]) == ("a || b", (1, "separator"))


def test_separated_lines(tmp_path):
    content = "name : A | food : B||A serves B .\nname : C||C it is .\nno separator here\n" + "x||y\n" * 30
    found = detect_file(_written(tmp_path, "a.txt", content))
    assert [one.mapping.format for one in found.candidates] == ["separated lines", "text"]
    _, rows, faults = take(tmp_path, "b.txt", content, found.candidates[0].mapping, near=False)
    assert [one["content"] for one in rows[0].messages] == ["name : A | food : B", "A serves B ."]
    assert faults[0][:2] == (3, "missing")


def _written(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    return tmp_path / name


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


def test_linked_pairs_of_question_and_answer(tmp_path):
    rows = [
        {"id": 1, "parent_id": "", "prompt": "q1", "answer": "a1"},
        {"id": 2, "parent_id": 1, "prompt": "q2", "answer": "a2"},
    ]
    _, found, _ = take(tmp_path, "a.jsonl", lines(*rows))
    assert [message["content"] for message in found[0].messages] == ["q1", "a1", "q2", "a2"]


def test_several_files_become_one_data_set(tmp_path):
    for name, count in (("a.jsonl", 2), ("b.csv", 3)):
        text = lines(*[{"prompt": f"p{i}", "completion": "c"} for i in range(count)])
        _written(
            tmp_path,
            name,
            text if name == "a.jsonl" else "prompt,completion\n" + "".join(f"q{i},c\n" for i in range(count)),
        )
    (tmp_path / "rows").mkdir()
    sources = [Source(tmp_path / name, name) for name in ("a.jsonl", "b.csv")]
    summary = import_files(sources, detect_file(sources[0].path).require("a").mapping, tmp_path / "rows")
    rows = DatasetFile(tmp_path / "rows")
    assert (summary.rows, summary.sources) == (5, ["a.jsonl", "b.csv"])
    assert (rows.column("file"), rows.column("row")) == ([0, 0, 1, 1, 1], [1, 2, 1, 2, 3])


def test_files_without_the_columns_are_refused(tmp_path):
    _written(tmp_path, "a.jsonl", lines({"prompt": "p", "completion": "c"}))
    _written(tmp_path, "b.jsonl", lines({"messages": MESSAGES}))
    (tmp_path / "rows").mkdir()
    sources = [Source(tmp_path / name, name) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(
        InvalidData, match=r"b\.jsonl has none of the columns 'completion', 'prompt'; it has 'messages'"
    ):
        import_files(sources, detect_file(sources[0].path).require("a").mapping, tmp_path / "rows")


def test_rows_are_read_one_by_one_across_batches(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(2500)]
    _, stored, _ = take(tmp_path, "a.jsonl", lines(*rows))
    assert len(stored) == 2500
    for index in (0, 999, 1000, 2499):
        assert stored[index].messages[1]["content"] == f"c{index}"
        assert stored[index].row == index + 1
    with pytest.raises(InvalidData, match="no row 2501"):
        stored.stored(2500)


def test_the_summary_can_be_read_again(tmp_path):
    summary, _, _ = take(tmp_path, "a.jsonl", lines(GOOD, GOOD))
    assert Summary.read(tmp_path / "rows") == summary
    assert (summary.turns, summary.roles) == ({"2": 2}, {"user": 2, "assistant": 2})


# Zip files.


def _zip(tmp_path, members, **options):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, **options)
    return path


def test_the_data_files_of_a_zip_are_read_under_their_names(tmp_path):
    members = {
        "x/a.jsonl": lines(GOOD),
        "b.csv": "prompt,completion\np,c\n",
        "README": "no data",
        "__MACOSX/a.jsonl": "junk",
        "README.md": "# card",
        "notes.txt": "n",
        "dataset_info.json": "{}",
    }
    (tmp_path / "out").mkdir()
    found = sources_of(_zip(tmp_path, members), tmp_path / "out")
    assert [one.name for one in found] == ["a.zip/b.csv", "a.zip/x/a.jsonl"]
    assert found[1].path.read_text() == lines(GOOD)
    assert found[0].unread == ("README.md", "dataset_info.json", "notes.txt")
    assert all(one.path.parent == tmp_path / "out" for one in found)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../evil.jsonl": "x"}, "points outside"),
        ({"a/../../evil.jsonl": "x"}, "points outside"),
        ({"/etc/evil.jsonl": "x"}, "points outside"),
        ({"..\\evil.jsonl": "x"}, "points outside"),
        ({"C:evil.jsonl": "x"}, "points outside"),
        ({"bomb.jsonl": "0" * 120_000_000}, "unpacks to 0.1 GB"),
        ({"a.exe": "x"}, "no file that can be read"),
        ({f"{i}.jsonl": "" for i in range(1001)}, "1,001 files"),
    ],
)
def test_a_hostile_zip_is_refused_and_nothing_is_written(tmp_path, members, said):
    (tmp_path / "out").mkdir()
    before = set(tmp_path.rglob("*")) | {tmp_path / "a.zip"}
    with pytest.raises(InvalidData, match=said):
        sources_of(_zip(tmp_path, members), tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before


def test_the_splits_in_a_zip_are_told_apart(tmp_path):
    (tmp_path / "out").mkdir()
    members = {f"data/{name}.jsonl": lines(GOOD) for name in ("train", "validation", "test")}
    found = sources_of(_zip(tmp_path, members), tmp_path / "out")
    assert [(one.name, one.validation) for one in found] == [
        ("a.zip/data/train.jsonl", False),
        ("a.zip/data/validation.jsonl", True),
    ]
    assert found[0].unread == ("data/test.jsonl",)


def test_a_damaged_zip_is_a_sentence(tmp_path):
    path = _zip(tmp_path, {"a.jsonl": lines(*[GOOD | {"n": n} for n in range(500)])})
    raw = bytearray(path.read_bytes())
    raw[60:90] = b"\xff" * 30
    path.write_bytes(raw)
    with pytest.raises(InvalidData, match=r"a\.zip cannot be unpacked"):
        sources_of(path, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a.jsonl")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidData, match="is a link"):
        sources_of(path, tmp_path)


def test_a_file_that_is_no_zip_is_a_sentence(tmp_path):
    with pytest.raises(InvalidData, match="cannot be unpacked"):
        sources_of(_written(tmp_path, "a.zip", "no zip"), tmp_path)


def test_a_line_of_100_mb_is_one_faulty_row(tmp_path):
    content = (
        lines(GOOD).encode()
        + b'{"messages": "'
        + b"x" * 100_000_000
        + b'"}\n'
        + lines(GOOD | {"n": 2}).encode()
    )
    _, rows, found = take(tmp_path, "a.jsonl", content)
    assert [one[:2] for one in found] == [(2, "unreadable"), (3, "duplicate")]
    assert "100 MB long" in found[0][2]
    assert len(rows.stored(1).raw) <= 20_000
