"""Zip files of rows."""

import zipfile

import pytest

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
