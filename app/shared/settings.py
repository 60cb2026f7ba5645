"""Where the workbench keeps its things and where it listens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from app.shared.private import private_folder

HOME_VARIABLE = "LORA_WORKBENCH_HOME"
DTYPE_VARIABLE = "LORA_WORKBENCH_DTYPE"


@dataclass(frozen=True)
class Settings:
    """The home folder and everything in it. Created with settings_for()."""

    home: Path

    @property
    def database(self) -> Path:
        """The SQLite registry."""
        return self.home / "registry.db"

    @property
    def blobs(self) -> Path:
        """Data sets and adapters, by digest."""
        return self.home / "blobs"

    @property
    def models(self) -> Path:
        """Base models that were downloaded or converted, by id."""
        return self.home / "models"

    @property
    def cache(self) -> Path:
        """Rendered rows and compiled kernels: what can be made again,
        and may be deleted while nothing runs.
        """
        return self.home / "cache"

    @property
    def exports(self) -> Path:
        """Where merged models go unless another folder is named."""
        return self.home / "exports"

    @property
    def presets(self) -> Path:
        """The user's own presets, one TOML file each."""
        return self.home / "presets"

    @property
    def settings_file(self) -> Path:
        """What the user has set for this home folder: see user_settings.py."""
        return self.home / "settings.toml"

    @property
    def quota_file(self) -> Path:
        """Where the quota stood before there was settings.toml."""
        return self.home / "quota"

    @property
    def staging(self) -> Path:
        """Downloads under way."""
        return self.home / "staging"

    @property
    def uploads(self) -> Path:
        """Files that the page received, private to this user."""
        return self.home / "uploads"

    @property
    def logs(self) -> Path:
        """What the engine and jobs print."""
        return self.home / "logs"

    @property
    def locks(self) -> Path:
        """Lock files: who holds one is alive."""
        return self.home / "locks"

    @property
    def app_lock(self) -> Path:
        """Held by the page for as long as it is open."""
        return self.locks / "app.lock"

    @property
    def engine_lock(self) -> Path:
        """Held by the engine for as long as it lives."""
        return self.locks / "engine.lock"

    @property
    def engine_log(self) -> Path:
        """What the engine prints."""
        return self.logs / "engine.log"

    @property
    def engine_file(self) -> Path:
        """Address and key of the engine's socket, readable by this user only."""
        return self.home / "engine.json"

    @property
    def app_file(self) -> Path:
        """Address of the running page."""
        return self.home / "app.json"

    @property
    def token_file(self) -> Path:
        """The token that opens the page, readable by this user only."""
        return self.home / "token"

    @property
    def api_key_file(self) -> Path:
        """The key of the HTTP API where none is set, readable by this user only."""
        return self.home / "api_key"

    @property
    def opening_file(self) -> Path:
        """A page that leads a browser to the address with the token, readable by this user only."""
        return self.home / "open.html"

    def job_lock(self, job_id: int) -> Path:
        """Held by a job's process for as long as it lives."""
        return self.locks / f"job-{job_id}.lock"

    def job_pid(self, job_id: int) -> Path:
        """The number of the process that holds a job's lock."""
        return self.locks / f"job-{job_id}.pid"


def settings_for(home: Path | None = None) -> Settings:
    """Settings for `home`, or $LORA_WORKBENCH_HOME, or the user's data folder;
    its folders are made, private.

    Raises NotYours if they belong to another user.
    """
    chosen = (
        home
        or os.environ.get(HOME_VARIABLE)
        or platformdirs.user_data_path("lora-workbench", appauthor=False)
    )
    settings = Settings(Path(chosen).expanduser().resolve())
    private_folder(settings.home)
    for folder in (
        settings.models,
        settings.exports,
        settings.staging,
        settings.uploads,
        settings.logs,
        settings.locks,
    ):
        private_folder(folder)
    return settings
