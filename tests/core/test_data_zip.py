"""Packed files of rows: zips and gzip."""

import errno
import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from app.shared.data_import import ImportRequest, look_at, read_rows
from core.data.dataset_file import DatasetFile
from core.data.reading import RowReader
from core.data.zipped import sources_of
from core.errors import InvalidData
from tests.core.data_files import GOOD, lines, written


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
def test_a_hostile_zip_is_refused_and_nothing_iswritten(tmp_path, members, said):
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
        sources_of(written(tmp_path, "a.zip", "no zip"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("talks.jsonl.gz", lines(GOOD, GOOD)),
        ("talks.jsonl", lines(GOOD, GOOD)),
        ("talks.json.gz", json.dumps([GOOD, GOOD])),
        ("Talks.CSV.GZ", "prompt,completion\nhi,hello\nhi,hello\n"),
    ],
)
def test_what_is_packed_with_gzip_is_read_whatever_it_is_called(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    (tmp_path / "staging").mkdir()
    request = ImportRequest([str(tmp_path / name)])
    summary = read_rows(request, tmp_path / "staging", tmp_path / "rows")
    first = DatasetFile(tmp_path / "rows")[0]
    assert (summary.rows, summary.sources, first.messages[1]["content"]) == (2, [name], "hello")
    assert request.default_name.casefold() == "talks"
    assert look_at(tmp_path / name).rows[0]["messages"][1]["content"] == "hello"


def test_a_file_that_a_browser_has_unpacked_and_still_calls_gz_is_read(tmp_path):
    assert len(list(RowReader(written(tmp_path, "a.jsonl.gz", lines(GOOD))))) == 1


def test_files_that_are_packed_once_more_in_a_zip_are_read(tmp_path):
    packed = gzip.compress(lines(GOOD).encode())
    (tmp_path / "out").mkdir()
    found = sources_of(_zip(tmp_path, {"a.jsonl.gz": packed, "b.jsonl": packed}), tmp_path / "out")
    assert [(one.name, one.path.read_text()) for one in found] == [
        ("a.zip/a.jsonl.gz", lines(GOOD)),
        ("a.zip/b.jsonl", lines(GOOD)),
    ]


def _tar():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl.gz",
            lambda: gzip.compress(b"0" * 120_000_000, 1),
            r"a\.jsonl\.gz is refused: it unpacks to 0\.1 GB",
        ),
        ("a.jsonl.gz", gzip.compress(b"x" * 5000)[:-10], r"a\.jsonl\.gz cannot be unpacked"),
        ("a.jsonl.gz", b"\x1f\x8b\x08" + b"\xff" * 40, r"a\.jsonl\.gz cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(b"x\n") + b"behind", r"a\.jsonl\.gz cannot be unpacked"),
        ("a.tar.gz", gzip.compress(_tar()), r"a\.tar\.gz holds a tar archive; unpack it"),
    ],
    ids=["bomb", "cut short", "damaged", "more behind it", "tar"],
)
def test_gzip_that_cannot_be_read_is_a_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    with pytest.raises(InvalidData, match=said):
        sources_of(tmp_path / name, tmp_path)


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.gz"])
def test_a_full_disk_is_not_told_as_a_fault_of_what_is_unpacked(tmp_path, monkeypatch, name):
    path = _zip(tmp_path, {"a.jsonl": lines(GOOD)})
    if name != "a.zip":
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
    monkeypatch.setattr(Path, "open", _on_a_full_disk(Path.open))
    with pytest.raises(OSError, match="No space left"):
        sources_of(path.with_name(name), tmp_path)


def _on_a_full_disk(real):
    def opened(path, mode="r", *arguments, **options):
        if "x" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, mode, *arguments, **options)

    return opened
