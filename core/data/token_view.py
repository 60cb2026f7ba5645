"""One row as the model sees it, token by token; and whether a base's chat template can be relied on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from core.data.formats import Example, Message
from core.data.rendering import Rendered, Renderer
from core.data.tool_calls import Tool
from core.data.turn_forms import CALL_EXCHANGE, TOOLS, parted
from core.errors import InvalidData

_MOST_TOKENS = 4000
_PROBE = (
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
)
_SYSTEM = {"role": "system", "content": "Answer briefly."}
_REASONED = (
    _PROBE[0],
    {"role": "assistant", "content": "<think>\nThe seat of its government.\n</think>\n\nParis."},
)


@dataclass(frozen=True)
class Token:
    """One token: its id, what it stands for, whether it carries loss, and whether a turn begins with it."""

    id: int
    text: str
    trained: bool
    special: bool = False
    begins: bool = False


@dataclass(frozen=True)
class TokenView:
    """A sequence's tokens, of very long ones the first 4,000, and how many there are."""

    tokens: list[Token]
    count: int
    trained: int


@dataclass(frozen=True)
class RowView:
    """A row as the sequences that it becomes, and what was done to its turns, in sentences."""

    sequences: list[TokenView]
    notes: list[str]


def row_view(renderer: Renderer, example: Example) -> RowView:
    """Render a row and name its tokens. Raises InvalidData if the template refuses it."""
    found = renderer.sequences(example)
    return RowView([_view(renderer, example, one) for one in found], [said for _, said in found[0].notes])


