"""What is done with turns that a base's chat template has no place for, and what else it is given: chosen by
the user, stored with each version of a data set. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from core.errors import InvalidConfig

_OWN = ("messages", "tools", "documents", "add_generation_prompt")  # what is handed to a template anyhow
_OF_RENDERING = (
    "chat_template",
    "conversation",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
)
"""What apply_chat_template() of transformers does not give on to a template: it would do nothing here."""
_TAKEN = frozenset((*_OWN, *_OF_RENDERING))
_MOST_BYTES = 100_000


@dataclass(frozen=True)
class ChatOptions:
    """How conversations are fitted to a base's chat template."""

    fold_system: bool = False
    """Put the text of a system turn in front of the first question, where the template has no system turn."""
    join_turns: bool = False
    """Join neighbouring turns of one speaker."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the template is given beside turns and tools, such as {"enable_thinking": false}."""

    def __post_init__(self) -> None:
        if not isinstance(self.template_kwargs, Mapping):
            raise InvalidConfig(
                f'The chat template is given an object, such as {{"enable_thinking": false}}, not '
                f"{self.template_kwargs!r:.80}."
            )
        for name in self.template_kwargs:
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in _TAKEN:
                raise InvalidConfig(
                    f"{name!r:.60} is no name that a chat template can be given; a name such as "
                    f"enable_thinking is."
                )
        try:
            size = len(json.dumps(dict(self.template_kwargs)))
        except (TypeError, ValueError, RecursionError):
            raise InvalidConfig("What the chat template is given has to be JSON.") from None
        if size > _MOST_BYTES:
            raise InvalidConfig(
                f"What the chat template is given has {size:,} characters; {_MOST_BYTES:,} may be."
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """From to_dict()'s values, or a part of them. Raises InvalidConfig."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise InvalidConfig(f"There is no option {sorted(unknown)[0]!r} of a conversation.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in one order, ready for JSON and for hashing."""
        return asdict(self) | {"template_kwargs": dict(sorted(self.template_kwargs.items()))}

    def sentence(self) -> str:
        """In words; empty where nothing is chosen."""
        parts = ["a system turn goes into the first question where the template has none"] * self.fold_system
        parts += ["neighbouring turns of one speaker are joined"] * self.join_turns
        given = (f"{name} = {json.dumps(value)}" for name, value in self.to_dict()["template_kwargs"].items())
        parts += [f"the chat template is given {', '.join(given)}"] * bool(self.template_kwargs)
        return "; ".join(parts)


AS_THEY_ARE = ChatOptions()
"""Nothing is changed, and the template is given nothing beside the turns."""


def parsed_kwargs(text: str) -> dict[str, Any]:
    """What somebody typed to be given to a chat template: a JSON object; empty for an empty text.

    Raises InvalidConfig.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(
            f'What the chat template is given is no JSON ({error}); write {{"enable_thinking": false}}.'
        ) from None
    return dict(ChatOptions(template_kwargs=found).template_kwargs)
