"""Data sets in the registry: what is left out, split, edited and gone back to;
and what training makes of it.
"""

import csv
import io
import json
import os
import signal
from contextlib import nullcontext

import pytest

from app.shared.data_import import ImportRequest, import_dataset, look_at
from app.shared.errors import JobFailed
from app.web.parts.markup import conversation
from core.data.chat_options import ChatOptions
from core.data.findings import ERROR, KINDS
from core.data.importing import row_shown
from core.data.split import Split
from core.errors import InvalidConfig, InvalidData
from core.generate.config import GenerationConfig
from core.train.training_options import TrainingOptions
from storage.errors import InUse, NameTaken
from storage.tables import Adapter, Base, Dataset, Job, Run
from tests.core.data_files import lines
from tests.workbenches import QUICK, do_job, wait_for

ERRORS = [kind.code for kind in KINDS.values() if kind.level == ERROR]


def rows(count, start=0):
    """Good conversations, all different."""
    return [
        {"prompt": f"question {i}", "completion": f"the answer {i} " * (1 + i % 3)}
        for i in range(start, start + count)
    ]


def add(workbench, tmp_path, content, name="mine", **options):
    """Import a file of rows."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text(content)
    return import_dataset(workbench.registry, ImportRequest([str(path)], name, **options))


def test_training_refuses_rows_with_errors_until_they_are_left_out(workbench, tmp_path):
    content = lines(*rows(20)) + "{\n" + lines({"prompt": "p"})
    row = add(workbench, tmp_path, content)
    assert (row.rows, row.faulty_rows, row.version) == (22, 2, 1)
    for call in (workbench.training.start, workbench.training.estimate):
        with pytest.raises(InvalidData, match=r"2 rows of mine have errors.*data exclude --errors"):
            call("llama", "mine", TrainingOptions.parse(QUICK))
    row = workbench.datasets.leave_out("mine", ERRORS)
    assert (row.faulty_rows, row.excluded_rows, row.version) == (0, 2, 2)
    run = workbench.runs.wait(workbench.training.start("llama", "mine", TrainingOptions.parse(QUICK)).id)
    assert (run.state, run.dataset_version, run.dataset_digest) == ("finished", 2, row.digest)
    assert "19 rows to train on, 1 kept for validation" in " ".join(
        note.text for note in workbench.registry.measurements.notes(run.id)
    )


def test_rows_are_found_by_all_of_the_words_in_them_page_by_page(workbench, tmp_path):
    odd = [{"prompt": "ÄPFEL grow", "completion": "on trees"}, {"prompt": "pears", "completion": "on TREES"}]
    row = add(workbench, tmp_path, lines(*rows(2100), *odd) + '{"broken trees\n')

    def found(words, **about):
        out, total = workbench.datasets.lines(row, words=words, **about)
        return [line.index for line in out], total

    assert found("trees") == ([2100, 2101, 2102], 3), "also in what could not be read"
    assert found("äpfel Trees") == ([2100], 1)
    assert found("question", start=2050) == (list(range(2050, 2100)), 2100)
    assert found("trees", shown="rows with errors") == ([2102], 1)
    assert found("a.b") == ([], 0), "words, not patterns"


def test_what_is_left_out_is_kept_listed_and_brought_back(workbench, tmp_path):
    row = add(workbench, tmp_path, lines(*rows(12), rows(1)[0]))
    row = workbench.datasets.leave_out("mine", ["duplicate"])
    out, total = workbench.datasets.lines(row, "rows left out")
    assert [(line.number, line.part, line.findings[0][0]) for line in out] == [(13, "left out", "duplicate")]
    assert total == 1
    with pytest.raises(InvalidData, match="all of them are left out already"):
        workbench.datasets.leave_out("mine", ["duplicate"])
    row = workbench.datasets.bring_back("mine")
    assert (row.excluded_rows, row.version) == (0, 3)
    with pytest.raises(InvalidData, match="No such row is left out"):
        workbench.datasets.bring_back("mine")
    changes = [one.change for one in workbench.registry.datasets.versions(row.id)]
    assert changes == [
        "1 row brought back",
        "1 row left out: exact duplicate",
        "imported; 5% for validation, seed 0",
    ]


def test_leaving_out_everything_is_refused(workbench, tmp_path):
    row = add(workbench, tmp_path, lines(*rows(3)))
    with pytest.raises(InvalidData, match="leave no row to train on"):
        workbench.datasets.leave_out("mine", rows=[0, 1, 2])
    assert workbench.registry.find(Dataset, "mine").digest == row.digest


def test_a_split_is_frozen_in_the_version_and_its_digest(workbench, tmp_path):
    first = add(workbench, tmp_path, lines(*rows(40)), split=Split("count", count=8, seed=1))
    assert first.validation_rows == 8
    again = workbench.datasets.split("mine", Split("count", count=8, seed=2))
    back = workbench.datasets.split("mine", Split("count", count=8, seed=1))
    assert first.digest == back.digest != again.digest
    assert (back.version, back.rows_digest) == (3, first.rows_digest)
    with pytest.raises(InvalidConfig, match="leave nothing"):
        workbench.datasets.split("mine", Split("count", count=40))
    assert workbench.registry.find(Dataset, "mine").version == 3


def test_a_validation_file_is_the_split(workbench, tmp_path):
    (tmp_path / "valid.jsonl").write_text(lines(*rows(5, start=100), rows(1)[0]))
    row = add(workbench, tmp_path, lines(*rows(20)), validation=[str(tmp_path / "valid.jsonl")])
    assert (row.rows, row.validation_rows) == (26, 6)
    found, _ = workbench.datasets.lines(row, "rows with warnings")
    assert [(line.file, line.number, line.findings[0][0]) for line in found] == [
        ("valid.jsonl", 6, "leakage")
    ]


def test_a_row_is_edited_added_and_an_earlier_version_comes_back(workbench, tmp_path):
    first = add(workbench, tmp_path, lines(*rows(11), {"prompt": "p"}))
    mended = workbench.datasets.edit("mine", 11, [("user", "p"), ("assistant", "now answered")])
    assert (mended.faulty_rows, mended.version) == (0, 2)
    assert workbench.datasets.row(mended, 11).example.messages[1]["content"] == "now answered"
    more = workbench.datasets.append("mine", [("System", "s"), ("user", "new"), ("assistant", "row")])
    assert (more.rows, workbench.datasets.row(more, 12).number) == (13, 13)
    for turns, said in (
        ([("user", "x")], "no assistant turn"),
        ([("wizard", "x")], "'wizard' is not known"),
        ([], "row is empty"),
        ([("user", "x"), ("assistant", " ")], "answer is empty"),
        ([("text", " ")], "text is empty"),
    ):
        with pytest.raises(InvalidData, match=said):
            workbench.datasets.edit("mine", 0, turns)
    back = workbench.datasets.go_back("mine", 1)
    assert (back.digest, back.rows, back.faulty_rows, back.version) == (first.digest, 12, 1, 4)
    with pytest.raises(InvalidData, match="has no version 9"):
        workbench.datasets.go_back("mine", 9)
    assert [one.parent for one in workbench.registry.datasets.versions(back.id)] == [3, 2, 1, None]


def test_an_edit_keeps_the_marks_of_its_row_and_the_findings_of_others(workbench, tmp_path):
    said = [(role, f"{role} {i}") for i in range(2) for role in ("user", "assistant")]
    turns = [{"role": role, "content": text} for role, text in said]
    marked = [turns[0], turns[1] | {"train": False, "name": "Ann"}, *turns[2:]]
    noted = [turns[0], turns[3] | {"images": ["a.png"]}]
    plain = [{"messages": [{"role": "user", "content": f"q{i}"}, turns[1]]} for i in range(9)]
    row = add(workbench, tmp_path, lines({"messages": marked}, {"messages": noted}, *plain))
    mended = workbench.datasets.edit("mine", 0, [*said[:3], ("assistant", "another")])
    assert workbench.datasets.row(mended, 0).example.untrained == {1}
    longer = workbench.datasets.edit("mine", 0, [("system", "s"), *said])
    assert workbench.datasets.row(longer, 0).example.untrained == {2}
    assert (row.warnings, workbench.datasets.open(longer).summary.counts) == (1, {"ignored_part": 1})
    assert workbench.datasets.row(longer, 0).example.messages[2]["name"] == "Ann"
    with pytest.raises(InvalidData, match="Every answer of the row is marked as not trained"):
        workbench.datasets.edit("mine", 0, [*said[:2]])


def test_a_split_that_changes_nothing_is_no_new_version(workbench, tmp_path):
    add(workbench, tmp_path, lines(*rows(20)))
    with pytest.raises(InvalidData, match="is split like that already: 5% for validation"):
        workbench.datasets.split("mine", Split())


def test_findings_of_a_validation_file_end_with_it(workbench, tmp_path):
    (tmp_path / "valid.jsonl").write_text(lines(*rows(5)))
    row = add(workbench, tmp_path, lines(*rows(20)), validation=[str(tmp_path / "valid.jsonl")])
    assert workbench.datasets.open(row).findings.counts()["leakage"] == 5
    row = workbench.datasets.split("mine", Split())
    assert "leakage" not in workbench.datasets.open(row).findings.counts()


def test_data_of_which_nothing_can_be_trained_on_is_refused(workbench, tmp_path):
    (tmp_path / "valid.jsonl").write_text(lines(*rows(5)))
    with pytest.raises(InvalidConfig, match="every row that can be used is for validation"):
        add(
            workbench,
            tmp_path,
            lines({"prompt": "p", "completion": " "}),
            validation=[str(tmp_path / "valid.jsonl")],
        )


def test_two_changes_at_once_do_not_undo_each_other(workbench, tmp_path):
    add(workbench, tmp_path, lines(*rows(12)))
    stale = workbench.registry.find(Dataset, "mine")
    workbench.datasets.leave_out("mine", rows=[0])
    with pytest.raises(InUse, match=r"changed meanwhile \(version 2\)"):
        workbench.registry.datasets.add_version(stale, "late")


def test_the_report_as_csv_is_harmless_and_whole(workbench, tmp_path):
    content = lines(*rows(3)) + lines({"prompt": "=cmd()", "completion": "<|im_end|>"}) + '{"prompt": "@x"}\n'
    row = add(workbench, tmp_path, content, "=evil")
    found = list(csv.reader(io.StringIO("".join(workbench.datasets.csv(row)))))
    assert found[0] == ["file", "row", "level", "finding", "detail", "left out", "remedy"]
    assert [line[:4] for line in found[1:]] == [
        ["'=evil.jsonl", "4", "warning", "Special tokens in text"],
        ["'=evil.jsonl", "5", "error", "Missing or of the wrong kind"],
    ]


def test_a_file_that_fails_leaves_nothing_behind(workbench, tmp_path):
    before = {path for path in workbench.settings.blobs.rglob("*") if path.is_file()}
    for content in ("", '{"colour": 1, "b": 2, "c": 3}\n', lines({"prompt": "p"})):
        with pytest.raises(InvalidData):
            add(workbench, tmp_path, content)
    with pytest.raises(NameTaken):
        add(workbench, tmp_path, lines(*rows(3)), "data")
    assert workbench.registry.names(Dataset) == {"data"}
    assert {path for path in workbench.settings.blobs.rglob("*") if path.is_file()} == before


def test_removing_a_data_set_removes_all_its_versions_and_no_others(workbench, tmp_path):
    first = add(workbench, tmp_path, lines(*rows(12)))
    add(workbench, tmp_path, lines(*rows(12)), "twin", split=Split("count", count=2))
    workbench.datasets.leave_out("mine", rows=[0])
    workbench.registry.datasets.remove(workbench.registry.find(Dataset, "mine"))
    twin = workbench.registry.find(Dataset, "twin")
    assert workbench.datasets.open(twin).rows[0].messages
    workbench.registry.datasets.remove(workbench.registry.find(Dataset, "twin"))
    store = workbench.settings.blobs / "sha256"
    assert not (store / first.rows_digest[:2] / first.rows_digest).exists()
    assert workbench.registry.datasets.versions(twin.id) == []


def test_a_look_at_a_file_shows_rows_and_faults_before_it_is_taken(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(*rows(1), {"prompt": "p"}))
    found = look_at(tmp_path / "a.jsonl")
    assert [one.get("fault") for one in found.rows] == [None, "completion is missing; expected text."]


# In processes of their own.


def test_data_is_imported_in_a_process_of_its_own(workbench, tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(*rows(12)) + "{\n")
    job = workbench.datasets.import_files(ImportRequest([str(tmp_path / "a.jsonl")]))
    assert workbench.jobs.wait(job) == {"name": "a", "rows": 13, "faulty": 1, "warnings": 0}
    with pytest.raises(NameTaken):
        workbench.datasets.import_files(ImportRequest([str(tmp_path / "a.jsonl")]))


def test_an_import_that_is_cancelled_or_killed_registers_nothing(workbench, tmp_path):
    (tmp_path / "big.jsonl").write_text(lines(*rows(300_000)))
    for end in ("cancel", "kill"):
        job = workbench.datasets.import_files(ImportRequest([str(tmp_path / "big.jsonl")]))
        wait_for(lambda job=job: "MB" in workbench.registry.get(Job, job.id).message)
        if end == "cancel":
            workbench.jobs.cancel(job)
            assert list((workbench.settings.blobs / "staging").iterdir()) == []
        else:
            os.kill(workbench.jobs._processes[job.id].pid, signal.SIGKILL)
        with pytest.raises(JobFailed, match="Nothing was added"):
            workbench.jobs.wait(job)
        assert workbench.registry.names(Dataset) == {"data"}


def test_a_base_checks_the_rows(workbench, tmp_path):
    long = {"prompt": "p", "completion": "very long " * 100}
    row = add(workbench, tmp_path, lines(*rows(12), long, {"prompt": "p"}))
    base = workbench.registry.find(Base, "llama")
    assert workbench.datasets.checked(row, base, 64) is None
    do_job(workbench, "check_data", workbench.datasets.check_arguments(row, base, 64))
    found = workbench.datasets.checked(row, base, 64)
    report = found.report
    assert (report["rows"], report["over_length_rows"], found.findings.counts()) == (
        13,
        1,
        {"over_length": 1},
    )
    assert report["policies"]["drop"]["rows"] == 1
    assert (
        0
        == report["policies"]["split"]["tokens"]
        < report["policies"]["truncate"]["tokens"]
        < report["policies"]["drop"]["tokens"]
    )
    assert report["recommended_max_length"] % 64 == 0
    assert report["recommended_max_length"] <= base.context_length
    assert sum(count for *_, count in report["lengths"]) == sum(count for *_, count in report["shares"]) == 13
    assert all(one["passed"] for one in found.template)
    left = workbench.datasets.leave_out("mine", ["over_length"], base=found)
    assert left.excluded_rows == 1
    assert workbench.datasets.checked(left, base, 64) is None, "another version has another report"


def _tokens(workbench, row, base, template=None):
    """Those of its first row."""
    return workbench.datasets.tokens(row, base, 0, template)["sequences"][0]["tokens"]


def test_a_row_is_seen_as_the_bases_tokens(workbench):
    row = workbench.registry.find(Dataset, "data")
    (view,) = workbench.datasets.tokens(row, "llama", 3)["sequences"]
    said = "".join(token["text"] for token in view["tokens"] if token["trained"])
    assert said == "fine thanks fine thanks fine thanks fine thanks <|im_end|>"
    assert view["trained"] == sum(token["trained"] for token in view["tokens"])
    with pytest.raises(InvalidData, match="no row 100"):
        workbench.datasets.tokens(row, "llama", 99)


def test_rows_that_the_template_refuses_are_an_error_and_can_be_left_out(workbench, tiny_llama, tmp_path):
    from tests.workbenches import write_refusing_template

    do_job(
        workbench,
        "add_model",
        {"origin": str(write_refusing_template(tiny_llama, tmp_path / "strict")), "name": "strict"},
    )
    row = add(workbench, tmp_path, lines(*rows(12), {"system": "s", "prompt": "p", "completion": "c"}))
    run = workbench.runs.wait(workbench.training.start("strict", "mine", TrainingOptions.parse(QUICK)).id)
    assert run.state == "failed"
    assert "Row 13: The base's chat template cannot render" in run.reason
    assert "leave such rows out" in run.reason
    with pytest.raises(InvalidData, match="no system here"):
        workbench.datasets.tokens(row, "strict", 12)
    base = workbench.registry.find(Base, "strict")
    do_job(workbench, "check_data", workbench.datasets.check_arguments(row, base, 64))
    found = workbench.datasets.checked(row, base, 64)
    assert found.findings.counts() == {"template": 1}
    workbench.datasets.leave_out("mine", ["template"], base=found)
    assert (
        workbench.runs.wait(workbench.training.start("strict", "mine", TrainingOptions.parse(QUICK)).id).state
        == "finished"
    )
    folded = ChatOptions(fold_system=True)
    workbench.datasets.bring_back("mine")
    row = workbench.datasets.fit("mine", folded)
    assert workbench.datasets.open(row).version.chat == folded
    assert workbench.registry.datasets.versions(row.id)[0].change.startswith(
        "conversations: a system turn goes"
    )
    do_job(workbench, "check_data", workbench.datasets.check_arguments(row, base, 64))
    assert workbench.datasets.checked(row, base, 64).findings.counts() == {"folded": 1}
    view = workbench.datasets.tokens(row, "strict", 12)
    assert view["notes"] == ["The system turn stands in front of the question, since the template has none."]
    said = "".join(token["text"] for token in view["sequences"][0]["tokens"])
    assert said.startswith("<|im_start|>user\ns\n\np<|im_end|>")
    run = workbench.runs.wait(workbench.training.start("strict", "mine", TrainingOptions.parse(QUICK)).id)
    assert run.state == "finished"
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    for fold, answers in ((False, False), (True, True)):
        config = GenerationConfig(max_tokens=2, fold_system=fold)
        with nullcontext() if answers else pytest.raises(InvalidData, match="no system here"):
            assert list(workbench.chats.answer("strict", [None], [asked], config))
    with pytest.raises(InvalidData, match="like that already"):
        workbench.datasets.fit("mine", folded)


def test_the_import_takes_how_conversations_are_fitted_and_the_row_keeps_its_tools(workbench, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "find", "arguments": {"q": "x"}}]}
    turns = [{"role": "user", "content": "hi"}, call, {"role": "tool", "content": "found"}]
    turns.append({"role": "assistant", "content": "so", "reasoning": "hm"})
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*[{"messages": turns, "tools": [{"name": "find"}]}] * 3), encoding="utf-8")
    chat = ChatOptions(join_turns=True, template_kwargs={"enable_thinking": False})
    request = ImportRequest([str(path)], "mine", chat=chat)
    assert ImportRequest.parse(json.loads(json.dumps(request.to_dict()))).chat == chat
    row = import_dataset(workbench.registry, request)
    assert workbench.datasets.open(row).version.chat == chat
    said = [("user", "hi"), ("assistant", ""), ("tool", "found"), ("assistant", "so, then")]
    row = workbench.datasets.edit("mine", 0, said)
    changed = workbench.datasets.row(row, 0).example
    assert workbench.datasets.open(row).version.chat == chat
    assert (changed.messages[1], changed.messages[3]["reasoning"]) == (call, "hm")
    assert changed.tools[0]["function"]["name"] == "find"
    shown = conversation([row_shown(changed)])
    assert "<b>tools</b>find" in shown
    assert "<details class='thinking'><summary>Thinking</summary>hm</details>so, then" in shown
    assert "<code>find({&quot;q&quot;: &quot;x&quot;})</code>" in shown


def test_a_base_without_a_template_takes_a_known_one(workbench, tiny_llama, tmp_path, checked_here):
    from tests.workbenches import write_refusing_template

    do_job(
        workbench,
        "add_model",
        {"origin": str(write_refusing_template(tiny_llama, tmp_path / "bare", "")), "name": "bare"},
    )
    row = workbench.registry.find(Dataset, "data")
    shown = {
        name: "".join(token["text"] for token in _tokens(workbench, row, "bare", name))
        for name in ("", "plain", "chatml", "alpaca")
    }
    assert shown[""] == shown["plain"] == "### User:\nhello 0\n\n### Assistant:\nfine thanks <|im_end|>\n\n"
    assert (
        shown["chatml"]
        == "<|im_start|>user\nhello 0<|im_end|>\n<|im_start|>assistant\nfine thanks <|im_end|>\n"
    )
    assert shown["alpaca"].startswith("### Instruction:\nhello 0")
    with pytest.raises(InvalidConfig, match="known are plain, chatml"):
        workbench.models.choose_template("bare", "nothing")
    with pytest.raises(InvalidConfig, match="template of its own"):
        workbench.models.choose_template("llama", "chatml")
    workbench.models.choose_template("bare", "chatml")
    assert "".join(token["text"] for token in _tokens(workbench, row, "bare")) == shown["chatml"]
    workbench.runs.wait(workbench.training.start("bare", "data", TrainingOptions.parse(QUICK), "a").id)
    assert workbench.registry.find(Adapter, "a").base_name == "bare"
    export = do_job(
        workbench, "export_adapter", {"adapter": "a", "folder": str(tmp_path / "out"), "config": {}}
    )
    assert export.result["passed"]
    assert "<|im_start|>" in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_what_happens_to_long_rows_is_said_in_the_runs_log(workbench, tmp_path):
    add(
        workbench,
        tmp_path,
        lines(*rows(12), {"prompt": "p", "completion": "very long " * 100}),
        split=Split("none"),
    )
    notes = {}
    for policy in ("truncate", "split", "drop"):
        run = workbench.runs.wait(
            workbench.training.start(
                "llama", "mine", TrainingOptions.parse({**QUICK, "max_length": 64, "over_length": policy})
            ).id
        )
        assert run.state == "finished", run.reason
        notes[policy] = " ".join(note.text for note in workbench.registry.measurements.notes(run.id))
    assert "1 row is longer than 64 tokens and was cut off" in notes["truncate"]
    assert "1 row is longer than 64 tokens and was split into several" in notes["split"]
    assert "1 row is longer than 64 tokens and was left out" in notes["drop"]


def test_data_of_an_earlier_version_of_the_workbench_still_trains(workbench, tmp_path):
    """It stored the rows alone: one Arrow file without faults, labels and hashes."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("row", pa.int64()), ("messages", pa.list_(turn)), ("text", pa.string())])
    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(20)
    ]
    said = [{"row": i + 1, "messages": turns[i], "text": ""} for i in range(20)]
    with workbench.registry.blobs.staging() as staging:
        path = staging / "rows.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(said, schema=schema))
        digest = workbench.registry.blobs.put(path)
    old = Dataset(
        name="old",
        format="messages",
        reason="r",
        rows=20,
        digest=digest,
        rows_digest=digest,
        size_bytes=1,
        source_name="x",
    )
    workbench.registry.datasets.add(old, "imported")
    run = workbench.runs.wait(workbench.training.start("llama", "old", TrainingOptions.parse(QUICK)).id)
    assert run.state == "finished"
    assert workbench.registry.get(Run, run.id).details["validation_rows"] == 1
    assert workbench.datasets.leave_out("old", rows=[3]).excluded_rows == 1
    with pytest.raises(InvalidData, match="import the file again"):
        workbench.datasets.edit("old", 0, [("user", "a"), ("assistant", "b")])
    assert json.dumps(_tokens(workbench, workbench.registry.find(Dataset, "old"), "llama"))
