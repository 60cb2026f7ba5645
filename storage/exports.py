"""What has left the house."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import col, select

from storage.database import Database
from storage.errors import InUse, NotFound
from storage.tables import Base, Export


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

    def forget(self, export_id: int) -> Export:
        """Take an export out of the registry; its files stay. Raises NotFound, and InUse while a base model
        lies in its folder.
        """
        with self._database.writing() as session:
            row = session.get(Export, export_id)
            if row is None:
                raise NotFound(f"There is no export {export_id}; it has been removed already.")
            base = session.exec(select(Base).where(Base.folder == row.folder)).first()
            if base is not None:
                raise InUse(
                    f"The base model {base.name} lies in {row.folder}; remove that under Models first."
                )
            session.delete(row)
        return row
