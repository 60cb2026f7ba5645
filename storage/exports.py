"""What has left the house."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import col, select

from storage.database import Database
from storage.tables import (
    Export,
)


class Exports:
    """The exports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, adapter_digest: str) -> Sequence[Export]:
        """What was exported from an adapter, newest first."""
        with self._database.reading() as session:
            query = (
                select(Export).where(Export.adapter_digest == adapter_digest).order_by(col(Export.id).desc())
            )
            return session.exec(query).all()
