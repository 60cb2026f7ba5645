"""What Ollama's clients ask for, as prompts of ours; what would change an answer and does not here is
refused.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from app.service.serving import Prompt
from app.web.api.answer_forms import ollama_form
from app.web.api.chat_turns import turns
from app.web.api.openai_errors import bad, unsupported
from app.web.api.parameters import Body, flag, mapping, require_known, sampling, stop_texts, text, whole
from app.web.api.tools import tools_asked
from core.generate.config import GenerationConfig

_SEEDS = 2**31
_TOKENS = 1024
"""Where a request names no limit, or, as Ollama writes it, a negative one."""
_DEFAULTS = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
"""Ollama's own."""
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "num_predict": "max_tokens",
}
_HOW_TO_RUN = {
    "num_ctx",
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "use_mmap",
    "use_mlock",
    "numa",
    "low_vram",
}
"""Options of Ollama's process that change no answer: what is too long is refused, and never cut."""
_PENALTIES = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
_WHOLE = ("num_ctx", "num_keep", "repeat_last_n")
_OPTIONS = {*_SAMPLING, *_HOW_TO_RUN, "seed", "stop"}
_NO_OPTIONS: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "mirostat": (0,),
}
_DURATION = re.compile(r"[+-]?(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+)")  # as Go writes one
_COMMON = {"model", "stream", "options", "keep_alive", "format"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "images": ([],),
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
}


@dataclass(frozen=True)
class OllamaAsked:
    """One request. Without a prompt it only asks whether the model is there."""

    model: str
    prompt: Prompt | None
    stops: list[str]
    stream: bool
    unload: bool
    """Whether it is kept alive for no time; here a base stays in memory until another needs its room."""
    thinks: bool
    """Whether the answer is to be thought about."""


def chat_request(body: Body) -> OllamaAsked:
    """Of /api/chat. Raises ApiError."""
    require_known(body, {*_COMMON, "messages", "think", "tools"}, _NEUTRAL)
    given = {"template_kwargs": json.dumps({"enable_thinking": flag(body, "think", True)})}
    prompt = {"messages": _turns(body), "tools": tools_asked(body)} if body.get("messages") else {}
    return _asked(body, prompt, given if "think" in body else {})


def show_request(body: Body) -> str:
    """The model that /api/show is asked about. Raises ApiError."""
    require_known(body, {"model", "name", "verbose"}, {})
    return text(body, "name" if "name" in body and "model" not in body else "model")


def _turns(body: Body) -> list[dict[str, Any]]:
    """The conversation, which somebody else than the model has said the last of. Raises ApiError."""
    found = turns(body, reasoning=("reasoning_content", "thinking"))
    if found[-1]["role"] == "assistant":
        raise unsupported(
            "messages",
            "messages ends with the assistant's turn, which is not gone on with here; end with a user's, or "
            "send what is to be gone on with to /api/generate, written out, with raw: true.",
        )
    return found


def generate_request(body: Body) -> OllamaAsked:
    """Of /api/generate. Raises ApiError."""
    neutral = {**_NEUTRAL, "think": (False,), "tools": ([],)}
    require_known(body, {*_COMMON, "prompt", "system", "raw"}, neutral)
    prompt, system = text(body, "prompt", ""), text(body, "system", "")
    if not prompt:
        return _asked(body, {})
    if flag(body, "raw", False):
        if system:
            raise unsupported(
                "system", "system is not put into a raw prompt; write it there or leave it out."
            )
        return _asked(body, {"text": prompt})
    said = [("system", system)] * bool(system) + [("user", prompt)]
    return _asked(body, {"messages": [{"role": role, "content": content} for role, content in said]})


def _asked(body: Body, prompt: dict[str, Any], given: dict[str, str] | None = None) -> OllamaAsked:
    """given: options of a GenerationConfig that are no sampling."""
    options = mapping(body, "options")
    is_plain = all(options.get(name, neutral) == neutral for name, neutral in _PENALTIES.items())
    known = _OPTIONS | ({"repeat_last_n"} if is_plain else set())  # where it does not matter how far back
    require_known(options, known, _NO_OPTIONS, "options.")
    for name in _WHOLE:
        whole(options, name, 0)
    if whole(options, "num_predict", _TOKENS) < 0:
        del options["num_predict"]
    found = sampling(options, _SAMPLING, {**_DEFAULTS, "max_tokens": _TOKENS})
    held = ollama_form(body, prompt.get("tools", ()))
    config = GenerationConfig.parse({**found, **(given or {}), **held, "seed": _seed(options)})
    return OllamaAsked(
        text(body, "model"),
        Prompt(config, **prompt) if prompt else None,
        stop_texts(options),
        flag(body, "stream", True),
        _keeps_nothing(body),
        flag(body, "think", False),
    )


def _seed(options: Body) -> int:
    """As asked for, or a new one where none is; a negative one is none, as Ollama reads it."""
    seed = whole(options, "seed", -1)
    return secrets.randbelow(_SEEDS) if seed < 0 else seed % _SEEDS


def _keeps_nothing(body: Body) -> bool:
    """Whether keep_alive, which is a number of seconds or a text such as 5m, is 0. Raises ApiError."""
    kept = body.get("keep_alive", "5m")
    is_number = isinstance(kept, (int, float)) and not isinstance(kept, bool)
    if not (is_number or (isinstance(kept, str) and _DURATION.fullmatch(kept))):
        said = f"keep_alive must be seconds, or a text such as 5m, not {json.dumps(kept)[:80]}."
        raise bad("keep_alive", said)
    return not re.search("[1-9]", str(kept))
