"""The longest common subsequence of two lists of words, in time that their length alone decides.

difflib looks for the longest block, over and over: two answers of 400 words that go round in circles took
it more than a second, and of 6,000 minutes.
"""

from __future__ import annotations

from collections.abc import Sequence


def common_words(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Which word of `old` stands for which of `new`, by their positions, both rising; as many as can be.

    Hyyrö's bit-parallel algorithm ("Bit-parallel LCS-length computation revisited", 2004): a row of the table
    is one number, a bit for each word of `old`, of which 0 says that a word more is shared there. It takes
    len(old) · len(new) / 8 bytes.
    """
    full, places = (1 << len(old)) - 1, _places(old)
    row, rows = full, [full]
    for word in new:
        shared = row & places.get(word, 0)
        row = ((row + shared) | (row - shared)) & full
        rows.append(row)
    return _followed_back(rows, old, new)


def _places(words: Sequence[str]) -> dict[str, int]:
    """Where each word stands, as bits."""
    found: dict[str, int] = {}
    for at, word in enumerate(words):
        found[word] = found.get(word, 0) | 1 << at
    return found


def _followed_back(rows: Sequence[int], old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    pairs, left, right = [], len(old), len(new)
    while left and right:
        if rows[right] >> (left - 1) & 1:
            left -= 1  # this word adds nothing to what is shared
        elif not rows[right - 1] >> (left - 1) & 1:
            right -= 1
        else:
            left, right = left - 1, right - 1
            pairs.append((left, right))
    return pairs[::-1]
