"""From conversations to token ids, with the tokens that carry loss marked.

The base's own chat template renders the conversation, exactly as the playground does. Loss falls on each
assistant's answer and on the end token after it, on nothing else. Answers are tokenised apart from what
stands before them: the prompt's ids in training are then the ids that the playground sends, whatever the
answer begins with. Special tokens that stand inside somebody's text are text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from core.data.formats import Example, Message
from core.data.pieces import Piece, PieceEncoder
from core.data.standing import excerpt, left_out
from core.data.templating import apply_template, apply_templates
from core.errors import InvalidData

IGNORE = -100
"""The label of a token that carries no loss, as in torch's cross_entropy."""

_BATCH_ROWS = 256
_REWRITTEN = (
    "This base's chat template changes earlier turns when later ones follow, so the trained tokens "
    "would differ from the "
    "ones chatted with."
)
_EXCHANGE = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
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


@dataclass(frozen=True)
class _NoLayout:
    """A template that does more with turns of these roles than to put text around them."""

    absent: frozenset[int] = frozenset()
    """Turns that it leaves out, whatever they hold."""


class Renderer:
    """Renders rows for one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool = False) -> None:
        """special_tokens: whether those in plain text are meant as such.

        Raises InvalidModel without a fast tokenizer.
        """
        self.tokenizer, self.special_tokens = tokenizer, special_tokens
        self._encoder = PieceEncoder(tokenizer)
        self._special = self._encoder.special
        self._layouts: dict[tuple[tuple[str, ...], bool], _Layout | _NoLayout] = {}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The special token that the template puts behind an answer and that is trained; empty if it has
        none.
        """
        try:
            rendered = self.render(Example(0, _EXCHANGE))
        except InvalidData:  # the template takes none of our turns
            return frozenset()
        last = {rendered.ids[stop - 1] for _, stop in rendered.spans[-1:]}
        return frozenset(last & self._encoder.end_ids)

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
            waiting: tuple[list[_Prepared], Future[_Encoded]] | None = None
            while True:
                batch = self._prepared(list(itertools.islice(examples, _BATCH_ROWS)))
                rows = [one.pieces for one in batch if not isinstance(one, InvalidData)]
                following = (batch, pool.submit(self._encoder.encode, rows)) if batch else None
                if waiting is not None:
                    yield from _assembled(*waiting)
                if following is None:
                    return
                waiting = following

    def _prepared(self, examples: Sequence[Example]) -> list[_Prepared]:
        conversations = [(example.messages, False) for example in examples if example.messages]
        texts = iter(apply_templates(self.tokenizer, conversations))
        return [self._prepare(example, next(texts) if example.messages else "") for example in examples]

    def _prepare(self, example: Example, full: str | InvalidData) -> _Prepared:
        """full: the conversation as the template renders it, or why it does not."""
        if not example.messages:
            plain = not self.special_tokens and bool(self._special.search(example.text))
            text = [Piece(example.text, True, plain)]
            return _Row(example.row, text, self._encoder.missing_opening(text), self._eos)
        try:
            if isinstance(full, InvalidData):
                raise full
            pieces, ended = self._pieces(full, example.messages, example.untrained)
        except InvalidData as error:
            return InvalidData(f"Row {example.row}: {error}")
        last = len(example.messages) - 1
        closing = (
            not ended and example.messages[last]["role"] == "assistant" and last not in example.untrained
        )
        return _Row(
            example.row, pieces, self._encoder.missing_opening(pieces), self._eos if closing else None
        )

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_token_id

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids an answer is generated from: the conversation and the generation prompt, as in training.

        Raises InvalidData if the template cannot render the turns, or leaves out what is asked.
        """
        full = apply_template(self.tokenizer, messages, add_generation_prompt=True)
        pieces, _ = self._pieces(full, messages, frozenset(), generation=True)
        return self._prompt_ids(pieces)

    def encode_text(self, text: str) -> list[int]:
        """The ids that plain text is gone on from. Special tokens in it are meant as such: whoever writes a
        prompt out writes them himself.

        Raises InvalidData if the tokenizer fails with it.
        """
        return self._prompt_ids([Piece(text)])

    def _prompt_ids(self, pieces: Sequence[Piece]) -> list[int]:
        encoded = self._encoder.encode([pieces])[0]
        if isinstance(encoded, InvalidData):
            raise encoded
        return [*self._encoder.missing_opening(pieces), *itertools.chain(*encoded)]

    # Text, cut into pieces.

    def _pieces(
        self, full: str, messages: Sequence[Message], untrained: frozenset[int], *, generation: bool = False
    ) -> tuple[list[Piece], bool]:
        """The rendered conversation `full` in pieces, and whether its last answer ends with an end token."""
        layout = self._layout(tuple(message["role"] for message in messages), generation)
        if isinstance(layout, _NoLayout):
            self._require_standing(full, messages, layout.absent, generation)
            return self._by_prefixes(full, messages, untrained, generation)
        for strip in (False, True):
            contents = [message["content"].strip() if strip else message["content"] for message in messages]
            if full == "".join(itertools.chain(*zip(layout.around, [*contents, ""], strict=True))):
                return self._laid_out(layout, messages, contents, untrained), layout.ended
        self._require_standing(full, messages, frozenset(), generation)
        return self._by_prefixes(full, messages, untrained, generation)

    def _require_standing(
        self, full: str, messages: Sequence[Message], absent: frozenset[int], generation: bool
    ) -> None:
        """Raise InvalidData, with what can be done, unless all that the turns say stands in the text `full`.

        Where an answer is asked for, earlier answers may be shortened: the base is used to that.
        """
        judged = [
            {**message, "content": ""} if generation and message["role"] == "assistant" else message
            for message in messages
        ]
        at = left_out(full, judged, absent)
        if at is None:
            return
        role, shown = messages[at]["role"], excerpt(full, messages[at]["content"])
        if role == "system":
            raise InvalidData(
                f"This base's chat template leaves out the system turn ({shown}). Put its text in front of "
                "the user's first words, or use a base whose template takes a system turn."
            )
        if role == "assistant" and at + 1 < len(messages):
            alone = apply_template(self.tokenizer, messages[: at + 1], add_generation_prompt=False)
            if left_out(alone, messages[: at + 1], absent) is None:
                raise InvalidData(
                    f"This base's chat template takes a part of turn {at + 1}, the assistant's ({shown}), "
                    "out of the conversation once later turns follow. Make a row of each answer, with the "
                    "turns before it, or take that part out of all answers but the last."
                )
        remedy = "Write it otherwise" if generation else "Take it out of the row, leave the row out"
        raise InvalidData(
            f"This base's chat template leaves out a part of turn {at + 1}, the {role}'s ({shown}), so the "
            f"model would not see it. {remedy}, or use a base whose template keeps it."
        )

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

    def _layout(self, roles: tuple[str, ...], generation: bool) -> _Layout | _NoLayout:
        """How the template lays out turns of these roles."""
        key = (roles, generation)
        if key not in self._layouts:
            self._layouts[key] = self._find_layout(roles, generation)
        return self._layouts[key]

    def _find_layout(self, roles: tuple[str, ...], generation: bool) -> _Layout | _NoLayout:
        marks = [f"\ue000{at}\ue001" for at in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            full = apply_template(self.tokenizer, messages, add_generation_prompt=generation)
        except InvalidData:  # it takes turns of these roles with other contents only
            return _NoLayout()
        none = _NoLayout(frozenset(at for at, mark in enumerate(marks) if mark not in full))
        around, rest = [], full
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                return none
            around.append(before)
        if "\ue000" in "".join([*around, rest]):
            return none
        around.append(rest)
        heads, tails, ended = {}, {}, True
        for at in (at for at, role in enumerate(roles) if role == "assistant"):
            prompt = apply_templates(self.tokenizer, [(messages[:at], True)])[0]
            start = full.index(marks[at])
            if isinstance(prompt, InvalidData) or not full[:start].startswith(prompt):
                return none
            heads[at] = start - len(prompt)
            tails[at] = self._end_token_length(around[at + 1])
            ended = tails[at] > 0
        return _Layout(tuple(around), heads, tails, ended)

    def _end_token_length(self, after: str) -> int:
        """Characters of `after` up to the end of the special token that it starts with; 0 if it starts with
        none.
        """
        token = next((token for token in self._encoder.ends if after.lstrip().startswith(token)), None)
        return 0 if token is None else after.index(token) + len(token)

    def _by_prefixes(
        self, full: str, messages: Sequence[Message], untrained: frozenset[int], generation: bool
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
            before, until = self._around(messages, at)
            goes_on = full.startswith(before) and full.startswith(until.rstrip()) and len(before) >= done
            if generation and not goes_on:  # nothing is trained here, so nothing has to be told apart
                return [Piece(full)], True
            if not until.startswith(before):
                raise InvalidData(self._otherwise_opened(before, until, messages[: at + 1]))
            if not goes_on:
                raise InvalidData(f"{_REWRITTEN} Use single-turn rows with this base.")
            stop = len(until.rstrip())
            ended = any(until.rstrip().endswith(token) for token in self._encoder.ends)
            pieces += [Piece(full[done : len(before)]), Piece(full[len(before) : stop], at not in untrained)]
            done = stop
        return [piece for piece in [*pieces, Piece(full[done:])] if piece.text], ended

    def _around(self, messages: Sequence[Message], at: int) -> tuple[str, str]:
        """The prompt for the answer at this place, and the conversation up to its end. Raises InvalidData."""
        asked = [(messages[:at], True), (messages[: at + 1], False)]
        before, until = apply_templates(self.tokenizer, asked)
        if isinstance(before, InvalidData) and at == 0:
            raise InvalidData(
                "The conversation begins with the assistant's turn, and this base's chat template has no "
                "prompt for that. Put a user's turn in front, or leave the row out."
            )
        for one in (before, until):
            if isinstance(one, InvalidData):
                raise one
        return str(before), str(until)

    def _otherwise_opened(self, before: str, until: str, messages: Sequence[Message]) -> str:
        """Why an answer cannot follow the generation prompt `before`, and what to do."""
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, until, strict=False))
        shared = "".join(one for one, _ in same)
        opened = before[len(shared) :]
        if not opened.strip() or left_out(shared, messages[:-1]) is not None:
            several = sum(message["role"] == "assistant" for message in messages) > 1
            return f"{_REWRITTEN} Use {'single-turn rows with this' if several else 'another'} base."
        answer = messages[-1]["content"]
        if tag := re.fullmatch(r"\s*<(\w+)>\s*", opened):
            tried = [*messages[:-1], {**messages[-1], "content": f"<{tag[1]}>\nA.\n</{tag[1]}>\n\n{answer}"}]
            fitting = apply_template(self.tokenizer, tried, add_generation_prompt=False)
            helps = fitting.startswith(before) and left_out(fitting, tried) is None
            remedy = f"Let each answer begin with <{tag[1]}>…</{tag[1]}>, or use" if helps else "Use"
        else:
            remedy = "Use"
        return (
            f"This base's chat template ends its prompt for an answer with {opened[-40:]!r}, and writes turn "
            f"{len(messages)}, the answer that is given, without it; so the playground would send something "
            f"else than what is trained on. {remedy} a base whose chat template writes both alike."
        )


@dataclass(frozen=True)
class _Row:
    """A row's pieces, the ids that the tokenizer puts before them, and the end token that closes it where the
    template has none.
    """

    number: int
    pieces: list[Piece]
    opening: list[int]
    closing: int | None


_Prepared = _Row | InvalidData
_Encoded = list[list[list[int]] | InvalidData]


def _assembled(batch: list[_Prepared], encoded: Future[_Encoded]) -> Iterator[Rendered | InvalidData]:
    rows = iter(encoded.result())
    for row in batch:
        if isinstance(row, InvalidData):
            yield row
            continue
        parts = next(rows)
        if isinstance(parts, InvalidData):
            yield InvalidData(f"Row {row.number}: {parts}")
            continue
        ids: list[int] = list(row.opening)
        spans: list[tuple[int, int]] = []
        for piece, part in zip(row.pieces, parts, strict=True):
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
