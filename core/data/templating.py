"""Conversations as text, by a base's own chat template; and what is said where that cannot be done.

Every template is rendered in a process of its own, see core/data/template_process.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from core.data.formats import Message
from core.data.template_process import MARKS, MEMORY, MOST_STOPPED, SECONDS, STOPPED
from core.errors import InvalidData


class Conversation(NamedTuple):
    """What a template is given."""

    turns: Sequence[Mapping[str, Any]]
    asks: bool = False
    """Whether the prompt for an answer is added behind them."""
    tools: Sequence[Mapping[str, Any]] = ()
    beside: Mapping[str, Any] = {}


_Answer = str | dict[str, Any]

_WAIT_SECONDS = 30.0  # for one batch, where the system does not count the process's time, or stopped it
_CANNOT = "The base's chat template cannot render these turns"
_FOLD = "Put the text of the system turn in front of the user's first words, or choose that for the data set"
_JOIN = "Join neighbouring turns of one role, or choose that for the data set"
_MEND = "Mend the template in the base's folder (chat_template.jinja), or use another base."


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    """The conversation as text. Raises InvalidData with the template's own words if it refuses the turns."""
    found = apply_templates(tokenizer, [Conversation(messages, add_generation_prompt)])[0]
    if isinstance(found, InvalidData):
        raise found
    return found


def apply_templates(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, marks: bool = False
) -> list[str | InvalidData]:
    """Each conversation as text; in place of one that the template cannot render stands the reason.

    marks: whether what a generation block writes stands between template_process.MARKS.
    """
    if not conversations:
        return []
    template = _template_of(tokenizer)
    values = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}
    answers = _PROCESS.ask(template, values, conversations, marks=marks)
    return [
        answer if isinstance(answer, str) else InvalidData(_reason(template, values, answer, one))
        for answer, one in zip(answers, conversations, strict=True)
    ]


