"""Base models: what each fingerprint stands for, how they are computed, and forgetting one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import select

from storage.database import Database
from storage.errors import InUse
from storage.rows import refuse_active, there
from storage.tables import (
    Adapter,
    Base,
    BaseManifest,
    DecidedWay,
    Run,
)


class Bases:
    """The base models."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remove(self, row: Base) -> None:
        """Forget a base model.

        Raises InUse while adapters or waiting runs need it; its files are the caller's.
        """
        with self._database.writing() as session:
            mine = there(select(Adapter.name), Adapter).where(Adapter.base_fingerprint == row.fingerprint)
            adapters = session.exec(mine).all()
            copies = session.exec(
                select(Base.id).where(Base.fingerprint == row.fingerprint, Base.id != row.id)
            ).all()
            if adapters and not copies:
                raise InUse(
                    f"{row.name!r} is needed by {len(adapters)} adapter(s): {', '.join(adapters[:5])}. "
                    "Remove them first; "
                    "without their base they are of no use."
                )
            refuse_active(session, Run.base_id == row.id, row.name)
            session.delete(row)

    def keep_manifest(self, row: BaseManifest) -> None:
        """Remember what a fingerprint was taken over; the same again changes nothing."""
        with self._database.writing() as session:
            if session.get(BaseManifest, row.fingerprint) is None:
                session.add(row)

    def manifest(self, fingerprint: str) -> BaseManifest | None:
        """What a fingerprint was taken over, if any base here has ever had it."""
        with self._database.reading() as session:
            return session.get(BaseManifest, fingerprint)

    def keep_decided_way(self, row: DecidedWay) -> None:
        """Keep the way that was decided; the same again changes nothing."""
        with self._database.writing() as session:
            session.merge(row)

    def decided_way(self, key: str) -> DecidedWay | None:
        """The way that was decided under a key."""
        with self._database.reading() as session:
            return session.get(DecidedWay, key)

    def decided_ways(self) -> Sequence[DecidedWay]:
        """All of them."""
        with self._database.reading() as session:
            return session.exec(select(DecidedWay)).all()
