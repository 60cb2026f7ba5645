"""Judging: what is asked and voted, who sees which name when, the leaderboard, votes taken along."""

import json

import pytest

from app.service.chats import Chats
from app.service.judging import without_names
from app.shared.speakers import PLAIN_BASE
from core.errors import InvalidInput, PromptTooLong
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.ballots import ALL_BAD, BEST, TIE
from storage.errors import InvalidTransition
from storage.tables import Adapter, Ballot, Base, Dataset

ASKED = [{"role": "user", "content": "Which way?"}]
CONFIG = GenerationConfig(max_tokens=4)


@pytest.fixture
def told(workbench, trained, monkeypatch):
    """The base and three adapters, whose answers tell who they are."""
    for name in ("first", "second", "third"):
        trained(name)

    def answer(self, base, speakers, conversations, config, name=""):
        for row, speaker in enumerate(speakers):
            yield TokenDone(row, f"{speaker or 'base'} ", False)
            yield TokenDone(row, "says so", True, "end")

    monkeypatch.setattr(Chats, "answer", answer)
    return workbench.judging


def _asked(judging, speakers=(None, "first", "second"), **about):
    return judging.wait(judging.ask("llama", speakers, ASKED, CONFIG, **about).id)


def _votes_for(judging, speaker, speakers=(None, "first", "second")):
    ballot = _asked(judging, speakers)
    at = [column["speaker"] for column in ballot.columns].index(speaker or "")
    return judging.vote(ballot.id, BEST, at)


def test_a_ballot_keeps_all_of_what_was_asked_answered_and_voted(workbench, told):
    voted = _votes_for(told, "first")
    kept = workbench.registry.get(Ballot, voted.id)
    digest = workbench.registry.find(Adapter, "first").digest
    assert (kept.base_name, kept.messages, kept.verdict, kept.blind) == ("llama", ASKED, BEST, True)
    assert kept.base_fingerprint == workbench.registry.find(Base, "llama").fingerprint
    assert kept.columns[kept.best] == {
        "speaker": "first",
        "digest": digest,
        "text": "first says so",
        "finish": "end",
    }
    assert kept.settings["max_tokens"] == 4
    assert kept.voted >= kept.created


def test_the_order_is_shuffled_where_it_is_blind_and_kept_where_it_is_not(told):
    speakers = ["", "first", "second", "third"]
    orders = [tuple(column["speaker"] for column in _asked(told, speakers).columns) for _ in range(12)]
    assert len(set(orders)) > 2
    assert {frozenset(order) for order in orders} == {frozenset(speakers)}
    seen = _asked(told, speakers, blind=False)
    assert [column["speaker"] for column in seen.columns] == speakers
    again = told.wait(told.ask_again(seen.id, "And then?").id)
    assert [column["speaker"] for column in again.columns] == speakers
    assert again.messages == [{"role": "user", "content": "And then?"}]


def test_a_vote_is_refused_that_says_nothing_or_is_a_second_one(told):
    ballot = _asked(told)
    for verdict, best in (("good", None), (BEST, None), (TIE, 1), (BEST, 3), (BEST, -1)):
        with pytest.raises(InvalidInput):
            told.vote(ballot.id, verdict, best)
    told.vote(ballot.id, TIE)
    with pytest.raises(InvalidTransition, match="already"):
        told.vote(ballot.id, ALL_BAD)


def test_fewer_than_two_or_nothing_to_ask_is_refused(told):
    for speakers in ([None], ["first", "first"], [f"a{at}" for at in range(9)]):
        with pytest.raises(InvalidInput, match="two to"):
            told.ask("llama", speakers, ASKED, CONFIG)
    with pytest.raises(InvalidInput, match="Write something"):
        told.ask("llama", [None, "first"], [{"role": "user", "content": "  "}], CONFIG)


def test_answers_that_broke_off_cannot_be_judged_and_the_reason_names_nobody(told, monkeypatch):
    def broken(self, *about, **more):
        yield TokenDone(0, "half", False)
        raise PromptTooLong("first and second have no room for it.")

    monkeypatch.setattr(Chats, "answer", broken)
    ballot = _asked(told)
    assert without_names(ballot.error, ballot) == "one of them and one of them have no room for it."
    with pytest.raises(InvalidInput, match="not whole"):
        told.vote(ballot.id, TIE)


