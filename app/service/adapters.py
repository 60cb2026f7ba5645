"""Adapters: importing, looking inside, verifying, resizing, combining. Knows nothing of Gradio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from app.service.jobs import Jobs
from app.shared.bases import base_for
from app.shared.identity import require_fit
from app.shared.text import require_text
from core.config import CombineConfig, require_weights
from core.errors import InvalidConfig
from storage.registry import Registry
from storage.tables import Adapter, Base, Job


class Adapters:
    """The adapters of one home folder."""

    def __init__(self, registry: Registry, jobs: Jobs) -> None:
        self._registry, self._jobs = registry, jobs

    def import_files(
        self,
        origin: Path,
        name: str = "",
        base: str | None = None,
        *,
        alpha: float | None = None,
        shown: str = "",
    ) -> Job:
        """Start importing an adapter: a folder, a zip or a .safetensors file, called `shown` if not by its
        path.

        alpha serves files that do not say theirs. Raises NameTaken, NotFound.
        """
        require_text(str(origin), name)
        self._registry.require_free(Adapter, name or Path(shown or origin.resolve().name).stem)
        if base:
            self._registry.find(Base, base)
        arguments = {"folder": str(origin), "name": name, "base": base, "alpha": alpha, "shown": shown}
        return self._jobs.start("import_adapter", f"Import {shown or origin.name}", arguments)

    def look_at(self, origin: Path, *, alpha: float | None = None, shown: str = "") -> Job:
        """Start finding out what a folder, zip or file holds and which base here it fits, without importing
        it.
        """
        require_text(str(origin))
        arguments = {"folder": str(origin), "look": True, "alpha": alpha, "shown": shown}
        return self._jobs.start("import_adapter", f"Look at {shown or origin.name}", arguments)

    def inspect(self, name: str, other: str = "") -> Job:
        """Start measuring what is inside an adapter; with `other`, how far the two share their directions.

        Raises NotFound.
        """
        for one in filter(None, (name, other)):
            self._registry.find(Adapter, one)
        title = f"Compare {name} with {other}" if other else f"Look inside {name}"
        return self._jobs.start("inspect_adapter", title, {"adapter": name, "other": other})

    def verify(self, name: str = "", *, deep: bool = False) -> Job:
        """Start verifying an adapter, or all; with `deep` the bases are hashed anew, touched or not.

        Raises NotFound.
        """
        if name:
            self._registry.find(Adapter, name)
        title = f"Verify {name}" if name else "Verify all adapters"
        return self._jobs.start("verify_adapter", title, {"adapter": name, "deep": deep})

    def resize(self, adapter: str, rank: int, name: str = "", *, evaluate: bool = False) -> Job:
        """Start cutting an adapter to a lower rank; without a `name` it is only shown what that would lose.

        Raises NameTaken, NotFound, InvalidConfig.
        """
        row = self._registry.find(Adapter, adapter)
        if not 1 <= rank < row.rank:
            raise InvalidConfig(
                f"{adapter} has rank {row.rank}; resize it to a rank from 1 to {row.rank - 1}."
            )
        if name:
            self._registry.require_free(Adapter, name)
        arguments = {"adapter": adapter, "rank": rank, "name": name, "evaluate": evaluate}
        return self._jobs.start(
            "resize_adapter", f"{'Resize' if name else 'Try'} {adapter} at rank {rank}", arguments
        )

    def combine(self, parts: Mapping[str, float], options: Mapping[str, object], name: str = "") -> Job:
        """Start combining adapters by name and weight; without a `name` it is only shown what would become of
        them.

        Raises NameTaken, NotFound, InvalidConfig, and WrongBase if they are of several bases.
        """
        config = CombineConfig.parse(options)
        rows = [self._registry.find(Adapter, one) for one in parts]
        if len(rows) < 2:
            raise InvalidConfig("Give at least two adapters to combine, each with a weight.")
        require_weights(parts.values())
        if not any(parts.values()):
            raise InvalidConfig("All weights are 0, so nothing would be left; give one that is not.")
        base = base_for(self._registry, rows[0])
        for row in rows:
            require_fit(self._registry, row, base)
        if name:
            self._registry.require_free(Adapter, name)
        listed = [{"name": one, "weight": weight} for one, weight in parts.items()]
        arguments = {"parts": listed, "config": config.to_dict(), "name": name}
        return self._jobs.start(
            "combine_adapters", f"{'Combine' if name else 'Try'} {', '.join(parts)}"[:120], arguments
        )
