"""A data format that comes from one file, this one: detected, mapped, imported and offered everywhere."""

import json

import gradio as gr
import pytest
from typer.testing import CliRunner

from app.cli.main import app
from app.service.workbench import Workbench
from app.shared.data_import import ImportRequest, import_dataset, look_at
from app.web.parts.shell import Shell
from app.web.sections.data.import_form import ImportPanel
from app.web.sections.data.mapping_fields import format_choices
from core.data.findings import RowFault
from core.data.formats import DataFormat
from core.data.mapping import Candidate, DataMapping
from core.data.turns import conversation
from core.errors import InvalidConfig
from core.seam import PLUGINS_VARIABLE
from storage.tables import Dataset


class Riddles(DataFormat):
    """{"riddle": "…", "solution_parts": ["…", …]}: the parts, each on its line, are the answer."""

    name, label, order = "riddles", "riddles in parts", 35
    help = "a riddle, and its solution in parts"
    expected = "riddle and solution_parts"
    roles = needed = ("riddle", "parts")
    own_roles = (("riddle", "Riddle"), ("parts", "Parts of the solution"))
    columns = ("riddle", "solution_parts")

    def detect(self, seen):
        if not set(self.columns) <= set(seen.names):
            return []
        columns = {"riddle": seen.names["riddle"], "parts": seen.names["solution_parts"]}
        return [Candidate(DataMapping(self.name, columns), "a riddle and the parts of its solution")]

    def converter(self, mapping):
        riddle, parts = mapping.columns["riddle"], mapping.columns["parts"]

        def convert(number, row):
            if not isinstance(row.get(parts), list):
                raise RowFault("missing", f"{parts} is no list of parts.")
            return conversation(number, [("user", row[riddle]), ("assistant", "\n".join(row[parts]))])

        return convert


KINDS = (Riddles(),)


@pytest.fixture(autouse=True)
def plugged_in(monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, __name__)


@pytest.fixture
def home(settings):
    found = Workbench(settings)
    yield found
    found.close()


def _written(path, *names):
    """Twelve riddles and one that is broken, in columns of these names."""
    rows = [dict(zip(names, (f"What is {i}?", ["a", f"b{i}"]), strict=True)) for i in range(12)]
    broken = dict(zip(names, ("What?", "none"), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, broken]))
    return path


@pytest.fixture
def file(tmp_path):
    return _written(tmp_path / "riddles.jsonl", "riddle", "solution_parts")


def _saves(row):
    return (row.format, row.rows, row.faulty_rows, row.preview[1]["messages"][1]["content"])


def test_it_is_seen_by_its_columns_and_imported_by_the_service(home, file):
    look = look_at(file)
    assert look.chosen.mapping.sentence() == "riddles: riddle = riddle, parts = solution_parts"
    assert look.rows[0]["messages"][1]["content"] == "a\nb0"
    row = import_dataset(home.registry, ImportRequest([str(file)], "mine"))
    assert _saves(row) == ("riddles", 13, 1, "a\nb1")
    assert home.datasets.open(row).summary.mapping["format"] == "riddles"
    assert [line.number for line in home.datasets.lines(row, "rows with errors")[0]] == [13]


def test_the_command_line_imports_it_as_detected_by_hand_and_like_another(settings, tmp_path, file):
    def add(path, name, *more):
        arguments = ["data", "add", str(path), "--name", name, *more, "--home", str(settings.home), "--json"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        return found["format"], found["rows"], found["faulty_rows"]

    other = _written(tmp_path / "other.jsonl", "asked", "told")
    assert add(file, "a") == ("riddles", 13, 1)
    assert add(other, "b", "--map", "riddle=asked", "--map", "parts=told") == ("riddles", 13, 1)
    again = _written(tmp_path / "again.jsonl", "asked", "told")
    assert add(again, "c", "--like", "b") == ("riddles", 13, 1)


def test_the_pages_form_offers_it_with_its_own_roles(home, tmp_path, file):
    with gr.Blocks() as page:
        state = gr.State("")
        panel = ImportPanel(Shell(home, page, state, gr.HTML()))
    columns = panel._fields.columns
    assert ("riddles in parts", "riddles") in format_choices()
    shown = dict(zip(columns, panel._fields.roles_shown("riddles"), strict=True))
    visible = {columns[role].label for role, field in shown.items() if field.visible}
    assert visible == {"Riddle", "Parts of the solution"}
    filled = panel._look([str(file)], "")
    assert "riddles</b>, seen by: a riddle and the parts of its solution" in filled[3]
    values = {"riddle": "asked", "parts": "told"}
    fields = ["riddles", *(values.get(role, "") for role in columns), "", "", "", "", False]
    other = _written(tmp_path / "other.jsonl", "asked", "told")
    assert "What is 0?" in panel._show([str(other)], "", *fields)


def test_its_mapping_is_checked_and_its_misspelled_columns_are_pointed_out(tmp_path):
    with pytest.raises(InvalidConfig, match="'riddles' needs a column for parts"):
        DataMapping("riddles", {"riddle": "a"})
    with pytest.raises(InvalidConfig, match=r"no data format 'ridles'\. Did you mean riddles"):
        DataMapping("ridles", {})
    look = look_at(_written(tmp_path / "a.jsonl", "ridle", "solution_parts"))
    assert look.detection.near_misses == ("The column 'ridle' looks like a misspelled 'riddle'.",)
    assert look.detection.candidates[0].doubtful


def test_without_it_such_a_data_set_stays_and_says_what_is_missing(home, file, monkeypatch):
    import_dataset(home.registry, ImportRequest([str(file)], "mine"))
    monkeypatch.delenv(PLUGINS_VARIABLE)
    row = home.registry.find(Dataset, "mine")
    assert home.datasets.row(row, 0).example.messages[1]["content"] == "a\nb0"
    with pytest.raises(InvalidConfig, match="no data format 'riddles'"):
        DataMapping.parse(row.mapping)
