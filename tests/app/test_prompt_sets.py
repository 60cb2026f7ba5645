"""Prompt sets: how prompts are written and where from, their answers by a job, judged and taken along."""

import json

import pytest

from app.jobs.kinds import run_prompts
from app.service.prompt_texts import parse_prompts, prompts_in, prompts_text
from app.shared.engine_client import EngineClient
from core.errors import InvalidInput, WorkbenchError
from core.generate.config import GenerationConfig
from storage.ballots import BEST, TIE
from storage.errors import InUse, NameTaken, NotFound
from storage.tables import Ballot, Dataset, Job, PromptRun, PromptSet

CONFIG = GenerationConfig(max_tokens=3, temperature=0.0)
SEVERAL = "hello 1\nhello 2\n\nhello 3\n"


def _user(text):
    return [{"role": "user", "content": text}]


def test_prompts_are_written_as_lines_or_as_json_and_back():
    brief = [{"role": "system", "content": "Be brief."}, *_user("Why?")]
    talk = [*_user("Hi"), {"role": "assistant", "content": "Hello"}, *_user("And now?")]
    prompts = [_user("One line"), _user("Two\nlines"), _user('{"a": 1}'), brief, talk]
    text = prompts_text(prompts)
    assert text.splitlines()[0] == "One line"
    assert len(text.splitlines()) == 5
    assert parse_prompts(f"\n{text}\n\n") == prompts
    answered = [*talk, {"role": "assistant", "content": "Now this."}]
    assert parse_prompts(json.dumps({"messages": answered})) == [talk]
    assert prompts_in(json.dumps(["a", {"question": "b"}]), "x.json") == [_user("a"), _user("b")]


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_prompt_with_a_sign_that_ends_no_line_stays_one(sign):
    prompts = [_user(f"One{sign}prompt"), _user(f"Two\nlines{sign}and more")]
    assert parse_prompts(prompts_text(prompts)) == prompts
    typed = parse_prompts(f"One{sign}prompt\r\nSecond")
    assert len(typed) == (3 if sign == "\r" else 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompts"),
        ('a\n{"prompt": ', "Line 2 begins as JSON"),
        ('{"other": 1}', "Line 1 has no prompt"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "needs a role"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "does not end on a user's turn"),
        ("a\n" * 2001, "at most 2,000"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_line(text, said):
    with pytest.raises(InvalidInput, match=said):
        parse_prompts(text)


def test_a_set_is_kept_changed_renamed_and_removed(workbench, tmp_path):
    prompts = workbench.prompts
    prompts.keep("mine", parse_prompts(SEVERAL))
    with pytest.raises(NameTaken):
        prompts.keep("mine", parse_prompts("x"))
    prompts.keep("ours", parse_prompts("x\ny"), before="mine")
    assert [(one.name, len(one.prompts)) for one in prompts.all()] == [("ours", 2)]
    with pytest.raises(NotFound, match="There are: ours"):
        prompts.find("mine")
    prompts.remove("ours")
    assert workbench.registry.all(PromptSet) == []
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\nb\n')
    assert prompts.in_file(tmp_path / "p.jsonl") == [_user("a"), _user("b")]


def test_prompts_are_taken_from_validation_rows_without_their_answers(workbench):
    found = workbench.prompts.in_data("data", 2)
    opened = workbench.datasets.open(workbench.registry.find(Dataset, "data"))
    validation = opened.version.validation.nonzero()[0].tolist()
    kept_back = {opened.rows[at].messages[0]["content"] for at in validation}
    assert found
    assert {turns[-1]["content"] for turns in found} <= kept_back
    assert all(turns[-1]["role"] == "user" for turns in found)


@pytest.fixture
def answered(workbench, trained, jobs_here):
    """A set of three prompts, answered by the base and an adapter."""
    trained("mine")
    workbench.prompts.keep("three", parse_prompts(SEVERAL))
    run, job = workbench.prompts.start("three", "llama", [None, "mine"], CONFIG)
    assert (job.state, job.result) == ("finished", {"run": run.id, "answers": 6, "refused": 0}), job.message
    return workbench.prompts.matrix(run.id)


def test_a_job_answers_each_prompt_as_a_chat_would(workbench, answered):
    assert answered.names == ("Plain base", "mine")
    assert answered.is_whole
    for turns, cells in zip(answered.run.prompts, answered.cells, strict=True):
        texts = ["", ""]
        for token in workbench.chats.answer("llama", [None, "mine"], [turns, turns], CONFIG):
            texts[token.row] += token.text
        assert [one.text for one in cells] == texts
    assert {one.finish for row in answered.cells for one in row} <= {"end", "length"}


def test_what_is_missing_is_answered_and_what_is_there_stays(workbench, answered):
    run, first = answered.run, answered.cells[0][0]
    with workbench.registry.database.writing() as session:
        session.delete(session.merge(answered.cells[1][1]))
    assert not workbench.prompts.matrix(run.id).is_whole
    job = workbench.prompts.go_on(run.id)
    assert job.result["answers"] == 6
    again = workbench.prompts.matrix(run.id)
    assert again.is_whole
    assert again.cells[0][0].id == first.id
    active = workbench.registry.save(Job(kind="run_prompts", title="x", arguments={"run": run.id}))
    with pytest.raises(InUse):
        workbench.prompts.go_on(run.id)
    with pytest.raises(InUse):
        workbench.prompts.remove_run(run.id)
    workbench.registry.jobs.stop(active.id)
    workbench.prompts.remove_run(run.id)
    assert workbench.registry.all(PromptRun) == []
    assert workbench.registry.prompt_sets.answers(run.id) == []


def test_a_prompt_that_is_refused_says_why_and_keeps_nothing_else_back(workbench, trained, jobs_here):
    workbench.prompts.keep("long", parse_prompts("hello 1\n" + "word " * 400))
    run, job = workbench.prompts.start("long", "llama", [None], CONFIG)
    assert (job.state, job.result["answers"], job.result["refused"]) == ("finished", 1, 1)
    (first,), (second,) = workbench.prompts.matrix(run.id).cells
    assert first.finish != "refused"
    assert second.finish == "refused"
    assert "at most 256" in second.text


def test_prompts_wait_while_another_base_is_in_use(workbench, jobs_here, monkeypatch):
    refused, engine = ["other is trained on right now."], EngineClient.answer
    monkeypatch.setattr(run_prompts, "_LOOK_SECONDS", 0.0)

    def busy_at_first(self, *about):
        if refused:
            raise WorkbenchError(refused.pop())
        return engine(self, *about)

    monkeypatch.setattr(EngineClient, "answer", busy_at_first)
    workbench.prompts.keep("one", parse_prompts("hello 1"))
    _, job = workbench.prompts.start("one", "llama", [None], CONFIG)
    assert (job.state, job.result["answers"], refused) == ("finished", 1, [])


def test_answers_of_a_run_are_judged_blind_and_count_for_the_leaderboard(workbench, answered):
    prompts, run = workbench.prompts, answered.run
    assert prompts.left_to_judge(answered) == 3
    first = prompts.following(run.id)
    assert prompts.following(run.id).id == first.id  # until it is judged
    assert first.blind
    assert {(one["speaker"], one["text"]) for one in first.columns} == {
        ("", answered.cells[0][0].text),
        ("mine", answered.cells[0][1].text),
    }
    workbench.judging.vote(first.id, BEST, 0)
    workbench.judging.vote(prompts.following(run.id).id, TIE)
    assert prompts.left_to_judge(answered) == 1
    workbench.judging.vote(prompts.following(run.id).id, TIE)
    with pytest.raises(InvalidInput, match="are judged"):
        prompts.following(run.id)
    assert {one.votes for one in workbench.judging.leaderboard("llama")} == {3}
    prompts.remove_run(run.id)
    assert len(workbench.registry.all(Ballot)) == 3


def test_a_run_is_taken_along_as_csv_markdown_and_json_lines(workbench, answered):
    number = answered.run.id
    lines = list(workbench.prompts.lines(number, "csv"))
    assert lines[0] == "prompt,Plain base,mine\r\n"
    assert len(lines) == 4
    page = "".join(workbench.prompts.lines(number, "md"))
    assert "# three on llama" in page
    assert "> hello 2" in page
    assert page.count("### mine") == 3
    rows = [json.loads(line) for line in workbench.prompts.lines(number, "jsonl")]
    assert [row["messages"] for row in rows] == [_user(f"hello {at}") for at in (1, 2, 3)]
    assert rows[0]["answers"][1]["text"] == answered.cells[0][1].text
    with pytest.raises(InvalidInput, match="csv, md, jsonl"):
        list(workbench.prompts.lines(number, "xml"))
