"""Rows that say the same: exactly, by a hash of the whole row; nearly, by MinHash over its words. Needs no torch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from core.data.formats import Example

_SLOTS, _BANDS = 64, 8  # 8 bands of 8: half of the pairs that share 0.77 of their words are candidates, nearly all above 0.9
_THRESHOLD = 0.85
_BATCH = 1000
_LEAST_WORDS = 8  # shorter rows are alike by chance


def content_hash(example: Example) -> int:
    """64 bits of BLAKE2b over all that the row says and who says it."""
    said = "\x1f".join(f"{message['role']}\x1e{message['content']}" for message in example.messages) or example.text
    return _hash(said)


def prompt_hash(example: Example) -> int:
    """64 bits over all that comes before the last answer, or over a plain text."""
    last = max((at for at, message in enumerate(example.messages) if message["role"] == "assistant"), default=0)
    said = "\x1f".join(f"{message['role']}\x1e{message['content']}" for message in example.messages[:last]) or example.text
    return _hash(said)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def earlier_copy(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """For each row the first row with the same hash, or -1 if it is the first itself."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse]
    return np.where(earlier == np.arange(len(hashes)), -1, earlier)


def near_copies(rows: Iterable[tuple[int, str]]) -> list[tuple[int, int, float]]:
    """(index, earlier index, estimated Jaccard similarity) for each (index, text) that is nearly one before it.

    MinHash (Broder 1997) over runs of words, signatures by rensa: 256 bytes a row are held. Rows of which a band of the
    signature is equal are compared with the first of them.
    """
    indices, parts = [], []
    rows = iter(rows)
    while batch := list(itertools.islice(rows, _BATCH)):
        worded = [(index, words) for index, text in batch if len(words := text.lower().split()) >= _LEAST_WORDS]
        if worded:
            indices += [index for index, _ in worded]
            digests = RMinHash.digests_from_token_sets([_shingles(words) for _, words in worded], _SLOTS, 1)
            parts.append(np.array(digests, np.uint32))
    if not parts:
        return []
    signatures = np.concatenate(parts)
    nearest = _nearest_earlier(signatures)
    found = [(row, int(nearest[row])) for row in np.flatnonzero(nearest >= 0).tolist()]
    return [(indices[row], indices[other], float((signatures[row] == signatures[other]).mean())) for row, other in found]


def _nearest_earlier(signatures: NDArray[np.uint32]) -> NDArray[np.int64]:
    """For each row the most alike of the first rows that share a band with it, or -1 if none is alike enough."""
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


def _shingles(words: list[str]) -> list[str]:
    """Runs of words: single words say too little about what a text says."""
    return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))
