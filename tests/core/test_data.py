"""Files of rows: every kind and format, and broken ones with the row at fault."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.dataset_file import DatasetFile, import_file
from core.errors import InvalidData

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def _import(tmp_path, name, content):
    source = tmp_path / name
    source.write_bytes(content) if isinstance(content, bytes) else source.write_text(content, encoding="utf-8")
    found = import_file(source, tmp_path / "rows.arrow")
    return found, list(DatasetFile(tmp_path / "rows.arrow"))


def _jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "form", "turns"),
    [
        ({"messages": MESSAGES}, "messages", ["user", "assistant"]),
        ({"conversations": MESSAGES}, "messages", ["user", "assistant"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}, "sharegpt",
         ["system", "user", "assistant"]),
        ({"instruction": "a", "input": "b", "output": "c"}, "alpaca", ["user", "assistant"]),
        ({"instruction": "a", "output": "c", "history": [["q", "r"]]}, "alpaca", ["user", "assistant", "user", "assistant"]),
        ({"prompt": "a", "completion": "b"}, "prompt and completion", ["user", "assistant"]),
        ({"prompt": [MESSAGES[0]], "completion": [MESSAGES[1]]}, "prompt and completion", ["user", "assistant"]),
        ({"question": "a", "answer": "b"}, "prompt and completion", ["user", "assistant"]),
        ({"Question": "a", "Answer": 7}, "prompt and completion", ["user", "assistant"]),
        ({"text": "a", "category": "b"}, "text and label", ["user", "assistant"]),
    ],
)  # fmt: skip
def test_each_format_is_detected(tmp_path, row, form, turns):
    found, examples = _import(tmp_path, "a.jsonl", _jsonl(row))
    assert found.format == form
    assert [message["role"] for message in examples[0].messages] == turns


def test_alpaca_joins_instruction_and_input(tmp_path):
    _, examples = _import(tmp_path, "a.jsonl", _jsonl({"instruction": "add", "input": "1 2", "output": "3"}))
    assert examples[0].messages[0]["content"] == "add\n1 2"


def test_text_rows_stay_text(tmp_path):
    _, examples = _import(tmp_path, "a.txt", "Once upon a time.\n\nThe end.")
    assert (examples[0].messages, examples[0].text) == ((), "Once upon a time.\n\nThe end.")


def test_content_blocks_become_text(tmp_path):
    blocks = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    _, examples = _import(tmp_path, "a.jsonl", _jsonl({"messages": [{"role": "user", "content": blocks}, MESSAGES[1]]}))
    assert examples[0].messages[0]["content"] == "one two"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps([{"prompt": "p", "completion": "c"}] * 3)),
        ("a.csv", "prompt,completion\n" + 'p,"c"\n' * 3),
        ("a.csv", "\ufeffprompt;completion\n" + "p;c\n" * 3),
        ("a.tsv", "prompt\tcompletion\n" + "p\tc\n" * 3),
        ("a.jsonl", "\ufeff" + _jsonl({"prompt": "p", "completion": "c"}) * 3 + "\n\n"),
    ],
)
def test_each_kind_of_file_is_read(tmp_path, name, content):
    found, examples = _import(tmp_path, name, content)
    assert found.rows == 3
    assert examples[2].messages[1]["content"] == "c"


def test_parquet_is_read(tmp_path):
    pyarrow.parquet.write_table(pa.table({"messages": [MESSAGES] * 3}), tmp_path / "a.parquet")
    found = import_file(tmp_path / "a.parquet", tmp_path / "rows.arrow")
    assert (found.format, found.rows) == ("messages", 3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.jsonl", _jsonl({"messages": MESSAGES}) + '{"messages": [\n', "line 2 is not valid JSON"),
        ("a.jsonl", _jsonl({"messages": MESSAGES}) + "[1]\n", "Line 2 is a list"),
        ("a.json", '{"a": 1}', "expected a list of rows"),
        ("a.json", '[{"a": 1},\n{]', "line 2 is not valid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "nested too deeply|not valid JSON"),
        ("a.csv", "colour,shape\nred,round\n", "'colour', 'shape'.*Expected one of"),
        ("a.csv", "prompt,completion\np,c\np,c,d\n", r"row 2 \(line 3\) has a different number"),
        ("a.csv", 'prompt,completion\np,"c\n', "not valid CSV"),
        ("a.csv", "prompt,completion\np,caf\xe9\n".encode("latin-1"), "not UTF-8"),
        ("a.parquet", "PAR1 no", "not a readable Parquet"),
        ("a.xlsx", "x", "ending in .xlsx cannot be read"),
        ("a.jsonl", _jsonl({"messages": MESSAGES}, {"messages": MESSAGES[:1]}), "Row 2: there is no assistant"),
        ("a.jsonl", _jsonl({"prompt": "p", "completion": " "}), "Row 1: an answer is empty"),
        ("a.jsonl", _jsonl({"prompt": "p", "completion": "c"}, {"prompt": "p"}), "Row 2: completion is missing"),
        ("a.jsonl", _jsonl({"messages": [{"role": "wizard", "content": "x"}]}), "'wizard' is not known"),
        ("a.jsonl", _jsonl({"messages": [MESSAGES[1]]}), "first turn is the assistant"),
        ("a.jsonl", _jsonl({"prompt": "p", "chosen": "a", "rejected": "b"}), "preference data"),
        ("a.jsonl", _jsonl({"text": "  "}), "the text is empty"),
        ("a.jsonl", '{"prompt": "p", "completion": NaN}\n', "Row 1: completion is missing"),
        ("a.jsonl", _jsonl({"text": "p", "label": None}), "Row 1: label is missing"),
        ("a.jsonl", _jsonl({"text": "p", "label": [1]}), "Row 1: label is a list"),
        ("a.jsonl", '{"prompt": "p", "completion": "\\ud800"}\n', "Row 1: the text holds half a character"),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}\n", "line 1 cannot be read"),
        ("a.jsonl", _jsonl({"instruction": "a", "output": "b", "history": 5}), "Row 1: history must be a list"),
        ("a.csv", "prompt,prompt,completion\na,b,c\n", "several columns called 'prompt'"),
        ("a.csv", b"prompt,completion\np,c\n\xff,c\n", "byte 0xff in line 3"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path, name, content, said):
    with pytest.raises(InvalidData, match=said):
        _import(tmp_path, name, content)


def test_rows_are_read_one_by_one_across_batches(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(2500)]
    _import(tmp_path, "a.jsonl", _jsonl(*rows))
    stored = DatasetFile(tmp_path / "rows.arrow")
    assert len(stored) == 2500
    for index in (0, 999, 1000, 2499):
        assert stored[index].messages[1]["content"] == f"c{index}"
        assert stored[index].row == index + 1
