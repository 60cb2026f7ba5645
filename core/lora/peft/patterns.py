"""Regular expressions in adapter_config.json, matched as Python's re would, without its backtracking.

They come from strangers, and re can be kept busy for years by "(a+)+b". Here each part of an expression gives
the set of places where it can end, and each place is worked out once, so the time is bounded. Possessive
quantifiers, atomic groups, back references and conditions need backtracking, and are refused. Needs no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NoReturn

from core.errors import InvalidAdapter

_MOST_CHARACTERS, _MOST_STEPS = 4000, 20_000
_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTED = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\((\?(?::|=|!|<=|<!|P<\w+>))?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[dDwWsSabBAZfnrtv]|[^0-9a-zA-Z])")
_NOWHERE = {r"\b", r"\B", r"\A", r"\Z", "^", "$"}

Ends = Callable[["Run", int], frozenset[int]]
"""Where a part of an expression can end that starts at this place of the run's text."""


def fully_matches(pattern: str, text: str) -> bool:
    """Whether re.fullmatch(pattern, text) finds something.

    Raises InvalidAdapter for what is no regular expression, or one that is not understood here.
    """
    try:
        return len(text) in Run(text).ends(compiled(pattern), 0)
    except RecursionError:
        raise InvalidAdapter(f"The regular expression {pattern[:60]!r}… is nested too deeply.") from None


class Run:
    """One text that an expression is tried on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._known: dict[tuple[Ends, int], frozenset[int]] = {}

    def ends(self, part: Ends, start: int) -> frozenset[int]:
        """Where `part` can end, worked out once for each start."""
        if (part, start) not in self._known:
            if len(self._known) >= _MOST_STEPS:
                raise InvalidAdapter("A regular expression in the configuration takes too long to match.")
            self._known[part, start] = part(self, start)
        return self._known[part, start]

    def all_ends(self, part: Ends, starts: Iterable[int]) -> frozenset[int]:
        """The same from several starts."""
        return frozenset().union(*[self.ends(part, start) for start in starts])


@functools.lru_cache(1024)
def compiled(pattern: str) -> Ends:
    """What to ask for the ends of an expression. Raises InvalidAdapter if it is none."""
    if len(pattern) > _MOST_CHARACTERS:
        raise InvalidAdapter(f"The regular expression {pattern[:60]!r}… has more than 4,000 characters.")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidAdapter(f"{pattern[:120]!r} is no regular expression: {str(error)[:100]}.") from None
    return _Parser(pattern).alternatives()


class _Parser:
    """Recursive descent through an expression that re has found sound."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0

    def alternatives(self) -> Ends:
        found = [self._sequence()]
        while self._here("|"):
            self._at += 1
            found.append(self._sequence())
        return found[0] if len(found) == 1 else _any_of(found)

    def _sequence(self) -> Ends:
        parts = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(self._one()))
        return _in_order(parts)

    def _one(self) -> Ends:
        if self._here("("):
            return self._group()
        for kind in (_CLASS, _ESCAPE):
            if self._here("[" if kind is _CLASS else "\\"):
                if (match := kind.match(self._pattern, self._at)) is None:
                    self._refuse()
                self._at = match.end()
                return _single(match[0])
        self._at += 1
        return _single(self._pattern[self._at - 1])

    def _group(self) -> Ends:
        match = _GROUP.match(self._pattern, self._at)
        if match is None or (match[1] is None and self._pattern.startswith("(?", self._at)):
            self._refuse()
        self._at = match.end()
        inside = self.alternatives()
        self._at += 1  # the closing bracket
        sign = match[1] or ""
        return _around(inside, sign) if sign in ("?=", "?!", "?<=", "?<!") else inside

    def _repeated(self, part: Ends) -> Ends:
        while (limits := self._limits()) is not None:
            part = _times(part, *limits)
        return part

    def _limits(self) -> tuple[int, int | None] | None:
        """Of the quantifier that stands here; None if none does."""
        if self._at >= len(self._pattern):
            return None
        match = _COUNTED.match(self._pattern, self._at)
        if self._pattern[self._at] in _REPEATS:
            limits = _REPEATS[self._pattern[self._at]]
            self._at += 1
        elif match and (match[1] or match[3]):
            low = int(match[1] or 0)
            limits = low, (low if not match[2] else int(match[3]) if match[3] else None)
            self._at = match.end()
        else:
            return None
        if self._here("+"):
            self._refuse()
        self._at += self._here("?")  # lazy or not, the same texts match
        return limits

    def _here(self, char: str) -> bool:
        return self._pattern.startswith(char, self._at)

    def _refuse(self) -> NoReturn:
        part = self._pattern[self._at : self._at + 8]
        raise InvalidAdapter(
            f"The regular expression {self._pattern[:120]!r} is not understood here at {part!r}; write it "
            "with groups, classes and plain quantifiers."
        )


def _single(source: str) -> Ends:
    """One character, or a place between two."""
    expression, width = re.compile(source if source not in "{}]" else f"\\{source}"), source not in _NOWHERE

    def ends(run: Run, start: int) -> frozenset[int]:
        return frozenset({start + width} if expression.match(run.text, start) else ())

    return ends


def _any_of(parts: list[Ends]) -> Ends:
    return lambda run, start: frozenset().union(*[run.ends(part, start) for part in parts])


def _in_order(parts: list[Ends]) -> Ends:
    def ends(run: Run, start: int) -> frozenset[int]:
        found = frozenset({start})
        for part in parts:
            found = run.all_ends(part, found)
        return found

    return ends


def _times(part: Ends, low: int, high: int | None) -> Ends:
    def ends(run: Run, start: int) -> frozenset[int]:
        latest = frozenset({start})
        for _ in range(low):
            before, latest = latest, run.all_ends(part, latest)
            if latest == before:
                break  # nothing, or only what is empty: it stays so
        found = latest
        for _ in range(len(run.text) + 1 if high is None else high - low):
            latest = run.all_ends(part, latest) - found
            if not latest:
                break
            found |= latest
        return found

    return ends


def _around(part: Ends, sign: str) -> Ends:
    """A look ahead or behind, wanted or not."""

    def ends(run: Run, start: int) -> frozenset[int]:
        if "<" in sign:
            there = any(start in run.ends(part, begin) for begin in range(start + 1))
        else:
            there = bool(run.ends(part, start))
        return frozenset({start} if there != sign.endswith("!") else ())

    return ends
