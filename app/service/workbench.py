"""Workbench: the one object that the page and the command line call. Knows nothing of Gradio."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from app.service.data_import import ImportRequest
from app.service.datasets import Datasets
from app.service.jobs import Jobs
from app.service.presets import Presets
from app.service.runs import Runs
from app.service.training import Training
from app.shared.bases import base_for, open_registry
from app.shared.engine_client import EngineClient
from app.shared.errors import EngineUnavailable
from app.shared.identity import manifest_of, remember, require_fit
from app.shared.settings import Settings
from core.base_model.difference import difference
from core.base_model.files import file_digests
from core.base_model.fingerprint import manifest, stat_key
from core.base_model.templates import chosen_template
from core.combine.config import CombineConfig, require_weights
from core.errors import InvalidConfig, InvalidInput, WrongBase
from core.events import TokenDone
from core.export.config import ExportConfig
from core.generate.config import GenerationConfig
from storage.blobs import content_digest
from storage.tables import QUEUED, UNDER_WAY, Adapter, Base, Chat, Dataset, Job, Run

MAX_SIDE_BY_SIDE = 5  # the plain base and four adapters
_POLL_SECONDS = 0.2
Messages = Sequence[Mapping[str, str]]


class Workbench:
    """Everything a person can do, on one home folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = open_registry(settings)
        self.registry.blobs.sweep_staging()
        self.engine = EngineClient(settings)
        self.datasets = Datasets(self.registry, settings, self.engine)
        self.training = Training(self.registry, settings, self.engine)
        self.runs = Runs(self.registry, self.engine)
        self.jobs = Jobs(self.registry, settings)
        self.presets = Presets(settings.presets)

    # Base models.

    def add_model(self, origin: str, name: str = "") -> Job:
        """Start adding a base model: the word starter, a folder, a .gguf file or a hub id.

        Raises NameTaken.
        """
        require_text(origin, name)
        if name:
            self.registry.require_free(Base, name)
        return self.jobs.start("add_model", f"Add {origin}", {"origin": origin, "name": name})

    def remove_model(self, name: str) -> None:
        """Forget a base model, and delete its files if they are ours. Raises InUse while adapters need it."""
        row = self.registry.find(Base, name)
        self.registry.bases.remove(row)
        if row.owned:
            shutil.rmtree(row.folder, ignore_errors=True)

    def verify_model(self, name: str, *, accept: bool = False) -> str:
        """Compute the fingerprint of a base afresh; return it. Other files than the weights may have changed
        if `accept`.

        Raises WrongBase, saying what differs, if it is no longer the recorded model.
        """
        row = self.registry.find(Base, name)
        if not Path(row.folder).is_dir():
            raise WrongBase(
                f"The files of {name} are gone from {row.folder}; restore them or add the model again."
            )
        found, known = manifest(Path(row.folder)), manifest_of(self.registry, row.fingerprint)
        if found.fingerprint != row.fingerprint:
            what = f" {difference(known, found).sentence}" if known else ""
            raise WrongBase(
                f"The files of {name} have changed: the fingerprint is now {found.fingerprint[:12]}…, "
                "recorded is "
                f"{row.fingerprint[:12]}….{what} Its adapters no longer fit; restore the files or add "
                "them as another model."
            )
        remember(self.registry, name, found)
        files = file_digests(Path(row.folder))
        changed = (
            sorted(one for one in {*files, *row.files} if files.get(one) != row.files.get(one))
            if row.files
            else []
        )
        if changed and not accept:
            raise WrongBase(
                f"The weights of {name} are unchanged, but {', '.join(changed[:5])} in {row.folder} is "
                "not as it was when it was "
                "added. Put it back; if the change is wanted, accept it with models verify --accept."
            )
        row.files = files
        row.stat_key = stat_key(Path(row.folder))
        self.registry.save(row)
        return found.fingerprint

    # Data sets: see also `datasets`.

    def import_data(self, request: ImportRequest) -> Job:
        """Start importing a data set. Raises NameTaken."""
        require_text(*request.files, *request.validation, request.name)
        self.registry.require_free(Dataset, request.name or request.default_name)
        return self.jobs.start("import_data", f"Import {Path(request.files[0]).name}", request.to_dict())

    def check_data(self, dataset: str, base: str, max_length: int) -> Job:
        """Start checking a data set with a base's tokenizer. Raises NotFound."""
        row, model = self.registry.find(Dataset, dataset), self.registry.find(Base, base)
        return self.jobs.start(
            "check_data",
            f"Check {dataset} with {base}",
            self.datasets.check_arguments(row, model, max_length),
        )

    def check_rows(self, folder: Path, base: str, max_length: int, out: Path) -> Job:
        """Start checking rows that are in no registry: `folder` as the import leaves it.

        The result goes into `out`.
        """
        self.registry.find(Base, base)
        arguments = {
            "rows": str(folder),
            "version": "",
            "digest": content_digest(folder),
            "base": base,
            "max_length": max_length,
            "out": str(out),
        }
        return self.jobs.start("check_data", f"Check a file with {base}", arguments)

    def choose_template(self, base: str, template: str) -> Base:
        """Choose a known chat template for a base that has none of its own.

        Raises InvalidConfig, NotFound.
        """
        row = self.registry.find(Base, base)
        if row.has_chat_template:
            raise InvalidConfig(f"{base} has a chat template of its own, which is always used.")
        chosen_template(template)
        row.template = template
        return self.registry.save(row)

    # Runs: see also `training` and `runs`.

    def wait_run(self, run_id: int, watch: Callable[[Run], None] = lambda run: None) -> Run:
        """Follow one run to its end."""
        return self.wait_runs([run_id], lambda runs: watch(runs[0]))[0]

    def wait_runs(
        self, run_ids: Sequence[int], watch: Callable[[list[Run]], None] = lambda runs: None
    ) -> list[Run]:
        """Follow runs to their end, calling `watch` now and then; also when their process dies."""
        while True:
            self.look_after()
            runs = [self.registry.get(Run, run_id) for run_id in run_ids]
            watch(runs)
            if not any(run.active for run in runs):
                return runs
            time.sleep(_POLL_SECONDS)

    # Adapters.

    def import_adapter(
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
        self.registry.require_free(Adapter, name or Path(shown or origin.resolve().name).stem)
        if base:
            self.registry.find(Base, base)
        arguments = {"folder": str(origin), "name": name, "base": base, "alpha": alpha, "shown": shown}
        return self.jobs.start("import_adapter", f"Import {shown or origin.name}", arguments)

    def look_at_adapter(self, origin: Path, *, alpha: float | None = None, shown: str = "") -> Job:
        """Start finding out what a folder, zip or file holds and which base here it fits, without importing
        it.
        """
        require_text(str(origin))
        arguments = {"folder": str(origin), "look": True, "alpha": alpha, "shown": shown}
        return self.jobs.start("import_adapter", f"Look at {shown or origin.name}", arguments)

    def inspect_adapter(self, name: str, other: str = "") -> Job:
        """Start measuring what is inside an adapter; with `other`, how far the two share their directions.

        Raises NotFound.
        """
        for one in filter(None, (name, other)):
            self.registry.find(Adapter, one)
        title = f"Compare {name} with {other}" if other else f"Look inside {name}"
        return self.jobs.start("inspect_adapter", title, {"adapter": name, "other": other})

    def verify_adapters(self, name: str = "", *, deep: bool = False) -> Job:
        """Start verifying an adapter, or all; with `deep` the bases are hashed anew, touched or not.

        Raises NotFound.
        """
        if name:
            self.registry.find(Adapter, name)
        title = f"Verify {name}" if name else "Verify all adapters"
        return self.jobs.start("verify_adapter", title, {"adapter": name, "deep": deep})

    def resize_adapter(self, adapter: str, rank: int, name: str = "", *, evaluate: bool = False) -> Job:
        """Start cutting an adapter to a lower rank; without a `name` it is only shown what that would lose.

        Raises NameTaken, NotFound, InvalidConfig.
        """
        row = self.registry.find(Adapter, adapter)
        if not 1 <= rank < row.rank:
            raise InvalidConfig(
                f"{adapter} has rank {row.rank}; resize it to a rank from 1 to {row.rank - 1}."
            )
        if name:
            self.registry.require_free(Adapter, name)
        arguments = {"adapter": adapter, "rank": rank, "name": name, "evaluate": evaluate}
        return self.jobs.start(
            "resize_adapter", f"{'Resize' if name else 'Try'} {adapter} at rank {rank}", arguments
        )

    def combine_adapters(
        self, parts: Mapping[str, float], options: Mapping[str, object], name: str = ""
    ) -> Job:
        """Start combining adapters by name and weight; without a `name` it is only shown what would become of
        them.

        Raises NameTaken, NotFound, InvalidConfig, and WrongBase if they are of several bases.
        """
        config = CombineConfig.parse(options)
        rows = [self.registry.find(Adapter, one) for one in parts]
        if len(rows) < 2:
            raise InvalidConfig("Give at least two adapters to combine, each with a weight.")
        require_weights(parts.values())
        if not any(parts.values()):
            raise InvalidConfig("All weights are 0, so nothing would be left; give one that is not.")
        base = base_for(self.registry, rows[0])
        for row in rows:
            require_fit(self.registry, row, base)
        if name:
            self.registry.require_free(Adapter, name)
        listed = [{"name": one, "weight": weight} for one, weight in parts.items()]
        arguments = {"parts": listed, "config": config.to_dict(), "name": name}
        return self.jobs.start(
            "combine_adapters", f"{'Combine' if name else 'Try'} {', '.join(parts)}"[:120], arguments
        )

    def export(
        self, adapter: str, folder: Path | None = None, options: Mapping[str, object] | None = None
    ) -> Job:
        """Start writing an adapter, or its base with it merged in, as a folder; by default under exports in
        the home folder.

        Raises NotFound, WrongBase, InvalidConfig.
        """
        config = ExportConfig.parse(options or {})
        row = self.registry.find(Adapter, adapter)
        base_for(self.registry, row)
        require_text(str(folder or ""))
        target = (
            folder
            or self.settings.exports / f"adapter-{row.id}-{time.strftime('%Y%m%d-%H%M%S')}-{config.format}"
        )
        arguments = {"adapter": adapter, "folder": str(target), "config": config.to_dict()}
        return self.jobs.start("export_adapter", f"Export {adapter} as {config.format}", arguments)

    # Chat.

    def answer(
        self,
        base: str,
        speakers: Sequence[str | None],
        conversations: Sequence[Messages],
        config: GenerationConfig,
        name: str = "",
    ) -> Iterator[TokenDone]:
        """Stream one answer for each speaker (an adapter's name, or None for the plain base), all in one
        batch.

        conversations[i] is what speaker i sees. With a `name`, cancel_answer can end single rows.
        Raises WrongBase, NotFound, EngineUnavailable.
        """
        if not 1 <= len(speakers) <= MAX_SIDE_BY_SIDE:
            raise InvalidConfig(f"At most {MAX_SIDE_BY_SIDE - 1} adapters can answer beside the plain base.")
        require_text(*(message["content"] for messages in conversations for message in messages))
        model = self.registry.find(Base, base)
        for speaker in filter(None, speakers):
            require_fit(self.registry, self.registry.find(Adapter, speaker), model)
        rows = [
            {
                "adapter": speaker,
                "messages": [dict(message) for message in messages],
                "config": config.to_dict(),
            }
            for speaker, messages in zip(speakers, conversations, strict=True)
        ]
        return self.engine.answer(base, rows, name)

    def cancel_answer(self, name: str, row: int) -> None:
        """End the answer of one speaker, by number, while the others go on. Raises EngineUnavailable."""
        self.engine.cancel(name, row)

    def chat_warnings(self, base: str, adapters: Sequence[str]) -> list[str]:
        """What will go wrong when these adapters answer on `base`. Raises WrongBase, NotFound."""
        model = self.registry.find(Base, base)
        return [
            line
            for name in adapters
            for line in require_fit(self.registry, self.registry.find(Adapter, name), model)
        ]

    def has_chatted(self) -> bool:
        """Whether anybody has talked to a model yet."""
        return bool(self.registry.all(Chat, limit=1))

    # Looking after what other processes do.

    def look_after(self) -> None:
        """Notice processes that died, let runs go on that can, and give a waiting run a new engine.

        Runs fail if no engine can be started.
        """
        self.notice_deaths()
        self.runs.resume_what_can()
        if any(run.state == QUEUED for run in self.registry.runs.active()) and not self.engine.alive:
            try:
                self.engine.ensure()
            except EngineUnavailable as error:
                self.registry.runs.fail_queued(str(error))

    def changes(self) -> str:
        """A short text that changes when anything a page shows may have changed."""
        return f"{self.registry.change_count()} {self.presets.changed}"

    def notice_deaths(self) -> None:
        """Mark runs and jobs whose process is gone as interrupted, with the reason as far as it is known."""
        active = self.registry.runs.active()
        if any(run.state in UNDER_WAY for run in active) and not self.engine.alive:
            self.registry.runs.interrupt_all(self.engine.death_reason())
        self.jobs.notice_deaths()

    def close(self) -> None:
        """Leave: the engine ends if it has nothing to do, and goes on if it has."""
        self.engine.detach()
        self.registry.database.close()


def require_text(*texts: str) -> None:
    """Raise InvalidInput for text that is no Unicode, as a terminal or a file name can give."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput(
                f"{text[:80]!r} holds bytes that are not UTF-8 text; rename or retype it."
            ) from None
