"""Columns that begin behind the rows a mapping is judged by."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.detection import detect_file
from core.data.importing import import_files
from core.data.zipped import Source
from core.errors import InvalidData
from tests.core.data_files import lines, take, written

PAIRS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(230)]
PASSAGES = [
    {"prompt": f"z{i}", "completion": "good", "context": f"It says the number {i} here"} for i in range(3)
]


def _import(tmp_path, *names, detected=True):
    sources = [Source(tmp_path / name, name) for name in names]
    (tmp_path / "rows").mkdir()
    mapping = detect_file(sources[0].path).require(names[0]).mapping
    return import_files(sources, mapping, tmp_path / "rows", detected=detected)


def test_text_that_only_another_file_has_is_asked_about(tmp_path):
    written(tmp_path, "a.jsonl", lines(*PAIRS[:2]))
    written(tmp_path, "b.jsonl", lines(*PASSAGES))
    with pytest.raises(InvalidData, match=r"'context' begins with row 1 of b\.jsonl.* would be left out"):
        _import(tmp_path, "a.jsonl", "b.jsonl")


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ([{"prompt": "z", "completion": "bad", "label": False}], "'label' says whether an answer is a good"),
        ([{"prompt": "z", "chosen": "yes", "rejected": "no", "completion": "yes"}], "'chosen' and 'reject"),
        ([{"prompt": "z", "completion": "c", "score": -1.5}], "'score' says how good"),
        (PASSAGES, "'context' holds text that would be left out"),
    ],
)
def test_what_begins_late_in_a_file_is_asked_about(tmp_path, late, said):
    written(tmp_path, "a.jsonl", lines(*PAIRS, *late))
    with pytest.raises(InvalidData, match=f"begins with row 231 of a.jsonl; .*{said}"):
        _import(tmp_path, "a.jsonl")


def test_a_table_of_columns_is_no_exception(tmp_path):
    table = {
        "prompt": [f"p{i}" for i in range(300)],
        "completion": ["c"] * 300,
        "label": [None] * 250 + [False] * 50,
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InvalidData, match=r"'label' begins with row 251 of a\.parquet"):
        _import(tmp_path, "a.parquet")


def test_who_has_chosen_the_mapping_is_told(tmp_path):
    rows = [*PAIRS, *PASSAGES, {"prompt": "z", "completion": "bad", "label": False}]
    written(tmp_path, "a.jsonl", lines(*rows))
    summary = _import(tmp_path, "a.jsonl", detected=False)
    assert summary.rows == len(rows)
    assert (summary.counts["unused_column"], summary.counts["preferences"]) == (1, 1)


@pytest.mark.parametrize("late", [{"source": "the long web page of May"}, {"difficulty": 3}, {"context": ""}])
def test_remarks_that_begin_late_are_no_question(tmp_path, late):
    rows = [*PAIRS, *[one | late for one in PAIRS[:5]]]
    summary, _, found = take(tmp_path, "a.jsonl", lines(*rows), detected=True, near=False)
    assert summary.rows == len(rows)
    assert {code for _, code, _ in found} == {"duplicate"}
