"""Adapters: importing, looking inside, verifying, resizing, converting, combining. Each starts a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from app.service.jobs import Jobs
from core.errors import InvalidAdapter
from core.lora.kinds import AdapterKind
from core.lora.peft.config import CONFIG_NAME, kind_of, raw_config
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Job


class Adapters:
    """What can be done with the adapters of one home folder."""

    def __init__(self, registry: Registry, jobs: Jobs) -> None:
        self._registry, self._jobs = registry, jobs

    def kind(self, row: Adapter) -> AdapterKind | None:
        """What kind of adapter it is, as its files say; None if they cannot be read, of which verify() says
        why.
        """
        try:
            return kind_of(raw_config(self._registry.blobs.path(row.digest) / CONFIG_NAME))
        except (InvalidAdapter, NotFound, OSError):
            return None

    def can_be_lora(self, row: Adapter) -> bool:
        """Whether it is no LoRA, but one computes the same."""
        kind = self.kind(row)
        return kind is not None and kind.answers_as_lora and not kind.plain_lora

    def import_files(
        self,
        origin: Path,
        name: str = "",
        base: str | None = None,
        *,
        alpha: float | None = None,
        which: str = "",
        shown: str = "",
    ) -> Job:
        """Start importing an adapter: a folder, a zip or a .safetensors file, called `shown` if not by its
        path.

        alpha serves files that do not say theirs, which those that hold several. Raises NameTaken, NotFound.
        """
        arguments = {
            "folder": str(origin),
            "name": name,
            "base": base,
            "alpha": alpha,
            "which": which,
            "shown": shown,
        }
        return self._jobs.start("import_adapter", arguments)

    def look_at(self, origin: Path, *, alpha: float | None = None, which: str = "", shown: str = "") -> Job:
        """Start finding out what a folder, zip or file holds and which base here it fits, without importing
        it.
        """
        arguments = {"folder": str(origin), "look": True, "alpha": alpha, "which": which, "shown": shown}
        return self._jobs.start("import_adapter", arguments)

    def inspect(self, name: str, other: str = "") -> Job:
        """Start measuring what is inside an adapter; with `other`, how far the two share their directions.

        Raises NotFound.
        """
        return self._jobs.start("inspect_adapter", {"adapter": name, "other": other})

    def verify(self, name: str = "", *, deep: bool = False) -> Job:
        """Start verifying an adapter, or all; with `deep` the bases are hashed anew, touched or not.

        Raises NotFound.
        """
        return self._jobs.start("verify_adapter", {"adapter": name, "deep": deep})

    def resize(self, adapter: str, rank: int, name: str = "", *, evaluate: bool = False) -> Job:
        """Start cutting an adapter to a lower rank; without a `name` it is only shown what that would lose.

        Raises NameTaken, NotFound, InvalidConfig.
        """
        arguments = {"adapter": adapter, "rank": rank, "name": name, "evaluate": evaluate}
        return self._jobs.start("resize_adapter", arguments)

    def convert(self, adapter: str, name: str) -> Job:
        """Start writing an adapter of another kind as a LoRA, kept under `name`.

        Raises NameTaken, NotFound, InvalidConfig.
        """
        return self._jobs.start("convert_adapter", {"adapter": adapter, "name": name})

    def combine(
        self,
        parts: Mapping[str, float],
        options: Mapping[str, object],
        name: str = "",
        *,
        evaluate: bool = False,
    ) -> Job:
        """Start combining adapters by name and weight; without a `name` it is only shown what would become of
        them. With `evaluate` the validation loss of each is measured beside the result's.

        Raises NameTaken, NotFound, InvalidConfig, and WrongBase if they are of several bases.
        """
        listed = [{"name": one, "weight": weight} for one, weight in parts.items()]
        arguments = {"parts": listed, "config": dict(options), "name": name, "evaluate": evaluate}
        return self._jobs.start("combine_adapters", arguments)
