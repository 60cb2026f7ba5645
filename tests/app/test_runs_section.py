"""What the page says of runs: the rows of their list, options and changes in words, comparisons that fit."""

import pytest
from sqlalchemy import event

from app.service.comparing import compare
from app.service.workbench import Workbench
from app.web.parts.picker import Query
from app.web.sections.runs.chosen_runs import ids_of
from app.web.sections.runs.comparison import options_html, results_html, shortened
from app.web.sections.runs.comparison_charts import heat_map, parallel_coordinates
from app.web.sections.runs.listing import find
from app.web.sections.runs.run_markup import changes_html
from app.web.sections.runs.run_markup import options_html as options_of_one
from core.train.training_options import TrainingOptions
from storage.tables import Point, Run


@pytest.fixture
def workbench(settings):
    found = Workbench(settings)
    yield found
    found.close()


@pytest.fixture
def add(workbench):
    """A function that puts a run into the registry as if it had been trained."""

    def make(name, state="finished", options=None, loss=None, steps=0, **about):
        run = workbench.registry.save(
            Run(
                name=name,
                state=state,
                base_id=1,
                base_name="llama",
                base_fingerprint="f",
                dataset_id=1,
                dataset_name="data",
                dataset_digest="d",
                config=TrainingOptions.parse(options or {}).to_dict(),
                **about,
            )
        )
        points = [Point(run_id=run.id, step=step, loss=2.0) for step in range(1, steps + 1)]
        judged = [Point(run_id=run.id, step=steps, validation_loss=loss)] if loss else []
        workbench.registry.measurements.add_points([*points, *judged])
        return run

    return make


def test_a_row_says_state_place_progress_and_the_best_loss(workbench, add):
    add("done", loss=1.25, steps=3)
    add("now", "running", steps=5, details={"total_steps": 20})
    add("second", "queued", position=2)
    add("first", "queued", position=1)
    add("swept rank=4", sweep="s")
    add("swept rank=8", sweep="s")
    found = find(workbench, Query())
    rows = {row.title: row for row in found.rows}
    assert [*rows] == ["now", "first", "second", "swept rank=8", "swept rank=4", "done"]
    assert (rows["now"].share, rows["done"].share) == (0.25, None)
    assert rows["first"].badges == (("waits, 1.", "busy"),)
    assert rows["second"].badges == (("waits, 2.", "busy"),)
    assert (rows["done"].figure, rows["done"].badges) == ("1.2500", (("finished", "good"),))
    assert {row.group for row in found.rows if row.group} == {"swept · sweep of 2 (runs 5–6)"}
    assert find(workbench, Query("swept", {"state": "active"})).total == 0
    assert [one.name for one in found.facets] == ["state", "base", "data", "order"]


def test_a_page_of_many_runs_asks_the_registry_as_often_as_one_of_few(workbench, add):
    asked = []
    event.listen(workbench.registry.database._engine, "before_cursor_execute", lambda *about: asked.append(1))

    def count():
        asked.clear()
        find(workbench, Query())
        return len(asked)

    add("a one", loss=1.0, steps=1, sweep="s")
    few = count()
    for at in range(30):
        add(f"b {at}", loss=1.0, steps=1, sweep="s")
    assert count() == few


def test_options_are_in_words_and_those_that_differ_from_the_defaults_are_marked(workbench, add):
    run = add("mine", options={"rank": 4, "stop_on": "nan,spike", "sample_prompts": "<b>hi</b>"})
    said = options_of_one(workbench, run)
    assert "<dd class='differs'>4 <small>default 16</small>" in said
    assert "The loss is no number any more; The loss jumps far above what it was" in said
    assert "&lt;b&gt;hi&lt;/b&gt;" in said
    assert "<dd>by epochs</dd>" in said
    assert "Rank pattern" not in said, "what says nothing is left out"


def test_changes_tell_from_what_to_what_and_from_which_step(add):
    changes = [
        {"values": {"learning_rate": 1e-4}, "at": 1.0, "step": 9},
        {"values": {"learning_rate": 5e-5, "epochs": 5.0}, "at": 2.0},
    ]
    said = changes_html(add("mine", changes=changes))
    assert "from step 10 on" in said
    assert "Learning rate: 0.0002 → 0.0001" in said
    assert "from its next step on" in said
    assert "Learning rate: 0.0001 → 5e-05; Epochs: 3 → 5" in said
    assert "Nothing was changed" in changes_html(add("other"))


def test_a_comparison_marks_the_best_shows_what_differs_and_shortens_long_names(workbench, add):
    modules = ["q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", "q_proj,v_proj"]
    ids = [
        add(
            f"<i>{rank} {name}",
            options={"rank": rank, "target_modules": name},
            loss=rank / len(name),
            steps=2,
        ).id
        for rank in (4, 8)
        for name in modules
    ]
    found = compare(workbench.registry, ids)
    table = results_html(found)
    assert table.count("class='best'") == 1
    assert "<i>" not in table
    assert options_html(found).count("<tr>") == 1 + 2
    assert options_html(found, every=True).count("<tr>") > 20
    axis = parallel_coordinates(found).data[0].dimensions[1]
    assert all(len(one) <= 24 for one in axis.ticktext)
    assert (axis.ticktext[0][:8], axis.ticktext[0][-9:]) == ("q_proj,k", "down_proj")
    cells = heat_map(found)
    assert all(len(one) <= 24 for one in cells.layout.yaxis.ticktext)
    assert modules[0] in str(cells.data[0].customdata), "the whole name is told where one points at it"


def test_what_an_address_holds_that_is_no_run_is_left_out():
    assert ids_of("3, 5,x,,3,-1,²") == [3, 5]
    assert (shortened("short"), shortened("a" * 20 + "b" * 20, 9)) == ("short", "aaaa…bbbb")
