"""Tables as spreadsheets write them, and files that are not what their names say."""

import gzip
import io

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.detection import detect_file
from core.data.reading import RowReader
from core.errors import InvalidData
from tests.core.data_files import GOOD, lines, take, written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "\n\r\nprompt,completion\np, c\nq,d\n"),
        ("a.csv", ',,\n"",\nprompt,completion\np, c\nq,d\n'),
        ("a.csv", "sep=;\nprompt;completion\np; c\nq;d\n"),
        ("a.csv", '\ufeff"sep=;"\r\n\r\nprompt;completion\r\np; c\r\nq;d\r\n'),
        ("a.csv", 'prompt;completion;"a, b, c and d"\np; c;x\nq;d;y\n'),
        ("a.csv", 'prompt,completion,"a; b; c; d; e"\np, c,x\nq,d,y\n'),
        ("a.csv", "prompt;completion;extra (a, b, c, d)\np; c;1\nq;d;2\n"),
        ("a.csv", "prompt|completion\np| c\nq|d\n"),
        ("a.tsv", "prompt,completion\np, c\nq,d\n"),
        ("a.tsv", "\n\nprompt\tcompletion\np\t c\nq\td\n"),
        ("a.csv.txt", "prompt,completion\np, c\nq,d\n"),
    ],
)
def test_tables_of_spreadsheets_are_read(tmp_path, name, content):
    _, rows, found = take(tmp_path, name, content, near=False)
    said = [[turn["content"] for turn in row.messages] for row in rows]
    assert (said, found) == ([["p", " c"], ["q", "d"]], [])


def test_separators_in_cells_do_not_count(tmp_path):
    content = 'prompt,completion\n"a; b","c"\n"a; b; d","e"\n'
    _, rows, _ = take(tmp_path, "a.csv", content)
    assert rows[0].messages[0]["content"] == "a; b"


def test_a_row_with_too_few_cells_gets_advice_that_fits(tmp_path):
    _, _, found = take(tmp_path, "a.csv", "prompt,completion\np,c\nq\n")
    assert "Row 2 (line 3) has 1 columns, the header 2; quote text with line ends" in found[0][2]


def test_jsonl_that_something_called_txt_is_read_as_rows(tmp_path):
    summary, _, _ = take(tmp_path, "talks.jsonl.txt", lines(GOOD, GOOD))
    assert (summary.mapping["format"], summary.rows) == ("messages", 2)


def test_json_in_a_plain_text_is_not_trained_on_as_text_without_a_question(tmp_path):
    found = detect_file(written(tmp_path, "talks.txt", lines(GOOD, GOOD)))
    assert (found.chosen, [one.mapping.format for one in found.candidates]) == (None, ["text"])
    with pytest.raises(InvalidData, match=r"Its lines are JSON; call the file \.jsonl"):
        found.require("talks.txt")
    assert detect_file(written(tmp_path, "b.txt", '{"a": 1} is JSON.\nThis is not.\n')).chosen


@pytest.mark.parametrize(
    ("name", "start", "said"),
    [
        ("a.jsonl", gzip.compress(lines(GOOD).encode()), "is packed with gzip; unpack it"),
        ("a.csv", b"PK\x03\x04" + b"\0" * 60, "is a zip or an Excel file"),
        ("a.json", b"PAR1" + b"\0" * 60, "is a Parquet file; call it .parquet"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd" + b"\0" * 60, "is packed with zstd"),
        ("a.txt", b"%PDF-1.7 and more", "is a PDF"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "only a pointer of Git LFS"),
        ("a.jsonl", b"\n<!DOCTYPE html>\n<html>", "is a web page, not the file itself"),
    ],
    ids=["gzip", "zip", "parquet", "zstd", "pdf", "lfs", "html"],
)
def test_a_file_of_another_kind_than_its_name_says_what_it_is(tmp_path, name, start, said):
    (tmp_path / name).write_bytes(start)
    with pytest.raises(InvalidData, match=said):
        list(RowReader(tmp_path / name))


def test_a_row_of_parquet_that_is_too_long_costs_itself_alone(tmp_path):
    sink = io.BytesIO()
    table = pa.table({"prompt": ["p", "x" * 40_000_000, "q"], "completion": ["c", "c", "d"]})
    pyarrow.parquet.write_table(table, sink)
    _, rows, found = take(tmp_path, "a.parquet", sink.getvalue(), near=False)
    assert found == [(2, "unreadable", "Row 2 is 40 MB long; a row may have 32 MB.")]
    assert [row.messages[0]["content"] for row in rows if row.messages] == ["p", "q"]


def test_turns_are_found_in_columns_of_other_names_and_with_mixed_keys(tmp_path):
    turns = [{"role": "human", "text": "a"}, {"role": "ai", "text": "b"}]
    summary, rows, found = take(tmp_path, "a.jsonl", lines({"id": 1, "chat_log": turns}))
    assert summary.mapping["columns"] == {"turns": "chat_log"}
    assert ([turn["content"] for turn in rows[0].messages], found) == (["a", "b"], [])
