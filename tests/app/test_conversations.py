"""Conversations are stored as they grow, and go on however they are left."""

import threading
from dataclasses import replace

import pytest

from app.service.conversations import FAILED, STOPPED, WAITS
from app.web.sections.playground.talk import figures_of, looked
from core.data.chat_options import ChatOptions
from core.errors import InvalidConfig, InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.errors import NotFound
from storage.tables import Base, Chat, ChatMessage
from tests.workbenches import do_job, wait_for

CONFIG = GenerationConfig(max_tokens=8, seed=3)


class Speakers:
    """Stands for the engine: says back what it was asked, a word at a time, when it is let."""

    def __init__(self):
        self.asked, self.cancelled = [], []
        self.go_on = threading.Event()
        self.go_on.set()
        self.words = "one two three"
        self.fault = None

    def answer(self, base, rows, name="", *, each=False):
        self.asked.append([row["text"] or row["messages"] for row in rows])
        return self._stream(len(rows), name)

    def _stream(self, rows, name):
        words = self.words.split()
        for at, word in enumerate(words):
            for row in range(rows):
                if (name, row) not in self.cancelled:
                    last = at == len(words) - 1
                    yield TokenDone(row, f"{word} ", last, "end" if last else "", at + 1, 5)
            self.go_on.wait(20)
            if self.fault:
                raise self.fault

    def cancel(self, name, row):
        self.cancelled.append((name, row))


@pytest.fixture
def speakers(workbench, monkeypatch):
    found = Speakers()
    monkeypatch.setattr(workbench.engine, "answer", found.answer)
    monkeypatch.setattr(workbench.engine, "cancel", found.cancel)
    return found


@pytest.fixture
def talk(workbench, trained):
    """The conversations of a home with the adapter "mine"."""
    trained("mine")
    return workbench.conversations


def _done(talk, chat):
    wait_for(lambda: not talk.busy(chat))
    return talk.turns(chat)


def test_a_conversation_is_busy_until_its_answers_can_be_given_anew(talk, speakers, monkeypatch):
    store, seen = talk._store, []

    def stored(request):
        store(request)
        seen.append(talk.busy(request.chat_id))

    monkeypatch.setattr(talk, "_store", stored)
    chat = talk.ask(None, "llama", ["mine"], "hello", CONFIG)
    _done(talk, chat)
    assert seen[-1]  # its end is stored, but it was still in hand
    talk.again(talk.turns(chat)[0].answers["mine"].id, CONFIG)
    _done(talk, chat)


def test_an_answer_is_in_the_registry_before_it_is_whole(talk, speakers, workbench, monkeypatch):
    monkeypatch.setattr("app.service.conversations._STORE_SECONDS", 0.0)
    speakers.go_on.clear()
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG)
    stored = workbench.registry.chats.messages
    wait_for(lambda: [one.content for one in stored(chat)] == ["hello", "one ", "one "])
    assert [one.finish for one in stored(chat)] == ["", "", ""]
    (turn,) = talk.turns(chat)
    assert [one.content for one in turn.answers.values()] == ["one ", "one "]
    speakers.go_on.set()
    (turn,) = _done(talk, chat)
    assert [(one.speaker, one.content, one.finish) for one in stored(chat)[1:]] == [
        ("", "one two three ", "end"),
        ("mine", "one two three ", "end"),
    ]
    assert turn.answers["mine"].details["tokens"] == 3
    assert turn.answers["mine"].details["settings"]["seed"] == 3


def test_what_was_growing_when_the_program_ended_is_there_and_told_as_stopped(talk, workbench):
    chat = workbench.registry.save(Chat(base_name="llama")).id
    half = ChatMessage(chat_id=chat, role="assistant", content="half of it", speaker="mine")
    workbench.registry.chats.begin(ChatMessage(chat_id=chat, role="user", content="hello"), [half])
    (turn,) = talk.turns(chat)
    assert (turn.answers["mine"].content, turn.answers["mine"].finish) == ("half of it", STOPPED)
    assert not talk.busy(chat)


