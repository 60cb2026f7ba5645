"""Rows that say the same: exactly, by a hash of the whole row; nearly, by MinHash over its words.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from core.data.formats import Example, Message

_SLOTS, _BANDS = (
    64,
    8,
)  # 8 bands of 8: half of the pairs that share 0.77 of their words are candidates, nearly all above 0.9
_THRESHOLD = 0.85
_BATCH = 1000
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd, of many bits
_LEAST_WORDS = 8  # shorter rows are alike by chance


def content_hash(example: Example) -> int:
    """64 bits of BLAKE2b over all that decides what is learnt: what the row says and who says it, what its
    template is given beside, and which answers count.
    """
    said = "\x1f".join(map(_told, example.messages)) or example.text
    beside = [list(example.tools), dict(example.template_kwargs), sorted(example.untrained)]
    return _hash(f"{said}\x1d{json.dumps(beside, sort_keys=True)}" if any(beside) else said)


def prompt_hash(example: Example) -> int:
    """64 bits over all that comes before the last answer, or over a plain text."""
    last = max(
        (at for at, message in enumerate(example.messages) if message["role"] == "assistant"), default=0
    )
    return _hash("\x1f".join(map(_told, example.messages[:last])) or example.text)


def _told(message: Message) -> str:
    """A turn with its role, and with what it has beside its text."""
    plain = f"{message['role']}\x1e{message['content']}"
    if len(message) == 2:
        return plain
    beside = {key: value for key, value in message.items() if key not in ("role", "content")}
    return f"{plain}\x1e{json.dumps(beside, sort_keys=True)}"


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def earlier_copy(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """For each row the first row with the same hash, or -1 if it is the first itself."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    return np.where(earlier == np.arange(len(hashes)), -1, earlier)


class NearCopies:
    """Finds rows that are nearly the same: MinHash (Broder 1997) over runs of three words, signatures by
    rensa.

    256 bytes a row are held. Rows of which a band of the signature is equal are compared with the first of
    them.
    """

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._waiting: list[tuple[int, list[int]]] = []

    def add(self, index: int, text: str) -> None:
        """One row. Rows of few words are passed over: they are alike by chance."""
        words = list(map(zlib.crc32, text.lower().encode("utf-8", "surrogatepass").split()))
        if len(words) >= _LEAST_WORDS:
            self._waiting.append((index, words))
        if len(self._waiting) == _BATCH:
            self._sign()

    def _sign(self) -> None:
        """Signatures of the rows that wait, [rows, slots].

        A run's hash mixes those of its words; none spans two rows.
        """
        counts = np.array([len(words) for _, words in self._waiting])
        hashes = np.fromiter(
            itertools.chain.from_iterable(words for _, words in self._waiting), np.uint64, int(counts.sum())
        )
        runs = hashes[:-2] * _MIX[0] + hashes[1:-1] * _MIX[1] + hashes[2:] * _MIX[2]
        runs ^= runs >> np.uint64(29)
        within = np.ones(len(hashes), bool)
        ends = np.cumsum(counts)
        within[ends - 1] = within[ends - 2] = False
        offsets = np.concatenate([[0], np.cumsum(counts - 2)]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs[within[:-2]], offsets, _SLOTS, 1)
        self._indices += [index for index, _ in self._waiting]
        self._signatures.append(np.array(matrix.to_rows(), np.uint32))
        self._waiting = []

    def find(self) -> list[tuple[int, int, float]]:
        """(index, earlier index, estimated Jaccard similarity) for each row that is nearly one before it."""
        if self._waiting:
            self._sign()
        if not self._signatures:
            return []
        signatures = np.concatenate(self._signatures)
        self._signatures = [signatures]
        nearest = _nearest_earlier(signatures)
        found = [(row, int(nearest[row])) for row in np.flatnonzero(nearest >= 0).tolist()]
        at = self._indices
        return [
            (at[row], at[other], float((signatures[row] == signatures[other]).mean())) for row, other in found
        ]


def _nearest_earlier(signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
    """For each row the most alike of the first rows that share a band with it,
    or -1 if none is alike enough.
    """
    rows = np.arange(len(signatures))
    best, likeness = np.full(len(rows), -1), np.full(len(rows), _THRESHOLD)
    for band in np.split(signatures, _BANDS, axis=1):
        first = earlier_copy(np.ascontiguousarray(band).view(np.dtype((np.void, band.shape[1] * 4))).ravel())
        at = np.flatnonzero(first >= 0)
        for part in np.array_split(at, len(at) // _BATCH + 1):
            alike = (signatures[part] == signatures[first[part]]).mean(axis=1)
            better = alike >= likeness[part]
            best[part[better]], likeness[part[better]] = first[part[better]], alike[better]
    return best
