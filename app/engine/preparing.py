"""From a run's row to what the core trains: the base loaded, the rows rendered, the checkpoint read."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from app.engine.checkpoints import load_checkpoint
from app.shared.bases import source_of
from app.shared.below import adapter_below
from app.shared.run_data import data_of
from app.shared.run_rows import held_for
from core.base_model.files import read_json
from core.base_model.load import ResidentBase
from core.base_model.source import BaseSource
from core.data.dataset_file import DatasetFile
from core.data.labelled_rows import LabelledRows, labels_in, targets_of
from core.data.labels import fitting, stored_labels
from core.data.plain_texts import closing_count
from core.data.rendering import Renderer
from core.data.tokens import Mask, TokenFile, TokenRows, tokenised
from core.data.version import Version
from core.engine import Engine
from core.errors import WrongBase
from core.lora.adapter import AdapterWeights
from core.lora.peft.files import load_adapter
from core.train.changes import Change
from core.train.objectives import OBJECTIVES
from core.train.run import RunRequest
from core.train.training_options import TrainingOptions
from storage.registry import Registry
from storage.tables import Base, Run

_WAIT_SECONDS = 0.1  # at a time for rows that are being rendered, so that chats go on meanwhile

Result = TypeVar("Result")


def base_source(registry: Registry, run: Run) -> BaseSource:
    """The base that a run is for. Raises WrongBase if it is another one by now."""
    base = registry.get(Base, run.base_id)
    if base.fingerprint != run.base_fingerprint:
        raise WrongBase(f"{base.name} is no longer the model this run was queued for; start the run again.")
    return source_of(registry, base, held_for(run))


def way_of(registry: Registry, run: Run) -> str:
    """On which way the base of a run is computed."""
    return registry.get(Base, run.base_id).way


def prepare(
    registry: Registry,
    engine: Engine,
    run: Run,
    options: TrainingOptions,
    cache: Path,
    say: Callable[[str], object],
    *,
    parts: int = 1,
) -> Generator[None, None, RunRequest]:
    """Load the base and render the rows, in a thread beside the chats. parts: over how many processes the
    base is laid out.

    Its value is the run's request, keyed by its id.
    """
    rows, version, special_tokens = data_of(registry, run)
    say(f"Loading {run.base_name} and reading {len(rows)} rows")
    base: ResidentBase = engine.load_base(replace(base_source(registry, run), parts=parts))
    resume = load_checkpoint(registry, run, engine, base) if run.id else None
    if resume is not None:
        say(f"Going on from the checkpoint at step {resume[1].position.steps}")
    length = min(options.train.max_length, base.context_length)
    renderer = Renderer(base.tokenizer, special_tokens=special_tokens, chat=version.chat)
    objective = OBJECTIVES.get(options.train.objective)
    if not objective.classifies:
        base.require_writing()
    keep = version.usable(rows)
    file = yield from _beside(
        lambda: tokenised(rows.all_stored(), version.rows, renderer, cache, sequences=objective.sequences)
    )
    found = (
        _labelled(base, rows, file, keep, version, options)
        if objective.classifies
        else TokenRows(
            file,
            length,
            keep=keep,
            validation=version.validation,
            over_length=options.train.over_length,
            each=objective.sequences.count,
        )
    )
    changes = [Change(one["step"], one["values"]) for one in run.changes if one.get("step") is not None]
    below = None if resume is not None else _below(registry, base, run, options)
    return RunRequest(run.id, found, options, resume, changes, below=below)


def _below(
    registry: Registry, base: ResidentBase, run: Run, options: TrainingOptions
) -> AdapterWeights | None:
    """What the run learns on top of. Raises NotFound, WrongBase, BlobDamaged, InvalidAdapter."""
    row = adapter_below(registry, registry.get(Base, run.base_id), options)
    if row is None:
        return None
    return load_adapter(registry.blobs.verify(row.digest), base.layer_shapes, base.head, base.wholes)


def _labelled(
    base: ResidentBase,
    rows: DatasetFile,
    file: TokenFile,
    keep: Mask,
    version: Version,
    options: TrainingOptions,
) -> LabelledRows:
    """The rows to classify, with their labels: those of the head that the base's files hold, where these are
    the same.
    """
    own: Any = options.objective
    found, said = labels_in(rows.all_stored(), keep, own.problem_type, own.label_separator)
    stored = stored_labels(read_json(base.folder / "config.json")) if base.classifier.stored else None
    goes_on = fitting(found, stored)
    labels = goes_on or found
    return LabelledRows(
        file,
        min(options.train.max_length, base.context_length),
        targets_of(labels, said, own.label_separator),
        labels,
        closing=closing_count(base.tokenizer),
        keep=keep,
        validation=version.validation,
        over_length=options.train.over_length,
        goes_on=goes_on is not None,
    )


def _beside(work: Callable[[], Result]) -> Generator[None, None, Result]:
    """Do `work` in a thread and pause again and again until it is done. The value is its result."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[Result] = pool.submit(work)
        while True:
            try:
                return future.result(timeout=_WAIT_SECONDS)
            except TimeoutError:
                if future.done():
                    raise  # the work's own
                yield None
