"""The command line: exit codes, JSON, one clear sentence for what cannot be done."""

import json
import socket
import subprocess
import sys
from functools import cache

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from app.cli.main import app
from app.service import doctor
from app.shared.settings import settings_for
from storage.tables import Adapter, Dataset, Run
from tests.core.data_files import lines
from tests.workbenches import QUICK, write_rows

COMMANDS = [
    [],
    ["quickstart"],
    ["train"],
    ["kinds"],
    ["options"],
    ["chat"],
    ["export"],
    ["doctor"],
    *[["models", one] for one in ("add", "list", "show", "targets", "verify", "remove")],
    *[["data", one] for one in ("check", "add", "report", "exclude", "restore", "split", "versions", "use")],
    *[["data", one] for one in ("list", "show", "remove")],
    *[["runs", one] for one in ("list", "show", "pause", "save", "resume", "stop")],
    *[
        ["adapters", one]
        for one in ("list", "show", "note", "import", "inspect", "compare", "verify", "resize", "combine")
    ],
    *[["adapters", one] for one in ("export", "remove", "bring-back")],
    *[["prompts", one] for one in ("list", "add", "show", "remove", "run", "runs", "answers")],
    *[["votes", one] for one in ("leaderboard", "export", "to-data")],
    *[["jobs", one] for one in ("kinds", "start", "list", "show", "cancel")],
    ["backup"],
    ["restore"],
    ["space"],
]


def run(settings, *arguments):
    """Run a command in this process on a home."""
    return CliRunner().invoke(app, [*map(str, arguments), "--home", str(settings.home)])


def run_json(settings, *arguments):
    """The same with --json; the parsed object."""
    done = run(settings, *arguments, "--json")
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "open")
def test_every_command_has_help_json_and_home(command):
    shown = CliRunner().invoke(
        app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    )
    assert shown.exit_code == 0
    for expected in ("--home", "--json", "Usage"):
        assert expected in shown.output


def test_what_set_takes_is_listed_with_its_choices(settings):
    code, found = run_json(settings, "options")
    rows = {(row["option"], row["where"]): row for row in found["rows"]}
    assert (code, rows["quantisation", ""]["values"]) == (0, "none, nf4, int8, fp8")
    assert all(row["help"] for row in found["rows"])
    assert "kind=adalora" in {where for _, where in rows}
    _, found = run_json(settings, "options", "export")
    where = {row["option"]: row["where"] for row in found["rows"]}
    assert (where["dtype"], where["merge_onto"]) == ("", "format=safetensors")
    _, found = run_json(settings, "options", "chat")
    assert {"min_p", "temperature"} <= {row["option"] for row in found["rows"]}
    refused = run(settings, "options", "everything")
    assert (refused.exit_code, "options of train and export" in refused.stderr) == (1, True)


def test_data_goes_in_is_listed_shown_and_removed(settings):
    code, row = run_json(settings, "data", "add", write_rows(settings.home / "rows.jsonl"), "--name", "mine")
    assert (code, row["name"], row["rows"], row["format"]) == (0, "mine", 24, "messages")
    assert [one["name"] for one in run_json(settings, "data", "list")[1]["rows"]] == ["mine"]
    assert "mine" in run(settings, "data", "show", "mine").stdout
    assert run(settings, "data", "remove", "mine", "--yes").exit_code == 0
    assert run_json(settings, "data", "list")[1]["rows"] == []


FAULTY = lines({"prompt": "p", "completion": "c"}) * 12 + lines(
    {"prompt": "p"}, {"prompt": "x", "completion": "<|im_end|>"}
)


def test_a_file_is_checked_without_being_registered(workbench, settings, tmp_path):
    (tmp_path / "a.jsonl").write_text(FAULTY)
    code, found = run_json(settings, "data", "check", tmp_path / "a.jsonl")
    assert (code, found["rows"], found["errors"], found["warnings"]) == (1, 14, 1, 12)
    assert found["counts"] == {"duplicate": 11, "missing": 1, "special_tokens": 1}
    assert {"file": "a.jsonl", "row": 13, "level": "error", "code": "missing"}.items() <= found["findings"][
        11
    ].items()
    assert found["tokens"] is None
    code, found = run_json(
        settings, "data", "check", tmp_path / "a.jsonl", "--base", "llama", "--max-length", "64"
    )
    assert (code, found["tokens"]["rows"], found["tokens"]["max_length"]) == (1, 13, 64)
    assert all(check["passed"] for check in found["template"])
    shown = run(settings, "data", "check", tmp_path / "a.jsonl").stdout
    assert "prompt and completion: assistant = completion, user = prompt" in " ".join(shown.split())
    assert "a.jsonl row 13" in shown
    assert "error: Missing or of the wrong kind. completion is missing" in shown
    assert workbench.registry.names(Dataset) == {"data"}
    assert list(settings.staging.iterdir()) == []


