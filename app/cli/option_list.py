"""The command line's list of what --set takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import typer

from app.cli.common import Home, Json
from app.cli.console import Console, guarded
from core.errors import InvalidConfig
from core.export.config import ExportConfig
from core.export.formats import EXPORT_FORMATS
from core.generate.config import GenerationConfig
from core.lora.config import LoraConfig
from core.options import Option
from core.train.config import TrainConfig
from core.train.training_options import heads

Told = tuple[Option, str]
"""An option, and where it counts; empty for everywhere."""


def _of_training() -> Iterator[Told]:
    yield from ((one, "") for one in (*LoraConfig.options(), *TrainConfig.options()))
    for chooser, _, head in heads():
        yield from ((one, f"{chooser}={head.name}") for one in head.options.options())


def _of_export() -> Iterator[Told]:
    yield from ((one, "") for one in ExportConfig.options())
    for name, kind in EXPORT_FORMATS.all().items():
        yield from ((one, f"format={name}") for one in kind.options.options())


def _of_chat() -> Iterator[Told]:
    yield from ((one, "") for one in GenerationConfig.options())


OF: Mapping[str, Callable[[], Iterator[Told]]] = {
    "train": _of_training,
    "export": _of_export,
    "chat": _of_chat,
}


@guarded
def options(
    of: Annotated[str, typer.Argument(help=f"Of which command: {' or '.join(OF)}.")] = "train",
    home: Home = None,
    json: Json = False,
) -> None:
    """List the options that --set takes, with what they may be and what they do."""
    if of not in OF:
        raise InvalidConfig(f"There are options of {' and '.join(OF)}, not of {of!r}.")
    rows = [
        {"option": one.name, "default": one.default, "values": values(one), "where": where, "help": one.help}
        for one, where in OF[of]()
    ]
    Console(json).records(rows)


def values(option: Option) -> str:
    """What it may be: its choices, or its range; nothing where anything goes."""
    free = option.minimum is None and option.maximum is None
    return ", ".join(option.listed) or ("" if free else option.range_text())
