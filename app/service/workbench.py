"""Workbench: the one object that the page and the command line call. Knows nothing of Gradio."""

from __future__ import annotations

import time

from app.service.adapters import Adapters
from app.service.baselines import Baselines
from app.service.blends import Blends
from app.service.chats import Chats
from app.service.classifiers import Classifiers
from app.service.conversations import Conversations
from app.service.costs import CostsOfLora
from app.service.datasets import Datasets
from app.service.exports import Exports
from app.service.jobs import Jobs
from app.service.judging import Judging
from app.service.loading import Loading
from app.service.models import Models
from app.service.presets import Presets
from app.service.prompt_sets import PromptSets
from app.service.runs import Runs
from app.service.serving import Serving
from app.service.training import Training
from app.service.usage import Usage
from app.service.vote_rows import VoteRows
from app.shared.bases import open_registry
from app.shared.engine_client import EngineClient
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from storage.tables import Base

_BUSY_SECONDS = 1.0
_IDLE_SECONDS = 2.0  # what waits for room on the disk is looked at so often


class Workbench:
    """Everything a person can do on one home folder, by subject."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = open_registry(settings)
        self.registry.blobs.sweep_staging()
        self.engine = EngineClient(settings)
        self.preferences = PreferenceStore(settings, lambda: sorted(self.registry.names(Base)))
        self.usage = Usage(self.registry, settings, self.preferences)
        self.usage.remove_leavings()
        self.jobs = Jobs(self.registry, settings, self.usage)
        self.models = Models(self.registry, self.jobs)
        self.datasets = Datasets(self.registry, settings, self.engine, self.jobs)
        self.presets = Presets(settings.presets)
        self.training = Training(
            self.registry, self.engine, self.usage, self.preferences, self.datasets.checked
        )
        self.runs = Runs(self.registry, self.engine)
        self.baselines = Baselines(self.registry, self.training, self.jobs)
        self.costs = CostsOfLora(self.registry, self.jobs, self.baselines)
        self.adapters = Adapters(self.registry, self.jobs)
        self.exports = Exports(self.registry, settings, self.jobs)
        self.chats = Chats(self.registry, self.engine, self.preferences)
        self.blends = Blends(self.adapters, self.jobs, self.chats)
        self.conversations = Conversations(self.registry, self.chats)
        self.judging = Judging(self.registry, self.chats)
        self.votes = VoteRows(self.registry)
        self.prompts = PromptSets(self.registry, self.jobs, self.datasets, self.judging, self.chats)
        self.serving = Serving(self.registry, self.engine, self.preferences)
        self.loading = Loading(self.registry, self.adapters, self.jobs)
        self.classifiers = Classifiers(self.registry, self.engine, self.preferences)
        # The registry's version at which nothing was under way (None while something is), and when it was.
        self._looked: tuple[int | None, float] = (-1, 0.0)

    def look_after(self) -> None:
        """Notice processes that died, let runs go on that can, and give a waiting run a new engine.

        While something is under way it looks once a second, else where something was written, or seldom.
        """
        version, now = self.registry.database.version(), time.monotonic()
        known, since = self._looked
        pause = _BUSY_SECONDS if known is None else _IDLE_SECONDS if version == known else 0.0
        if now - since < pause:
            return
        self.runs.look_after()
        self.jobs.notice_deaths()
        busy = self.registry.runs.active() or self.registry.jobs.active()
        self._looked = (None if busy else version, now)

    def notice_deaths(self) -> None:
        """Mark runs and jobs whose process is gone as interrupted, with the reason as far as it is known."""
        self.runs.notice_death()
        self.jobs.notice_deaths()

    def changes(self) -> str:
        """A short text that changes when anything a page shows may have changed."""
        return f"{self.registry.change_count()} {self.presets.changed} {self.preferences.changed}"

    def close(self) -> None:
        """Leave: the engine ends if it has nothing to do, and goes on if it has."""
        self.engine.detach()
        self.registry.database.close()