def test_how_conversations_are_fitted_is_said_on_the_command_line(workbench, settings, tmp_path):
    (tmp_path / "a.jsonl").write_text(FAULTY)
    given = ("--template-kwargs", '{"enable_thinking": false}')
    assert run(settings, "data", "add", tmp_path / "a.jsonl", "--fold-system", *given).exit_code == 0
    chat = workbench.datasets.open(workbench.registry.find(Dataset, "a")).version.chat
    assert (chat.fold_system, chat.join_turns, chat.template_kwargs) == (
        True,
        False,
        {"enable_thinking": False},
    )
    assert run_json(settings, "data", "fit", "a", "--join-turns")[1]["version"] == 2
    refused = run(settings, "data", "fit", "a", "--template-kwargs", "{thinking}")
    assert (refused.exit_code, "no JSON" in refused.stderr) == (1, True)
    refused = run(settings, "data", "fit", "a", "--template-kwargs", '{"messages": []}')
    assert (refused.exit_code, "no name that a chat template can be given" in refused.stderr) == (1, True)


def test_a_mapping_is_given_in_words(settings, tmp_path):
    (tmp_path / "a.csv").write_text("words,class\n" + "".join(f"word {i},c{i % 2}\n" for i in range(12)))
    refused = run(settings, "data", "add", tmp_path / "a.csv")
    assert (refused.exit_code, "no usable columns" in refused.stderr or "choose what" in refused.stderr) == (
        1,
        True,
    )
    code, row = run_json(
        settings,
        "data",
        "add",
        tmp_path / "a.csv",
        "--map",
        "label=class",
        "--template",
        "Classify: {words}",
        "--count",
        "4",
        "--stratify",
    )
    assert (code, row["validation_rows"]) == (0, 4)
    assert row["preview"][0]["messages"][0]["content"] == "Classify: word 0"
    (tmp_path / "b.txt").write_text("a : 1||one\nb : 2||two\n" * 6)
    (tmp_path / "v.txt").write_text("c : 3||three\n")
    code, row = run_json(
        settings, "data", "add", tmp_path / "b.txt", "--separator", "||", "--validation", tmp_path / "v.txt"
    )
    assert (code, row["rows"], row["validation_rows"], row["format"]) == (0, 13, 1, "separated lines")
    code, row = run_json(settings, "data", "add", tmp_path / "v.txt", "--like", "b", "--name", "like b")
    assert (code, row["mapping"]["separator"], row["rows"]) == (0, "||", 1)
    (tmp_path / "c.jsonl").write_text('{"text": "<|im_start|>user hi", "lang": "en"}\n')
    added = run(settings, "data", "add", tmp_path / "c.jsonl", "--special-tokens")
    assert (added.exit_code, "Columns that are not used: 'lang'." in added.stderr) == (0, True)
    assert run_json(settings, "data", "report", "c")[1]["mapping"]["special_tokens"] is True
    (tmp_path / "d.jsonl").write_text('{"prompt": "hi", "completion": "hello"}\n')
    refused = run(settings, "data", "check", tmp_path / "d.jsonl", "--special-tokens")
    assert (refused.exit_code, "--special-tokens is for plain texts" in refused.stderr) == (1, True)
    unknown = run(
        settings, "data", "add", tmp_path / "a.csv", "--map", "user=wrds", "--map", "assistant=class"
    )
    assert (unknown.exit_code, "no column 'wrds'" in unknown.stderr) == (1, True)


