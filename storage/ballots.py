"""Answers that are judged, and what was voted on them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import col, select

from storage.database import Database
from storage.errors import InvalidTransition, NotFound
from storage.tables import Ballot

BEST, TIE, ALL_BAD = "best", "tie", "all bad"
VERDICTS = (BEST, TIE, ALL_BAD)


class Ballots:
    """The ballots."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def voted(self, fingerprint: str | None = None) -> Sequence[Ballot]:
        """All that were voted on, in order; of one base, or of all."""
        query = select(Ballot).where(Ballot.verdict != "").order_by(col(Ballot.id))
        if fingerprint is not None:
            query = query.where(Ballot.base_fingerprint == fingerprint)
        with self._database.reading() as session:
            return session.exec(query).all()

    def count(self, fingerprint: str) -> int:
        """How many were voted on, of one base."""
        query = select(func.count()).where(Ballot.base_fingerprint == fingerprint, Ballot.verdict != "")
        with self._database.reading() as session:
            return session.exec(query).one()

    def of_run(self, run_id: int) -> Sequence[Ballot]:
        """Those whose answers were taken from prompts that were run, in order."""
        query = select(Ballot).where(Ballot.prompt_run_id == run_id).order_by(col(Ballot.id))
        with self._database.reading() as session:
            return session.exec(query).all()

    def write(self, ballot_id: int, columns: Sequence[Mapping[str, Any]], error: str = "") -> None:
        """Keep the answers as they are by now. Raises NotFound."""
        with self._database.writing() as session:
            ballot = session.get(Ballot, ballot_id)
            if ballot is None:
                raise NotFound(f"There is no ballot {ballot_id}.")
            ballot.columns, ballot.error = [dict(one) for one in columns], error

    def vote(self, ballot_id: int, verdict: str, best: int | None) -> Ballot:
        """Keep what was voted. Raises NotFound; InvalidTransition where there was a vote before, or an answer
        is not there yet.
        """
        with self._database.writing() as session:
            ballot = session.get(Ballot, ballot_id)
            if ballot is None:
                raise NotFound(f"There is no ballot {ballot_id}.")
            if ballot.verdict:
                raise InvalidTransition("These answers have been voted on already.")
            if not all(one["finish"] for one in ballot.columns):
                raise InvalidTransition("The answers are not all there yet; wait for them, or stop them.")
            ballot.verdict, ballot.best, ballot.voted = verdict, best, time.time()
            return ballot
