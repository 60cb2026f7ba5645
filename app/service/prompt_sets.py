"""Saved lists of prompts, put to several speakers by a job, and the matrix of answers. Knows nothing of
Gradio.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.kinds.run_prompts import REFUSED
from app.service.chats import Chats
from app.service.datasets import Datasets
from app.service.jobs import Jobs
from app.service.judging import Judging, digest_of
from app.service.prompt_texts import Turns, asked_in, prompts_in, required, said
from app.shared.csv_lines import csv_line
from app.shared.speakers import PLAIN_BASE, speaker_told
from core.errors import InvalidInput
from core.generate.config import GenerationConfig
from storage.errors import InUse
from storage.registry import Registry
from storage.tables import Ballot, Base, Dataset, Job, PromptAnswer, PromptRun, PromptSet

CSV, MARKDOWN, JSONL = "csv", "md", "jsonl"
FORMS = {CSV: "text/csv", MARKDOWN: "text/markdown", JSONL: "application/jsonl"}
_JOB = "run_prompts"


@dataclass(frozen=True)
class Matrix:
    """What was answered to the prompts of a run."""

    run: PromptRun
    names: tuple[str, ...]
    """Of the columns."""
    cells: tuple[tuple[PromptAnswer | None, ...], ...]
    """[prompts][columns]; None for what is not answered yet."""
    job: Job | None
    """The last that worked on it."""

    @property
    def answered(self) -> int:
        """How many cells hold an answer or a refusal."""
        return sum(one is not None for row in self.cells for one in row)

    @property
    def refused(self) -> int:
        """How many could not be answered."""
        return sum(one is not None and one.finish == REFUSED for row in self.cells for one in row)

    @property
    def is_whole(self) -> bool:
        """Whether no cell is empty."""
        return self.answered == len(self.cells) * len(self.names)


class PromptSets:
    """The prompt sets of one home folder."""

    def __init__(
        self, registry: Registry, jobs: Jobs, datasets: Datasets, judging: Judging, chats: Chats
    ) -> None:
        self._registry, self._jobs, self._datasets = registry, jobs, datasets
        self._judging, self._chats, self._rows = judging, chats, registry.prompt_sets

    # The sets.

    def all(self) -> list[PromptSet]:
        """The newest first."""
        return self._registry.all(PromptSet)

    def find(self, name: str) -> PromptSet:
        """The set of this name. Raises NotFound."""
        return self._rows.find(name)

    def keep(self, name: str, prompts: Sequence[Turns], before: str = "") -> PromptSet:
        """Store a new set, or the one that was called `before` under its name and with its prompts of now.

        Raises InvalidInput, InvalidName, NameTaken, NotFound.
        """
        set_id = self.find(before).id if before else None
        return self._rows.keep(name, required(list(prompts)), set_id)

    def remove(self, name: str) -> None:
        """Delete a set; what was answered to its prompts stays. Raises NotFound."""
        self._rows.remove(self.find(name).id or 0)

    def in_file(self, path: Path, name: str = "") -> list[Turns]:
        """The prompts of a file of text, JSON lines or JSON. Raises InvalidInput, OSError."""
        try:
            return prompts_in(path.read_text(encoding="utf-8-sig"), name or path.name)
        except UnicodeDecodeError:
            raise InvalidInput(f"{name or path.name} is no text in UTF-8.") from None

    def in_data(self, dataset: str, count: int) -> list[Turns]:
        """The prompts of so many rows of a data set, spread evenly: of its validation rows if it has any,
        since no run has learnt those. Raises NotFound; InvalidInput where no row asks something.
        """
        opened = self._datasets.open(self._registry.find(Dataset, dataset))
        usable = opened.version.usable(opened.rows)
        kept_back = usable & opened.version.validation
        rows = np.flatnonzero(kept_back if kept_back.any() else usable)
        spread = np.linspace(0, len(rows) - 1, min(max(count, 1), len(rows))).astype(int)
        asked = []
        for at in rows[spread].tolist():
            try:
                asked.append(asked_in(f"Row {at + 1}", opened.rows[at].messages))
            except InvalidInput:  # such as plain text: then the rows that do ask are taken
                continue
        if not asked:
            raise InvalidInput(f"No row of {dataset} asks something: prompts need conversations.")
        return required(asked)

    # Their answers.

    def start(
        self, name: str, base: str, speakers: Sequence[str | None], config: GenerationConfig
    ) -> tuple[PromptRun, Job]:
        """Put a set to these speakers. Raises NotFound, WrongBase, InvalidInput."""
        found, model = self.find(name), self._registry.find(Base, base)
        asked = list(dict.fromkeys(speaker or "" for speaker in speakers))
        if not asked:
            raise InvalidInput("Choose who answers the prompts.")
        run = PromptRun(
            set_name=found.name,
            prompts=found.prompts,
            base_name=model.name,
            base_fingerprint=model.fingerprint,
            columns=self._judging.columns(model, asked),
            settings=config.to_dict(),
        )
        run = self._registry.save(run)
        return run, self._begin(run)

    def go_on(self, run_id: int) -> Job:
        """Answer what is still missing, and what was refused. Raises NotFound, InUse, InvalidInput."""
        matrix = self.matrix(run_id)
        if matrix.job is not None and matrix.job.active:
            raise InUse("These prompts are being answered already.")
        model = self._registry.find(Base, matrix.run.base_name)
        for column in matrix.run.columns:
            if digest_of(speaker_told(self._registry, column["speaker"], model)) != column["digest"]:
                raise InvalidInput(
                    f"{column['speaker']} has other weights by now than those that answered; put the prompts "
                    "to it anew."
                )
        return self._begin(matrix.run)

    def _begin(self, run: PromptRun) -> Job:
        model = self._registry.find(Base, run.base_name)
        speakers = [column["speaker"] for column in run.columns]
        told = [speaker_told(self._registry, speaker, model) for speaker in speakers]
        wanted = GenerationConfig.from_dict(run.settings)
        configs = [self._chats.asked_with(speaker, wanted).to_dict() for speaker in speakers]
        return self._jobs.start(_JOB, {"run": run.id, "told": told, "configs": configs})

    def runs(self) -> list[PromptRun]:
        """All, the newest first."""
        return self._registry.all(PromptRun)

    def remove_run(self, run_id: int) -> None:
        """Delete what was answered; votes on it stay. Raises InUse while it is being answered."""
        job = self.matrix(run_id).job
        if job is not None and job.active:
            raise InUse(f"{job.title} is under way; cancel it first.")
        self._rows.remove_run(run_id)

    def matrix(self, run_id: int) -> Matrix:
        """Raises NotFound."""
        run = self._registry.get(PromptRun, run_id)
        answers = {(one.prompt, one.speaker): one for one in self._rows.answers(run_id)}
        width = range(len(run.columns))
        cells = tuple(tuple(answers.get((at, column)) for column in width) for at in range(len(run.prompts)))
        names = tuple(column["speaker"] or PLAIN_BASE for column in run.columns)
        job = next(iter(self._registry.jobs.of(_JOB, {"run": run_id})), None)
        return Matrix(run, names, cells, job)

    # Judging them.

    def following(self, run_id: int) -> Ballot:
        """The next prompt whose answers are to be judged, blind. Raises NotFound, InvalidInput if there is
        none.
        """
        matrix = self.matrix(run_id)
        begun = {ballot.prompt: ballot for ballot in self._registry.ballots.of_run(run_id)}
        for at, cells in enumerate(matrix.cells):
            if at in begun and not begun[at].verdict:
                return begun[at]
            if at not in begun and (answers := _whole(cells)):
                return self._judging.of_answers(matrix.run, at, answers)
        raise InvalidInput("All prompts that everybody has answered are judged.")

    def left_to_judge(self, matrix: Matrix) -> int:
        """How many prompts everybody has answered and nobody judged."""
        judged = {one.prompt for one in self._registry.ballots.of_run(matrix.run.id or 0) if one.verdict}
        return sum(at not in judged and bool(_whole(row)) for at, row in enumerate(matrix.cells))

    # Taking them along.

    def lines(self, run_id: int, form: str) -> Iterator[str]:
        """A run's prompts and answers in one of FORMS. Raises NotFound, InvalidInput."""
        matrix = self.matrix(run_id)
        write = {CSV: _csv, MARKDOWN: _markdown, JSONL: _jsonl}.get(form)
        if write is None:
            raise InvalidInput(f"Answers are not written as {form!r}; there are {', '.join(FORMS)}.")
        return write(matrix)


