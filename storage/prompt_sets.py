"""Saved lists of prompts, and what was answered to them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from storage.database import Database
from storage.errors import NameTaken, NotFound
from storage.names import clean_name
from storage.tables import PromptAnswer, PromptRun, PromptSet


class PromptSets:
    """The sets, and the runs over them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, name: str) -> PromptSet:
        """The set of this name. Raises NotFound, with the names there are."""
        with self._database.reading() as session:
            found = session.exec(select(PromptSet).where(PromptSet.name == name.strip())).one_or_none()
            if found is None:
                known = session.exec(select(PromptSet.name).order_by(PromptSet.name)).all()
                listed = f"There are: {', '.join(known[:8])}." if known else "There is none yet."
                raise NotFound(f"There is no prompt set called {name[:120]!r}. {listed}")
            return found

    def keep(self, name: str, prompts: Sequence[Any], set_id: int | None = None) -> PromptSet:
        """Store a new set, or the set of this id as it is now. Raises NameTaken, InvalidName, NotFound."""
        name = clean_name(name, "prompt set")
        try:
            with self._database.writing() as session:
                row = PromptSet(name=name) if set_id is None else session.get(PromptSet, set_id)
                if row is None:
                    raise NotFound("This prompt set has been removed.")
                row.name, row.prompts, row.changed = name, list(prompts), time.time()
                session.add(row)
        except IntegrityError:
            raise NameTaken(
                f"The name {name!r} is taken by another prompt set; choose another one."
            ) from None
        return row

    def remove(self, set_id: int) -> None:
        """Delete a set; what was answered to its prompts stays."""
        with self._database.writing() as session:
            session.execute(delete(PromptSet).where(col(PromptSet.id) == set_id))

    def remove_run(self, run_id: int) -> None:
        """Delete the answers of a run over prompts; votes on them stay."""
        with self._database.writing() as session:
            session.execute(delete(PromptRun).where(col(PromptRun.id) == run_id))

    def answers(self, run_id: int) -> Sequence[PromptAnswer]:
        """All that was answered in a run so far, prompt by prompt."""
        query = select(PromptAnswer).where(PromptAnswer.run_id == run_id)
        with self._database.reading() as session:
            return session.exec(query.order_by(col(PromptAnswer.prompt), col(PromptAnswer.speaker))).all()

    def answer(self, rows: Sequence[PromptAnswer]) -> None:
        """Keep answers; where one is there already that was refused, it is replaced."""
        with self._database.writing() as session:
            for row in rows:
                place = [
                    col(PromptAnswer.run_id) == row.run_id,
                    col(PromptAnswer.prompt) == row.prompt,
                    col(PromptAnswer.speaker) == row.speaker,
                ]
                session.execute(delete(PromptAnswer).where(*place))
                session.add(row)
