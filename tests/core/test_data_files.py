"""Every kind of file of rows."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.dataset_file import DatasetFile
from core.data.detection import detect_file
from core.data.importing import Summary, import_files
from core.data.mapping import DataMapping
from core.data.zipped import Source
from core.errors import InvalidData
from tests.core.data_files import GOOD, MESSAGES, lines, take, written


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


def test_an_array_under_the_name_of_lines_is_read(tmp_path):
    summary, _, _ = take(tmp_path, "a.jsonl", json.dumps([GOOD, GOOD | {"n": 1}], indent=1))
    assert summary.rows == 2


def test_a_long_array_is_read_across_chunks(tmp_path):
    rows = [{"prompt": f"p{i} " + "é" * 300, "completion": "x" * (i % 5000) + "c"} for i in range(3000)]
    text = json.dumps({"data": rows}, ensure_ascii=False)
    _, stored, found = take(tmp_path, "a.json", text, near=False)
    assert [one.messages[0]["content"] for one in stored] == [row["prompt"] for row in rows]
    assert found == []


def test_several_files_become_one_data_set(tmp_path):
    for name, count in (("a.jsonl", 2), ("b.csv", 3)):
        text = lines(*[{"prompt": f"p{i}", "completion": "c"} for i in range(count)])
        written(
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


def test_lines_of_json_may_be_called_ndjson(tmp_path):
    _, rows, _ = take(tmp_path, "a.ndjson", lines(GOOD, GOOD))
    assert len(rows) == 2
    source = tmp_path / "one.NDJSON"
    source.write_text(lines(GOOD))
    assert detect_file(source).require("one").mapping.format == "messages"
