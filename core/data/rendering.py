"""From conversations to token ids, with the tokens that carry loss marked.

The base's own chat template renders the conversation, exactly as the playground does. Loss falls on each
assistant's answer and on the end token after it, on nothing else. Each answer is trained in the context in
which it will be asked for: where the template writes earlier turns otherwise once later ones follow, a
conversation becomes several sequences. Answers are tokenised apart from what stands before them: the prompt's
ids in training are then the ids that the playground sends, whatever the answer begins with. Special tokens
that stand inside somebody's text are text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.contexts import Answered, Contexts
from core.data.fitting import Fitted, Note
from core.data.formats import Example, Message
from core.data.pieces import Piece, PieceEncoder
from core.data.standing import Judge
from core.data.templating import Conversation, apply_templates, generated
from core.data.tool_calls import Tool
from core.data.turn_forms import CALL_EXCHANGE, TOOLS, TurnForm, found_form
from core.data.turn_layouts import Layouts
from core.data.written_pieces import pieces_of
from core.errors import InvalidData

IGNORE = -100
"""The label of a token that carries no loss, as in torch's cross_entropy."""

_BATCH_ROWS = 256
_KEPT = 4  # renderers with other options
_EXCHANGE = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
)
_PLAIN = frozenset(("role", "content"))


@dataclass(frozen=True)
class Rendered:
    """One sequence as the model sees it: ids, and the ranges [start, stop) of those that carry loss."""

    ids: list[int]
    spans: list[tuple[int, int]]
    notes: tuple[Note, ...] = ()
    """(code, sentence) of what was done to the row's turns, with its first sequence."""

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