def test_each_goes_on_from_its_own_answers_or_all_from_one(talk, speakers, workbench):
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG, system="Be short.")
    (turn,) = _done(talk, chat)
    workbench.registry.chats.grow({turn.answers["mine"].id: {"content": "mine said"}})
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    _done(talk, chat)
    begin = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    said = [[*begin, {"role": "assistant", "content": one}] for one in ("one two three ", "mine said")]
    question = [{"role": "user", "content": "and?"}]
    assert speakers.asked[-1] == [[*one, *question] for one in said]
    talk.adopt(turn.answers["mine"].id)
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    turns = _done(talk, chat)
    assert [one[:3] for one in speakers.asked[-1]] == [said[1], said[1]]
    assert turns[0].question.adopted == "mine"
    talk.adopt(turn.answers["mine"].id)  # once more: each from its own again
    assert talk.turns(chat)[0].question.adopted is None


def test_one_answer_is_given_anew_in_its_place(talk, speakers, workbench):
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG)
    (turn,) = _done(talk, chat)
    speakers.words = "something else"
    talk.again(turn.answers["mine"].id, CONFIG)
    (turn,) = _done(talk, chat)
    assert [one.content for one in turn.answers.values()] == ["one two three ", "something else "]
    assert speakers.asked[-1] == [[{"role": "user", "content": "hello"}]]


def test_what_is_asked_again_as_it_was_gets_the_next_seed(talk, speakers):
    def again(config, speaker=None):
        talk.again(talk.turns(chat)[-1].answers[held].id, config, speaker)
        answer = _done(talk, chat)[-1].answers[held if speaker is None else speaker]
        return answer.details["settings"]["seed"], figures_of(answer)

    chat, held = talk.ask(None, "llama", ["mine"], "hello", CONFIG), "mine"
    _done(talk, chat)
    assert again(CONFIG) == (4, "3 tokens · seed 4 · ended by itself")
    assert again(CONFIG)[0] == 5
    other = replace(CONFIG, top_k=5)
    assert again(other) == (3, "3 tokens · ended by itself")  # asked for otherwise: as it is said
    assert again(replace(other, seed=1))[0] == 1
    assert again(replace(other, seed=2**31 - 1))[0] == 2**31 - 1
    assert again(replace(other, seed=2**31 - 1))[0] == 0
    greedy = replace(CONFIG, temperature=0.0)
    assert [again(greedy)[0], again(greedy)[0]] == [3, 3]
    again(CONFIG)
    assert again(CONFIG, "")[0] == 3  # somebody else, held against the others


def test_an_answer_is_drawn_anew_also_where_another_is_as_long(talk, speakers, workbench):
    chat = talk.ask(None, "llama", ["mine"], "hello", CONFIG)
    answer = _done(talk, chat)[0].answers["mine"]
    about = (workbench, chat, ["mine"])

    def drawn(known):
        (turn,) = looked(*about, known, None)["turns"]
        return turn["answers"]["mine"]

    known = {str(answer.id): drawn({})["stamp"]}
    assert "html" not in drawn(known)
    speakers.words = "two one three"
    talk.again(answer.id, replace(CONFIG, temperature=0.0))
    _done(talk, chat)
    assert "two one three" in drawn(known)["html"]


def test_another_question_in_the_place_of_one_begins_a_branch_and_leaves_the_old(talk, speakers, workbench):
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG)
    _done(talk, chat)
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    turns = _done(talk, chat)
    branch = talk.branch(turns[1].question.id, "or?", ["mine"], CONFIG)
    assert branch != chat
    assert [turn.question.content for turn in _done(talk, branch)] == ["hello", "or?"]
    assert [turn.question.content for turn in talk.turns(chat)] == ["hello", "and?"]
    assert len(speakers.asked[-1][0]) == 3
    with pytest.raises(InvalidInput, match="Write something"):
        talk.branch(turns[1].question.id, " ", ["mine"], CONFIG)
    assert len(workbench.registry.all(Chat)) == 2


