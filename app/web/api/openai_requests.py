"""What OpenAI's clients ask for, as prompts of ours; what would change an answer and does not here is
refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.service.serving import Prompt
from app.web.api.answer_forms import FORM_NAMES, openai_form
from app.web.api.chat_turns import turns
from app.web.api.openai_errors import bad, unsupported
from app.web.api.parameters import (
    Body,
    flag,
    mapping,
    require_known,
    sampling,
    stop_texts,
    template_kwargs,
    text,
    whole,
)
from app.web.api.tools import forced_call, tools_asked
from core.generate.config import GenerationConfig

_SEEDS, _NO_SEED = 2**31, -1  # as llama.cpp's and vLLM's clients send it
_ALL = -1  # tokens may be chosen, as vLLM and its clients write it in top_k
_MOST_ANSWERS, _MOST_LIKELIEST, _MOST_OF_A_PROMPT = 32, 20, 5
_CHAT_TOKENS, _TEXT_TOKENS = 1024, 16
"""Where a request names no limit; OpenAI's own for plain text."""
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "max_tokens": "max_tokens",
}
_ABOUT_THE_CALLER = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
_COMMON = {"model", "stream", "stream_options", "n", "seed", "stop", *_SAMPLING, *_ABOUT_THE_CALLER}
_OF_VLLM: dict[str, tuple[Any, ...]] = {
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "return_tokens_as_token_ids": (False,),
}
"""Values that vLLM's clients send of its own parameters where they ask for nothing by them."""
_NEUTRAL: dict[str, tuple[Any, ...]] = _OF_VLLM | {
    "logit_bias": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_CHAT_NEUTRAL = _NEUTRAL | {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
}
_TEXT_NEUTRAL = _NEUTRAL | {"suffix": ("",), "best_of": (1,), "add_special_tokens": (True,)}


@dataclass(frozen=True)
class Asked:
    """One request: each of its prompts `n` times."""

    model: str
    prompts: Sequence[Prompt]
    n: int
    stops: Sequence[str]
    stream: bool
    include_usage: bool

    @property
    def likeliest(self) -> int | None:
        """How many tokens are told with each; None where no log-probabilities are."""
        return self.prompts[0].likeliest


def chat_asked(body: Body) -> Asked:
    """Of /v1/chat/completions. Raises ApiError."""
    known = {
        *_COMMON,
        "messages",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "chat_template_kwargs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        *FORM_NAMES,
    }
    require_known(body, known, _CHAT_NEUTRAL)
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise bad("max_tokens", "max_tokens and max_completion_tokens differ; send one of them.")
    names = {**_SAMPLING, "max_completion_tokens": "max_tokens"}
    tools, likeliest = tools_asked(body), _chat_likeliest(body)
    prompt = {"messages": turns(body), "tools": tools, "likeliest": likeliest}
    if tools and likeliest is not None:
        raise unsupported("logprobs", "logprobs are not told of answers that may call tools; leave them out.")
    given = template_kwargs(body) | openai_form(body, tools) | forced_call(body, tools)
    return _asked(body, names, _CHAT_TOKENS, [prompt], given)


def text_asked(body: Body) -> Asked:
    """Of /v1/completions. Raises ApiError."""
    neutral = _TEXT_NEUTRAL | {"best_of": (1, body.get("n", 1))}
    require_known(body, {*_COMMON, "prompt", "logprobs", "echo", *FORM_NAMES}, neutral)
    likeliest, echo = _likeliest(body, "logprobs") if "logprobs" in body else None, flag(body, "echo", False)
    if echo and likeliest is not None and likeliest > _MOST_OF_A_PROMPT:
        raise bad(
            "logprobs", f"logprobs may be 0 to {_MOST_OF_A_PROMPT} together with echo, not {likeliest}."
        )
    prompts = [{**one, "likeliest": likeliest, "echo": echo} for one in _prompts(body.get("prompt"))]
    return _asked(body, _SAMPLING, _TEXT_TOKENS, prompts, openai_form(body))


def _chat_likeliest(body: Body) -> int | None:
    """How many tokens are told with each of the answer; None where logprobs are not asked for."""
    count = _likeliest(body, "top_logprobs")
    if flag(body, "logprobs", False):
        return count
    if count:
        raise bad("top_logprobs", "top_logprobs only counts together with logprobs: true.")
    return None


def _likeliest(body: Body, name: str) -> int:
    count = whole(body, name, 0)
    if not 0 <= count <= _MOST_LIKELIEST:
        raise bad(name, f"{name} may be 0 to {_MOST_LIKELIEST}, not {count}.")
    return count


def _prompts(sent: Any) -> list[dict[str, Any]]:
    """Those of a request for plain text, one or several, each a text or token ids."""
    several = [sent] if _is_one(sent) else sent
    if not isinstance(several, list) or not several or not all(_is_one(one) for one in several):
        raise bad(
            "prompt", "prompt must be a text, a list of token ids, or a list of these, none of them empty."
        )
    return [{"text": one} if isinstance(one, str) else {"ids": one} for one in several]


def _is_one(sent: Any) -> bool:
    if isinstance(sent, list):
        return bool(sent) and all(isinstance(one, int) and not isinstance(one, bool) for one in sent)
    return isinstance(sent, str) and bool(sent)


def _asked(
    body: Body,
    names: Mapping[str, str],
    limit: int,
    prompts: Sequence[Mapping[str, Any]],
    given: Mapping[str, str] | None = None,
) -> Asked:
    """given: options of a GenerationConfig that are no sampling."""
    n, stream = whole(body, "n", 1), flag(body, "stream", False)
    if not 1 <= n * len(prompts) <= _MOST_ANSWERS:
        raise bad("n", f"A request may have 1 to {_MOST_ANSWERS} answers, not {n * len(prompts)}.")
    body = body | {"top_k": 0} if body.get("top_k") == _ALL else body
    options = {**sampling(body, names, {**_DEFAULTS, "max_tokens": limit}), **(given or {})}
    seed = whole(body, "seed", _NO_SEED)
    first = secrets.randbelow(_SEEDS) if seed == _NO_SEED else seed
    rows = [
        Prompt(GenerationConfig.parse({**options, "seed": (first + at) % _SEEDS}), **prompt)
        for prompt in prompts
        for at in range(n)
    ]
    return Asked(text(body, "model"), rows, n, stop_texts(body), stream, _include_usage(body, stream))


def _include_usage(body: Body, stream: bool) -> bool:
    options = mapping(body, "stream_options")
    if options and not stream:
        raise bad("stream_options", "stream_options only counts together with stream.")
    require_known(options, {"include_usage"}, {"include_obfuscation": (False,)}, "stream_options.")
    return flag(options, "include_usage", False)
