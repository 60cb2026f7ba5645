"""How often a file is opened on its way from the upload to the data set: for its first two bytes, which tell
whether it is packed with gzip, and for its rows; the first rows are kept.
"""

import json
import os
import sys
import zipfile
from collections import Counter

import pytest

from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest, import_dataset, look_at, mapping_from
from core.data.mapping import DataMapping

_watched: list[Counter] = []
_A_PASS = 2  # its first two bytes, and its rows


def _hook(event, arguments):
    if event == "open" and _watched and isinstance(arguments[0], (str, os.PathLike)):
        _watched[-1][os.path.basename(arguments[0])] += 1


sys.addaudithook(_hook)  # for the life of this process, as all such hooks; it does nothing while none watch


@pytest.fixture
def opened():
    """Openings by the file's name."""
    _watched.append(Counter())
    yield _watched[-1]
    _watched.pop()


ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
ONE = DataMapping("prompt and completion", {"user": "prompt", "assistant": "completion"})
OTHER = DataMapping("prompt and completion", {"user": "completion", "assistant": "prompt"})
FILES = {
    "a.jsonl": LINES,
    "a.json": json.dumps(ROWS),
    "lines.json": LINES,
    "array.jsonl": json.dumps(ROWS),
    "a.csv": "prompt,completion\n" + "".join(f"p{i},c{i}\n" for i in range(300)),
}


@pytest.fixture
def registry(settings):
    workbench = Workbench(settings)
    yield workbench.registry
    workbench.close()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_once_before_its_main_pass_and_not_for_a_change(tmp_path, registry, opened, name):
    file = tmp_path / name
    file.write_text(FILES[name])
    opened.clear()
    assert look_at(file).chosen is not None
    assert opened[name] == _A_PASS
    assert look_at(file, ONE).rows[0]["messages"][0]["content"] == "p0"
    assert look_at(file, OTHER).rows[0]["messages"][0]["content"] == "c0"
    assert mapping_from(file, ["user=prompt", "assistant=completion"], []) == ONE.to_dict()
    assert opened[name] == _A_PASS
    import_dataset(registry, ImportRequest([str(file)], "mine", (), OTHER.to_dict()))
    assert opened[name] == 2 * _A_PASS


def test_a_plain_text_is_seen_by_line_and_as_a_whole_in_one_opening(tmp_path, opened):
    (tmp_path / "a.txt").write_text("\ufeffq||a\n\nr||b\n")
    opened.clear()
    lines, whole = look_at(tmp_path / "a.txt").detection.candidates
    assert look_at(tmp_path / "a.txt", lines.mapping).rows[1] == {
        "row": 3,
        "messages": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}],
        "text": "",
    }
    assert [row["text"] for row in look_at(tmp_path / "a.txt", whole.mapping).rows] == ["q||a\n\nr||b\n"]
    assert opened["a.txt"] == _A_PASS


def test_a_zip_is_unpacked_once_however_often_its_mapping_changes(tmp_path, opened):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    opened.clear()
    for mapping in (None, ONE, OTHER):
        look_at(tmp_path / "a.zip", mapping)
    assert opened["a.zip"] == 1


def test_a_file_that_changed_is_looked_at_anew(tmp_path, opened):
    file = tmp_path / "a.jsonl"
    file.write_text(LINES)
    look_at(file)
    (tmp_path / "b.jsonl").write_text(LINES.replace("p0", "p!"))
    os.replace(tmp_path / "b.jsonl", file)  # as long as before, and in the same place
    opened.clear()
    assert look_at(file).rows[0]["messages"][0]["content"] == "p!"
    assert opened["a.jsonl"] == _A_PASS
