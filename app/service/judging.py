"""Answers judged side by side, blind unless wished otherwise: what is asked, what is voted, and the ratings
that follow. Knows nothing of Gradio.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.service.chats import MAX_SIDE_BY_SIDE, Chats, Messages
from app.service.ratings import Outcome, Rating, ratings
from app.shared.errors import USER_ERRORS
from app.shared.speakers import PLAIN_BASE, speaker_told
from core.errors import InvalidInput
from core.events import TokenDone
from core.generate.config import GenerationConfig
from storage.ballots import ALL_BAD, BEST, TIE, VERDICTS
from storage.registry import Registry
from storage.tables import Ballot, Base, PromptAnswer, PromptRun

LETTERS = "ABCDEFGH"
_KEEP_SECONDS = 1.0  # so often is stored what has been answered so far
_STOPPED, _BROKEN = "stopped", "error"


@dataclass(frozen=True)
class Standing:
    """One line of a leaderboard."""

    key: str
    """What `key_of` tells of it."""
    name: str
    digest: str
    rating: Rating
    votes: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    all_bad: int = 0

    def record(self) -> dict[str, Any]:
        """As one flat row."""
        return {
            "name": self.name,
            "rating": self.rating.rating,
            "plus_minus": self.rating.interval,
            "votes": self.votes,
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "all_bad": self.all_bad,
            "digest": self.digest,
            "part": self.rating.part,
            "by_prior": self.rating.by_prior,
        }


@dataclass(eq=False)
class _UnderWay:
    """Answers that a thread takes from the engine."""

    columns: list[dict[str, Any]]
    stopped: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Judging:
    """The ballots of one home folder."""

    def __init__(self, registry: Registry, chats: Chats) -> None:
        self._registry, self._chats = registry, chats
        self._under_way: dict[int, _UnderWay] = {}
        self._random = random.SystemRandom()
        self._standings: dict[str, tuple[int, list[Standing]]] = {}
        """What was found last for a base's fingerprint, and of how many votes."""

    # Asking.

    def ask(
        self,
        base: str,
        speakers: Sequence[str | None],
        messages: Messages,
        config: GenerationConfig,
        *,
        blind: bool = True,
    ) -> Ballot:
        """Put a prompt to all of them and return at once; their order is shuffled where it is blind.

        Raises InvalidInput for an empty prompt or fewer than two, and what Chats.answer() raises.
        """
        asked = self._order([speaker or "" for speaker in speakers], blind=blind)
        if not messages or not messages[-1]["content"].strip():
            raise InvalidInput("Write something to ask first.")
        model = self._registry.find(Base, base)
        columns = [{**column, "text": "", "finish": ""} for column in self.columns(model, asked)]
        answers = self._chats.answer(
            model.name, [one or None for one in asked], [messages] * len(asked), config
        )
        ballot = self._registry.save(
            Ballot(
                base_name=model.name,
                base_fingerprint=model.fingerprint,
                messages=[dict(message) for message in messages],
                columns=columns,
                settings=config.to_dict(),
                blind=blind,
            )
        )
        self._under_way[ballot.id or 0] = under_way = _UnderWay(columns)
        threading.Thread(target=self._take, args=(ballot.id, answers, under_way), daemon=True).start()
        return ballot

    def ask_again(self, ballot_id: int, prompt: str) -> Ballot:
        """Put another prompt to those of an earlier ballot, with its system prompt and settings; shuffled
        anew. Raises as ask(), and NotFound.
        """
        before = self._registry.get(Ballot, ballot_id)
        said = [message for message in before.messages if message["role"] == "system"]
        return self.ask(
            before.base_name,
            [column["speaker"] for column in before.columns],
            [*said, {"role": "user", "content": prompt}],
            GenerationConfig.parse(before.settings),
            blind=before.blind,
        )

    def of_answers(self, run: PromptRun, prompt: int, answers: Sequence[PromptAnswer]) -> Ballot:
        """A ballot over answers that are there already, one for each column of `run`, shuffled."""
        columns = [
            {**column, "text": one.text, "finish": one.finish}
            for column, one in zip(run.columns, answers, strict=True)
        ]
        self._random.shuffle(columns)
        return self._registry.save(
            Ballot(
                base_name=run.base_name,
                base_fingerprint=run.base_fingerprint,
                messages=run.prompts[prompt],
                columns=columns,
                settings=run.settings,
                prompt_run_id=run.id,
                prompt=prompt,
            )
        )

    def columns(self, model: Base, speakers: Sequence[str]) -> list[dict[str, Any]]:
        """speaker and digest of each, as ballots hold them. Raises NotFound, WrongBase, InvalidConfig."""
        return [
            {"speaker": one, "digest": digest_of(speaker_told(self._registry, one, model))}
            for one in speakers
        ]

    def _order(self, speakers: Sequence[str], *, blind: bool) -> list[str]:
        """Each once. Raises InvalidInput unless there are two to eight."""
        found = list(dict.fromkeys(speakers))
        if not 2 <= len(found) <= MAX_SIDE_BY_SIDE:
            raise InvalidInput(f"Choose two to {MAX_SIDE_BY_SIDE} different columns to judge.")
        if blind:
            self._random.shuffle(found)
        return found

    def _take(self, ballot_id: int, answers: Iterator[TokenDone], under_way: _UnderWay) -> None:
        """Take the answers as they come, until they end or are stopped, and keep them."""
        columns, error, kept = under_way.columns, "", time.monotonic()
        try:
            for token in answers:
                column = columns[token.row]
                column["text"] += token.text
                column["finish"] = token.reason or column["finish"]
                if token.weights is not None:  # what has answered, whatever was meant
                    column["digest"] = digest_of(token.weights)
                if time.monotonic() - kept > _KEEP_SECONDS:
                    self._registry.ballots.write(ballot_id, columns)
                    kept = time.monotonic()
                if under_way.stopped.is_set():
                    break
        except (*USER_ERRORS, OSError) as fault:
            error = str(fault)
        finally:
            answers.close()  # type: ignore[attr-defined]
            unfinished = _BROKEN if error else _STOPPED
            for column in columns:
                column["finish"] = column["finish"] or unfinished
            try:
                self._registry.ballots.write(ballot_id, columns, error)
            finally:
                self._under_way.pop(ballot_id, None)
                under_way.done.set()

    # Looking and voting.

    def look(self, ballot_id: int) -> tuple[Ballot, bool]:
        """A ballot as it is now, and whether its answers are still being written. Raises NotFound."""
        under_way = self._under_way.get(ballot_id)
        ballot = self._registry.get(Ballot, ballot_id)
        if under_way is not None:
            ballot.columns = [dict(column) for column in under_way.columns]
        elif not all(column["finish"] for column in ballot.columns):
            ballot.error = "The workbench was closed while these were answered; ask again."
        return ballot, under_way is not None

    def stop(self, ballot_id: int) -> None:
        """End the answers; what has been said is kept, and can be voted on."""
        if (under_way := self._under_way.get(ballot_id)) is not None:
            under_way.stopped.set()
            under_way.done.wait(10)

    def wait(self, ballot_id: int) -> Ballot:
        """Wait for the last answer. Raises NotFound."""
        if (under_way := self._under_way.get(ballot_id)) is not None:
            under_way.done.wait()
        return self.look(ballot_id)[0]

    def vote(self, ballot_id: int, verdict: str, best: int | None = None) -> Ballot:
        """Keep a vote: BEST with the number of the column, TIE or ALL_BAD.

        Raises InvalidInput, NotFound; InvalidTransition where there was one before, or answers are missing.
        """
        ballot, writing = self.look(ballot_id)
        if verdict not in VERDICTS or (verdict == BEST) != (best is not None):
            raise InvalidInput(f"A vote is one of {', '.join(VERDICTS)}; of best, which column.")
        if best is not None and not 0 <= best < len(ballot.columns):
            raise InvalidInput(f"There is no column {best + 1}; there are {len(ballot.columns)}.")
        if ballot.error and not writing:
            raise InvalidInput(f"These answers are not whole, so they cannot be judged. {ballot.error}")
        return self._registry.ballots.vote(ballot_id, verdict, best)

    # The leaderboard.

    def leaderboard(self, base: str) -> list[Standing]:
        """Of all votes on the weights of this base. Raises NotFound."""
        return self.standings_on(self._registry.find(Base, base).fingerprint)

    def standings_on(self, fingerprint: str) -> list[Standing]:
        """Of all votes on the weights of this fingerprint, also where their base is gone."""
        count, known = self._registry.ballots.count(fingerprint), self._standings.get(fingerprint)
        if known is None or known[0] != count:  # votes only grow in number
            known = count, standings(self._registry.ballots.voted(fingerprint))
            self._standings[fingerprint] = known
        return known[1]


