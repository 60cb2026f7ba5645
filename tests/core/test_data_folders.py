"""A folder of files of rows: as a zip of it would be read."""

import gzip

import pytest

from core.data import folders
from core.data.folders import first_file, folder_sources
from core.data.sample import sample_of
from core.errors import InvalidData
from tests.core.data_files import GOOD, lines


def _written(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _read(folder, tmp_path):
    return [(one.name, one.path.read_text()) for one in folder_sources(folder, tmp_path)]


def test_all_texts_of_a_folder_are_read_under_their_names(tmp_path):
    folder = _written(tmp_path / "mine", b_txt="second", a_txt="first", below__c_md="third", d_png="none")
    _written(folder, **{"_hidden_txt": "no", ".git__a_txt": "no"})
    (folder / "link.txt").symlink_to(folder / "a.txt")
    assert _read(folder, tmp_path) == [
        ("mine/a.txt", "first"),
        ("mine/b.txt", "second"),
        ("mine/below/c.md", "third"),
    ]
    assert first_file(folder) == folder / "a.txt"
    assert first_file(folder / "b.txt") == folder / "b.txt"
    assert sample_of(folder).rows[0][1] == {"text": "first"}


def test_the_splits_of_a_folder_are_told_apart_and_what_is_packed_is_unpacked(tmp_path):
    rows = lines(GOOD)
    packed = gzip.compress(rows.encode())
    folder = _written(
        tmp_path / "mine", train_jsonl_gz=packed, validation_jsonl=rows, test_jsonl=rows, notes_txt="x"
    )
    found = folder_sources(folder, tmp_path)
    assert [(one.name, one.validation, one.path.read_text()) for one in found] == [
        ("mine/train.jsonl.gz", False, rows),
        ("mine/validation.jsonl", True, rows),
    ]
    assert found[0].unread == ("notes.txt", "test.jsonl")


def test_a_folder_without_rows_or_with_far_too_many_files_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InvalidData, match=r"holds no file that can be read; expected \.jsonl"):
        first_file(_written(tmp_path / "empty", a_png="no"))
    monkeypatch.setattr(folders, "_MOST_FILES", 2)
    many = _written(tmp_path / "many", a_txt="1", b_txt="2", c_txt="3")
    with pytest.raises(InvalidData, match="more than 2 files that could be data"):
        folder_sources(many, tmp_path)
