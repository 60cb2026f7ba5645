"""A Modelfile for Ollama: the chat template in Ollama's own language, stop words, sampling parameters,
licence.

Ollama's templates are Go's, a model's is Jinja. Rather than translate programs, the model's template is run
on a conversation with known words in it, the text around them is cut out, and a Go template is made of the
pieces. It is kept only if the pieces put together give what the model's own template gives on other
conversations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.data.formats import Message
from core.data.pieces import opening_ids
from core.data.templating import apply_template
from core.errors import InvalidData

_SYSTEM, _USER, _ASSISTANT, _LAST = "Qsystemq", "Quserq", "Qassistantq", "Qlastq"
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
    "min_p": "min_p",
}


@dataclass(frozen=True)
class ChatParts:
    """What a chat template puts before, between and after the turns."""

    before_system: str
    after_system: str
    """Up to where the user's words begin."""
    before_user: str
    """Where the user speaks first; with what the template says as the system if nobody does."""
    after_user: str
    """Up to where the answer begins."""
    after_assistant: str
    """Up to where the user's words begin again."""

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template makes of a conversation that ends with the user's turn."""
        before = {"system": self.before_system, "user": self.before_user}
        after = {"system": self.after_system, "user": self.after_user, "assistant": self.after_assistant}
        text = "".join(f"{turn['content']}{after[turn['role']]}" for turn in messages)
        return before[messages[0]["role"]] + text

    def go_template(self) -> str:
        """The same in Ollama's language."""
        before_system, after_system, before_user, after_user, after_assistant = (
            piece.replace("{{", '{{ "{{" }}')
            for piece in (
                self.before_system,
                self.after_system,
                self.before_user,
                self.after_user,
                self.after_assistant,
            )
        )
        return (
            '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}'
            f"{before_system}{{{{ .Content }}}}{after_system}"
            '{{ else if eq .Role "user" }}'
            f"{{{{ if eq $i 0 }}}}{before_user}{{{{ end }}}}{{{{ .Content }}}}{after_user}"
            '{{ else if eq .Role "assistant" }}'
            f"{{{{ .Content }}}}{after_assistant}"
            "{{ end }}{{ end }}"
        )


def chat_parts(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    """What the template of `tokenizer` puts around the turns; None if it does more than that.

    A beginning-of-text token at its start is left out: llama.cpp puts that there by itself.
    """
    try:
        parts = _cut(tokenizer)
        if parts is not None and all(
            parts.render(one) == _rendered(tokenizer, one) for one in _conversations()
        ):
            return parts
    except InvalidData:
        return None
    return None


def _cut(tokenizer: PreTrainedTokenizerBase) -> ChatParts | None:
    whole = _rendered(
        tokenizer,
        [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _USER},
            {"role": "assistant", "content": _ASSISTANT},
            {"role": "user", "content": _LAST},
        ],
    )
    pieces, rest = [], whole
    for word in (_SYSTEM, _USER, _ASSISTANT, _LAST):
        before, found, rest = rest.partition(word)
        if not found:
            return None
        pieces.append(before)
    before_system, after_system, after_user, after_assistant = pieces[0], pieces[1], rest, pieces[3]
    if (
        pieces[2] != after_user
    ):  # an answer that was given stands behind the same words as one that is asked for
        return None
    alone = _rendered(tokenizer, [{"role": "user", "content": _LAST}]).partition(_LAST)[0]
    return ChatParts(before_system, after_system, alone, after_user, after_assistant)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    text = apply_template(tokenizer, messages, add_generation_prompt=True)
    opening = opening_ids(tokenizer)
    return text.removeprefix(str(tokenizer.convert_ids_to_tokens(opening[0]))) if len(opening) == 1 else text


def _conversations() -> list[list[Message]]:
    user, answer = (
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "Four.\nIt is 4."},
    )
    system = {"role": "system", "content": "Be brief."}
    return [[user], [system, user], [user, answer, user], [system, user, answer, user, answer, user]]


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
    lines += [f"PARAMETER stop {json.dumps(word, ensure_ascii=False)}" for word in stop]
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


def _quoted(text: str) -> str:
    """Between three quotation marks a Modelfile takes everything but three quotation marks."""
    return '"""' + text.replace('"""', '"" "') + '"""'