def generated(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[str] | None:
    """What the template's own generation blocks mark as the answers; None if it has none, or cannot render
    it.
    """
    if "generation" not in _template_of(tokenizer):
        return None
    found = apply_templates(tokenizer, [conversation], marks=True)[0]
    marked = re.findall(f"{MARKS[0]}(.*?){MARKS[1]}", found, re.DOTALL) if isinstance(found, str) else []
    return marked or None


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several, and none of them is called "default"
        raise InvalidData(
            "This base has several chat templates and none is named default; put the one that is meant into "
            "its folder as chat_template.jinja."
        ) from None


def _plain(value: object) -> object:
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else str(value)


# What went wrong, in words.


def _reason(template: str, values: dict[str, Any], fault: dict[str, Any], conversation: Conversation) -> str:
    said, line = str(fault["said"]), fault["line"]
    where = f" (line {line})" if line else ""
    match fault["fault"]:
        case "refused":
            return f"{_CANNOT}: it says {said[:200]!r}. {_remedy(template, values, conversation)}"
        case "undefined":
            return f"{_CANNOT}: {_undefined(said)}{where}. {_remedy(template, values, conversation)}"
        case "syntax":
            return f"The base's chat template is faulty{where}: {said[:200].rstrip('.')}. {_MEND}"
        case "security":
            return f"{_CANNOT}: it tries what a template may not do{where}. {_MEND}"
        case "time":
            return (
                f"{_CANNOT} and was stopped: it took more than {SECONDS:.0f} seconds, or does not come to an "
                f"end{where}. {_MEND}"
            )
        case "output":
            return f"{_CANNOT} and was stopped: it writes more than {said} characters. {_MEND}"
        case "memory":
            return f"{_CANNOT} and was stopped: it takes more than {MEMORY / 1e9:.0f} GB of memory. {_MEND}"
    return (
        f"{_CANNOT}: it computes with something that these turns do not have, or have in another form"
        f"{where}. {_remedy(template, values, conversation)}"
    )


def _undefined(said: str) -> str:
    """Jinja's words, of Python's objects, in ours."""
    if found := re.search(r"has no (?:attribute|element) '?([^']+)'?$", said):
        return f"it asks for {found[1]!r}, which these turns do not have"
    if found := re.match(r"'([^']+)' is undefined", said):
        return f"it asks for {found[1]!r}, which no chat program gives it"
    return "it asks for something that these turns do not have"


def _remedy(template: str, values: dict[str, Any], conversation: Conversation) -> str:
    """What can be done with these turns, tried where that is possible."""
    rest = [turn for turn in conversation.turns if turn["role"] != "system"]
    folding = len(rest) < len(conversation.turns)
    for turns, remedy in ((rest, _FOLD), (_joined(rest), f"{_FOLD}; and {_JOIN[0].lower()}{_JOIN[1:]}")):
        fitted = conversation._replace(turns=turns)
        if folding and isinstance(_PROCESS.ask(template, values, [fitted])[0], str):
            return f"{remedy}."
    if [turn["role"] for turn in conversation.turns[:1]] == ["assistant"]:
        return "Begin with a user's turn."
    if len(_joined(conversation.turns)) < len(conversation.turns):
        return f"{_JOIN}."
    return "Change such rows, leave them out, or use another base."


def _joined(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each speaker's neighbouring turns: what a template says of the order of speakers."""
    return [next(several) for _, several in itertools.groupby(turns, key=lambda turn: turn["role"])]


# The process.


class _Guard:
    """Ends a process that does not answer within _WAIT_SECONDS. Its thread stays for the questions that
    follow: one for each took as long as the answer to a short question.
    """

    def __init__(self) -> None:
        self._held = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._until = 0.0  # of the monotonic clock: when the process is to have answered
        self._stands = False

    def begin(self, process: subprocess.Popen[str]) -> None:
        """The process is asked now."""
        with self._held:
            self._process, self._until = process, time.monotonic() + _WAIT_SECONDS
            if not self._stands:
                self._stands = True
                threading.Thread(target=self._stand, name="template guard", daemon=True).start()

    def end(self) -> None:
        """It has answered, or ended."""
        with self._held:
            self._process = None

    def _stand(self) -> None:
        """Until nothing was asked for as long as an answer may take."""
        with self._held:
            while (left := self._until - time.monotonic()) > 0:
                self._held.wait(left)  # nobody rouses it: who asks again only moves the time on
            if self._process is not None:
                self._process.kill()
            self._stands = False


class _TemplateProcess:
    """Asks the process, which is started when it is needed and again after it was ended."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Without a process yet. One that was forked starts its own: what it inherits is its parent's."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._guard = _Guard()
        self._stopped: Counter[str] = Counter()

    def ask(
        self,
        template: str,
        values: dict[str, Any],
        conversations: Sequence[Conversation],
        *,
        marks: bool = False,
    ) -> list[_Answer]:
        """A text for each conversation, or what went wrong. Several threads may ask."""
        name = _name(template)
        with self._lock:
            if self._stopped[name] >= MOST_STOPPED:
                return [dict(STOPPED) for _ in conversations]
            answers = self._asked(template, values, conversations, marks)
            if answers is None and len(conversations) == 1:
                answers = [dict(STOPPED)]
            for answer in answers or []:
                self._stopped[name] += isinstance(answer, dict) and answer["fault"] == "time"
        if answers is not None:
            return answers
        return [self.ask(template, values, [one], marks=marks)[0] for one in conversations]

    def _asked(
        self, template: str, values: dict[str, Any], conversations: Sequence[Conversation], marks: bool
    ) -> list[_Answer] | None:
        """The answers; None if the process ended over them."""
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        question = {
            "template": template,
            "values": values,
            "seconds": SECONDS,
            "most_stopped": MOST_STOPPED - self._stopped[_name(template)],
            "marks": marks,
            "conversations": [
                (list(one.turns), one.asks, list(one.tools) or None, dict(one.beside))
                for one in conversations
            ],
        }
        self._guard.begin(process)
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            self._guard.end()
        if line.endswith("\n"):
            found: list[_Answer] = json.loads(line)
            return found
        self._forget()
        return None

    def _forget(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not sent is for nobody now
                        pipe.close()
            process.wait()


def _name(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()


def _started() -> subprocess.Popen[str]:
    # -P: Python would import the working folder's modules first, and that may hold a core of its own.
    command = [sys.executable, "-P", "-m", "core.data.template_process"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # what ends a program in its terminal is for that program to handle
    )


_PROCESS = _TemplateProcess()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.begin)