def _view(renderer: Renderer, example: Example, rendered: Rendered) -> TokenView:
    trained = {at for start, stop in rendered.spans for at in range(start, stop)}
    borders = _borders(renderer, example, rendered.ids)
    special = set(renderer.tokenizer.all_special_ids) | {
        number for number, token in renderer.tokenizer.added_tokens_decoder.items() if token.special
    }
    shown = [
        Token(
            token,
            token_text(renderer.tokenizer, token),
            at in trained and at > 0,
            token in special,
            at in borders,
        )
        for at, token in enumerate(rendered.ids[:_MOST_TOKENS])
    ]
    return TokenView(shown, len(rendered.ids), rendered.supervised)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The token's text; where it is a part of a character only, the vocabulary's own name for it."""
    text = str(tokenizer.decode([token]))
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _borders(renderer: Renderer, example: Example, ids: Sequence[int]) -> set[int]:
    """Where turns begin: as far as the conversation up to there, rendered by itself,
    agrees with the whole.
    """
    borders = {0}
    for count in range(1, len(example.messages)):
        try:
            before = renderer.turn_ids(replace(example, messages=example.messages[:count]))
        except InvalidData:  # some templates refuse a conversation that ends there
            continue
        same = next(
            (at for at, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b),
            min(len(before), len(ids)),
        )
        borders.add(same)
    return borders


@dataclass(frozen=True)
class TemplateCheck:
    """One thing that a chat template has to do right."""

    title: str
    passed: bool
    detail: str


def check_template(
    renderer: Renderer, ends: Collection[int], examples: Sequence[Example] = ()
) -> list[TemplateCheck]:
    """Whether what is trained on is what the playground will send. `examples` are rows of the data, beside a
    probe of our own.
    """
    rows = [
        Example(0, _PROBE),
        *(one for one in examples if one.messages and one.messages[-1]["role"] == "assistant"),
    ]
    return [
        _end_token(renderer, ends, rows),
        _single_bos(renderer, rows),
        _same_prompt(renderer, rows),
        _accepts(renderer, "Takes a system prompt", (_SYSTEM, *_PROBE)),
        _accepts(renderer, "Takes several turns", (*_PROBE, *_PROBE)),
        _accepts(renderer, "Keeps the reasoning of an answer", _REASONED),
        *([_accepts(renderer, "Takes tools and calls of them", CALL_EXCHANGE, TOOLS)] if _call(rows) else []),
        *_own_mask(renderer, rows),
    ]


def _end_token(renderer: Renderer, ends: Collection[int], rows: Sequence[Example]) -> TemplateCheck:
    title, last = "The end token carries loss", 0
    try:
        for row in rows:
            rendered = renderer.render(row)
            if not rendered.spans:
                return TemplateCheck(title, False, f"No token of row {row.row} carries loss.")
            last = rendered.ids[rendered.spans[-1][1] - 1]
            if last not in ends:
                shown = repr(renderer.tokenizer.decode([last]))
                return TemplateCheck(
                    title, False, f"The last trained token is {shown}; the adapter would not learn to stop."
                )
    except InvalidData as error:
        return TemplateCheck(title, False, _said(error))
    return TemplateCheck(title, True, f"Each answer ends with {renderer.tokenizer.decode([last])!r}.")


def _single_bos(renderer: Renderer, rows: Sequence[Example]) -> TemplateCheck:
    title, bos = "No double start token", renderer.tokenizer.bos_token_id
    try:
        doubled = any(
            renderer.render(row).ids[:2] == [bos, bos]
            for row in [*rows, Example(0, (), "Some text.")]
            if bos is not None
        )
    except InvalidData as error:
        return TemplateCheck(title, False, _said(error))
    return TemplateCheck(
        title, not doubled, "Rows begin with two start tokens." if doubled else "Rows begin with one at most."
    )


def _same_prompt(renderer: Renderer, rows: Sequence[Example]) -> TemplateCheck:
    title = "Trained on what the playground sends"
    try:
        for row in rows:
            prompt = renderer.encode_prompt(row.messages[:-1], row.tools, row.template_kwargs)
            if renderer.render(row).ids[: len(prompt)] != prompt:
                return TemplateCheck(
                    title, False, f"The ids before the answer of row {row.row} differ from the prompt's."
                )
    except InvalidData as error:
        return TemplateCheck(title, False, _said(error))
    return TemplateCheck(
        title, True, f"The ids before the answer equal the prompt's, in {len(rows)} conversations."
    )


def _call(rows: Sequence[Example]) -> bool:
    """Whether any of the rows has to do with tools."""
    return any(row.tools or any(turn.get("tool_calls") for turn in row.messages) for row in rows)


def _own_mask(renderer: Renderer, rows: Sequence[Example]) -> list[TemplateCheck]:
    """What the template's own {% generation %} blocks mark, held against what is trained; nothing if it has
    none.
    """
    title, told = "Marks as answers what is trained", False
    for row in rows:
        try:
            marked, rendered = renderer.marked(row), renderer.render(row)
        except InvalidData:  # that is said already
            continue
        if not marked or not rendered.spans:
            continue
        told = True
        learnt = str(renderer.tokenizer.decode(rendered.ids[slice(*rendered.spans[-1])]))
        if not _same_answer(marked[-1], learnt, parted(row.messages[-1])[1]):
            detail = f"Of row {row.row} it marks {marked[-1][-60:]!r}, and {learnt[-60:]!r} is trained."
            return [TemplateCheck(title, False, detail)]
    return [TemplateCheck(title, True, "Its generation blocks hold the trained answers.")] if told else []


def _same_answer(marked: str, learnt: str, text: str) -> bool:
    """Whether a block marks the answer and nothing that is not learnt, white space and the end aside."""
    said, whole, words = ("".join(one.split()) for one in (marked, learnt, text))
    return words in said and said in whole


def _accepts(
    renderer: Renderer, title: str, messages: tuple[Message, ...], tools: tuple[Tool, ...] = ()
) -> TemplateCheck:
    try:
        renderer.render(Example(0, messages, tools=tools))
    except InvalidData as error:
        return TemplateCheck(title, False, _said(error))
    return TemplateCheck(title, True, "Yes.")


def _said(error: InvalidData) -> str:
    """What is wrong; our own probe has no number of a row."""
    return str(error).removeprefix("Row 0: ")
