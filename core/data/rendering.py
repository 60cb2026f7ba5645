"""From conversations to token ids, with the tokens that carry loss marked.

The base's own chat template renders the conversation, exactly as the playground does. Loss falls on each
assistant's answer and on the end token after it, on nothing else. Answers are tokenised apart from what
stands before them: the prompt's ids in training are then the ids that the playground sends, whatever the
answer begins with. Special tokens that stand inside somebody's text are text.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import jinja2
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from core.data.formats import Example, Message
from core.errors import InvalidData, InvalidModel

IGNORE = -100
"""The label of a token that carries no loss, as in torch's cross_entropy."""

_BATCH_ROWS = 256
_PROBE = ("A\n", "Hello world")
_REWRITTEN = (
    "This base's chat template changes earlier turns when later ones follow, so the trained tokens "
    "would differ from the "
    "ones chatted with. Use single-turn rows with this base."
)


@dataclass(frozen=True)
class Rendered:
    """One row as the model sees it: ids, and the ranges [start, stop) of those that carry loss."""

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def labels(self) -> list[int]:
        """The id where loss falls, IGNORE elsewhere."""
        labels = [IGNORE] * len(self.ids)
        for start, stop in self.spans:
            labels[start:stop] = self.ids[start:stop]
        return labels

    @property
    def supervised(self) -> int:
        """Tokens that carry loss; the first position never does, since nothing predicts it."""
        return sum(stop - max(1, start) for start, stop in self.spans)


@dataclass(frozen=True)
class Piece:
    """A run of text that is tokenised by itself. In a plain one special tokens are text."""

    text: str
    trained: bool = False
    plain: bool = False


@dataclass(frozen=True)
class _Layout:
    """What a template puts around the contents of turns with these roles: one text before each content and
    one behind all.

    heads and tails say, for each answer, how many characters at the end of the text before it, and at the
    start of the text behind it, belong to the answer: what comes after the generation prompt, and the end
    token.
    """

    around: tuple[str, ...]
    heads: dict[int, int]
    tails: dict[int, int]
    ended: bool


