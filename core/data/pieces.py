"""Pieces of a rendered row, and the ids that they become.

A text is tokenised in pieces, so that special tokens that stand inside somebody's words stay text while those
of the template are special tokens.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from core.errors import InvalidData, InvalidModel
from core.panics import tokenizer_faults

_PROBE = ("A\n", "Hello world")
_ANCHORS = ("\n", "\t", "\u0001")


@dataclass(frozen=True)
class Piece:
    """A run of text that is tokenised by itself. In a plain one special tokens are text."""

    text: str
    trained: bool = False
    plain: bool = False


@dataclass(frozen=True)
class _Stretch:
    """Text between two special tokens of the template, or one such token, and where it begins in the row."""

    start: int
    text: str
    special: bool


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer's own post-processor puts before any text, such as BOS."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    places = range(len(whole) - len(bare) + 1)
    return list(whole[: next((at for at in places if whole[at : at + len(bare)] == bare), 0)])


class PieceEncoder:
    """Turns pieces into ids, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises InvalidModel without a fast tokenizer."""
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidModel(
                "This base has no fast tokenizer (tokenizer.json), which is needed to find the "
                "answers' tokens."
            )
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        # A tokenizer.json may say that texts are cut or filled up; rows are cut by us, and are told of.
        self._backend.no_truncation()
        self._backend.no_padding()
        with tokenizer_faults(InvalidModel, "a short text"):
            self.opening = opening_ids(tokenizer)
        """What stands before any text of this tokenizer."""
        added = tokenizer.added_tokens_decoder.values()
        found = {str(token) for token in tokenizer.all_special_tokens}
        found |= {str(token) for token in added if token.special}
        self.specials = sorted(found, key=len, reverse=True)
        """Special tokens, the longest first."""
        self.ends = sorted(
            found | {str(token) for token in added if str(token).strip()}, key=len, reverse=True
        )
        """Tokens that may end a turn: special ones, and added ones that nobody called special."""
        self.end_ids = {self._backend.token_to_id(token) for token in self.ends}
        self.special = re.compile("|".join(map(re.escape, self.specials)) or r"(?!)")

    @cached_property
    def _plain_backend(self) -> Tokenizer:
        """The same tokenizer, to which special tokens are text.

        A copy, since others use the original meanwhile.
        """
        copy = Tokenizer.from_str(self._backend.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _splits(self) -> bool:
        """Whether texts can be tokenised piece by piece.

        Tokenizers that put a space in front of a text cannot do so.
        """
        first, second = (self._backend.encode(part, add_special_tokens=False).ids for part in _PROBE)
        return first + second == self._backend.encode("".join(_PROBE), add_special_tokens=False).ids

    @cached_property
    def _space_after_special(self) -> bool:
        """Whether the tokenizer puts its space also in front of a text behind a special token."""
        if not self.specials:
            return False
        text = _PROBE[1]
        behind = self._backend.encode(self.specials[0] + text, add_special_tokens=False).ids[1:]
        return behind == self._backend.encode(text, add_special_tokens=False).ids

    def missing_opening(self, pieces: Sequence[Piece]) -> list[int]:
        """What has to be put before these pieces: the opening, less what the template writes itself."""
        text = pieces[0].text.lstrip() if pieces and not pieces[0].plain else ""
        tokens = [str(self._backend.id_to_token(one)) for one in self.opening]
        own = next(at for at in range(len(tokens) + 1) if text.startswith("".join(tokens[at:])))
        return self.opening[:own]

    def encode(self, rows: Sequence[Sequence[Piece]]) -> list[list[list[int]] | InvalidData]:
        """The ids of each piece of each row; in place of a row that the tokenizer fails with, the reason."""
        try:
            with tokenizer_faults(InvalidData, "the text of this row"):
                return [*self._encode(rows)]
        except InvalidData as error:  # of one of them: which, is seen alone
            return [error] if len(rows) == 1 else [self.encode([row])[0] for row in rows]

    def _encode(self, rows: Sequence[Sequence[Piece]]) -> list[list[list[int]]]:
        if not self._splits:
            return [self._encode_joined(row) for row in rows]
        usual = [piece.text for row in rows for piece in row if not piece.plain]
        encoded = iter(self._backend.encode_batch_fast(usual, add_special_tokens=False))
        return [
            [self._plain(piece.text).ids if piece.plain else next(encoded).ids for piece in row]
            for row in rows
        ]

    def _plain(self, text: str) -> Encoding:
        return self._plain_backend.encode(text, add_special_tokens=False)

    def _encode_joined(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """All pieces are tokenised together and told apart by where their characters are."""
        ends = list(itertools.accumulate(len(piece.text) for piece in pieces))
        found: list[list[int]] = [[] for _ in pieces]
        for token, start, stop in self._joined_tokens(pieces):
            found[min(bisect_right(ends, max(start, stop - 1)), len(pieces) - 1)].append(token)
        return found

    def _joined_tokens(self, pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
        """(id, start, stop) of all tokens of a row, in characters of the whole row."""
        if not any(piece.plain for piece in pieces):
            whole = "".join(piece.text for piece in pieces)
            return _placed(self._backend.encode(whole, add_special_tokens=False), 0)
        tokens: list[tuple[int, int, int]] = []
        for one in self._stretches(pieces):
            if one.special:
                tokens += _placed(self._backend.encode(one.text, add_special_tokens=False), one.start)
            elif one.start == 0 or self._space_after_special:
                tokens += _placed(self._plain(one.text), one.start)
            else:
                tokens += self._in_mid_text(one)
        return tokens

    def _stretches(self, pieces: Sequence[Piece]) -> list[_Stretch]:
        """The row, cut at the special tokens that are meant as such."""
        found: list[_Stretch] = []
        text, start, at = "", 0, 0
        for piece in pieces:
            specials = [] if piece.plain else list(self.special.finditer(piece.text))
            begin = 0
            for match in specials:
                text += piece.text[begin : match.start()]
                found += [_Stretch(start, text, False), _Stretch(at + match.start(), match.group(), True)]
                begin, text, start = match.end(), "", at + match.end()
            text += piece.text[begin:]
            at += len(piece.text)
        return [one for one in [*found, _Stretch(start, text, False)] if one.text]

    def _in_mid_text(self, one: _Stretch) -> list[tuple[int, int, int]]:
        """The tokens of a stretch without the space that the tokenizer puts in front of any text: it is put
        in front of something else, whose tokens are taken away.
        """
        for anchor in _ANCHORS:
            alone = self._plain(anchor).ids
            encoding = self._plain(anchor + one.text)
            if encoding.ids[: len(alone)] == alone:
                return _placed(encoding, one.start - len(anchor))[len(alone) :]
        raise InvalidData(
            "This base's tokenizer cannot keep special tokens in a text apart from its own; take them out of "
            "the row."
        )


def _placed(encoding: Encoding, start: int) -> list[tuple[int, int, int]]:
    offsets = zip(encoding.ids, encoding.offsets, strict=True)
    return [(token, start + first, start + last) for token, (first, last) in offsets]
