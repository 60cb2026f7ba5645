"""Rendering chat templates in a process that can be ended, whatever a template does.

A template is a program from a stranger: it may loop for ever or ask for all memory, also inside one call that
nothing in Python can interrupt. So each rendering here has a limit of processor time, after which the process
is told and then ended by the system, one of memory, and one of the length of its text.

Reads lines of JSON from standard input, {"template", "values", "seconds", "most_stopped", "marks",
"conversations": [[messages, whether the prompt for an answer is added, tools or null, what else the template
is given], …]}; marks: whether what stands in {% generation %} is put between MARKS. Writes a line for each: a
list, with a text or {"fault", "said", "line"} for each conversation. Its environment is that of transformers'
own apply_chat_template. Needs jinja2 alone.
"""

from __future__ import annotations

import datetime
import functools
import json
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

SECONDS = 2.0  # of processor time for one conversation; real templates take milliseconds
MOST_STOPPED = 3  # conversations over which a template may be stopped before it is given up
STOPPED = {"fault": "time", "said": "", "line": None}
MEMORY = 768 << 20  # bytes beside what the process needs by itself
_TIMES_SECONDS = 1.5  # after so many times as much the process is ended, where it did not stop by itself
_LEAST_OUTPUT, _TIMES_INPUT = (
    1_000_000,
    20,
)  # characters of text, whatever was given; and for each that was given

Answer = str | dict[str, Any]
MARKS = ("\ue0f0", "\ue0f1")
"""What stands around a generation block where marks are asked for."""


_MARKED = "_generation_is_marked"  # no template's own name


class _Refused(jinja2.TemplateError):
    """The template calls raise_exception."""


class _TooLong(Exception):
    """The processor time is used up."""


class _TooMuch(Exception):
    """The text grows beyond all bounds."""


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}, which marks the answers."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = jinja2.nodes.Name(_MARKED, "load")
        return jinja2.nodes.CallBlock(self.call_method("_said", [marked]), [], [], body).set_lineno(line)

    def _said(self, marked: object, caller: Callable[[], str]) -> str:
        return f"{MARKS[0]}{caller()}{MARKS[1]}" if marked is True else caller()


class _Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore, by which a template could reach Python's inside."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError("names with an underscore in front cannot be stored")
        super().__setitem__(name, value)


class _Dict:
    """dict() without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args)


def _raise(message: object) -> None:
    raise _Refused(str(message))


def _to_json(value: object, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return found


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    return environment().from_string(template)


def answers(asked: dict[str, Any]) -> list[Answer]:
    """A text for each conversation, or what went wrong. A template that was stopped too often is given up."""
    found: list[Answer] = []
    stopped = 0
    for messages, *rest in asked["conversations"]:
        given_up = stopped >= asked["most_stopped"]
        found.append(STOPPED if given_up else _rendered(asked, messages, *rest))
        stopped += _was_stopped(found[-1])
    return found


def _was_stopped(answer: Answer) -> bool:
    return isinstance(answer, dict) and answer["fault"] == "time"


def _rendered(
    asked: dict[str, Any],
    messages: list[dict[str, Any]],
    asks: bool,
    tools: list[dict[str, Any]] | None,
    beside: dict[str, Any],
) -> Answer:
    most = _LEAST_OUTPUT + _TIMES_INPUT * (sum(len(str(turn)) for turn in messages) + len(str(tools or "")))
    try:
        _limit_time(asked["seconds"])
        whole = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": asks}
        whole = {**beside, **whole, _MARKED: asked["marks"]}
        return _text(_compiled(asked["template"]), asked["values"] | whole, most)
    except Exception as error:  # noqa: BLE001  (the boundary: whatever a template does is told to the asker)
        _limit_time(0.0)
        return _fault(error)
    finally:
        _limit_time(0.0)


def _text(template: jinja2.Template, values: dict[str, Any], most: int) -> str:
    pieces, length = [], 0
    for piece in template.generate(values):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise _TooMuch(f"{most:,}")
    return "".join(pieces)


def _fault(error: Exception) -> Answer:
    kinds: dict[type[Exception], str] = {
        _Refused: "refused",
        _TooLong: "time",
        _TooMuch: "output",
        MemoryError: "memory",
        RecursionError: "time",
        jinja2.TemplateSyntaxError: "syntax",
        jinja2.UndefinedError: "undefined",
        SecurityError: "security",
        OverflowError: "security",
    }
    kind = next((name for known, name in kinds.items() if isinstance(error, known)), "error")
    frames = traceback.extract_tb(error.__traceback__)
    line = getattr(error, "lineno", None) or next(
        (frame.lineno for frame in reversed(frames) if frame.filename == "<template>"), None
    )
    return {"fault": kind, "said": str(error)[:300], "line": line}


def _limit_time(seconds: float) -> None:
    """Count processor time: after `seconds` the handler interrupts what runs in Python, later the system ends
    the process, which also ends what does not. 0: count no more. Without such timers the asker ends it.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds * _TIMES_SECONDS)


def _limit_process() -> None:
    def stop(*_: object) -> None:
        raise _TooLong

    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, stop)
    try:
        import resource
    except ImportError:  # Windows has none: there the time ends what takes too much
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            own = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
    except (OSError, ValueError):  # not every system counts it, or lets it be limited
        return


def main() -> int:
    """Answer until nobody asks any more."""
    _limit_process()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answers(json.loads(line))) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
