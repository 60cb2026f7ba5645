"""Wrong usage as one JSON object where --json is given; its exit code stays 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import typer
from typer.core import TyperGroup

from app.cli.encoding import to_json

_AS_JSON = "app.cli.as_json"
# Typer brings a click of its own since 0.26, and names of it only the class that derives from this one.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)


class TellsUsageAsJson(TyperGroup):
    """The root of all commands, through which the parsing of each of them goes."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the root's own options; `args` are all that was given."""
        as_json = "--json" in args
        with _told(as_json):
            context = super().make_context(info_name, args, parent, **extra)
        context.meta[_AS_JSON] = as_json
        return context

    def invoke(self, ctx: Any) -> Any:
        """Read the options of the command that is named, and run it."""
        with _told(ctx.meta[_AS_JSON]):
            return super().invoke(ctx)


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        if not as_json:
            raise
        print(to_json({"error": error.format_message(), "kind": "UsageError"}))
        raise typer.Exit(error.exit_code) from None
