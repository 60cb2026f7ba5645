"""How answers are sampled, and how what is asked is fitted to the chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Self

from core.data.chat_options import ChatOptions, parsed_kwargs
from core.errors import InvalidConfig
from core.options import Config, option

_GREEDY_BELOW = 1e-20
"""Logits over such a temperature leave no chance to any but the likeliest, and over 1e-38 are no numbers."""


@dataclass(frozen=True)
class GenerationConfig(Config):
    """How one answer is sampled."""

    max_tokens: int = option(256, "Max tokens", "Longest answer.", unit="tokens", minimum=1, maximum=32768)
    temperature: float = option(
        0.7, "Temperature", "0 is greedy: always the likeliest token.", minimum=0.0, maximum=5.0
    )
    top_p: float = option(
        0.95, "Top-p", "Sample from the smallest set with this probability.", minimum=0.01, maximum=1.0
    )
    top_k: int = option(
        0, "Top-k", "Sample from the k likeliest tokens; 0 for all.", minimum=0, maximum=100_000
    )
    min_p: float = option(
        0.0,
        "Min-p",
        "Sample from tokens that are at least this share as likely as the likeliest (arXiv 2407.01082); 0 "
        "for all.",
        minimum=0.0,
        maximum=1.0,
    )
    repetition_penalty: float = option(
        1.0, "Repetition penalty", "Above 1 discourages tokens already used.", minimum=0.5, maximum=2.0
    )
    presence_penalty: float = option(
        0.0,
        "Presence penalty",
        "Above 0 discourages each token that the answer has already, however often.",
        minimum=-2.0,
        maximum=2.0,
    )
    frequency_penalty: float = option(
        0.0,
        "Frequency penalty",
        "Above 0 discourages each token the more, the more often the answer has it already.",
        minimum=-2.0,
        maximum=2.0,
    )
    seed: int = option(0, "Seed", "Same seed, same answer.", minimum=0, maximum=2**31 - 1)
    json_schema: str = option(
        "",
        "JSON schema",
        'The answer is JSON of this schema, such as {"type": "object"} for any object.',
    )
    pattern: str = option("", "Pattern", "The answer matches this regular expression from end to end.")
    template_kwargs: str = option(
        "",
        "Given to the chat template",
        'As JSON, such as {"enable_thinking": false}; what the adapter was trained with serves it best.',
    )
    fold_system: bool = option(
        False,
        "System prompt into the first question",
        "Where the base's chat template has no system turn.",
    )
    join_turns: bool = option(
        False,
        "Join turns",
        "Neighbouring turns of one speaker, where the chat template wants them to alternate.",
    )
    as_trained: bool = option(
        True,
        "Ask each as it was trained",
        "An adapter is asked with the chat options of its data set, too; what is said here comes on top.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parsed_kwargs(self.template_kwargs)
        if self.json_schema:
            _require_schema(self.json_schema)
        if self.json_schema and self.pattern:
            raise InvalidConfig("json_schema and pattern are both given; an answer is held to one of them.")

    @property
    def chat(self) -> ChatOptions:
        """How the conversation is fitted to the chat template, and what that is given."""
        return ChatOptions(self.fold_system, self.join_turns, parsed_kwargs(self.template_kwargs))

    def on_top_of(self, trained: ChatOptions) -> Self:
        """The same for somebody who was trained with these options of the conversation, unless that is not
        wanted: a name that both give to the template has the value that is given here.
        """
        if not self.as_trained:
            return self
        given = {**trained.template_kwargs, **parsed_kwargs(self.template_kwargs)}
        return replace(
            self,
            fold_system=self.fold_system or trained.fold_system,
            join_turns=self.join_turns or trained.join_turns,
            template_kwargs=json.dumps(given) if given else "",
            as_trained=False,
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW


def _require_schema(text: str) -> None:
    """Raise InvalidConfig where this is no JSON, or no schema."""
    expected = 'an object is expected, such as {"type": "object"}'
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"json_schema is not JSON ({error}); {expected}.") from None
    if not isinstance(found, dict):
        raise InvalidConfig(f"json_schema is {text[:80]}; {expected}.")


def _refuse_constant(name: str) -> None:
    """NaN and the infinities, which Python reads and JSON does not know."""
    raise ValueError(f"{name} is no number of JSON")
