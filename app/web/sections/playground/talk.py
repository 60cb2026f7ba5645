"""What was asked and what each column has answered, drawn by assets/talk.js, which asks for what is new by
itself: an answer grows on the page as it grows in the registry, whoever looks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from app.service.conversations import FAILED, STOPPED, TRIES, WAITS
from app.service.turns import Turn
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS
from app.shared.speakers import called
from app.web.parts.differences import differences_html
from app.web.parts.markdown import answer_html, plain_html
from app.web.parts.scripts import script
from app.web.sections.playground.score_view import tokens_html
from core.base_model.quantisation import LABELS, NONE
from storage.errors import NotFound
from storage.tables import Chat, ChatMessage

_ENDINGS = {
    "": "answering",
    "end": "ended by itself",
    "stop": "ended by itself",
    "length": "reached max tokens",
    STOPPED: "stopped",
    FAILED: "failed",
}


def talk_panel(workbench: Workbench) -> gr.HTML:
    """The panel. Its value is what `talk_value` makes; it triggers `submit` with what is to be done with a
    message: `{"do", "message"}`, with the `prompt` of another question or the `speaker` of another answer.
    What is sent from the line below it triggers `input`: `{"prompt"}`.
    """

    def look(asked: dict[str, Any]) -> dict[str, Any]:
        return looked(workbench, int(asked["chat"] or 0), asked["columns"], asked["known"], asked["against"])

    def tokens(asked: dict[str, Any]) -> dict[str, str]:
        try:
            return {"html": tokens_html(workbench.conversations.score(int(asked["message"])))}
        except USER_ERRORS as error:
            return {"error": str(error)}

    return gr.HTML(
        value=talk_value(0, []),
        html_template="<div class='talk-slot'></div>",
        js_on_load=script("talk.js"),
        server_functions=[look, tokens],
        elem_classes="talk-block grows",
        elem_id="talk",
    )


def talk_value(chat_id: int, speakers: Sequence[str]) -> str:
    """Which conversation is shown, in which columns. The time has it looked at once more."""
    return json.dumps({"chat": chat_id, "columns": list(speakers), "at": time.time()})


def looked(
    workbench: Workbench, chat_id: int, columns: Sequence[str], known: Mapping[str, str], against: str | None
) -> dict[str, Any]:
    """A conversation as the panel draws it; of an answer that it knows as it is, only the stamp.

    against: the speaker whose words the others' are compared with.
    """
    try:
        workbench.registry.get(Chat, chat_id)
        turns = workbench.conversations.turns(chat_id)
    except NotFound:
        turns = []
    speakers = dict.fromkeys(one for turn in turns for one in turn.answers)
    return {
        "columns": [{"speaker": one, "name": called(one)} for one in columns],
        "others": [{"speaker": one, "name": called(one)} for one in speakers if one not in columns],
        "turns": [_turn(turn, known, against) for turn in turns],
        "busy": any(not one.finish for turn in turns for one in turn.answers.values()),
    }


def _turn(turn: Turn, known: Mapping[str, str], against: str | None) -> dict[str, Any]:
    reference = turn.answers.get(against) if against is not None else None
    return {
        "id": turn.question.id,
        "question": turn.question.content,
        "adopted": turn.question.adopted,
        "answers": {
            speaker: _answer(one, known, reference if reference is not one else None)
            for speaker, one in turn.answers.items()
        },
    }


def _answer(one: ChatMessage, known: Mapping[str, str], reference: ChatMessage | None) -> dict[str, Any]:
    compared = (reference.id, reference.content) if reference else None
    shown = (one.finish, one.content, figures_of(one), compared)
    stamp = f"{hash(shown):x}"  # of all that is drawn: another answer may be as long
    if known.get(str(one.id)) == stamp:
        return {"id": one.id, "stamp": stamp}
    return {
        "id": one.id,
        "stamp": stamp,
        "text": one.content,
        "html": _html(one, reference),
        "finish": one.finish,
        "said": figures_of(one),
        "weights": weights_of(one),
        "error": one.details.get("error", "") if one.finish == FAILED else "",
    }


def _html(one: ChatMessage, reference: ChatMessage | None) -> str:
    if reference is not None:
        return differences_html(one.content, reference.content)
    return answer_html(one.content) if one.content else plain_html("" if one.finish else "…")


def figures_of(one: ChatMessage) -> str:
    """How long it is, how quickly it came, and why it ended, in words."""
    tokens, first = one.details.get("tokens", 0), one.details.get("seconds_to_first", 0.0)
    rate = one.details.get("tokens_per_second", 0.0)
    said = [f"{tokens:,} token{'' if tokens == 1 else 's'}"] if tokens else []
    said += [f"{rate:.1f} tokens/s"] if rate else []
    said += [f"first after {first:.2f} s"] if first else []
    said += [f"seed {one.details['settings']['seed']}"] if one.details.get(TRIES) else []
    waits = not one.finish and one.details.get(WAITS)
    ending = "waits for the answers before it" if waits else _ENDINGS.get(one.finish, one.finish)
    return " · ".join([*said, ending])


def weights_of(one: ChatMessage) -> str:
    """Which weights have answered, as the engine has told: the base's fingerprint, and the adapters' digests
    with their weights.
    """
    if not (base := one.details.get("base")):
        return ""
    parts = [_part_of(part["digest"], part["weight"]) for part in one.details.get("parts", ())]
    held = one.details.get("quantisation", NONE)
    said = f"base {base[:8]}" if held == NONE else f"base {base[:8]} in {LABELS[held]}"
    return " + ".join([said, *parts])


def _part_of(digest: str, weight: float) -> str:
    return digest[:8] if weight == 1 else f"{digest[:8]} × {weight:g}"