def test_rows_are_left_out_and_brought_back_from_the_command_line(settings, tmp_path):
    (tmp_path / "a.jsonl").write_text(FAULTY)
    added = run(settings, "data", "add", tmp_path / "a.jsonl", "--no-near-duplicates")
    assert "Rows with errors: 1." in added.stderr
    assert "data exclude 'a' --errors" in added.stderr
    assert (
        run_json(settings, "data", "exclude", "a", "--errors", "--kind", "duplicate")[1]["excluded_rows"]
        == 12
    )
    assert run_json(settings, "data", "split", "a", "--count", "1", "--seed", "3")[1]["validation_rows"] == 1
    versions = run_json(settings, "data", "versions", "a")[1]["rows"]
    assert [one["number"] for one in versions] == [3, 2, 1]
    assert run_json(settings, "data", "restore", "a")[1]["excluded_rows"] == 0
    assert run_json(settings, "data", "use", "a", "2")[1] | {"digest": ""} == {
        "name": "a",
        "version": 5,
        "rows": 14,
        "validation_rows": 1,
        "excluded_rows": 12,
        "faulty_rows": 0,
        "digest": "",
    }
    assert run(settings, "data", "report", "a", "--csv", tmp_path / "r.csv").exit_code == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 14
    again = run(settings, "data", "report", "a", "--csv", tmp_path / "r.csv")
    assert (again.exit_code, "Error" in again.stderr) == (2, True)
    assert run(settings, "data", "exclude", "a", "--kind", "nonsense").exit_code == 2