def _whole(cells: Sequence[PromptAnswer | None]) -> list[PromptAnswer]:
    """The answers, if everybody has given one and there is something to compare."""
    found = [one for one in cells if one is not None and one.finish != REFUSED]
    return found if len(found) == len(cells) > 1 else []


def _csv(matrix: Matrix) -> Iterator[str]:
    yield csv_line(["prompt", *matrix.names])
    for turns, cells in zip(matrix.run.prompts, matrix.cells, strict=True):
        yield csv_line([said(turns), *(one.text if one else "" for one in cells)])


def _markdown(matrix: Matrix) -> Iterator[str]:
    yield f"# {matrix.run.set_name} on {matrix.run.base_name}\n"
    for number, (turns, cells) in enumerate(zip(matrix.run.prompts, matrix.cells, strict=True), 1):
        quoted = "\n".join(f"> {line}" for line in said(turns).splitlines())
        yield f"\n## Prompt {number}\n\n{quoted}\n"
        for name, one in zip(matrix.names, cells, strict=True):
            yield f"\n### {name}\n\n{one.text if one else '(not answered)'}\n"


def _jsonl(matrix: Matrix) -> Iterator[str]:
    for turns, cells in zip(matrix.run.prompts, matrix.cells, strict=True):
        answers: list[dict[str, Any]] = [
            {"speaker": column["speaker"], "digest": column["digest"]}
            | ({"text": one.text, "finish": one.finish} if one else {"text": None, "finish": None})
            for column, one in zip(matrix.run.columns, cells, strict=True)
        ]
        record = {"messages": turns, "base": matrix.run.base_name, "answers": answers}
        yield json.dumps(record, ensure_ascii=False) + "\n"