def test_what_a_closed_workbench_left_unanswered_says_so(workbench, told):
    ballot = _asked(told)
    ballot.columns = [{**column, "finish": ""} for column in ballot.columns]
    workbench.registry.save(ballot)
    assert "closed" in told.look(ballot.id)[0].error
    with pytest.raises(InvalidInput, match="ask again"):
        told.vote(ballot.id, TIE)


def test_the_leaderboard_counts_the_votes_of_these_weights_only(workbench, told):
    for speaker in ("first", "first", "first", "second", ""):
        _votes_for(told, speaker)
    told.vote(_asked(told).id, TIE)
    told.vote(_asked(told).id, ALL_BAD)
    elsewhere = _votes_for(told, "second")
    elsewhere.base_fingerprint = "f" * 64
    workbench.registry.save(elsewhere)
    found = {one.name: one for one in told.leaderboard("llama")}
    assert next(iter(found)) == "first"
    one = found["first"]
    assert (one.votes, one.wins, one.losses, one.ties, one.all_bad) == (7, 3, 2, 1, 1)
    assert found[PLAIN_BASE].rating.rating == pytest.approx(found["second"].rating.rating)
    assert one.rating.interval > 0


def test_an_adapter_keeps_its_votes_by_its_weights(workbench, told, trained):
    """Under another name it is the same, removed it stays, and another one of its name is another one."""
    _votes_for(told, "first")
    row, change = workbench.registry.find(Adapter, "first"), workbench.registry.adapters.change
    change(row.id, name="better")
    _votes_for(told, "better", (None, "better"))
    workbench.registry.adapters.delete(row.id)
    assert {one.name: one.wins for one in told.leaderboard("llama")} == {
        "better": 2,
        "second": 0,
        PLAIN_BASE: 0,
    }
    workbench.registry.adapters.purge(row.changed + 1e9)
    change(trained("longer name").id, name="better")  # which has other weights
    _votes_for(told, "better", (None, "better"))
    wins = {one.name.partition(" (")[0]: [] for one in told.leaderboard("llama")}
    for one in told.leaderboard("llama"):
        wins[one.name.partition(" (")[0]].append(one.wins)
    assert sorted(wins["better"]) == [1, 2]


def test_a_blend_is_judged_by_what_it_is_made_of(workbench, trained):
    """Over the engine itself, which tells whose weights have answered."""
    for name in ("one", "two words"):
        trained(name)
    judging, ballots = workbench.judging, []
    for speakers in ((None, "one"), ("one=1+two words=0", "one=0.5+two words=0.5")):
        ballot = judging.ask("llama", speakers, ASKED, CONFIG, blind=False)
        ballots.append(judging.wait(ballot.id))
    (plain, one), (same, half) = (ballot.columns for ballot in ballots)
    assert plain["digest"] == ""
    assert one["digest"] == same["digest"] == workbench.registry.find(Adapter, "one").digest
    assert len(half["digest"]) == 64
    assert half["digest"] != one["digest"]
    ballots[1].error = "two words does not fit, one neither, and nobody else."
    told = "one of them does not fit, one of them neither, and nobody else."
    assert without_names(ballots[1].error, ballots[1]) == told


def test_votes_become_a_data_set_and_lines(workbench, told):
    _votes_for(told, "first")
    _votes_for(told, "second")
    told.vote(_asked(told).id, TIE)
    told.vote(_asked(told).id, ALL_BAD)
    made = workbench.votes.to_data("liked", "llama")
    assert (made.votes, made.left_out, made.row.rows) == (2, 2, 2)
    assert "2 without a best answer were left out" in made.sentence
    rows = workbench.datasets.open(workbench.registry.find(Dataset, "liked")).rows
    assert [example.messages[-1]["content"] for example in rows] == ["first says so", "second says so"]
    pairs = [json.loads(line) for line in workbench.votes.lines("pairs")]
    assert len(pairs) == 4
    assert {pair["chosen_by"] for pair in pairs} == {"first", "second"}
    assert all(pair["chosen"][:-1] == pair["rejected"][:-1] == ASKED for pair in pairs)
    votes = [json.loads(line) for line in workbench.votes.lines("votes", "llama")]
    assert [vote["verdict"] for vote in votes] == [BEST, BEST, TIE, ALL_BAD]
    assert [vote["best"] for vote in votes] == ["first", "second", None, None]
    with pytest.raises(InvalidInput, match="no form"):
        list(workbench.votes.lines("other"))