class Renderer:
    """Renders rows for one tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        special_tokens: bool = False,
        chat: ChatOptions = AS_THEY_ARE,
    ) -> None:
        """special_tokens: whether those in plain text are meant as such. chat: how conversations are fitted
        to the template, and what it is given.

        Raises InvalidModel without a fast tokenizer.
        """
        self.tokenizer, self.special_tokens, self.chat = tokenizer, special_tokens, chat
        self._encoder = PieceEncoder(tokenizer)
        self._special = self._encoder.special
        self._others: dict[str, Renderer] = {}
        self._layouts = Layouts(self._texts, self._encoder.ends, chat.template_kwargs)

    @cached_property
    def _contexts(self) -> Contexts:
        form = found_form(self._texts, self.chat.template_kwargs)
        ends = self._encoder.ends, self._encoder.specials
        return Contexts(self._texts, form, self._layouts.end, *ends)

    @cached_property
    def _wants_blocks(self) -> bool:
        """Whether the template takes a turn's text only in blocks, as those for pictures do."""
        turns = [
            [{**_EXCHANGE[0], "content": content}]
            for content in (_EXCHANGE[0]["content"], _blocks(_EXCHANGE[0]["content"]))
        ]
        asked = [Conversation(one, True, (), self.chat.template_kwargs) for one in turns]
        plain, in_blocks = (
            isinstance(one, str) and _EXCHANGE[0]["content"] in one
            for one in apply_templates(self.tokenizer, asked)
        )
        return in_blocks and not plain

    def _texts(self, conversations: Sequence[Conversation]) -> list[str | InvalidData]:
        if conversations and self._wants_blocks:
            conversations = [one._replace(turns=list(map(_in_blocks, one.turns))) for one in conversations]
        return apply_templates(self.tokenizer, conversations)

    def with_options(self, chat: ChatOptions) -> Renderer:
        """The same tokenizer with other options of the conversation; of those used last a few are kept."""
        if chat == self.chat:
            return self
        name = json.dumps(chat.to_dict())
        found = self._others.pop(name, None) or Renderer(
            self.tokenizer, special_tokens=self.special_tokens, chat=chat
        )
        self._others = dict([*self._others.items(), (name, found)][-_KEPT:])
        return found

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The special tokens that the template puts behind an answer, and behind one that calls a tool, and
        that are trained; empty if it has none.
        """
        exchanges = [Example(0, _EXCHANGE), Example(0, CALL_EXCHANGE, tools=TOOLS)]
        found = [one for one in self.render_many(exchanges) if not isinstance(one, InvalidData)]
        spans = [(one[-1].ids, one[-1].spans[-1:]) for one in found]
        last = {ids[stop - 1] for ids, ending in spans for _, stop in ending}
        return frozenset(last & self._encoder.end_ids)

    # Rows.

    def render(self, example: Example) -> Rendered:
        """The sequence with the last answer of an example, often the only one. Raises InvalidData if the
        template cannot render it.
        """
        return self.sequences(example)[-1]

    def sequences(self, example: Example) -> tuple[Rendered, ...]:
        """All that one example becomes. Raises InvalidData if the template cannot render it."""
        found = next(self.render_many([example]))
        if isinstance(found, InvalidData):
            raise found
        return found

    def render_last(self, examples: Iterable[Example]) -> Iterator[Rendered | InvalidData]:
        """As render() for each of many, in order; in place of one that the template cannot render stands the
        reason.
        """
        for found in self.render_many(examples):
            yield found if isinstance(found, InvalidData) else found[-1]

    def render_many(self, examples: Iterable[Example]) -> Iterator[tuple[Rendered, ...] | InvalidData]:
        """Render examples in order, each as one sequence or several; in place of one that the template cannot
        render stands the reason.

        Pieces are tokenised in a thread of the tokenizer's own while the next rows are put together; those of
        few rows are not, as for one row starting the thread takes most of the time.
        """
        examples = iter(examples)
        with ThreadPoolExecutor(1) as pool:
            waiting: tuple[list[_Prepared], Future[_Encoded]] | None = None
            while True:
                batch = self._prepared(list(itertools.islice(examples, _BATCH_ROWS)))
                rows = [one.pieces for row in batch if not isinstance(row, InvalidData) for one in row.parts]
                if waiting is None and len(batch) < _BATCH_ROWS:
                    yield from _assembled(batch, self._encoder.encode(rows))
                    return
                following = (batch, pool.submit(self._encoder.encode, rows)) if batch else None
                if waiting is not None:
                    yield from _assembled(waiting[0], waiting[1].result())
                if following is None:
                    return
                waiting = following

    def _prepared(self, examples: Sequence[Example]) -> list[_Prepared]:
        """Rows of nothing but text in turns are rendered together: most templates lay them out alike."""
        fitted = [self._fitted(example) if example.messages else None for example in examples]
        plain = [
            Conversation(one.messages, False, (), self.chat.template_kwargs)
            for one, example in zip(fitted, examples, strict=True)
            if one is not None and _is_plain(one.messages, example.tools, example.template_kwargs)
        ]
        texts = iter(self._texts(plain))
        return [
            self._prepare(
                example,
                one,
                next(texts)
                if one is not None and _is_plain(one.messages, example.tools, example.template_kwargs)
                else None,
            )
            for example, one in zip(examples, fitted, strict=True)
        ]

    def _prepare(self, example: Example, fitted: Fitted | None, full: str | InvalidData | None) -> _Prepared:
        """full: the conversation as the template renders it, or why it does not; None where it is not "
        "plain."""
        if fitted is None:
            plain = not self.special_tokens and bool(self._special.search(example.text))
            text = [Piece(example.text, True, plain)]
            return _Row(example.row, [self._part(text, self._eos)])
        try:
            return _Row(example.row, *self._conversation(example, fitted, full))
        except InvalidData as error:
            return InvalidData(f"Row {example.row}: {error}")

    def _conversation(
        self, example: Example, fitted: Fitted, full: str | InvalidData | None
    ) -> tuple[list[_Part], tuple[Note, ...]]:
        if isinstance(full, InvalidData):
            raise full
        laid_out = full and self._layouts.pieces(full, fitted.messages, fitted.untrained, self._special)
        if not laid_out:
            return self._by_answers(example, fitted)
        return [self._part(laid_out)], fitted.notes

    def _part(self, pieces: list[Piece], closing: int | None = None) -> _Part:
        return _Part(pieces, self._encoder.missing_opening(pieces), closing)

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_token_id

    def marked(self, example: Example) -> list[str] | None:
        """What the template's own generation blocks mark of an example; None if it has none."""
        fitted = self._fitted(example)
        beside = {**self.chat.template_kwargs, **example.template_kwargs}
        turns, tools = self._form.turns(fitted.messages), self._form.tools(example.tools)
        return generated(self.tokenizer, Conversation(turns, False, tools, beside))

    def turn_ids(self, example: Example) -> list[int]:
        """The ids of turns as they stand, whether an answer is among them or not: to see where each begins.

        Raises InvalidData if the template cannot render them.
        """
        fitted = self._fitted(example)
        beside = {**self.chat.template_kwargs, **example.template_kwargs}
        turns, tools = self._form.turns(fitted.messages), self._form.tools(example.tools)
        full = self._texts([Conversation(turns, False, tools, beside)])[0]
        if isinstance(full, InvalidData):
            raise full
        plain = _is_plain(fitted.messages, example.tools, example.template_kwargs)
        pieces = self._layouts.pieces(full, fitted.messages, frozenset(), self._special) if plain else None
        return self._prompt_ids(pieces or [Piece(full)])

    # Turns, as the user wants them fitted.

    def _fitted(self, example: Example) -> Fitted:
        fitted = Fitted(example.messages, example.untrained)
        if self.chat.join_turns:
            fitted = fitted.joined()
        has_system = any(one["role"] == "system" for one in fitted.messages)
        if self.chat.fold_system and has_system and not self._layouts.takes_system:
            fitted = fitted.folded()
        return fitted

    # Answers, each in its context.

    def _by_answers(self, example: Example, fitted: Fitted) -> tuple[list[_Part], tuple[Note, ...]]:
        """A sequence for each answer whose context is not the end of an earlier one's. Raises InvalidData."""
        messages = fitted.messages
        beside = {**self.chat.template_kwargs, **example.template_kwargs}
        found, _ = self._contexts.of(messages, example.tools, beside)
        judge = self._judge(messages, example.tools)
        places = [at for at, one in enumerate(messages) if one["role"] == "assistant"]
        known = {at: one for at, one in zip(places, found, strict=True) if isinstance(one, Answered)}
        chains: list[list[Answered]] = []
        for at, one in zip(places, found, strict=True):
            if at in fitted.untrained:
                continue
            if isinstance(one, InvalidData):
                raise one
            judge.require(one.prompt, one.completion, at)
            if chains and chains[-1][-1].stands_in(one.prompt):
                chains[-1].append(one)
            else:
                chains.append([one])
        parts = [self._chain(chain, list(known.values()), judge) for chain in chains]
        notes = [*fitted.notes, *(one.note for chain in chains for one in chain if one.note)]
        notes += self._said_of(messages, chains)
        return parts, tuple({note[0]: note for note in reversed(notes)}.values())[::-1]

    def _said_of(self, messages: Sequence[Message], chains: Sequence[Sequence[Answered]]) -> tuple[Note, ...]:
        """What has become of a conversation."""
        notes: list[Note] = []
        if len(chains) > 1:
            of = f"of its {sum(map(len, chains))} answers"
            said = f"It became {len(chains)} sequences {of}: the template rewrites earlier turns later on."
            notes.append(("several_sequences", said))
        if self._contexts.form.reasoning_inside and any(_reasons(one) for one in messages):
            said = "The template has no place for reasoning: it stands in the answer as <think> … </think>."
            notes.append(("reasoning_inside", said))
        whole = chains[-1][-1].text
        lost = next((one["name"] for one in messages if one["role"] != "tool" and one.get("name")), None)
        if lost is not None and lost not in whole:
            notes.append(
                ("name_left_out", f"The name {lost[:40]!r} of a turn is not written by the template.")
            )
        return tuple(notes)

    def _chain(self, chain: Sequence[Answered], known: Sequence[Answered], judge: Judge) -> _Part:
        last = chain[-1]
        learnt = {one.at for one in chain}
        cuts = [one for one in known if one.at < last.at and one.stands_in(last.prompt)]
        ranges = [(len(one.prompt), len(one.text), one.at in learnt) for one in [*cuts, last]]
        pieces = pieces_of(last.text, ranges, judge.plain_ranges(last.text, last.at + 1))
        return self._part(pieces, None if last.ended else self._eos)

    def _judge(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Judge:
        absent = frozenset[int]()
        if not any(
            one.get("tool_calls") for one in messages
        ):  # results of calls that are not there may vanish
            absent = self._layouts.absent(tuple(one["role"] for one in messages))
        return Judge(messages, tools, absent, self._special)

    @property
    def _form(self) -> TurnForm:
        return self._contexts.form

    # Prompts.

    def encode_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids an answer is generated from: the conversation and the generation prompt, as in training.

        Raises InvalidData if the template cannot render the turns, or leaves out what is asked.
        """
        given = dict(template_kwargs or {})
        fitted = self._fitted(Example(0, tuple(messages)))
        pieces = None
        if _is_plain(fitted.messages, tools, given):
            asked = Conversation(fitted.messages, True, (), self.chat.template_kwargs)
            full = self._texts([asked])[0]
            if isinstance(full, str):
                pieces = self._layouts.prompt_pieces(full, fitted.messages, self._special)
        if pieces is None:
            pieces = self._asked(fitted.messages, tools, {**self.chat.template_kwargs, **given})
        return self._prompt_ids(pieces)

    def _asked(
        self, messages: Sequence[Message], tools: Sequence[Tool], beside: Mapping[str, Any]
    ) -> list[Piece]:
        found, prompt = self._contexts.of(messages, tools, beside, generation=True)
        judge = self._judge(messages, tools)
        judge.require_prompt(prompt)
        known = [one for one in found if isinstance(one, Answered) and one.stands_in(prompt)]
        ranges = [(len(one.prompt), len(one.text), False) for one in known]
        return pieces_of(prompt, ranges, judge.plain_ranges(prompt, len(messages)))

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


def _is_plain(messages: Sequence[Message], tools: Sequence[Tool], beside: Mapping[str, Any]) -> bool:
    """Whether a conversation is nothing but text in turns, of which no answer thinks."""
    return not tools and not beside and all(map(_is_text, messages))


def _reasons(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("reasoning"))


def _is_text(message: Message) -> bool:
    thinks = message["role"] == "assistant" and "</think>" in message["content"]
    return message.keys() == _PLAIN and not thinks


def _blocks(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _in_blocks(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    return {**turn, "content": _blocks(content) if isinstance(content, str) else content}


@dataclass(frozen=True)
class _Part:
    """A sequence's pieces, the ids that the tokenizer puts before them, and the end token that closes it
    where the template has none.
    """

    pieces: list[Piece]
    opening: list[int]
    closing: int | None


@dataclass(frozen=True)
class _Row:
    """What a row becomes."""

    number: int
    parts: list[_Part]
    notes: tuple[Note, ...] = ()


_Prepared = _Row | InvalidData
_Encoded = list[list[list[int]] | InvalidData]


def _assembled(batch: list[_Prepared], encoded: _Encoded) -> Iterator[tuple[Rendered, ...] | InvalidData]:
    rows = iter(encoded)
    for row in batch:
        if isinstance(row, InvalidData):
            yield row
            continue
        found = [(part, next(rows)) for part in row.parts]
        fault = next((ids for _, ids in found if isinstance(ids, InvalidData)), None)
        if fault is not None:
            yield InvalidData(f"Row {row.number}: {fault}")
            continue
        yield tuple(
            _sequence(part, ids, row.notes if at == 0 else ())
            for at, (part, ids) in enumerate(found)
            if not isinstance(ids, InvalidData)
        )


def _sequence(part: _Part, parts: list[list[int]], notes: tuple[Note, ...]) -> Rendered:
    ids: list[int] = list(part.opening)
    spans: list[tuple[int, int]] = []
    for piece, found in zip(part.pieces, parts, strict=True):
        start = len(ids)
        ids += found
        if piece.trained and len(ids) > start:
            _append(spans, start, len(ids))
    if part.closing is not None and ids[-1:] != [part.closing]:
        ids.append(part.closing)
        _append(spans, len(ids) - 1, len(ids))
    return Rendered(ids, spans, notes)


def _append(spans: list[tuple[int, int]], start: int, stop: int) -> None:
    """One more range, joined with the last if they touch."""
    if spans and spans[-1][1] == start:
        spans[-1] = (spans[-1][0], stop)
    else:
        spans.append((start, stop))