def test_the_sample_is_about_sixty_conversations_of_one_style(settings):
    _, row = run_json(settings, "data", "add", "sample")
    assert (row["rows"], row["format"]) == (62, "messages")
    assert all(turns["messages"][1]["content"].endswith("Fair winds!") for turns in row["preview"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", "", "empty.jsonl is empty."),
        (
            "broken.jsonl",
            '{"prompt": \n',
            "broken.jsonl: none of its first rows can be read. Row 1: Line 1 is not valid JSON",
        ),
        ("columns.csv", "colour,shape,x\nred,round,1\n", "no usable columns: found 'colour', 'shape', 'x'"),
        ("twoways.csv", "colour,shape\nred,round\n", "choose what the columns 'colour', 'shape' mean"),
    ],
)
def test_bad_data_is_one_sentence_and_changes_nothing(workbench, settings, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    done = run(settings, "data", "add", tmp_path / name)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert workbench.registry.names(Dataset) == {"data"}
    code, answer = run_json(settings, "data", "add", tmp_path / name)
    assert (code, said in answer["error"]) == (1, True)


def test_a_name_already_taken(workbench, settings, tmp_path):
    done = run(settings, "data", "add", write_rows(tmp_path / "again.jsonl"), "--name", "data")
    assert (done.exit_code, "'data' is taken" in done.stderr) == (1, True)


def test_a_folder_without_a_model(workbench, settings, tmp_path):
    done = run(settings, "models", "add", tmp_path)
    assert (done.exit_code, "has no config.json" in done.stderr) == (1, True)


def test_a_pickle_adapter(workbench, settings, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    done = run(settings, "adapters", "import", tmp_path)
    assert (done.exit_code, "pickle adapter" in done.stderr) == (1, True)
    assert workbench.registry.names(Adapter) == set()


def test_wrong_usage_is_exit_2(workbench, settings, tmp_path):
    for arguments in (
        ["train"],
        ["data", "add", tmp_path / "absent.jsonl"],
        ["nonsense"],
        ["runs", "show", "0"],
        ["train", "--base", "llama", "--data", "data", "--set", "rank"],
    ):
        done = run(settings, *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        code, said = run_json(settings, *arguments)
        assert (code, said["kind"]) == (2, "UsageError"), arguments
        told = "".join(done.stderr.replace("│", " ").split())  # a long path is broken at a line's end
        assert "".join(said["error"].split()) in told, arguments
    toml = tmp_path / "options.toml"
    toml.write_text("[other]\nrank = 4\n")
    assert run(settings, "train", "--base", "llama", "--data", "data", "--config", toml).exit_code == 2


def test_a_home_before_the_command_is_the_commands_home(workbench, settings):
    before = CliRunner().invoke(app, ["--home", str(settings.home), "data", "list", "--json"])
    assert [one["name"] for one in json.loads(before.stdout)["rows"]] == ["data"]
    misplaced = CliRunner().invoke(app, ["--json", "data", "list"])
    assert (misplaced.exit_code, json.loads(misplaced.stdout)["error"]) == (
        2,
        "Invalid value: put --json behind the command: data … --json",
    )


def test_python_m_app_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "app", "--help"], capture_output=True, text=True, check=True)
    assert "Train, keep, compare and merge LoRA adapters" in done.stdout


def test_training_chat_and_adapters_from_the_command_line(workbench, settings, tmp_path):
    toml = tmp_path / "options.toml"
    toml.write_text("[lora]\nrank = 3\n[train]\nmax_steps = 4\nlearning_rate = 0.01\n")
    code, found = run_json(
        settings,
        "train",
        "--base",
        "llama",
        "--data",
        "data",
        "--name",
        "mine",
        "--config",
        toml,
        "--set",
        "rank=2",
    )
    assert (code, found["state"], found["adapter"], found["config"]["lora"]["rank"]) == (
        0,
        "finished",
        "mine",
        2,
    )
    assert found["train_loss"] > 0
    asked = ["chat", "--base", "llama", "--prompt", "hello", "--greedy", "--max-tokens", "5"]
    alone = run_json(settings, *asked, "--adapter", "mine")[1]["answers"]
    found = run_json(settings, "chat", *asked[3:], "--adapter", "mine")[1]["answers"]
    assert [one["answer"] for one in found] == [one["answer"] for one in alone]  # on its own base
    least = ["chat", *asked[3:5], "--max-tokens", "5", "--adapter", "mine"]
    always = [
        "--set",
        "min_p=1",
        "--set",
        "temperature=2",
    ]  # only the likeliest is as likely as the likeliest
    found = run_json(settings, *least, *always)[1]["answers"]
    assert [one["answer"] for one in found] == [one["answer"] for one in alone]
    for wrong, said in {"max_tokens=3": "--max-tokens says it", "min=1": "min", "min_p=2": "min_p"}.items():
        refused = run(settings, *least, "--set", wrong)
        assert (refused.exit_code != 0, said in refused.output) == (True, True), refused.output
    code, found = run_json(settings, "chat", *asked[3:], "--adapter", "mine=0.5")
    assert (code, [one["adapter"] for one in found["answers"]]) == (0, ["mine=0.5"])
    beside = run_json(settings, *asked, "--adapter", "mine", "--adapter", "mine")[1]["answers"]
    assert [one["adapter"] for one in alone] == [one["adapter"] for one in beside] == ["mine"]
    assert run(settings, "adapters", "export", "mine", tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = run(settings, "adapters", "export", "mine", tmp_path / "out")
    assert (again.exit_code, "not empty" in again.stderr) == (1, True)
    other = ["--format", "gguf", "--set", "merge_onto=nf4"]
    refused = run(settings, "export", "--adapter", "mine", "--to", tmp_path / "gguf", *other)
    assert (refused.exit_code, "is an option of safetensors" in refused.stderr) == (1, True)
    assert not (tmp_path / "gguf").exists()


def test_a_run_that_has_left_rows_aside_says_so_at_its_end(workbench, settings, tmp_path):
    rows = [{"question": "hello " * many, "answer": "fine"} for many in (1, 2, 3, 90, 91)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(settings, "data", "add", tmp_path / "long.jsonl", "--share", "0").exit_code == 0
    asked = ["train", "--base", "llama", "--set", "max_length=64", "--set", "max_steps=1"]
    done = run(settings, *asked, "--data", "long")
    said = "rows longer than 64 tokens: 2; with nothing to train on: 2; trained on: 3."
    assert (done.exit_code, said in done.stderr) == (0, True), done.stderr
    whole = run(settings, *asked, "--data", "data")
    assert (whole.exit_code, "longer than 64" in whole.stderr) == (0, False)


def test_the_checklist_of_a_sweep_is_that_of_its_runs(workbench, settings):
    asked = ["train", "--base", "llama", "--data", "data", "--set", "max_steps=1", "--detach"]
    said = run(settings, *asked, "--sweep", "rank=1,12").stderr
    assert "for rank 12" in said
    assert "for rank 16" not in said, "the form's own, which no run has"
    assert said.count("Base kept") == 1
    refused = run(settings, *asked, "--sweep", "rank=")
    assert (refused.exit_code, "Base kept" in refused.stderr) == (1, False)


def test_a_sweep_from_the_command_line_shows_the_best_first(workbench, settings):
    options = ["--set", "max_steps=4", "--set", "micro_batch_size=2", "--set", "learning_rate=0.01"]
    code, found = run_json(
        settings,
        "train",
        "--base",
        "llama",
        "--data",
        "data",
        "--name",
        "s",
        *options,
        "--sweep",
        "rank=1,2",
        "--sweep",
        "learning_rate=0.01,0.02",
    )
    assert (code, len(found["rows"])) == (0, 4)
    losses = [row["validation_loss"] for row in found["rows"]]
    assert losses == sorted(losses)
    assert {row["name"] for row in found["rows"]} == {
        f"s rank={r} learning_rate={lr}" for r in (1, 2) for lr in ("0.01", "0.02")
    }
    refused = run(settings, "train", "--base", "llama", "--data", "data", "--sweep", "rank=1,0")
    assert (refused.exit_code, "rank must be between" in refused.stderr) == (1, True)


def test_a_detached_run_is_stopped_from_another_command(workbench, settings):
    options = ["--set", "max_steps=5000", "--set", "micro_batch_size=2", "--set", "rank=2"]
    code, found = run_json(settings, "train", "--base", "llama", "--data", "data", "--detach", *options)
    assert (code, found["state"]) == (0, "queued")
    done = run(settings, "runs", "stop", found["id"])
    assert done.exit_code == 0
    assert workbench.registry.get(Run, found["id"]).state == "stopped"
    again = run(settings, "runs", "stop", found["id"])
    assert "Run 1 is stopped; there is nothing to stop" in again.stderr


def test_refused_training_options(workbench, settings):
    done = run(settings, "train", "--base", "llama", "--data", "data", "--set", "rnk=8")
    assert (done.exit_code, "Did you mean rank?" in done.stderr) == (1, True)
    assert workbench.registry.all(Run) == []


def test_a_port_in_use(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(settings, "--port", port, "--no-browser")
    assert (done.exit_code, f"Port {port}" in done.stderr, "--port" in done.stderr) == (1, True, True)


def test_a_second_start_prints_the_firsts_address(settings):
    settings.app_file.write_text(json.dumps({"address": "http://127.0.0.1:7999/"}))
    with FileLock(settings.locks / "app.lock"):
        done = run(settings, "--no-browser")
    assert (done.exit_code, "open already" in done.stderr, "http://127.0.0.1:7999/" in done.stderr) == (
        1,
        True,
        True,
    )


def test_the_doctor_names_what_it_looked_at(settings, monkeypatch):
    monkeypatch.setattr("app.service.doctor._torch", cache(doctor._torch))  # asked in a process, once
    code, found = run_json(settings, "doctor")
    assert code == 0
    looked_at = {one["what"] for one in found["findings"]}
    assert looked_at == {
        "Python",
        "torch",
        "bitsandbytes",
        "GPU",
        "Memory",
        "Disk",
        "SQLite",
        "Home folder",
        "Registry",
        "Engine",
    }
    settings.settings_file.write_text('port = "x')
    settings.presets.mkdir(exist_ok=True)
    (settings.presets / "mine.toml").write_text("rank = ")
    code, found = run_json(settings, "doctor")
    told = {one["what"]: one for one in found["findings"]}
    assert (code, told["Settings"]["level"], told["Presets"]["level"]) == (1, "fault", "note")
    assert "settings.toml is not valid TOML" in told["Settings"]["found"]
    assert "mine.toml" in told["Presets"]["found"]
    status = {"runs": [], "device": "cuda", "notice": "It computes slowly."}
    monkeypatch.setattr("app.service.doctor.EngineClient.status", lambda _: status)
    shown = run(settings, "doctor")
    assert (shown.exit_code, "! note   Engine" in shown.stdout) == (1, True), shown
    settings.database.write_bytes(b"broken" * 1000)
    code, found = run_json(settings, "doctor")
    registry = next(one for one in found["findings"] if one["what"] == "Registry")
    assert (code, registry["level"], bool(registry["remedy"])) == (1, "fault", True)


def test_control_characters_do_not_reach_the_terminal(workbench, settings, trained):
    row = trained("mine")
    row.target_modules = "a\x1b[2Jb"
    workbench.registry.save(row)
    shown = run(settings, "adapters", "show", "mine").stdout
    assert "\x1b" not in shown
    assert "a[2Jb" in shown


def test_quick_options_are_valid():
    from app.service.quickstart import QUICK_OPTIONS
    from core.train.training_options import TrainingOptions

    TrainingOptions.parse(QUICK_OPTIONS)
    TrainingOptions.parse(QUICK)


def test_adapters_are_noted_inspected_combined_resized_and_kept(workbench, trained, settings, tmp_path):
    trained("one")
    trained("other")
    assert (
        run(settings, "adapters", "note", "one", "--rename", "a=b", "--star", "--tags", "x,y").exit_code == 0
    )
    assert [row["name"] for row in run_json(settings, "adapters", "list", "--starred")[1]["rows"]] == ["a=b"]
    assert run(settings, "adapters", "note", "other").exit_code == 1
    code, inside = run_json(settings, "adapters", "inspect", "a=b")
    assert (code, len(inside["modules"])) == (0, 14)
    assert "effective rank" in run(settings, "adapters", "inspect", "a=b").stdout
    assert run(settings, "adapters", "export", "a=b", tmp_path / "out").exit_code == 0
    code, found = run_json(settings, "adapters", "inspect", tmp_path / "out")
    assert (code, found["bases"][0]["fits"]) == (0, True)
    code, both = run_json(
        settings, "adapters", "combine", "a=b=0.7", "other", "--method", "cat", "--name", "both"
    )
    assert (code, both["rank"], both["weights"]) == (0, 4, [0.7, 1.0])
    assert "named twice" in run(settings, "adapters", "combine", "other", "other=2").stderr
    code, small = run_json(settings, "adapters", "resize", "both", "--rank", "2")
    assert (code, "name" in small, 0 < small["energy_lost"] < 1) == (0, False, True)
    code, checked = run_json(settings, "adapters", "verify")
    assert (code, checked["problems"]) == (0, {})
    code, shared = run_json(settings, "adapters", "compare", "a=b", "both")
    assert (code, len(shared["similarity"])) == (0, 14)
    code, removed = run_json(settings, "adapters", "remove", "both", "--yes")
    assert [row["id"] for row in run_json(settings, "adapters", "list", "--deleted")[1]["rows"]] == [
        removed["id"]
    ]
    assert run_json(settings, "adapters", "bring-back", removed["id"]) == (0, {"name": "both"})


def test_the_registry_goes_into_a_file_and_back_and_is_examined_deeply(
    workbench, trained, settings, tmp_path
):
    trained("kept")
    assert run(settings, "presets", "save", "gentle", "--set", "rank=3").exit_code == 0
    again = run(settings, "presets", "save", "Gentle", "--set", "rank=4")
    assert (again.exit_code, "give --replace" in again.stderr) == (1, True)
    assert run_json(settings, "presets", "show", "gentle")[1]["options"]["rank"] == 3
    assert run(settings, "presets", "save", "gentle", "--set", "rank=3", "--replace").exit_code == 0
    assert run(settings, "backup", tmp_path / "kept.zip").exit_code == 0
    assert "exists already" in run(settings, "backup", tmp_path / "kept.zip").stderr
    refused = run(settings, "restore", tmp_path / "kept.zip")
    assert (refused.exit_code, "--replace" in refused.stderr) == (1, True)
    elsewhere = settings_for(tmp_path / "elsewhere")
    assert run_json(elsewhere, "restore", tmp_path / "kept.zip")[0] == 0
    assert [row["name"] for row in run_json(elsewhere, "adapters", "list")[1]["rows"]] == ["kept"]
    assert "gentle" in [row["name"] for row in run_json(elsewhere, "presets", "list")[1]["rows"]]
    code, found = run_json(settings, "doctor", "--deep")
    levels = {one["what"]: one["level"] for one in found["findings"]}
    assert (code, levels["Stored files"], levels["Base models"], levels["Exports"]) == (
        0,
        "fine",
        "fine",
        "fine",
    )
    digest = workbench.registry.find(Adapter, "kept").digest
    (workbench.registry.blobs.path(digest) / "adapter_config.json").write_text("{}")
    code, found = run_json(settings, "doctor", "--deep")
    assert (code, {one["what"]: one["level"] for one in found["findings"]}["Stored files"]) == (1, "fault")
    assert "Adapters" in run(settings, "space").stdout
    assert run_json(settings, "space", "--clean")[0] == 0
