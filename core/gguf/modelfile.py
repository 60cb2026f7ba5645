"""A Modelfile for Ollama: the chat template in Ollama's own language, stop words, sampling parameters,
licence.

Ollama's templates are Go's, a model's is Jinja. Rather than translate programs, the model's template is run
on conversations with known words in them, the text around the words is cut out, and a Go template is made of
the pieces. It is kept only if the pieces put together give what the model's own template gives on other
conversations.

Ollama joins neighbouring turns of one role, keeps system turns where they stand, and leaves out the oldest
others where a conversation is too long. It lets the model go on with an assistant's turn that stands last.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.data.formats import Message
from core.data.pieces import opening_ids
from core.data.templating import apply_template
from core.errors import InvalidData

_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
    "min_p": "min_p",
}


@dataclass(frozen=True)
class ChatParts:
    """What a chat template puts before, between and behind the turns."""

    first: dict[str, str]
    """Before the first turn, by its role; with what the template says as the system if nobody does."""
    between: dict[tuple[str, str], str]
    """Between two turns, by their roles."""
    asking: dict[str, str]
    """Behind the last turn, by its role, where an answer is asked for."""

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template makes of a conversation without neighbours of one role. An answer that stands
        last is left open.
        """
        text = self.first[messages[0]["role"]] + messages[0]["content"]
        for before, turn in itertools.pairwise(messages):
            text += self.between[before["role"], turn["role"]] + turn["content"]
        return text + self.asking.get(messages[-1]["role"], "")

    def go_template(self) -> str:
        """The same in Ollama's language."""
        turns = ""
        for role in (_SYSTEM, _USER, _ASSISTANT):
            turns += f'{{{{ {"else if" if turns else "if"} eq .Role "{role}" }}}}{{{{ if eq $before "" }}}}'
            turns += _literal(self.first[role])
            for before in (other for other in (_SYSTEM, _USER, _ASSISTANT) if other != role):
                turns += f'{{{{ else if eq $before "{before}" }}}}{_literal(self.between[before, role])}'
            turns += f'{{{{ end }}}}{{{{ .Content }}}}{{{{ $before = "{role}" }}}}'
        asking = "".join(
            f'{{{{ if eq $before "{role}" }}}}{_literal(text)}{{{{ end }}}}'
            for role, text in self.asking.items()
        )
        return f'{{{{ $before := "" }}}}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{asking}'


def _literal(text: str) -> str:
    """Text in a Go template between the quotation marks of a Modelfile: no brace of it may begin an action,
    and no three quotation marks may stand together.
    """
    return re.sub(r'\{|(?<="")"', lambda found: f"{{{{ {json.dumps(found[0])} }}}}", text)


