"""Data sets by hub id, from a hub of our own: enough of the API for a download."""

import gzip
import io
import json
from typing import ClassVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet
import pytest

from core.data.hub import fetch_dataset
from core.data.reading import RowReader
from core.errors import InvalidData, SourceUnreachable
from core.reporting import silent
from tests.core.fake_hub import FakeHub, serving


def _parquet(count):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"question": ["q"] * count, "answer": ["a"] * count}), sink)
    return sink.getvalue()


class _Hub(FakeHub):
    """files: by revision, then by path; the parquet branch is missing where it is not there."""

    files: ClassVar[dict] = {}

    def _answer(self, body):
        path = unquote(self.path).partition("?")[0]
        revision = "refs/convert/parquet" if "refs/convert/parquet" in path else "main"
        if path.startswith("/api/datasets/owner/qa"):
            files = self.files.get(revision)
            if files is None:
                return self._refuse("RevisionNotFound")
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self._send(
                json.dumps({"id": "owner/qa", "sha": "d" * 40, "siblings": siblings}).encode(), body
            )
        if "/datasets/owner/qa/resolve/" in path:
            files = self.files["refs/convert/parquet" if revision != "main" else "main"]
            return self._send(next(content for name, content in files.items() if path.endswith(name)), body)
        return self._refuse("RepoNotFound")


@pytest.fixture
def hub():
    handler = type("Hub", (_Hub,), {"files": {}})
    with serving(handler) as address:
        yield address, handler.files


CONVERTED = "refs/convert/parquet"


def _rows(sources):
    return [
        (source.name, source.validation, sum(1 for _ in RowReader(source.path, name=source.name)))
        for source in sources
    ]


def test_the_hubs_own_conversion_is_read_without_the_test_split(hub, tmp_path):
    endpoint, files = hub
    files[CONVERTED] = {
        f"default/{split}/0000.parquet": _parquet(count)
        for split, count in (("train", 5), ("validation", 2), ("test", 3))
    }
    found = fetch_dataset("owner/qa", tmp_path / "a", silent, endpoint)
    assert _rows(found) == [
        ("default/train/0000.parquet", False, 5),
        ("default/validation/0000.parquet", True, 2),
    ]


def test_one_of_several_configurations_has_to_be_named(hub, tmp_path):
    endpoint, files = hub
    files[CONVERTED] = {
        f"{config}/train/0000.parquet": _parquet(count) for config, count in (("main", 5), ("socratic", 4))
    }
    with pytest.raises(InvalidData, match=r"configurations main, socratic; name one: owner/qa:main"):
        fetch_dataset("owner/qa", tmp_path / "a", silent, endpoint)
    assert _rows(fetch_dataset("owner/qa:socratic", tmp_path / "b", silent, endpoint)) == [
        ("socratic/train/0000.parquet", False, 4)
    ]


def test_without_a_conversion_the_data_files_are_read_and_no_script(hub, tmp_path):
    endpoint, files = hub
    files["main"] = {
        "train.jsonl": b'{"question": "q", "answer": "a"}\n',
        "dev.jsonl.gz": gzip.compress(b'{"question": "q", "answer": "a"}\n' * 2),
        "qa.py": b"raise",
        "README.md": b"# card",
    }
    found = fetch_dataset("owner/qa", tmp_path / "a", silent, endpoint)
    assert _rows(found) == [("dev.jsonl.gz", True, 2), ("train.jsonl", False, 1)]
    assert not list(tmp_path.rglob("*.py"))


def test_refusals_are_sentences(hub, tmp_path):
    endpoint, files = hub
    with pytest.raises(InvalidData, match="The hub has no data set owner/absent"):
        fetch_dataset("owner/absent", tmp_path, silent, endpoint)
    files["main"] = {"qa.py": b"raise"}
    with pytest.raises(InvalidData, match="no file for training"):
        fetch_dataset("owner/qa", tmp_path, silent, endpoint)
    with pytest.raises(InvalidData, match="no hub id"):
        fetch_dataset("../etc", tmp_path, silent, endpoint)
    with pytest.raises(SourceUnreachable, match="could not be reached for owner/qa"):
        fetch_dataset("owner/qa", tmp_path, silent, "http://127.0.0.1:9")