def digest_of(told: Mapping[str, Any] | None) -> str:
    """Of the weights of a speaker, as the engine is told of it, or tells with an answer; of a blend over its
    parts and their weights. Empty for the plain base. On a quantised base it is another one.
    """
    if told is None or "digest" in told:
        return str(told["digest"]) if told else ""
    parts = sorted([part["digest"], float(part["weight"])] for part in told["parts"] if part["weight"])
    if held := told.get("quantisation"):
        return hashlib.sha256(json.dumps([held, *parts]).encode()).hexdigest()
    if len(parts) < 2 and all(weight == 1 for _, weight in parts):
        return str(parts[0][0]) if parts else ""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def standings(ballots: Sequence[Ballot]) -> list[Standing]:
    """Part by part, the best first. Who has other weights than before under one name is another one."""
    names: dict[str, str] = {}
    outcomes = []
    for ballot in ballots:
        keys = [key_of(column) for column in ballot.columns]
        names |= {key: column["speaker"] for key, column in zip(keys, ballot.columns, strict=True)}
        best = keys[ballot.best] if ballot.best is not None else None
        outcomes.append(Outcome(tuple(dict.fromkeys(keys)), best))  # two names may have the same weights
    found = {
        one.name: Standing(one.name, _name(names, one.name), _digest(one.name), one)
        for one in ratings(outcomes)
    }
    for ballot, outcome in zip(ballots, outcomes, strict=True):
        for key in outcome.shown:
            found[key] = _counted(found[key], ballot.verdict, won=key == outcome.best)
    return list(found.values())


