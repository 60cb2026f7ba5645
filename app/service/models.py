"""Base models: adding, verifying and removing them. Knows nothing of Gradio."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.service.jobs import Jobs
from app.shared.identity import manifest_of, remember
from core.base_model.difference import difference
from core.base_model.files import file_digests
from core.base_model.fingerprint import Manifest, manifest, stat_key
from core.base_model.templates import chosen_template
from core.errors import InvalidConfig, WrongBase
from storage.registry import Registry
from storage.tables import Base, Job


class Models:
    """The base models of one home folder."""

    def __init__(self, registry: Registry, jobs: Jobs) -> None:
        self._registry, self._jobs = registry, jobs

    def add(self, origin: str, name: str = "") -> Job:
        """Start adding a base model: the word starter, a folder, a .gguf file, a hub id or its address.

        Raises NameTaken, and InvalidInput for what is seen at once to be no base model.
        """
        return self._jobs.start("add_model", {"origin": origin, "name": name})

    def remove(self, name: str) -> None:
        """Forget a base model, and delete its files if they are ours. Raises InUse while adapters need it."""
        row = self._registry.find(Base, name)
        self._registry.bases.remove(row)
        if row.owned:
            shutil.rmtree(row.folder, ignore_errors=True)

    def verify(self, name: str, *, accept: bool = False) -> str:
        """Compute the fingerprint of a base afresh; return it. Other files than the weights may have changed
        if `accept`.

        Raises WrongBase, saying what differs, if it is no longer the recorded model.
        """
        row = self._registry.find(Base, name)
        found = self._require_weights(row)
        remember(self._registry, name, found)
        files = file_digests(Path(row.folder))
        if not accept:
            _require_files(row, files)
        row.files, row.stat_key = files, stat_key(Path(row.folder))
        self._registry.save(row)
        return found.fingerprint

    def _require_weights(self, row: Base) -> Manifest:
        """What the weights are now. Raises WrongBase if they are not the recorded ones."""
        if not Path(row.folder).is_dir():
            raise WrongBase(
                f"The files of {row.name} are gone from {row.folder}; restore them or add the model again."
            )
        found = manifest(Path(row.folder), finite=True)
        known = manifest_of(self._registry, row.fingerprint)
        if found.fingerprint != row.fingerprint:
            what = f" {difference(known, found).sentence}" if known else ""
            raise WrongBase(
                f"The files of {row.name} have changed: the fingerprint is now {found.fingerprint[:12]}…, "
                f"recorded is {row.fingerprint[:12]}….{what} Its adapters no longer fit; restore the files "
                "or add them as another model."
            )
        return found

    def choose_template(self, base: str, template: str) -> Base:
        """Choose a known chat template for a base that has none of its own.

        Raises InvalidConfig, NotFound.
        """
        row = self._registry.find(Base, base)
        if row.has_chat_template:
            raise InvalidConfig(f"{base} has a chat template of its own, which is always used.")
        chosen_template(template)
        row.template = template
        return self._registry.save(row)


def _require_files(row: Base, files: dict[str, str]) -> None:
    """Raise WrongBase if other files than the weights are not as they were when the model was added."""
    changed = sorted(one for one in {*files, *row.files} if files.get(one) != row.files.get(one))
    if row.files and changed:
        raise WrongBase(
            f"The weights of {row.name} are unchanged, but {', '.join(changed[:5])} in {row.folder} is "
            "not as it was when it was added. Put it back; if the change is wanted, accept it with "
            "models verify --accept."
        )