class Renderer:
    """Renders rows for one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool = False) -> None:
        """special_tokens: whether those in plain text are meant as such.

        Raises InvalidModel without a fast tokenizer.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidModel(
                "This base has no fast tokenizer (tokenizer.json), which is needed to find the "
                "answers' tokens."
            )
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        found = {str(token) for token in tokenizer.all_special_tokens}
        found |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._specials = sorted(found, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, self._specials)) or r"(?!)")
        self._layouts: dict[tuple[tuple[str, ...], bool], _Layout | None] = {}

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

    # Rows.

    def render(self, example: Example) -> Rendered:
        """Render one example whole. Raises InvalidData if the template cannot render it."""
        found = next(self.render_many([example]))
        if isinstance(found, InvalidData):
            raise found
        return found

    def render_many(self, examples: Iterable[Example]) -> Iterator[Rendered | InvalidData]:
        """Render examples in order; in place of one that the template cannot render stands the reason.

        Pieces are tokenised in a thread of the tokenizer's own while the next rows are put together.
        """
        examples = iter(examples)
        with ThreadPoolExecutor(1) as pool:
            waiting: tuple[list[_Prepared], Future[list[list[list[int]]]]] | None = None
            while True:
                batch = [self._prepare(example) for example in itertools.islice(examples, _BATCH_ROWS)]
                rows = [one.pieces for one in batch if not isinstance(one, InvalidData)]
                following = (batch, pool.submit(self._encode, rows)) if batch else None
                if waiting is not None:
                    yield from _assembled(*waiting)
                if following is None:
                    return
                waiting = following

    def _prepare(self, example: Example) -> _Prepared:
        if not example.messages:
            return _Row(self._text_pieces(example.text), self._eos)
        try:
            pieces, ended = self._pieces(example.messages, example.untrained)
        except InvalidData as error:
            return InvalidData(f"Row {example.row}: {error}")
        last = len(example.messages) - 1
        closing = (
            not ended and example.messages[last]["role"] == "assistant" and last not in example.untrained
        )
        return _Row(pieces, self._eos if closing else None)

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_token_id

    def _text_pieces(self, text: str) -> list[Piece]:
        """Plain text: every token carries loss.

        In front stands what the tokenizer puts before any text, such as BOS.
        """
        plain = not self.special_tokens and bool(self._special.search(text))
        before = self._backend.encode("", add_special_tokens=True).tokens
        starts = "".join(
            token for token in before if token in self._specials and token != self.tokenizer.eos_token
        )
        if starts and text.startswith(starts) and self.special_tokens:
            starts = ""  # it was rendered with a template before: no second BOS
        return [*([Piece(starts, True)] if starts else []), Piece(text, True, plain)]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids an answer is generated from: the conversation and the generation prompt, as in training."""
        pieces, _ = self._pieces(messages, frozenset(), generation=True)
        return [token for ids in self._encode([pieces])[0] for token in ids]

    # Text, cut into pieces.

    def _pieces(
        self, messages: Sequence[Message], untrained: frozenset[int], *, generation: bool = False
    ) -> tuple[list[Piece], bool]:
        """The rendered conversation in pieces, and whether its last answer ends with an end token."""
        full = apply_template(self.tokenizer, messages, add_generation_prompt=generation)
        layout = self._layout(tuple(message["role"] for message in messages), generation)
        for strip in (False, True) if layout else ():
            contents = [message["content"].strip() if strip else message["content"] for message in messages]
            assert layout is not None
            if full == "".join(itertools.chain(*zip(layout.around, [*contents, ""], strict=True))):
                return self._laid_out(layout, messages, contents, untrained), layout.ended
        return self._by_prefixes(full, messages, untrained)

    def _laid_out(
        self, layout: _Layout, messages: Sequence[Message], contents: Sequence[str], untrained: frozenset[int]
    ) -> list[Piece]:
        pieces: list[Piece] = []
        between = layout.around[0]
        for at, (message, content) in enumerate(zip(messages, contents, strict=True)):
            after = layout.around[at + 1]
            plain = bool(self._special.search(content))
            if message["role"] == "assistant":
                head, tail = len(between) - layout.heads[at], layout.tails[at]
                trained = at not in untrained
                pieces.append(Piece(between[:head]))
                if plain:
                    pieces += [
                        Piece(between[head:], trained),
                        Piece(content, trained, True),
                        Piece(after[:tail], trained),
                    ]
                else:
                    pieces.append(Piece(between[head:] + content + after[:tail], trained))
                between = after[tail:]
            elif plain:
                pieces += [Piece(between), Piece(content, False, True)]
                between = after
            else:
                between += content + after
        pieces.append(Piece(between))
        return [piece for piece in pieces if piece.text]

    def _layout(self, roles: tuple[str, ...], generation: bool) -> _Layout | None:
        """How the template lays out turns of these roles,
        or None if it does more than put text around them.
        """
        key = (roles, generation)
        if key not in self._layouts:
            self._layouts[key] = self._find_layout(roles, generation)
        return self._layouts[key]

    def _find_layout(self, roles: tuple[str, ...], generation: bool) -> _Layout | None:
        marks = [f"\ue000{at}\ue001" for at in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        full = apply_template(self.tokenizer, messages, add_generation_prompt=generation)
        around, rest = [], full
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                return None
            around.append(before)
        if "\ue000" in "".join([*around, rest]):
            return None
        around.append(rest)
        heads, tails, ended = {}, {}, True
        for at in (at for at, role in enumerate(roles) if role == "assistant"):
            prompt = apply_template(self.tokenizer, messages[:at], add_generation_prompt=True)
            start = full.index(marks[at])
            if not full[:start].startswith(prompt):
                return None
            heads[at] = start - len(prompt)
            tails[at] = self._end_token_length(around[at + 1])
            ended = tails[at] > 0
        return _Layout(tuple(around), heads, tails, ended)

    def _end_token_length(self, after: str) -> int:
        """Characters of `after` up to the end of the special token that it starts with; 0 if it starts with
        none.
        """
        token = next((token for token in self._specials if after.lstrip().startswith(token)), None)
        return 0 if token is None else after.index(token) + len(token)

    def _by_prefixes(
        self, full: str, messages: Sequence[Message], untrained: frozenset[int]
    ) -> tuple[list[Piece], bool]:
        """For templates that change the contents: an answer is what follows the generation prompt of the
        turns before it.
        """
        if any(self._special.search(message["content"]) for message in messages):
            raise InvalidData(
                "This base's chat template changes the text, so special tokens in it cannot be kept apart."
            )
        pieces, done, ended = [], 0, True
        for at in (at for at, message in enumerate(messages) if message["role"] == "assistant"):
            before = apply_template(self.tokenizer, messages[:at], add_generation_prompt=True)
            until = apply_template(self.tokenizer, messages[: at + 1], add_generation_prompt=False)
            if not full.startswith(before) or not full.startswith(until.rstrip()) or len(before) < done:
                raise InvalidData(_REWRITTEN)
            stop = len(until.rstrip())
            ended = any(until.rstrip().endswith(token) for token in self._specials)
            pieces += [Piece(full[done : len(before)]), Piece(full[len(before) : stop], at not in untrained)]
            done = stop
        return [piece for piece in [*pieces, Piece(full[done:])] if piece.text], ended

    # Pieces to ids.

    def _encode(self, rows: Sequence[Sequence[Piece]]) -> list[list[list[int]]]:
        """The ids of each piece of each row."""
        if not self._splits:
            return [self._encode_joined(row) for row in rows]
        usual = [piece.text for row in rows for piece in row if not piece.plain]
        encoded = iter(self._backend.encode_batch_fast(usual, add_special_tokens=False))
        return [
            [self._plain_ids(piece) if piece.plain else next(encoded).ids for piece in row] for row in rows
        ]

    def _plain_ids(self, piece: Piece) -> list[int]:
        return list(self._plain_backend.encode(piece.text, add_special_tokens=False).ids)

    def _encode_joined(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Neighbouring pieces are tokenised together and told apart by where their characters are."""
        ids: list[list[int]] = []
        for plain, group in itertools.groupby(pieces, key=lambda piece: piece.plain):
            run = list(group)
            if plain:
                ids += [self._plain_ids(piece) for piece in run]
                continue
            found: list[list[int]] = [[] for _ in run]
            ends = list(itertools.accumulate(len(piece.text) for piece in run))
            encoding = self._backend.encode("".join(piece.text for piece in run), add_special_tokens=False)
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
                found[min(bisect_right(ends, max(start, stop - 1)), len(run) - 1)].append(token)
            ids += found
        return ids