def _counted(one: Standing, verdict: str, *, won: bool) -> Standing:
    counter = {TIE: "ties", ALL_BAD: "all_bad"}.get(verdict, "wins" if won else "losses")
    return replace(one, **{counter: getattr(one, counter) + 1}, votes=one.votes + 1)


def key_of(column: dict[str, Any]) -> str:
    """Who it is: by its weights where they are known, so that a new name changes nothing."""
    return f"#{column['digest']}" if column["digest"] else column["speaker"]


def _digest(key: str) -> str:
    return key[1:] if key.startswith("#") else ""


def _name(names: dict[str, str], key: str) -> str:
    """Its last name; with the first digits of its digest where another one is called so too."""
    name = names[key] or PLAIN_BASE
    twins = [one for one in names.values() if one == names[key]]
    return f"{name} ({_digest(key)[:8]})" if len(twins) > 1 and _digest(key) else name


def without_names(text: str, ballot: Ballot) -> str:
    """A sentence that names none of those who answer."""
    names = {name for column in ballot.columns for name in (column["speaker"], *_parts(column["speaker"]))}
    any_of_them = "|".join(re.escape(name) for name in sorted(names - {""}, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{any_of_them})(?!\w)", "one of them", text) if any_of_them else text


def _parts(speaker: str) -> list[str]:
    """What the names in a blend may be."""
    return re.split(r"=[^=+]*(?:\+|$)", speaker) if "=" in speaker else []
