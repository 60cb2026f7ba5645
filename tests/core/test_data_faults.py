"""Broken files and broken rows: each is kept or refused with its number and the reason."""

import io
import json
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.detection import detect_file
from core.data.importing import import_files
from core.data.mapping import mapping_of
from core.data.zipped import Source
from core.errors import InvalidData
from tests.core.data_files import GOOD, MESSAGES, lines, take, written


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
            "weight",
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
        ("a.json", "{]", "is not valid JSON: Expecting value"),
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


def test_when_no_row_can_be_used_each_reason_is_said_the_most_frequent_first(tmp_path):
    rows = [{"messages": [{"role": "wizard", "content": "x"}]}, *[{"messages": MESSAGES[:1]}] * 3]
    with pytest.raises(InvalidData) as told:
        take(tmp_path, "a.jsonl", lines(*rows))
    assert "none of the 4 rows can be used. No answer in 3, such as row 2: There is no" in str(told.value)
    assert "Unknown role in 1, such as row 1: The role 'wizard' is not known" in str(told.value)


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


def test_half_a_character_is_found_in_arrays_too(tmp_path):
    _, _, found = take(
        tmp_path,
        "a.json",
        '[{"prompt": "p", "completion": "c"}, {"prompt": "a \\ud83d b", "completion": "c"}]',
    )
    assert found[0][:2] == (2, "encoding")


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


def test_files_without_the_columns_are_refused(tmp_path):
    written(tmp_path, "a.jsonl", lines({"prompt": "p", "completion": "c"}))
    written(tmp_path, "b.jsonl", lines({"messages": MESSAGES}))
    (tmp_path / "rows").mkdir()
    sources = [Source(tmp_path / name, name) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(
        InvalidData, match=r"b\.jsonl has none of the columns 'completion', 'prompt'; it has 'messages'"
    ):
        import_files(sources, detect_file(sources[0].path).require("a").mapping, tmp_path / "rows")


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