def chat_parts(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    """What the template of `tokenizer` puts around the turns; None if it does more than that.

    A beginning-of-text token at its start is left out: llama.cpp puts that there by itself.
    """
    try:
        parts = _cut(tokenizer)
        if parts is not None and all(
            parts.render(one) == _rendered(tokenizer, one) for one in _conversations()
        ):
            return parts if all(_agrees(tokenizer, parts, one) for one in _unusual()) else None
    except InvalidData:
        return None
    return None


def _cut(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    whole = _pieces(tokenizer, _SYSTEM, _USER, _ASSISTANT, _USER)
    alone = _pieces(tokenizer, _USER)
    if whole is None or alone is None:
        return None
    first = {_SYSTEM: whole[0], _USER: alone[0]}
    between = {(_SYSTEM, _USER): whole[1], (_USER, _ASSISTANT): whole[2], (_ASSISTANT, _USER): whole[3]}
    opened = _pieces(tokenizer, _ASSISTANT, _USER)
    first[_ASSISTANT] = opened[0] if opened else first[_USER] + whole[2]  # as behind an empty question
    told = _pieces(tokenizer, _SYSTEM, _ASSISTANT, _USER)
    between[_SYSTEM, _ASSISTANT] = told[1] if told else whole[1] + whole[2]
    between |= _late_system(tokenizer, first, between)
    lone = _pieces(tokenizer, _SYSTEM)
    asking = lone[1] if lone and lone[0] == first[_SYSTEM] else between[_SYSTEM, _ASSISTANT]
    return ChatParts(first, between, {_SYSTEM: asking, _USER: whole[4]})


def _late_system(
    tokenizer: PreTrainedTokenizerBase, first: dict[str, str], between: dict[tuple[str, str], str]
) -> dict[tuple[str, str], str]:
    """What stands before a system turn that is not the first. Of templates that refuse it, as before one that
    is the first: within the user's turn where those put it, or as a turn of its own.
    """
    found = {}
    if late := _pieces(tokenizer, _USER, _ASSISTANT, _SYSTEM, _USER):
        found[_ASSISTANT, _SYSTEM] = late[2]
    if late := _pieces(tokenizer, _USER, _SYSTEM, _USER):
        found[_USER, _SYSTEM] = late[1]
    closing = between[_ASSISTANT, _USER]
    header = _common_end(closing, first[_USER])  # of a user's turn
    if first[_SYSTEM].startswith(first[_USER]):
        inside = first[_SYSTEM].removeprefix(first[_USER])
        return {(_ASSISTANT, _SYSTEM): closing + inside, (_USER, _SYSTEM): "\n\n" + inside} | found
    apart = closing.removesuffix(header) + first[_SYSTEM]
    return {(_ASSISTANT, _SYSTEM): apart, (_USER, _SYSTEM): apart} | found


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return one[len(one) - count :]


def _pieces(tokenizer: PreTrainedTokenizerBase, *roles: str) -> list[str] | None:
    """The text before each turn of these roles, and what stands behind the last, where an answer is asked
    for. None where the template refuses them, or does not write them one behind another.
    """
    words = [f"Q{role}{at}q" for at, role in enumerate(roles)]
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        rest = _rendered(tokenizer, turns)
    except InvalidData:
        return None
    found = []
    for word in words:
        before, there, rest = rest.partition(word)
        if not there:
            return None
        found.append(before)
    return [*found, rest]


def _agrees(tokenizer: PreTrainedTokenizerBase, parts: ChatParts, messages: Sequence[Message]) -> bool:
    """Whether a conversation that not every template takes is written as this one writes it, if it does."""
    if _pieces(tokenizer, *(turn["role"] for turn in messages)) is None:
        return True
    return parts.render(messages) == _rendered(tokenizer, messages)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    text = apply_template(tokenizer, messages, add_generation_prompt=True)
    opening = opening_ids(tokenizer)
    return text.removeprefix(str(tokenizer.convert_ids_to_tokens(opening[0]))) if len(opening) == 1 else text


def _conversations() -> list[list[Message]]:
    user, answer, system = _turns()
    return [[user], [system, user], [user, answer, user], [system, user, answer, user, answer, user]]


def _unusual() -> list[list[Message]]:
    """An answer first, as where Ollama has left out the beginning; a system turn that comes late."""
    user, answer, system = _turns()
    return [
        [answer, user],
        [answer, user, answer, user],
        [system, answer, user],
        [user, answer, system, user],
        [system, user, answer, system, user],
    ]


def _turns() -> tuple[Message, Message, Message]:
    return (
        {"role": _USER, "content": "What is 2 + 2?"},
        {"role": _ASSISTANT, "content": "Four.\nIt is 4."},
        {"role": _SYSTEM, "content": "Be brief."},
    )


def modelfile(
    source: str,
    parts: ChatParts | None,
    stop: Sequence[str],
    generation: dict[str, Any],
    context: int,
    licence: str,
) -> str:
    """The Modelfile of a model whose weights lie in `source`, a path beside it."""
    lines = [f"FROM {source}", ""]
    if parts is not None:
        lines += [f"TEMPLATE {_quoted(parts.go_template())}", ""]
    lines += [f"PARAMETER stop {_word(word)}" for word in stop]
    lines += [
        f"PARAMETER {name} {generation[key]}"
        for key, name in _PARAMETERS.items()
        if _is_number(generation.get(key))
    ]
    lines.append(f"PARAMETER num_ctx {context}")
    if licence:
        lines += ["", f"LICENSE {_quoted(licence)}"]
    return "\n".join(lines) + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word(text: str) -> str:
    """Between quotation marks, within which Ollama knows no escapes: what has such marks or lines of its own
    stands between three.
    """
    return _quoted(text) if '"' in text or "\n" in text else f'"{text}"'


def _quoted(text: str) -> str:
    """Between three quotation marks a Modelfile takes everything but three quotation marks."""
    return '"""' + text.replace('"""', '"" "') + '"""'
