"""A pipeline for files larger than memory: pieces are read and worked on by threads, and written in order
behind them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Done = TypeVar("Done")

PIECE_BYTES = 16 * 1024 * 1024
_MOST_WORKERS = 8


def in_order(work: Callable[[Piece], Done], pieces: Iterable[Piece]) -> Iterator[Done]:
    """work(piece) for each piece, several at a time, in the order of the pieces.

    At most two for each worker are held.
    """
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    threads = torch.get_num_threads()
    waiting: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
            torch.set_num_threads(threads)


def read_range(path: Path, start: int, end: int) -> bytearray:
    """The bytes from start to end. A map into memory would count as this process's memory; a read does not.

    Raises OSError if the file has become shorter.
    """
    data = bytearray(end - start)
    with path.open("rb", buffering=0) as file, memoryview(data) as view:
        file.seek(start)
        position = 0
        while position < len(data):
            got = file.readinto(view[position:])
            if not got:
                raise OSError(f"{path} ended at {start + position:,} bytes, where {end:,} were expected.")
            position += got
    return data
