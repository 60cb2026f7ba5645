"""What people set for a home folder, in a plain TOML file of it: looks, limits, where the page listens.

What the command line names wins over the environment (LORA_WORKBENCH_PORT and so on), that over
settings.toml, and that over the defaults.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import tomlkit
from filelock import FileLock
from tomlkit import TOMLDocument

from app.shared.join_address import is_everywhere, parsed_address
from app.shared.private import write_private
from app.shared.settings import Settings
from core.base_model.quantisation import NONE, QUANTISATIONS
from core.errors import InvalidConfig
from core.offline import OFFLINE_VARIABLE
from core.options import Config, Option, option, unknown_option

COMMAND_LINE, DEFAULT = "command line", "default"
_PREFIX = "LORA_WORKBENCH_"
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_KEY = re.compile(r"[!-~]{8,200}")
KEYS = ("api_key", "join_key")
"""Settings that let others in."""
_HEADER = "# Settings of this home folder. What each may be: lora-workbench settings\n\n"
_NEXT_START = " Counts from the page's next start."


@dataclass(frozen=True)
class Preferences(Config):
    """All of them, with their defaults."""

    theme: str = option(
        "system",
        "Theme",
        "The page's colours; system: as the system has them.",
        choices=("system", "light", "dark"),
    )
    density: str = option(
        "auto",
        "Density",
        "How close things stand on the page; auto: compact in a window below 1,500 px.",
        choices=("auto", "compact", "comfortable"),
    )
    notifications: bool = option(
        True, "Notifications", "Tell of a run or a job that ended while the page was out of sight."
    )
    default_base: str = option(
        "", "Default base model", "The base that Train, Playground and the commands start from; empty: none."
    )
    quantisation: str = option(
        NONE,
        "Base held in",
        "How the base is held in memory for answers, on the page and for other programs: none, as its files "
        "have it; nf4 in 4 bits; int8 in 8; fp8 for speed, on NVIDIA GPUs from Ada on. While a "
        "run trains on it, it answers as it is held for the run. nf4 and int8 need bitsandbytes.",
        choices=QUANTISATIONS,
    )
    spread: int = option(
        1,
        "Runs on several cards",
        "Cards over which runs of a sweep, and others that wait together, are spread: each card has its own "
        "base and group. A run that several cards train (devices) is none of these.",
        minimum=1,
        maximum=64,
    )
    offline: bool = option(
        False, "Offline", "Fetch nothing from the network: no models, no data sets, no starter model."
    )
    quota: float = option(
        0.0,
        "Quota",
        "What the home folder may hold before nothing new is begun; 0: no limit.",
        unit="GB",
        minimum=0,
    )
    on_close: str = option(
        "ask",
        "When the window is closed",
        "What becomes of runs under way when the window of its own is "
        "closed; ask: asked in the terminal, and without one they go on in the background.",
        choices=("ask", "continue", "pause", "stop"),
    )
    host: str = option(
        "127.0.0.1", "Host", "Address that the page listens on; 0.0.0.0 for the whole network." + _NEXT_START
    )
    port: int = option(7860, "Port", "Port that the page listens on." + _NEXT_START, minimum=1, maximum=65535)
    api_key: str = option(
        "",
        "API key",
        "What other programs send as a Bearer token to /v1 and /api, 8 characters or more; empty: one that "
        "was made at the first start." + _NEXT_START,
    )

    join_address: str = option(
        "127.0.0.1:29500",
        "Other machines join at",
        "ADDRESS:PORT of this machine at which others join a run that asks for several (machines). Who joins "
        "reaches further ports of it: only on a network that you trust, since rows and gradients travel "
        "neither encrypted nor signed.",
    )
    join_key: str = option(
        "",
        "Key to join",
        "What both machines must have to train together, 8 characters or more; empty: no other one joins.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_host(self.host):
            raise InvalidConfig(
                "host must be an address or a name alone, such as 127.0.0.1, 0.0.0.0 or localhost, not "
                f"{self.host!r}."
            )
        for name in KEYS:
            if (key := getattr(self, name)) and not _KEY.fullmatch(key):
                raise InvalidConfig(
                    f"{name} must be 8 to 200 letters, digits or signs of ASCII without spaces, or empty."
                )
        if is_everywhere(parsed_address(self.join_address)[0]):
            raise InvalidConfig(
                "join_address must be one address of this machine, which the others reach, such as "
                f"10.0.0.1:29500, not {self.join_address!r}."
            )


_NOT_SHOWN = "set, not shown"


@dataclass(frozen=True)
class Preference:
    """One of them, as it is now: for a form, or a list."""

    option: Option
    """Its name, label, help, kind, unit, range and choices."""
    value: Any
    source: str
    """Where the value comes from: "command line", an environment variable, the file, or "default"."""
    choices: tuple[str, ...] = ()
    """What may be chosen; empty where the value is free. The bases that are here, for the default base."""

    @property
    def name(self) -> str:
        """As in the file."""
        return self.option.name

    @property
    def told(self) -> Any:
        """The value for a list, where a key that is set is not shown: lists are pasted into reports."""
        return _NOT_SHOWN if self.name in KEYS and self.value else self.value

    @property
    def default(self) -> Any:
        """What it is where nobody has set it."""
        return self.option.default

    @property
    def overruled(self) -> bool:
        """Whether it is given from outside: as long as that is so, changing the file changes nothing."""
        return self.source == COMMAND_LINE or self.source.startswith("$")

    def to_dict(self) -> dict[str, Any]:
        """For JSON and tables."""
        return {
            "setting": self.name,
            "value": self.told,
            "source": self.source,
            "default": self.default,
            "allowed": self.allowed,
            "help": self.option.help,
        }

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        kinds: dict[type, str] = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
        }
        bounded = self.option.minimum is not None or self.option.maximum is not None
        unit = f" {self.option.unit}" if self.option.unit else ""
        kind = ", ".join(one or "(empty)" for one in self.choices) or kinds[self.option.kind]
        return kind + (f" {self.option.range_text()}" if bounded else "") + unit


class PreferenceStore:
    """The settings of one home folder: read anew each time, since people edit the file, too."""

    def __init__(self, settings: Settings, bases: Callable[[], Sequence[str]] | None = None) -> None:
        """bases: the names of the base models that are here, where somebody knows them."""
        self._settings, self._bases = settings, bases
        self._given: dict[str, Any] = {}

    # Reading.

    def values(self) -> Preferences:
        """What counts now. Raises InvalidConfig, naming the file, the key, the value and what is allowed."""
        return Preferences(**{one.name: one.value for one in self.all()})

    def all(self) -> list[Preference]:
        """Each with its value and its source, in the order they are shown. Raises InvalidConfig."""
        stored = self._stored()
        found = []
        for one in Preferences.options():
            value, source = stored.get(one.name, (one.default, DEFAULT))
            if one.name in self._given:
                value, source = self._given[one.name], COMMAND_LINE
            elif variable := next((name for name in variables(one.name) if os.environ.get(name)), None):
                source = f"${variable}"
                value = _checked({one.name: os.environ[variable]}, source)[one.name]
            found.append(Preference(one, value, source, self._choices(one, value)))
        return found

    def find(self, name: str) -> Preference:
        """One of them. Raises InvalidConfig, with the nearest name for a typo."""
        _require_known([name])
        return next(one for one in self.all() if one.name == name)

    @property
    def fault(self) -> str:
        """What is wrong in the file or the environment; empty where nothing is."""
        try:
            self.values()
        except InvalidConfig as error:
            return str(error)
        return ""

    @property
    def changed(self) -> int:
        """When the file was last changed, in nanoseconds."""
        file = self._settings.settings_file
        return file.stat().st_mtime_ns if file.exists() else 0

    def _stored(self) -> dict[str, tuple[Any, str]]:
        """What stands in the home folder, each with the name of its file."""
        file, earlier = self._settings.settings_file, self._settings.quota_file
        stored = {name: (value, file.name) for name, value in self._read().items()}
        if "quota" not in stored and earlier.is_file():
            stored["quota"] = _earlier_quota(earlier), earlier.name
        return stored

    def _read(self) -> dict[str, Any]:
        file = self._settings.settings_file
        return _checked(tomllib.loads(self._text()), str(file))

    def _text(self) -> str:
        """What the file holds; nothing where there is none. Raises InvalidConfig if it is not TOML."""
        file = self._settings.settings_file
        try:
            text = file.read_text(encoding="utf-8")
            tomllib.loads(text)
        except FileNotFoundError:
            return ""
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{file} is not valid TOML: {error}") from None
        return text

    def _choices(self, one: Option, value: Any) -> tuple[str, ...]:
        """With the bases that are here; one that is chosen and gone stays in sight."""
        if one.name != "default_base" or self._bases is None:
            return one.listed
        return tuple(dict.fromkeys(("", *self._bases(), value)))

    # Changing.

    def given(self, values: Mapping[str, Any]) -> None:
        """What the command line that started this process named; it wins over everything else here."""
        self._given = _checked(values)

    def change(self, values: Mapping[str, object]) -> None:
        """Set some in the file; comments in it stay, and so does what else is wrong there, see `fault`.

        Raises InvalidConfig for a value that is not allowed, or where the file is not TOML.
        """
        wanted = _checked(values)
        self._require_base(wanted.get("default_base"))
        with self._writing() as document:
            document.update(wanted)
        self._after(wanted)

    def reset(self, names: Sequence[str]) -> None:
        """Take some out of the file, so that their default counts; also what does not belong there. What else
        is wrong in it stays, see `fault`.

        Raises InvalidConfig for one that is neither known nor in the file, or where that is not TOML.
        """
        with self._writing() as document:
            _require_known([name for name in names if name not in document])
            for name in set(names) & set(document):
                document.remove(name)
        self._after(names)

    def _after(self, changed: Iterable[str]) -> None:
        """The file that held the quota before has nothing more to say."""
        if "quota" in changed:
            self._settings.quota_file.unlink(missing_ok=True)

    def _require_base(self, name: str | None) -> None:
        """Raise InvalidConfig for a base that is not here, as far as that is known."""
        here = list(self._bases()) if self._bases is not None and name else [name]
        if name not in here:
            there = ", ".join(filter(None, here)) or "none yet"
            raise InvalidConfig(f"There is no base model called {name!r}; there are: {there}.")

    @contextmanager
    def _writing(self) -> Iterator[TOMLDocument]:
        """What is in the file, to be changed; then it is written and read back. Who changes it has checked
        what they put in: of two lines that are wrong, each could otherwise be mended only by hand.
        """
        file = self._settings.settings_file
        with FileLock(self._settings.locks / "settings.lock"):
            document = tomlkit.parse(self._text() or _HEADER)
            yield document
            write_private(file.resolve(), tomlkit.dumps(document))
            if tomllib.loads(self._text()) != document.unwrap():
                raise InvalidConfig(
                    f"{file} does not hold what was written into it; look at it and try again."
                )


def variables(name: str) -> tuple[str, ...]:
    """The environment variables that set it, the first that is there wins."""
    return (_PREFIX + name.upper(), *((OFFLINE_VARIABLE,) if name == "offline" else ()))


def heed_offline(settings: Settings) -> None:
    """Have this process, and the libraries it uses, fetch nothing if that is switched off.

    Raises InvalidConfig.
    """
    if PreferenceStore(settings).values().offline:
        os.environ[OFFLINE_VARIABLE] = "1"


def _checked(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values as their kinds. Raises InvalidConfig; `where` they stand is said first."""
    _require_known(list(content), where)
    try:
        parsed = Preferences.parse(content)
    except InvalidConfig as error:
        raise InvalidConfig(f"{where}: {error}" if where else str(error)) from None
    return {name: getattr(parsed, name) for name in content}


def _require_known(names: Sequence[str], where: str = "") -> None:
    known = [one.name for one in Preferences.options()]
    for name in names:
        if name not in known:
            said = unknown_option(name, known).replace("option", "setting", 1).replace("options", "settings")
            raise InvalidConfig(f"{where}: {said}" if where else said)


def _earlier_quota(file: Path) -> float:
    """Until there was settings.toml the quota had a file of its own."""
    try:
        return float(file.read_text(encoding="utf-8"))
    except ValueError:
        raise InvalidConfig(f"{file} holds no number of GB; set it anew with space --quota.") from None


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(text))
    return True
