"""The job that puts the prompts of a set to several speakers; what is answered is kept at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep
from app.shared.bases import require_writing_base, told_to_answer
from app.shared.engine_client import EngineClient
from app.shared.user_settings import PreferenceStore
from core.errors import InvalidInput, WorkbenchError, WrongBase
from core.events import Progress
from storage.tables import Base, PromptAnswer, PromptRun

REFUSED = "refused"
_ROWS_AT_ONCE = 16
_LOOK_SECONDS = 2.0
Cell = tuple[int, int]


class RunPrompts(JobKind):
    """Arguments: run (the number of its row), set (its name), told (what the engine is told of each
    column).
    """

    name, label, order = "run_prompts", "Answer a prompt set", 95
    help = "Put all prompts of a set to the base and adapters; what is answered is kept at once."
    place = "Playground, Prompt sets, or prompts run"
    keeps = (PromptAnswer,)
    left = "What was answered before is kept"

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Answer {arguments['set']}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound, WrongBase, InvalidModel."""
        run = context.registry.get(PromptRun, int(arguments["run"]))
        require_writing_base(_base_of(context, run))
        given = {name: list(arguments[name]) for name in ("told", "configs")}
        return {"run": run.id, "set": run.set_name, **given}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: run, answers (how many there are now), refused (how many prompts could not be answered)."""
        run = context.registry.get(PromptRun, int(arguments["run"]))
        there = context.registry.prompt_sets.answers(run.id or 0)
        done = {(one.prompt, one.speaker) for one in there if one.finish != REFUSED}
        cells = [(prompt, column) for prompt in range(len(run.prompts)) for column in range(len(run.columns))]
        missing = [cell for cell in cells if cell not in done]
        asking = _Asking(context, run, arguments["told"], arguments["configs"])
        for start in range(0, len(missing), _ROWS_AT_ONCE):
            kept = len(done) + start
            context.report(Progress(f"Answer {kept + 1:,} of {len(cells):,}", kept / len(cells)))
            asking.answer(missing[start : start + _ROWS_AT_ONCE])
        found = context.registry.prompt_sets.answers(run.id or 0)
        refused = sum(one.finish == REFUSED for one in found)
        return {"run": run.id, "answers": len(found) - refused, "refused": refused}

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return (NextStep("Read the answers", "playground", {"prompts": str(result["run"])}),)


KIND = RunPrompts()


def _base_of(context: JobContext, run: PromptRun) -> Base:
    """Raises NotFound; WrongBase for one that has other weights by now."""
    base = context.registry.find(Base, run.base_name)
    if base.fingerprint != run.base_fingerprint:
        raise WrongBase(f"{base.name} is no longer the model that these prompts were put to.")
    return base


class _Asking:
    """Questions to the engine, and where their answers are kept."""

    def __init__(
        self,
        context: JobContext,
        run: PromptRun,
        told: Sequence[Mapping[str, Any] | None],
        configs: Sequence[Mapping[str, Any]],
    ) -> None:
        """told, configs: who each column is, and how it is asked: an adapter as it was trained."""
        self._registry, self._run, self._told, self._configs = context.registry, run, told, configs
        self._report = context.report
        base, preferences = _base_of(context, run), PreferenceStore(context.settings)
        self._engine, self._base = EngineClient(context.settings), told_to_answer(base, preferences)

    def answer(self, cells: Sequence[Cell]) -> None:
        """All in one request; where it is refused each by itself, to know which prompt is at fault."""
        try:
            self._ask_when_free(cells)
        except InvalidInput as error:
            if len(cells) == 1:
                self._keep(cells[0], str(error), REFUSED)
                return
            for cell in cells:
                self.answer([cell])

    def _ask_when_free(self, cells: Sequence[Cell]) -> None:
        """Wait as long as another base is in use: one is resident at a time."""
        while True:
            try:
                return self._ask(cells)
            except WorkbenchError as error:
                if type(error) is not WorkbenchError:  # any other refusal has a class of its own
                    raise
                self._report(Progress(f"Waiting: {error}"))
            time.sleep(_LOOK_SECONDS)

    def _ask(self, cells: Sequence[Cell]) -> None:
        rows = [
            {
                "adapter": self._told[column],
                "messages": self._run.prompts[prompt],
                "config": self._configs[column],
            }
            for prompt, column in cells
        ]
        texts = [""] * len(cells)
        for token in self._engine.answer(self._base, rows):
            texts[token.row] += token.text
            if token.finished:
                self._keep(cells[token.row], texts[token.row], token.reason)

    def _keep(self, cell: Cell, text: str, finish: str) -> None:
        prompt, speaker = cell
        answer = PromptAnswer(
            run_id=self._run.id or 0, prompt=prompt, speaker=speaker, text=text, finish=finish
        )
        self._registry.prompt_sets.answer([answer])
