"""Parquet, read by columns and batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.data.reading import (
    MOST_LINE,
    BadRow,
    FileKind,
    NumberedRows,
    Row,
    RowReader,
    refuse_twin_columns,
    too_long,
)
from core.errors import InvalidData

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile


class ParquetRows(FileKind):
    """Of its columns those that nobody wants are not read."""

    name, label, order = "parquet", "Parquet", 30
    help = "Tables of columns, as the hub keeps them."
    suffixes = (".parquet",)

    def read(self, reader: RowReader) -> NumberedRows:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with reader.path.open("rb") as binary:
                reader.refuse_others(binary)
            with ParquetFile(reader.path) as file:
                reader.header = names = tuple(file.schema_arrow.names)
                refuse_twin_columns(reader.name, names)
                wanted = [name for name in names if not reader.skips(name)]
                reader.beside = {name: _filled(file, name) for name in names if name not in wanted}
                number, total = 0, max(1, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=1024, columns=wanted or None):
                    reader.position = reader.size * (number + batch.num_rows) // total
                    for row in _batch_rows(batch, number):
                        number += 1
                        yield number, row
        except (ArrowException, OSError) as error:
            raise InvalidData(f"{reader.name} is not a readable Parquet file: {str(error)[:200]}") from None


KIND = ParquetRows()


def _filled(file: ParquetFile, column: str) -> int:
    """How many rows have a value in a column, as the file's statistics say; all where they say nothing."""
    if str(file.schema_arrow.field(column).type) == "null":
        return 0
    nulls = 0
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for at in range(group.num_columns):
            chunk = group.column(at)
            known = chunk.path_in_schema == column and chunk.statistics and chunk.statistics.has_null_count
            nulls += chunk.statistics.null_count if known else 0
    return int(file.metadata.num_rows - nulls)


def _batch_rows(batch: RecordBatch, before: int) -> Iterator[Row | BadRow]:
    """The rows of a batch; where one of them has no equal in Python, such as a date beyond the year 9999,
    that row is bad.
    """
    from pyarrow import ArrowException

    if batch.nbytes > MOST_LINE:
        yield from _long_rows(batch, before)
        return
    try:
        yield from batch.to_pylist()
    except (ArrowException, ValueError, OverflowError, KeyError, ImportError):
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except (ArrowException, ValueError, OverflowError, KeyError, ImportError) as error:
                yield BadRow(
                    "unreadable",
                    f"Row {before + at + 1} cannot be read: {type(error).__name__}, {str(error)[:120]}.",
                )


def _long_rows(batch: RecordBatch, before: int) -> Iterator[Row | BadRow]:
    """The rows of a batch of which some may be too long."""
    for at in range(batch.num_rows):
        size = batch.slice(at, 1).nbytes
        if size > MOST_LINE:
            yield too_long(f"Row {before + at + 1}", size)
        else:
            yield from _batch_rows(batch.slice(at, 1), before + at)
