"""Queries about adapters: looking for them among many, what people note of them, deleting with a way back."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import NameTaken, NotFound
from storage.names import clean_name, free_name
from storage.tables import Adapter, Checkpoint, Run

_MARK = re.compile(r" \(deleted \d+\)$")
_ORDERS = {
    "newest": (col(Adapter.id).desc(),),
    "oldest": (col(Adapter.id),),
    "name": (func.lower(Adapter.name),),
    "validation loss": (col(Adapter.validation_loss).is_(None), col(Adapter.validation_loss)),
    "train loss": (col(Adapter.train_loss).is_(None), col(Adapter.train_loss)),
    "rank": (col(Adapter.rank).desc(),),
    "size": (col(Adapter.size_bytes).desc(),),
}
ORDERS = tuple(_ORDERS)


@dataclass(frozen=True)
class AdapterQuery:
    """Which adapters, in which order. Empty fields do not filter."""

    words: str = ""
    """Each word must be in the name, the tags, the note, the base's or the data set's name."""
    base: str = ""
    fingerprint: str = ""
    """Of the base."""
    dataset: str = ""
    run_id: int | None = None
    tag: str = ""
    starred: bool = False
    order: str = "newest"


class Adapters:
    """The adapters."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs

    def search(self, query: AdapterQuery, limit: int = 50, offset: int = 0) -> tuple[list[Adapter], int]:
        """One page of the adapters that match, and how many match in all."""
        conditions = [col(Adapter.deleted).is_(None), *_conditions(query)]
        with self._database.reading() as session:
            total = session.exec(select(func.count()).select_from(Adapter).where(*conditions)).one()
            order = _ORDERS.get(query.order, _ORDERS["newest"])
            rows = session.exec(
                select(Adapter)
                .where(*conditions)
                .order_by(*order, col(Adapter.id).desc())
                .offset(offset)
                .limit(limit)
            )
            return list(rows.all()), total

    def words(self) -> dict[str, list[str]]:
        """What adapters can be filtered by: the names of bases and data sets, and the tags, each once."""
        there = col(Adapter.deleted).is_(None)
        with self._database.reading() as session:
            bases = session.exec(select(Adapter.base_name).where(there).distinct()).all()
            data = session.exec(
                select(Adapter.dataset_name).where(there, Adapter.dataset_name != "").distinct()
            ).all()
            tags = session.exec(select(Adapter.tags).where(there, Adapter.tags != "").distinct()).all()
        words = {word for line in tags for word in split_tags(line)}
        return {"base": sorted(bases), "dataset": sorted(data), "tag": sorted(words)}

    def change(self, adapter_id: int, **values: Any) -> Adapter:
        """Set a name, a star, tags or a note. Raises NotFound, NameTaken, InvalidName."""
        if "name" in values:
            values["name"] = clean_name(values["name"], "adapter")
        if "tags" in values:
            values["tags"] = ", ".join(split_tags(values["tags"]))
        try:
            with self._database.writing() as session:
                session.execute(
                    update(Adapter).where(col(Adapter.id) == adapter_id).values(**values, changed=time.time())
                )
                row = session.get(Adapter, adapter_id)
        except IntegrityError:
            raise NameTaken(
                f"The name {values['name']!r} is taken by another adapter; choose another one."
            ) from None
        if row is None:
            raise NotFound(f"There is no adapter {adapter_id}.")
        return row

    def with_digest(self, digest: str) -> Adapter | None:
        """The oldest adapter with this content, if there is one."""
        with self._database.reading() as session:
            query = select(Adapter).where(col(Adapter.deleted).is_(None), Adapter.digest == digest)
            return session.exec(query.order_by(col(Adapter.id)).limit(1)).first()

    def children_of(self, digest: str) -> list[Adapter]:
        """Adapters that were made from the one with this digest, oldest first."""
        with self._database.reading() as session:
            query = select(Adapter).where(
                col(Adapter.deleted).is_(None), func.instr(Adapter.parents, digest) > 0
            )
            return list(session.exec(query.order_by(col(Adapter.id))).all())

    def delete(self, adapter_id: int) -> Adapter:
        """Delete an adapter; bring_back() undoes it until purge() has run.

        Raises NotFound.
        """
        with self._database.writing() as session:
            row = session.get(Adapter, adapter_id)
            if row is None or row.deleted:
                raise NotFound(f"There is no adapter {adapter_id}; it has been deleted already.")
            row.name = f"{row.name} (deleted {row.id})"  # its name is free again
            row.deleted = row.changed = time.time()
            session.execute(update(Run).where(col(Run.adapter_id) == adapter_id).values(adapter_id=None))
            session.add(row)
        return row

    def bring_back(self, adapter_id: int) -> Adapter:
        """Bring a deleted adapter back; if its name has been taken meanwhile it gets a number.

        Raises NotFound.
        """
        with self._database.writing() as session:
            row = session.get(Adapter, adapter_id)
            if row is None or not row.deleted:
                raise NotFound(
                    f"There is no deleted adapter {adapter_id}; it has been swept away or is back already."
                )
            row.name = free_name(_MARK.sub("", row.name), set(session.exec(select(Adapter.name)).all()))
            row.deleted, row.changed = None, time.time()
            if row.run_id is not None:
                mine = update(Run).where(col(Run.id) == row.run_id, col(Run.adapter_id).is_(None))
                session.execute(mine.values(adapter_id=adapter_id))
            session.add(row)
        return row

    def deleted(self) -> list[Adapter]:
        """Those that can still be brought back, the latest first."""
        with self._database.reading() as session:
            query = (
                select(Adapter).where(col(Adapter.deleted).is_not(None)).order_by(col(Adapter.deleted).desc())
            )
            return list(session.exec(query).all())

    def purge(self, before: float) -> int:
        """Forget adapters that were deleted before this time, with their files. Returns how many."""
        with self._database.writing() as session:
            rows = session.exec(select(Adapter).where(col(Adapter.deleted) < before)).all()
            for row in rows:
                session.delete(row)
            session.flush()
            kept = {
                *session.exec(select(Adapter.digest)).all(),
                *session.exec(select(Checkpoint.adapter_digest)).all(),
            }
            gone = {row.digest for row in rows} - kept
        for digest in gone:
            self._blobs.remove(digest)
        return len(rows)


def _conditions(query: AdapterQuery) -> Sequence[Any]:
    searched = (Adapter.name, Adapter.tags, Adapter.note, Adapter.base_name, Adapter.dataset_name)
    found: list[Any] = [
        or_(*[col(column).icontains(word, autoescape=True) for column in searched])
        for word in query.words.split()
    ]
    if query.base:
        found.append(Adapter.base_name == query.base)
    if query.fingerprint:
        found.append(Adapter.base_fingerprint == query.fingerprint)
    if query.dataset:
        found.append(Adapter.dataset_name == query.dataset)
    if query.run_id is not None:
        found.append(Adapter.run_id == query.run_id)
    if query.tag:
        found.append((", " + col(Adapter.tags) + ",").icontains(f", {query.tag},", autoescape=True))
    if query.starred:
        found.append(col(Adapter.starred).is_(True))
    return found


def split_tags(line: str) -> list[str]:
    """The words of a line of tags, each once, in order."""
    return list(dict.fromkeys(word.strip() for word in line.split(",") if word.strip()))
