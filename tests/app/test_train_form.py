"""The training form without a browser: what it begins with, brings back, and says of the chosen base."""

import json
import re
from html import unescape

from app.service.usual import usual_base, usual_data
from app.service.workbench import Workbench
from app.web.sections.train.form_values import FormValues
from app.web.sections.train.live_runs import live_html
from app.web.sections.train.option_groups import COMMON, groups
from app.web.sections.train.planning import plan_html
from app.web.sections.train.restoring import Kept, _granted, _opened
from core.train.training_options import TrainingOptions, all_options
from storage.tables import Base, Dataset
from tests.workbenches import QUICK


def _another(workbench, table, like: str, **about):
    values = workbench.registry.find(table, like).model_dump(exclude={"id", "created"})
    return workbench.registry.add(table(**values | about))


def test_every_option_is_in_one_group_and_the_common_eight_come_first():
    found = groups()
    names = [option["name"] for group in found for option in group["options"]]
    assert len(names) == len(set(names))
    assert set(all_options()) - set(names) <= {"kind", "objective"}, (
        "a kind that is the only one is not asked for"
    )
    assert found[0]["subject"] == COMMON
    assert [option["name"] for option in found[0]["options"]] == [
        "rank",
        "alpha",
        "learning_rate",
        "epochs",
        "micro_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "target_modules",
    ]


def test_a_form_of_an_earlier_version_is_read_without_what_there_is_no_more():
    kept = json.dumps({"label": "x", "given": {"rank": 4, "gone": 1}, "sweep": {"seed": ["1"], "alpha": []}})
    read = FormValues.read(kept)
    assert (read.given, read.changed, read.sweep) == ({"rank": 4}, {}, {"seed": ["1"]})
    assert FormValues.read(read.write()) == read
    assert FormValues.read("").parsed() == TrainingOptions()


def test_the_form_begins_where_the_work_was(workbench, trained):
    registry = workbench.registry
    _another(workbench, Base, "llama", name="llama + style", fingerprint="f" * 64, source="merged")
    assert usual_base(workbench) == "llama", "a merge is made to be used"
    _another(workbench, Base, "llama", name="newer", fingerprint="e" * 64)
    assert usual_base(workbench) == "newer"
    trained("mine")
    assert usual_base(workbench) == "llama"
    _another(workbench, Dataset, "data", name="imported later")
    assert usual_data(registry) == "imported later"
    workbench.preferences.change({"default_base": "newer"})
    assert usual_base(workbench) == "newer"


def test_a_reload_brings_back_what_is_still_there_and_an_address_what_it_wishes(workbench, monkeypatch):
    monkeypatch.setattr(type(workbench.engine), "wake", lambda self: None)
    said = FormValues("", {}, {"rank": "8"}, {"seed": ["1", "2"]}).write()
    kept = json.dumps(["gone", "data", "", "mine", True, said])
    found = _opened(workbench, kept)
    assert (found.base, found.dataset, found.name, found.together) == ("llama", "data", "mine", True)
    assert FormValues.read(found.options) == FormValues.read(said)

    _another(workbench, Base, "llama", name="other", fingerprint="e" * 64)
    assert _granted(workbench, found, {"base": "other", "data": ""}).base == "other"
    run = workbench.training.start("other", "data", TrainingOptions.parse(QUICK | {"seed": 7}), "first")
    again = _granted(workbench, found, {"from": str(run.id)})
    options = FormValues.read(again.options)
    assert (again.base, options.parsed().train.seed, options.label) == ("other", 7, f"run {run.id}")


def test_the_plan_says_what_is_missing_first(settings):
    workbench = Workbench(settings)
    assert "Add one under Models" in plan_html(workbench, None, None, "", [])
    workbench.close()


def test_the_plan_tells_the_layers_of_the_base_and_why_it_cannot_start(workbench):
    def targets(html: str):
        return json.loads(unescape(re.search("data-targets='([^']*)'", html)[1]))

    empty = plan_html(workbench, None, None, "", [])
    assert "Choose a base model." in empty, "there is one"
    assert "Choose a data set." in plan_html(workbench, "llama", None, "", [])
    assert targets(empty) == {"kinds": [], "choices": {}, "hits": {}, "words": {}}
    said = plan_html(workbench, "llama", "data", FormValues("", {"rank": 2}).write(), [])
    kinds = {name: (layers, count) for name, layers, count, _ in targets(said)["kinds"]}
    shapes = workbench.registry.find(Base, "llama").layer_shapes
    expected = [2 * sum(shape) for path, shape in shapes.items() if path.endswith("q_proj")]
    assert kinds["q_proj"] == (len(expected), sum(expected))
    assert targets(said)["words"]["query-value"] == ["q_proj", "v_proj"]
    hit = workbench.training.targets("llama", TrainingOptions.parse({"rank": 2}))["Query and value"]
    assert targets(said)["hits"]["Query and value"] == hit.sentence
    assert hit.sentence == f"q_proj × 2, v_proj × 2 · {hit.parameters:,} trainable"
    chosen = {"rank": 2, "target_modules": "query-value", "modules_to_save": "embedding,head"}
    planned = plan_html(workbench, "llama", "data", FormValues("", chosen).write(), [])
    assert "q_proj × 2, v_proj × 2, and 10,240 parameters whole" in planned
    chosen |= {"modules_to_save": "head"}
    tied = plan_html(workbench, "llama", "data", FormValues("", chosen).write(), [])
    assert "model.embed_tokens, tied" in tied
    wrong = plan_html(workbench, "llama", "data", FormValues("", {"rank": 0}).write(), [])
    assert "cannot start" in wrong
    assert "rank must be between 1 and 1,024" in wrong
    assert targets(wrong)["kinds"], "the picker stays"


def test_live_runs_are_links_and_it_says_so_where_there_is_none(workbench, monkeypatch):
    monkeypatch.setattr(type(workbench.engine), "wake", lambda self: None)
    assert "No run is active" in live_html(workbench)
    run = workbench.training.start("llama", "data", TrainingOptions.parse(QUICK), "<b>mine")
    said = live_html(workbench)
    assert f"section=runs&amp;name={run.id}" in said
    assert "&lt;b&gt;mine" in said
    assert "waits for its turn" in said
    assert Kept.read("") == Kept()