def test_one_is_stopped_while_the_others_go_on_and_a_fault_is_kept_with_its_reason(talk, speakers):
    speakers.go_on.clear()
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG)
    wait_for(lambda: all(one.content for one in talk.turns(chat)[0].answers.values()))
    talk.stop(chat, talk.turns(chat)[0].answers["mine"].id)
    speakers.go_on.set()
    (turn,) = _done(talk, chat)
    assert [(one.content, one.finish) for one in turn.answers.values()] == [
        ("one two three ", "end"),
        ("one ", STOPPED),
    ]
    speakers.fault = InvalidInput("The conversation is 9,000 tokens long.")
    talk.ask(chat, "llama", ["mine"], "and?", CONFIG)
    last = _done(talk, chat)[-1].answers["mine"]
    assert (last.content, last.finish) == ("one ", FAILED)
    assert last.details["error"] == "The conversation is 9,000 tokens long."


def _half_said(talk, speakers):
    """A conversation in which the first question is being answered, and a word of it is there."""
    speakers.go_on.clear()
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG)
    wait_for(lambda: all(one.content for one in talk.turns(chat)[0].answers.values()))
    return chat


def test_a_question_that_is_asked_meanwhile_goes_on_from_whole_answers(talk, speakers):
    chat = _half_said(talk, speakers)
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    waiting = talk.turns(chat)[-1].answers["mine"]
    assert (waiting.content, waiting.finish, waiting.details[WAITS]) == ("", "", True)
    assert talk.busy(chat)
    with pytest.raises(InvalidInput, match="still being answered"):
        talk.branch(talk.turns(chat)[-1].question.id, "or?", ["mine"], CONFIG)
    speakers.go_on.set()
    turns = _done(talk, chat)
    said = ["hello", "one two three ", "and?"]
    assert [[one["content"] for one in seen] for seen in speakers.asked[1]] == [said, said]
    assert len(speakers.asked) == 2
    last = turns[-1].answers["mine"]
    assert (last.content, last.finish) == ("one two three ", "end")
    assert WAITS not in last.details


def test_one_that_waits_is_stopped_before_it_is_asked(talk, speakers):
    chat = _half_said(talk, speakers)
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    talk.stop(chat, talk.turns(chat)[-1].answers["mine"].id)
    speakers.go_on.set()
    last = _done(talk, chat)[-1].answers
    assert (last["mine"].content, last["mine"].finish) in [("", STOPPED), ("one ", STOPPED)]
    assert last[""].finish == "end"
    chat = _half_said(talk, speakers)
    asked = len(speakers.asked)
    talk.ask(chat, "llama", ["", "mine"], "and?", CONFIG)
    talk.stop(chat)
    speakers.go_on.set()
    assert {one.finish for turn in _done(talk, chat) for one in turn.answers.values()} == {STOPPED}
    assert len(speakers.asked) == asked


def test_conversations_are_found_by_what_was_said_in_them(talk, speakers):
    pasta = talk.ask(None, "llama", ["mine"], "How do I cook pasta?", CONFIG)
    _done(talk, pasta)
    other = talk.ask(None, "llama", ["mine"], "100% of it", CONFIG)
    _done(talk, other)
    assert [(chat.id, title) for chat, title in talk.find()[0]] == [
        (other, "100% of it"),
        (pasta, "How do I cook pasta?"),
    ]
    assert [chat.id for chat, _ in talk.find("PASTA cook")[0]] == [pasta]
    assert [chat.id for chat, _ in talk.find("100%")[0]] == [other]
    assert talk.find("three")[1] == 2


def test_raw_text_is_gone_on_with_by_itself(talk, speakers, workbench):
    chat = talk.ask(None, "llama", ["", "mine"], "Once upon", CONFIG, "Be short.", raw=True)
    (turn,) = _done(talk, chat)
    talk.ask(chat, "llama", ["mine"], "a time", CONFIG, raw=True)
    _done(talk, chat)
    assert speakers.asked == [["Once upon", "Once upon"], ["a time"]]
    with pytest.raises(InvalidInput, match="raw text"):
        talk.score(turn.answers["mine"].id)
    other = talk.ask(chat, "llama", ["mine"], "hello", CONFIG)
    _done(talk, other)
    assert other != chat
    assert speakers.asked[-1] == [[{"role": "user", "content": "hello"}]]
    assert [one.raw for one in workbench.registry.all(Chat)] == [False, True]


