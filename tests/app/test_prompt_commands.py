"""The commands about prompt sets and votes."""

import json

from storage.ballots import BEST, TIE
from storage.tables import Dataset
from tests.app.test_cli import run, run_json


def test_a_prompt_set_is_added_run_and_its_answers_voted_on_in_the_terminal(
    workbench, settings, trained, jobs_here, monkeypatch, tmp_path
):
    monkeypatch.setattr("app.cli.prompts.open_workbench", lambda home: workbench)
    trained("mine")
    file = tmp_path / "asked.txt"
    file.write_text("hello 1\nhello 2\n")
    code, kept = run_json(settings, "prompts", "add", "two", file, "--prompt", "hello 3")
    assert (code, kept) == (0, {"name": "two", "prompts": 3})
    assert run(settings, "prompts", "add", "two", "--prompt", "again").exit_code == 1
    assert run_json(settings, "prompts", "add", "two", file, "--replace")[1]["prompts"] == 2
    assert run(settings, "prompts", "add", "rows", "--data", "data", "--rows", "2").exit_code == 0
    assert run(settings, "prompts", "show", "two").stdout == "hello 1\nhello 2\n"
    asked = ("two", "--base", "llama", "--adapter", "mine", "--greedy", "--max-tokens", "3")
    code, result = run_json(settings, "prompts", "run", *asked)
    assert (code, result["answers"], result["refused"]) == (0, 4, 0)
    code, again = run_json(settings, "prompts", "run", "--resume", result["run"])
    assert (code, again) == (0, result)
    assert run(settings, "prompts", "run").exit_code == 2
    (line,) = run_json(settings, "prompts", "runs")[1]["rows"]
    assert (line["who"], line["answered"]) == ("Plain base, mine", "4 of 4")
    shown = run_json(settings, "prompts", "answers", result["run"])[1]
    assert [one["messages"][0]["content"] for one in shown["answers"]] == ["hello 1", "hello 2"]
    run(settings, "prompts", "answers", result["run"], "--form", "md", "--out", tmp_path / "a.md")
    assert "## Prompt 2" in (tmp_path / "a.md").read_text()
    none = run_json(settings, "votes", "export", tmp_path / "none.jsonl")
    assert (none[0], "There are no votes to write" in none[1]["error"]) == (1, True)
    assert not (tmp_path / "none.jsonl").exists()

    assert run_json(settings, "votes", "leaderboard", "--base", "llama")[1] == {"rows": []}
    first = workbench.prompts.following(result["run"])
    workbench.judging.vote(first.id, BEST, 0)
    workbench.judging.vote(workbench.prompts.following(result["run"]).id, TIE)
    rows = run_json(settings, "votes", "leaderboard", "--base", "llama")[1]["rows"]
    assert [row["votes"] for row in rows] == [2, 2]
    assert rows[0]["rating"] > 1000 > rows[1]["rating"]
    code, written = run_json(settings, "votes", "export", tmp_path / "votes.jsonl", "--form", "votes")
    assert (code, written["rows"]) == (0, 2)
    votes = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert [vote["verdict"] for vote in votes] == [BEST, TIE]
    (tmp_path / "mine").write_text("mine")
    for asked in (["prompts", "answers", result["run"], "--out"], ["votes", "export"]):
        code, refused = run_json(settings, *asked, tmp_path / "mine")
        assert (code, "exists already; choose a new file" in refused["error"]) == (1, True)
    assert (tmp_path / "mine").read_text() == "mine"
    code, made = run_json(settings, "votes", "to-data", "liked", "--base", "llama")
    assert (code, made) == (0, {"name": "liked", "rows": 1, "left_out": 1})
    assert workbench.registry.find(Dataset, "liked").rows == 1
    code, refused = run_json(settings, "prompts", "remove", "two")
    assert (code, "give --yes if that is meant" in refused["error"]) == (1, True)
    assert run(settings, "prompts", "remove", "two", "--yes").exit_code == 0
    assert [row["name"] for row in run_json(settings, "prompts", "list")[1]["rows"]] == ["rows"]
