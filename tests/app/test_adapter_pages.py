"""What the sections Adapters and Export show, asked without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.jobs.kinds import JOBS
from app.service.lineage import lineage
from app.shared.errors import USER_ERRORS
from app.web.parts.choice import adapters_like, weighed
from app.web.parts.job_result import last_result
from app.web.parts.picker import Query
from app.web.sections.adapters.adapter_facts import overview_html
from app.web.sections.adapters.import_form import what_was_looked_at
from app.web.sections.adapters.lineage_graph import lineage_svg
from app.web.sections.adapters.section import find
from app.web.sections.export import export_markup, section, sheet
from core.export.formats import EXPORT_FORMATS, Written
from storage.errors import InUse, NotFound
from storage.tables import FAILED, FINISHED, STOPPED, Adapter, Base, Export, Job, Run


def exported(workbench, row: Adapter, **about: object) -> Export:
    """An export as its job registers it."""
    folder = Path(about.pop("folder", workbench.settings.exports / "one"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("# Card of <b>it</b>")
    made = {"size_bytes": 3, "passed": True, "sentence": "Passed.", "files": {"README.md": "f" * 64}} | about
    return workbench.registry.save(
        Export(
            adapter_name=row.name,
            adapter_digest=row.digest,
            base_name=row.base_name,
            folder=str(folder),
            **made,
        )
    )


def job(workbench, kind: str, state: str = FINISHED, **about: object) -> Job:
    return workbench.registry.save(Job(kind=kind, title="A job", state=state, **about))


def test_the_list_is_one_page_that_facets_narrow_down_and_order(workbench, trained):
    first = trained("adapter 0")
    for at in range(1, 9):
        made = {"id": None, "name": f"adapter {at}", "starred": at == 4, "validation_loss": 9.0 - at}
        made |= {"tags": "good, chat"} if at % 2 else {}
        workbench.registry.add(Adapter(**first.model_dump() | made))

    def names(start: int = 0, most: int = 100, words: str = "", **facets: str) -> list[str]:
        return [one.key.rpartition(" ")[2] for one in find(workbench, Query(words, facets, start, most)).rows]

    assert names(start=2, most=3) == ["6", "5", "4"]
    assert names(tag="good", order="oldest") == ["1", "3", "5", "7"]
    assert names(order="validation loss") == ["8", "7", "6", "5", "4", "3", "2", "1", "0"]
    assert names(starred="yes") == ["4"]
    assert names(words="adapter 7") == ["7"]
    found = find(workbench, Query("", {}, 0, 2))
    assert (found.total, len(found.rows)) == (9, 2)
    assert {one.name: len(one.choices) for one in found.facets} == {
        "base": 2, "dataset": 1, "tag": 3, "starred": 2, "order": 7
    }  # fmt: skip
    (starred,) = find(workbench, Query("", {"starred": "yes"})).rows
    assert (starred.mark, starred.figure, starred.sub) == ("★", "5.0000", "llama · rank 2 · trained")


def test_only_adapters_of_one_base_are_offered_together(workbench, trained):
    mine = trained("mine")
    other = {"id": None, "name": "other", "base_fingerprint": "e" * 64}
    workbench.registry.add(Adapter(**mine.model_dump() | other))
    assert [name for name, _ in adapters_like(workbench.registry, "")] == ["other", "mine"]
    assert [name for name, _ in adapters_like(workbench.registry, "", mine.base_fingerprint)] == ["mine"]
    assert weighed('[{"name": "a, b", "weight": 0.5}, {"name": "c", "weight": -1}]') == {"a, b": 0.5, "c": -1}
    assert weighed("") == {}


def test_a_result_is_that_of_the_newest_job_about_the_same_adapter(workbench):
    made = job(workbench, "resize_adapter", arguments={"adapter": {"id": 1}}, result={"rank": 1})
    job(workbench, "resize_adapter", arguments={"adapter": {"id": 2}}, result={"rank": 2})
    job(workbench, "resize_adapter", STOPPED, arguments={"adapter": {"id": 1}}, message="Cancelled <b>.")
    said, found = last_result(workbench.registry, "resize_adapter", {"adapter.id": 1})
    assert (found.result, said) == ({"rank": 1}, "<p class='fault'>A job: Cancelled &lt;b&gt;.</p>")
    later = made.created + 1000  # another adapter has got the number of a deleted one
    assert last_result(workbench.registry, "resize_adapter", {"adapter.id": 1}, later) == ("", None)
    assert last_result(workbench.registry, "verify_adapter") == ("", None)


@pytest.mark.parametrize(
    ("then", "said", "kept"),
    [
        ([], "", True),
        ([(True, "running", "b")], "Under way", False),
        ([(True, FAILED, "b")], "no adapter", False),  # nothing of it, and not the one before either
        ([(False, FAILED, "a")], "no adapter", True),  # refused, for example as the name was taken: again
        ([(False, FAILED, "b")], "no adapter", False),
        ([(False, FINISHED, "a")], "", False),
    ],
)
def test_what_can_be_kept_is_what_was_looked_at_last(workbench, then, said, kept):
    newest = looked = job(
        workbench, "import_adapter", arguments={"look": True, "folder": "a"}, result={"bases": []}
    )
    for look, state, folder in then:
        about = {"look": look, "folder": folder}
        newest = job(workbench, "import_adapter", state, arguments=about, message="This is no adapter.")
    words, found = what_was_looked_at(workbench.registry, newest.id)
    assert (found.id if found else None) == (looked.id if kept else None)
    assert said in words if said else words == ""
    elsewhere, again = what_was_looked_at(workbench.registry, 0)  # as after a reload
    assert ("fault" in elsewhere, again) == (False, found)


def test_everything_an_adapter_comes_from_and_became_is_a_link(workbench, trained):
    parent = trained("parent")
    run = workbench.registry.save(
        Run(
            name="its run", base_id=1, base_name="llama", base_fingerprint=parent.base_fingerprint,
            dataset_id=1, dataset_name="data", dataset_digest="d", config={}, state=FINISHED,
        )
    )  # fmt: skip
    made = {"id": None, "name": "it", "run_id": run.id, "dataset_name": "data", "digest": "d" * 64}
    made |= {"parents": [{"name": "was parent", "digest": parent.digest, "weight": 1.0}]}
    row = workbench.registry.add(Adapter(**parent.model_dump() | made))
    out = exported(workbench, row)
    parents = [
        {"name": "it", "digest": row.digest, "weight": 1.0},
        {"name": "gone", "digest": "0" * 64, "weight": 2.0},
    ]
    of_it = {"id": None, "name": "<child>", "parents": parents}
    workbench.registry.add(Adapter(**row.model_dump() | of_it))
    drawn = lineage_svg(lineage(workbench.registry, row))
    sources = ("models&amp;name=llama", "data&amp;name=data", f"runs&amp;name={run.id}")
    others = ("adapters&amp;name=parent", "adapters&amp;name=%3Cchild%3E", f"export&amp;name={out.id}")
    for there in (*sources, *others):
        assert f"href='?section={there}'" in drawn
    child = workbench.registry.find(Adapter, "<child>")
    drawn = lineage_svg(lineage(workbench.registry, child))
    assert "section=adapters&amp;name=it'" in drawn
    assert "gone" in drawn
    assert "name=gone" not in drawn
    about = overview_html(workbench, row)
    for there in sources:
        assert f"href='?section={there}'" in about


def test_a_finished_export_leads_to_itself_and_to_the_base_that_it_became(workbench, trained, checked_here):
    from tests.workbenches import do_job

    trained("mine")
    folder = str(workbench.settings.exports / "out")
    arguments = {"adapter": "mine", "folder": folder, "config": {"format": "safetensors"}}
    done = do_job(workbench, "export_adapter", arguments)
    (row,) = workbench.registry.all(Export)
    shown, chat = JOBS.get("export_adapter").next_steps(done.result)
    assert (shown.section, shown.about) == ("export", {"name": str(row.id)})
    assert (chat.section, chat.about) == ("playground", {"base": "mine merged"})
    assert [one.key for one in section.find(workbench, Query()).rows] == [str(row.id)]
    about = export_markup.facts_html(workbench, row)
    assert "?section=models&amp;name=mine+merged" in about
    assert "?section=adapters&amp;name=mine" in about
    assert f"vllm serve {row.folder}" in export_markup.commands_html(workbench, row)
    assert "model.safetensors" in export_markup.files_html(row)

    with pytest.raises(InUse, match="The base model mine merged lies in"):
        workbench.exports.remove(row.id)
    workbench.models.remove("mine merged")
    assert "is removed" in workbench.exports.remove(row.id)
    assert not Path(row.folder).exists()
    with pytest.raises(NotFound, match="has been removed already"):
        workbench.exports.remove(row.id)
    assert workbench.registry.names(Base) == {"llama"}


def test_no_folder_goes_with_an_export_that_holds_something_else(workbench, trained):
    adapter, exports = trained("mine"), workbench.settings.exports
    same = [exported(workbench, adapter, folder=exports / "same") for _ in range(2)]
    outer, inner = exports / "outer", exports / "outer" / "inner"
    rows = [exported(workbench, adapter, folder=one) for one in (exports, exports / ".." / "models", outer)]
    within = exported(workbench, adapter, folder=inner)
    for row in (same[0], *rows):
        assert "its files stay in" in workbench.exports.remove(row.id)
    assert (exports / "same" / "README.md").is_file()
    assert inner.is_dir()
    assert (workbench.settings.models / "README.md").is_file()
    for row in (same[1], within):
        assert "is removed" in workbench.exports.remove(row.id)
    assert not (exports / "same").exists()
    assert not inner.exists()


def test_what_was_exported_elsewhere_stays_there_when_it_is_forgotten(workbench, trained, tmp_path):
    row = exported(workbench, trained("mine"), folder=tmp_path / "out")
    with pytest.raises(USER_ERRORS, match="not as it was written"):
        workbench.exports.verify(row.id)
    assert f"its files stay in {tmp_path / 'out'}" in workbench.exports.remove(row.id)
    assert (tmp_path / "out" / "README.md").is_file()
    assert workbench.registry.all(Export) == []


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, ""),
        (0.0001, "which is hardly to be noticed"),
        (0.438, "Rounding to bfloat16 took 43.8% of what the adapter changes. Export it again with"),
    ],
)
def test_rounding_comes_with_advice(workbench, trained, share, said):
    row = exported(workbench, trained("mine"), check={"rounding_loss": share, "dtype": "bfloat16"})
    assert said in export_markup.rounding_html(row)


def test_an_export_of_a_format_that_is_not_here_any_more_is_still_shown(workbench, trained):
    row = exported(workbench, trained("mine"), format="npz<b>")
    assert "npz&lt;b&gt;" in export_markup.facts_html(workbench, row)
    assert "no commands are known" in export_markup.commands_html(workbench, row)
    assert "# Card of &lt;b&gt;it&lt;/b&gt;" in export_markup.card_html(row)
    Path(row.folder, "README.md").unlink()
    Path(row.folder).rmdir()
    for html in (export_markup.commands_html(workbench, row), export_markup.card_html(row)):
        assert "gone" in html
    assert "gone: it was moved or deleted" in export_markup.facts_html(workbench, row)


@pytest.mark.parametrize(
    ("format", "weights", "typed"),
    [
        ("safetensors", "model.safetensors", ["vllm serve '/my models/out' --served-model-name mine"]),
        ("gguf", "mine-f16.gguf", ["llama-server -m '/my models/out/mine-f16.gguf' --port 8080"]),
        ("gguf-adapter", "mine-lora.gguf", ["--lora '/my models/out/mine-lora.gguf'"]),
        ("ollama", "model.gguf", ["ollama create mine -f '/my models/out/Modelfile'\nollama run mine"]),
        (
            "peft",
            "adapter_model.safetensors",
            ["vllm serve org/base --enable-lora --max-lora-rank 32 --lora-modules 'mine=/my models/out'"],
        ),
    ],
)
def test_a_format_says_how_it_is_used(format, weights, typed):
    what = Written(Path("/my models/out"), weights, "mine", 20, "org/base")
    found = EXPORT_FORMATS.get(format).commands(what)
    for one in typed:
        assert any(one in command for _, command in found), found
    assert len({title for title, _ in found}) == len(found) >= 2


def test_what_will_be_written_is_told_before(workbench, trained, tmp_path):
    base = workbench.registry.find(Base, trained("mine").base_name)
    said = sheet.preview_html(workbench, "mine", "safetensors", "auto", "")
    assert "with the LoRA adapter mine merged in" in said
    assert str(workbench.settings.exports) in said
    assert sheet._bytes(EXPORT_FORMATS.get("gguf"), "q4_0", None, base) == 4.5 * base.parameters / 8
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    occupied = sheet.preview_html(workbench, "mine", "peft", "auto", str(tmp_path / "full"))
    assert "There is something in this folder" in occupied
    assert sheet.preview_html(workbench, "gone", "peft", "auto", "") == ""