def test_another_speaker_answers_the_last_question_too_or_instead(talk, speakers):
    chat = talk.ask(None, "llama", [""], "hello", CONFIG)
    _done(talk, chat)
    talk.also(chat, ["", "mine"], CONFIG)
    (turn,) = _done(talk, chat)
    assert list(turn.answers) == ["", "mine"]
    with pytest.raises(InvalidInput, match="have not answered"):
        talk.also(chat, ["mine"], CONFIG)
    speakers.words = "otherwise"
    talk.again(turn.answers["mine"].id, CONFIG, "mine=0.5")
    (turn,) = _done(talk, chat)
    assert {speaker: one.content for speaker, one in turn.answers.items()} == {
        "": "one two three ",
        "mine=0.5": "otherwise ",
    }


def test_an_answer_is_scored_behind_what_its_speaker_has_said(talk, speakers, workbench, monkeypatch):
    asked = []
    monkeypatch.setattr(
        workbench.chats, "score", lambda *given, **more: asked.append((given, more)) or [None]
    )
    chat = talk.ask(None, "llama", ["", "mine"], "hello", CONFIG, "Be short.")
    (turn,) = _done(talk, chat)
    talk.score(turn.answers["mine"].id)
    begin = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert asked == [(("llama", ["mine"], begin, "one two three "), {"ended": True, "chat": ChatOptions()})]
    asked.clear()
    talk.scores(chat, ["", "mine"], "good day", CONFIG)
    assert [given[1:] for given, _ in asked] == [([None], begin, "good day"), (["mine"], begin, "good day")]


def _second_base(workbench, folder):
    do_job(workbench, "add_model", {"origin": str(folder), "name": "second"})


def test_another_base_answers_after_those_of_the_conversations_own(talk, workbench, other_llama):
    _second_base(workbench, other_llama)
    greedy = GenerationConfig(max_tokens=8, temperature=0.0)
    chat = talk.ask(None, "llama", ["base:second", "", "mine"], "hello", greedy)
    (turn,) = _done(talk, chat)
    assert [one.finish in ("end", "length") for one in turn.answers.values()] == [True] * 3
    alone = talk.ask(None, "second", [""], "hello", greedy)
    (by_itself,) = _done(talk, alone)
    fingerprint = workbench.registry.find(Base, "second").fingerprint
    assert turn.answers["base:second"].content == by_itself.answers[""].content
    assert turn.answers["base:second"].details["base"] == fingerprint
    assert turn.answers[""].details["base"] == workbench.registry.find(Base, "llama").fingerprint
    # Anew, and token by token, it is still the other base that answers.
    talk.again(turn.answers["base:second"].id, greedy)
    (again,) = _done(talk, chat)
    assert again.answers["base:second"].content == by_itself.answers[""].content
    mine, own = (talk.score(one.id) for one in (again.answers["base:second"], by_itself.answers[""]))
    assert [one.logprob for one in mine.tokens] == [one.logprob for one in own.tokens]
    assert workbench.chats.warnings("llama", ["base:second", "mine"]) == []


def test_another_base_that_is_stopped_before_its_turn_is_not_asked(talk, speakers, workbench, other_llama):
    _second_base(workbench, other_llama)
    speakers.go_on.clear()
    chat = talk.ask(None, "llama", ["base:second", "mine"], "hello", CONFIG)
    wait_for(lambda: talk.turns(chat)[0].answers["mine"].content == "one ")
    talk.stop(chat, talk.turns(chat)[0].answers["base:second"].id)
    speakers.go_on.set()
    (turn,) = _done(talk, chat)
    assert (turn.answers["base:second"].finish, turn.answers["mine"].finish) == (STOPPED, "end")
    assert len(speakers.asked) == 1


def test_another_base_takes_no_part_in_what_one_base_computes_together(talk, workbench, other_llama):
    _second_base(workbench, other_llama)
    with pytest.raises(InvalidConfig, match="second is another base than llama"):
        workbench.chats.score("llama", ["base:second", "mine"], [{"role": "user", "content": "hi"}], "yes")
    with pytest.raises(NotFound, match="nobody"):
        workbench.chats.answer("llama", ["base:nobody"], [[{"role": "user", "content": "hi"}]], CONFIG)
