"""Votes taken along: as they are kept, as pairs of a chosen and a rejected answer, and as a data set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.shared.data_import import ImportRequest, import_dataset
from core.errors import InvalidInput
from storage.ballots import BEST
from storage.registry import Registry
from storage.tables import Ballot, Base, Dataset

VOTES, PAIRS = "votes", "pairs"
FORMS = {VOTES: "every vote with all that is kept of it", PAIRS: "a chosen and a rejected answer each"}
_MAPPING = {"format": "messages", "columns": {"turns": "chosen"}}


@dataclass(frozen=True)
class Made:
    """A data set of votes, and how many votes went into it."""

    row: Dataset
    votes: int
    left_out: int

    @property
    def sentence(self) -> str:
        """What was done, with what was left out."""
        left = f"; {self.left_out:,} without a best answer were left out" if self.left_out else ""
        return (
            f"{self.row.name} has a row for each of {self.votes:,} votes{left}. It is trained on the chosen "
            "answers; the rejected ones stand in the export as pairs."
        )


class VoteRows:
    """The votes of one home folder, as rows for others."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def lines(self, form: str, base: str = "") -> Iterator[str]:
        """JSON lines of all votes, or of those on one base, in one of FORMS.

        Raises InvalidInput, NotFound.
        """
        if form not in FORMS:
            raise InvalidInput(f"There is no form {form!r} of votes; there are {', '.join(FORMS)}.")
        for ballot in self._votes(base):
            for row in [vote_record(ballot)] if form == VOTES else pairs_of(ballot):
                yield json.dumps(row, ensure_ascii=False) + "\n"

    def to_data(self, name: str, base: str = "") -> Made:
        """A new data set with a row for each vote that has a best answer: so none counts twice.

        Raises InvalidInput where no vote has one, and what an import raises.
        """
        votes = self._votes(base)
        pairs = [found[0] for ballot in votes if (found := pairs_of(ballot))]
        if not pairs:
            raise InvalidInput("No vote has a best answer that differs from another, so there are no rows.")
        rows = [{side: pair[side] for side in ("chosen", "rejected")} for pair in pairs]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "votes.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            request = ImportRequest([str(file)], name, mapping=_MAPPING)
            return Made(import_dataset(self._registry, request), len(rows), len(votes) - len(rows))

    def _votes(self, base: str) -> Sequence[Ballot]:
        fingerprint = self._registry.find(Base, base).fingerprint if base else None
        return self._registry.ballots.voted(fingerprint)


def vote_record(ballot: Ballot) -> Mapping[str, Any]:
    """All that is kept of a vote."""
    return ballot.model_dump(exclude={"error"}) | {"best": _speaker(ballot, ballot.best)}


def pairs_of(ballot: Ballot) -> list[dict[str, Any]]:
    """The best answer beside each other one that says something else, as whole conversations, which is how
    others train on preferences. None of a tie, or where all were bad.
    """
    if ballot.verdict != BEST or ballot.best is None:
        return []
    chosen = ballot.columns[ballot.best]
    return [
        {
            "chosen": _whole(ballot, chosen["text"]),
            "rejected": _whole(ballot, other["text"]),
            "chosen_by": chosen["speaker"],
            "rejected_by": other["speaker"],
            "base": ballot.base_name,
        }
        for other in ballot.columns
        if chosen["text"].strip() and other["text"] != chosen["text"]
    ]


def _speaker(ballot: Ballot, column: int | None) -> str | None:
    return None if column is None else ballot.columns[column]["speaker"]


def _whole(ballot: Ballot, answer: str) -> list[dict[str, Any]]:
    return [*ballot.messages, {"role": "assistant", "content": answer}]
