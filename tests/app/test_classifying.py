"""Classifying in the service and on the command line: from an encoder without a head to a merged model."""

import json
from dataclasses import replace

import pytest
import transformers
from typer.testing import CliRunner

from app.cli.main import app
from app.service.chats import Chats
from app.web.sections.playground.who_answers import columns_choices
from core.errors import InvalidConfig, InvalidModel
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Base
from tests.classifiers import CLASSIFYING, MOODS
from tests.workbenches import copy_adapter, do_job

TEXTS = ["hello world", "the lazy dog jumps over you"]


def _run(workbench, *arguments):
    done = CliRunner().invoke(app, [*arguments, "--home", str(workbench.settings.home), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_run_keeps_its_table_by_label_and_several_adapters_classify_side_by_side(trained_on, workbench):
    run = trained_on("first")
    trained_on("second", seed=7)
    points = [
        one for one in workbench.registry.measurements.points(run.id) if one.validation_loss is not None
    ]
    assert all(set(point.metrics) == {"accuracy", "macro_f1"} for point in points)
    _, shown = _run(workbench, "runs", "show", str(run.id))
    table = shown["labels"]
    assert table["labels"] == ["bad", "good", "so so"]
    rows = workbench.registry.find(Adapter, "first")
    assert (table["step"], len(table["by_label"]), len(table["confusion"])) == (6, 3, 3)
    assert sum(map(sum, table["confusion"])) == run.details["validation_rows"]
    assert table["accuracy"] == points[-1].metrics["accuracy"]
    assert rows.parameters > 3 * 32

    both = ["--adapter", "first", "--adapter", "second"]
    code, found = _run(workbench, "classify", "--text", TEXTS[0], "--text", TEXTS[1], *both)
    assert code == 0, found
    for at, text in enumerate(TEXTS):
        row = found["texts"][at]
        assert (row["text"], [one["adapter"] for one in row["told"]]) == (text, ["first", "second"])
        for one in row["told"]:
            assert set(one["probabilities"]) == set(MOODS)
            assert sum(one["probabilities"].values()) == pytest.approx(1)
            assert one["answer"] == max(one["probabilities"], key=one["probabilities"].__getitem__)
    assert [one["cut"] for one in found["texts"]] == [False, False]
    _, long = _run(workbench, "classify", "--text", "good " * 900, "--adapter", "first")
    assert long["texts"][0]["cut"], "what is not read is told"
    code, refused = _run(workbench, "classify", "--text", "x", "--base", "bert")
    assert code == 1
    assert "no head that classifies" in refused["error"]
    code, refused = _run(workbench, "classify", "--text", TEXTS[0], "--text", " ", *both)
    assert (code, refused["error"]) == (1, "Text 2 of 2 is empty; leave it out.")
    file = workbench.settings.home.parent / "texts.txt"
    file.write_text(f"{TEXTS[0]}\n\none\u2028text\r\n\n", encoding="utf-8")
    code, found = _run(workbench, "classify", "--file", str(file), "--adapter", "first")
    assert code == 0, found
    assert [(one["line"], one["text"]) for one in found["texts"]] == [(1, TEXTS[0]), (3, "one\u2028text")]


def test_what_a_base_or_an_adapter_without_a_writing_head_cannot_do_is_refused(trained_on, workbench):
    trained_on("tells")
    trained_on("tells too", seed=7)
    chats: Chats = workbench.chats
    messages = [[{"role": "user", "content": "hello"}]]
    with pytest.raises(InvalidModel, match="no head that writes text"):
        chats.answer("bert", [None], messages, GenerationConfig())
    with pytest.raises(InvalidConfig, match="no head that writes text"):
        workbench.training.start("bert", "data", TrainingOptions.parse({}))
    with pytest.raises(InvalidConfig, match="no head that writes text"):
        workbench.training.estimate("bert", "data", TrainingOptions.parse({}))
    for kind, own in {
        "combine_adapters": {"parts": [{"name": "tells", "weight": 1}, {"name": "tells too", "weight": 1}]},
        "resize_adapter": {"adapter": "tells", "rank": 1},
    }.items():
        with pytest.raises(InvalidConfig, match="tells labels by a head of its own"):
            workbench.jobs.start(kind, {"config": {}, **own})
    with pytest.raises(InvalidConfig, match="choose safetensors, peft"):
        workbench.jobs.start("export_adapter", {"adapter": "tells", "config": {"format": "gguf"}})
    trained_on("on a decoder", "llama")
    with pytest.raises(InvalidConfig, match="no place in a chat"):
        chats.answer("llama", ["on a decoder"], messages, GenerationConfig())


def test_no_checkpoint_of_a_classifier_is_offered_to_chat_with(trained_on, workbench, trained):
    run = trained_on("on a decoder", "llama")
    assert workbench.registry.checkpoints.of(run.id)
    trained("writes")
    offered = [words for words, _ in columns_choices(workbench, "llama", others=False)]
    assert offered == ["writes"]


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_the_merged_export_is_a_standard_classifier_and_can_be_a_base(
    base, trained_on, workbench, checked_here
):
    trained_on("moody", base)
    folder = workbench.settings.home / "out"
    job = do_job(
        workbench,
        "export_adapter",
        {"adapter": "moody", "folder": str(folder), "config": {"format": "safetensors"}},
    )
    assert job.result["verdict"] == "passed", job.result
    classify = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    assert classify.model.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    assert classify.model.config.label2id == {"bad": 0, "good": 1, "so so": 2}
    assert classify.model.config.problem_type == "single_label_classification"
    merged = job.result["base"]
    assert workbench.registry.find(Base, merged).architecture.endswith("ForSequenceClassification")
    _, ours = _run(workbench, "classify", "--text", TEXTS[0], "--adapter", "moody")
    _, alone = _run(workbench, "classify", "--text", TEXTS[0], "--base", merged)
    theirs = {one["label"]: one["score"] for one in classify([TEXTS[0]])[0]}
    for found in (ours, alone):
        assert found["texts"][0]["told"][0]["probabilities"] == pytest.approx(theirs, abs=1e-4)

    job = do_job(
        workbench,
        "export_adapter",
        {"adapter": "moody", "folder": str(folder) + "-peft", "config": {"format": "peft"}},
    )
    assert job.result["verdict"] == "passed", job.result
    job = do_job(workbench, "import_adapter", {"folder": str(folder) + "-peft", "name": "back"})
    assert job.result["base"] == base, job.reason
    _, again = _run(workbench, "classify", "--text", TEXTS[0], "--adapter", "back")
    assert again["texts"][0]["told"][0]["probabilities"] == pytest.approx(theirs, abs=1e-4)


def test_a_head_in_the_files_is_where_training_starts_if_it_tells_the_same_labels(
    trained_on, workbench, checked_here, tmp_path
):
    run = trained_on("first")
    export = {"adapter": "first", "folder": str(tmp_path / "out"), "config": {"format": "safetensors"}}
    merged = do_job(workbench, "export_adapter", export).result["base"]
    again = trained_on("again", merged, max_steps=1)
    ended, began = (
        [one.validation_loss for one in workbench.registry.measurements.points(of.id) if one.validation_loss]
        for of in (run, again)
    )
    assert began[0] == pytest.approx(ended[-1], abs=1e-4)
    rows = [f"a {at},{'xyz'[at % 3]}\n" for at in range(30)]
    (tmp_path / "other.csv").write_text("text,label\n" + "".join(rows))
    workbench.datasets.add(tmp_path / "other.csv", "other")
    anew = trained_on("anew", merged, "other", max_steps=1)
    assert workbench.registry.measurements.last_label_table(anew.id).content["labels"] == ["x", "y", "z"]


def test_a_run_that_classifies_is_measured_before_it_starts(with_encoder, session):
    from app.engine.measuring import Measuring

    configs = [TrainingOptions.parse({**CLASSIFYING, "rank": rank}).to_dict() for rank in (2, 4)]
    asked = Measuring({"base": "bert", "dataset": "moods", "configs": configs})
    for _ in asked.work(with_encoder.registry, session.engine, with_encoder.settings):
        pass
    said = [asked.out.get() for _ in range(asked.out.qsize())]
    assert said[-1]["verdict"] == "fits", said[-1]
    assert said[-1]["together"] == 2


def test_what_is_inside_a_classifier_can_be_seen(trained_on, workbench):
    from app.web.parts.label_view import label_values
    from app.web.sections.playground.classify_sheet import told_html

    run = trained_on("seen")
    job = do_job(workbench, "inspect_adapter", {"adapter": "seen", "other": ""})
    assert job.state == "finished", job.message
    assert {one["path"].split(".")[0] for one in job.result["modules"]} == {"bert"}
    table = workbench.registry.measurements.last_label_table(run.id)
    figures, drawn, by_label = label_values(table)
    assert f"At step {table.step}" in figures
    assert json.loads(drawn)["data"][0]["customdata"] == table.content["confusion"]
    assert all(mood in by_label for mood in MOODS)
    (told,) = workbench.classifiers.classify([TEXTS[0]], ["seen"])[0]
    shown = told_html([told])
    assert f"{100 * told.probabilities['so so']:.1f} %" in shown
    assert (
        "its end was not read" in shown,
        "its end was not read" in told_html([replace(told, cut=True)]),
    ) == (
        False,
        True,
    )


def test_an_adapter_whose_head_was_left_at_random_numbers_is_refused(trained_on, workbench, tmp_path):
    from safetensors.torch import load_file, save_file

    trained_on("whole")
    copy_adapter(workbench, "whole", tmp_path / "part")
    weights = tmp_path / "part" / "adapter_model.safetensors"
    tensors = {name: one for name, one in load_file(weights).items() if "pooler" not in name}
    save_file(tensors, weights)
    job = do_job(
        workbench, "import_adapter", {"folder": str(tmp_path / "part"), "name": "part", "base": "bert"}
    )
    assert job.result["name"] == "part"
    code, refused = _run(workbench, "classify", "--text", "x", "--adapter", "part")
    assert code == 1
    assert "bert.pooler.dense.bias is missing" in refused["error"]
