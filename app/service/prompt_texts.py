"""Prompts as people write them: one a line, or a line of JSON for what is more than a line of text.

    What is the capital of France?
    {"prompt": "Two\\nlines", "system": "Be brief."}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, …]}

A prompt is the turns that are to be answered, so an answer at the end of `messages` is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.shared.text import lines_of, require_text
from core.errors import InvalidInput

MOST = 2000
Turns = list[dict[str, str]]
_QUESTIONS = ("prompt", "question", "instruction", "text")
_ROLES = ("system", "user", "assistant")


def parse_prompts(text: str) -> list[Turns]:
    """Raises InvalidInput, with the number of the line."""
    lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
    return required([_of_line(number, line.strip()) for number, line in lines])


def prompts_in(content: str, name: str) -> list[Turns]:
    """Those of a file: text or JSON lines, or a JSON list. Raises InvalidInput."""
    if not name.lower().endswith(".json"):
        return parse_prompts(content)
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidInput(f"{name} is no JSON: {error}.") from None
    if not isinstance(found, list):
        raise InvalidInput(f"{name} holds no list of prompts.")
    return required([_of_value(f"Prompt {number}", one) for number, one in enumerate(found, 1)])


def prompts_text(prompts: Sequence[Turns]) -> str:
    """As parse_prompts() reads them."""
    return "\n".join(map(_line, prompts))


def required(prompts: list[Turns]) -> list[Turns]:
    """The prompts. Raises InvalidInput where there are none, or too many."""
    if not prompts:
        raise InvalidInput("There are no prompts: write one a line.")
    if len(prompts) > MOST:
        raise InvalidInput(f"A prompt set holds at most {MOST:,} prompts; these are {len(prompts):,}.")
    require_text(*(turn["content"] for turns in prompts for turn in turns))
    return prompts


def said(turns: Sequence[dict[str, Any]]) -> str:
    """The turns in one text: the question alone, or each turn with its role."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _line(turns: Turns) -> str:
    question = turns[-1]["content"]
    if len(turns) == 1 and question.strip() == question == lines_of(question)[0] and question[:1] != "{":
        return question
    if len(turns) == 1:
        return json.dumps({"prompt": question}, ensure_ascii=False)
    if [turn["role"] for turn in turns] == ["system", "user"]:
        return json.dumps({"prompt": question, "system": turns[0]["content"]}, ensure_ascii=False)
    return json.dumps({"messages": turns}, ensure_ascii=False)


def _of_line(number: int, line: str) -> Turns:
    if line[:1] != "{":
        return [{"role": "user", "content": line}]
    try:
        return _of_value(f"Line {number}", json.loads(line))
    except ValueError as error:
        raise InvalidInput(f"Line {number} begins as JSON and is none: {error}.") from None


def _of_value(where: str, value: Any) -> Turns:
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return asked_in(where, value["messages"])
    value = value if isinstance(value, dict) else {}
    question = next((value[key] for key in _QUESTIONS if key in value), None)
    if not isinstance(question, str) or not question.strip():
        raise InvalidInput(f"{where} has no prompt; expected text, or JSON with prompt or messages.")
    system = value.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*first, {"role": "user", "content": question}]


def asked_in(where: str, turns: Sequence[Any]) -> Turns:
    """The turns before the last answer. Raises InvalidInput where no user asks at their end."""
    for turn in turns:
        is_turn = isinstance(turn, dict) and turn.get("role") in _ROLES
        if not is_turn or not isinstance(turn.get("content"), str):
            raise InvalidInput(f"{where}: a turn needs a role ({', '.join(_ROLES)}) and content as text.")
    found = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns]
    asked = found[:-1] if found and found[-1]["role"] == "assistant" else found
    if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].strip():
        raise InvalidInput(f"{where} does not end on a user's turn that could be answered.")
    return asked
