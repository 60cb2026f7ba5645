"""What an option is: a field with its label, help, unit and range, parsed and checked in one place.

The page's forms and the command line are built from these descriptions.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from core.errors import InvalidConfig


@dataclass(frozen=True)
class Option:
    """What a form or a command line needs to know about one field."""

    name: str
    label: str
    help: str
    kind: type
    default: Any
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    """What may be chosen; a function where a folder lists its kinds."""
    lines: int = 1
    """Of the text field; above 1 the value may hold line breaks."""
    subject: str = ""
    """Under which heading a form has it."""
    common: bool = False
    """Whether a form has it in view, where the others of its subject are folded away."""
    several: tuple[tuple[str, str], ...] = ()
    """What a text may name, separated by commas, each with what it means."""

    @property
    def listed(self) -> tuple[str, ...]:
        """The choices there are now; empty where the value is free."""
        return self.choices() if callable(self.choices) else self.choices

    def parse(self, value: object) -> Any:
        """Convert form or command-line input to the field's type; raise InvalidConfig with the reason."""
        if self.kind is bool:
            parsed: Any = self._parse_switch(value)
        elif self.kind is str:
            parsed = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip()
        else:
            parsed = self._parse_number(value)
        self.check(parsed)
        return parsed

    def _parse_switch(self, value: object) -> bool:
        known = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if isinstance(value, bool) or str(value).strip().lower() in known:
            return value if isinstance(value, bool) else known[str(value).strip().lower()]
        raise InvalidConfig(f"{self.name} must be true or false, not {value!r}.")

    def _parse_number(self, value: object) -> int | float:
        wanted = "a whole number" if self.kind is int else "a number"
        if value is None or value == "":
            raise InvalidConfig(f"{self.name} is empty; it must be {wanted}.")
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise InvalidConfig(f"{self.name} must be {wanted}, not {value!r}.")
        try:
            return _whole(value) if self.kind is int else _real(value)
        except ValueError:
            raise InvalidConfig(f"{self.name} must be {wanted}, not {value!r:.80}.") from None
        except OverflowError:
            said = f"{self.name} must be {wanted} of at most 308 digits, not {value!r:.80}."
            raise InvalidConfig(said) from None

    def check(self, value: Any) -> None:
        """Raise InvalidConfig if value is outside the field's choices or range."""
        listed = self.listed
        if listed and value not in listed:
            raise InvalidConfig(f"{self.name} must be one of {', '.join(listed)}, not {value!r}.")
        too_low = self.minimum is not None and value < self.minimum
        too_high = self.maximum is not None and value > self.maximum
        if too_low or too_high:
            raise InvalidConfig(f"{self.name} must be {self.range_text()}, not {value!r:.80}.")

    def range_text(self) -> str:
        """The allowed range in words, for messages and help."""
        if self.minimum is not None and self.maximum is not None:
            return f"between {_figure(self.minimum)} and {_figure(self.maximum)}"
        return (
            f"at least {_figure(self.minimum)}"
            if self.minimum is not None
            else f"at most {_figure(self.maximum or 0)}"
        )


def _whole(value: int | float | str) -> int:
    """A whole number exactly: above 2**53 a float may be another one. Raises ValueError for what is none."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
    number = float(value)
    if not number.is_integer():
        raise ValueError(value)
    return int(number)


def _real(value: int | float | str) -> float:
    """A finite number. Raises ValueError for what is none, OverflowError for one of too many digits."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _figure(number: float) -> str:
    """A bound as people write it: no trailing zeros, thousands apart."""
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def option(default: Any, label: str, help: str | Callable[[], str], **about: Any) -> Any:
    """A field of a Config. help: a function where it names the kinds that a folder lists."""
    return field(default=default, metadata={"label": label, "help": help, **about})


def _described(spec: Field[Any]) -> Option:
    about = dict(spec.metadata)
    if callable(about["help"]):
        about["help"] = about["help"]()
    return Option(name=spec.name, kind=type(spec.default), default=spec.default, **about)


class Config:
    """Shared by all configurations: description, parsing and validation of their fields."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @classmethod
    def options(cls) -> list[Option]:
        """All fields, described, in the order they are shown."""
        return [_described(spec) for spec in fields(cls)]

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Build from form or command-line values.

        Raises InvalidConfig, naming the nearest option for a typo.
        """
        known = {option.name: option for option in cls.options()}
        for name in values:
            if name not in known:
                raise InvalidConfig(unknown_option(name, list(known)))
        return cls(**{name: known[name].parse(value) for name, value in values.items()})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build from what to_dict() gave; what is missing has its default.

        Raises InvalidConfig for an option that there is no more, or a value that is not allowed.
        """
        known = [spec.name for spec in fields(cls)]
        for name in stored:
            if name not in known:
                raise InvalidConfig(unknown_option(name, known))
        return cls(**stored)

    def __post_init__(self) -> None:
        for option in self.options():
            option.check(getattr(self, option.name))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NoOptions(Config):
    """For kinds of a thing that have no options beyond those that all share."""


def unknown_option(name: str, known: list[str]) -> str:
    """The sentence for an option that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Known options: {', '.join(known)}."
    return f"There is no option {name!r}.{hint}"