@dataclass(frozen=True)
class _Row:
    """A row's pieces, and the end token that closes it where the template has none."""

    pieces: list[Piece]
    closing: int | None


_Prepared = _Row | InvalidData


def _assembled(
    batch: list[_Prepared], encoded: Future[list[list[list[int]]]]
) -> Iterator[Rendered | InvalidData]:
    rows = iter(encoded.result())
    for row in batch:
        if isinstance(row, InvalidData):
            yield row
            continue
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece, part in zip(row.pieces, next(rows), strict=True):
            start = len(ids)
            ids += part
            if piece.trained and len(ids) > start:
                _append(spans, start, len(ids))
        if row.closing is not None and ids[-1:] != [row.closing]:
            ids.append(row.closing)
            _append(spans, len(ids) - 1, len(ids))
        yield Rendered(ids, spans)


def _append(spans: list[tuple[int, int]], start: int, stop: int) -> None:
    """One more range, joined with the last if they touch."""
    if spans and spans[-1][1] == start:
        spans[-1] = (spans[-1][0], stop)
    else:
        spans.append((start, stop))


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """The conversation as text. Raises InvalidData with the template's own words if it refuses the turns."""
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InvalidData(f"The base's chat template cannot render these turns: {str(error)[:200]}") from None
    return str(text)
