"""What is fine on this machine and what is not, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from app.service.exports import verify_export
from app.service.presets import Presets
from app.service.workbench import Workbench
from app.shared.engine_client import EngineClient
from app.shared.errors import USER_ERRORS
from app.shared.settings import Settings
from app.shared.user_settings import PreferenceStore
from core.base_model.quantisation import EXTRA, bitsandbytes_version
from storage.database import Database, wal_is_safe
from storage.errors import StorageError
from storage.tables import Base, Export

_TORCH_PROBE = """
import json, torch
found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
about = {"version": torch.__version__, "device": str(found) if found else "cpu", "cuda": torch.version.cuda}
if found and found.type == "cuda":
    properties = torch.cuda.get_device_properties(0)
    about |= {"name": properties.name, "memory": properties.total_memory}
    about["bf16"] = torch.cuda.is_bf16_supported()
print(json.dumps(about))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine, worth a note, or a fault."""

    what: str
    level: str
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Look at everything the workbench needs."""
    return [
        _python(),
        *_torch(),
        _bitsandbytes(),
        _memory(),
        _disk(settings),
        _sqlite(),
        _home(settings),
        *_settings(settings),
        *_presets(settings),
        _registry(settings),
        _engine(settings),
    ]


def _python() -> Finding:
    version = platform.python_version()
    packages = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "gradio", "safetensors")
    )
    return Finding("Python", "fine", f"{version} with {packages}")


def _torch() -> list[Finding]:
    """torch is asked in a process of its own: this one stays light."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TORCH_PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [
            Finding(
                "torch",
                "fault",
                last,
                "Reinstall torch in this environment: pip install --force-reinstall torch",
            )
        ]
    about = json.loads(done.stdout)
    torch = Finding("torch", "fine", about["version"])
    if about["device"] == "cpu":
        remedy = (
            "Training works on the CPU, slower. For an NVIDIA GPU install its driver and a CUDA "
            "build of torch."
        )
        return [torch, Finding("GPU", "note", "none found", remedy)]
    name = about.get("name", about["device"])
    memory = f", {about['memory'] / 2**30:.0f} GiB" if "memory" in about else ""
    if about.get("bf16") is False:
        return [
            torch,
            Finding(
                "GPU", "note", f"{name}{memory}, without bfloat16", "The base is computed in float32, slower."
            ),
        ]
    return [torch, Finding("GPU", "fine", f"{name}{memory}")]


def _bitsandbytes() -> Finding:
    """What holds a base in 4 or 8 bits."""
    if version := bitsandbytes_version():
        return Finding("bitsandbytes", "fine", f"{version}: bases can be held in 4 or 8 bits (quantisation)")
    return Finding("bitsandbytes", "note", "not installed: no bases in 4 or 8 bits", EXTRA)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < 2 * 2**30:
        return Finding("Memory", "note", found, "The starter model needs about 2 GiB; close other programs.")
    return Finding("Memory", "fine", found)


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.home).free
    found = f"{free / 1e9:.1f} GB free at {settings.home}"
    if free < 2e9:
        return Finding(
            "Disk", "note", found, "A small model and its export need about 1 GB; make room or use --home."
        )
    return Finding("Disk", "fine", found)


def _sqlite() -> Finding:
    mode = "WAL" if wal_is_safe() else "DELETE, since this version lacks the fix for WAL resets"
    return Finding("SQLite", "fine", f"{sqlite3.sqlite_version}, journal mode {mode}")


def _home(settings: Settings) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=settings.home):
            pass
    except OSError as error:
        return Finding(
            "Home folder", "fault", f"{settings.home}: {error.strerror}", "Make it writable or use --home."
        )
    if os.name != "nt" and settings.home.stat().st_mode & 0o077:
        return Finding(
            "Home folder", "note", f"{settings.home} can be read by others", f"chmod 700 {settings.home}"
        )
    return Finding("Home folder", "fine", str(settings.home))


def _settings(settings: Settings) -> list[Finding]:
    """What is wrong in the settings, for which each command that needs one refuses."""
    fault = PreferenceStore(settings).fault
    remedy = "Mend it in an editor, or move the file away; the defaults count then."
    return [Finding("Settings", "fault", fault, remedy)] if fault else []


def _presets(settings: Settings) -> list[Finding]:
    broken = [one.fault for one in Presets(settings.presets).all() if one.fault]
    remedy = "Mend them in an editor, or remove them."
    return [Finding("Presets", "note", " ".join(broken), remedy)] if broken else []


def _registry(settings: Settings) -> Finding:
    try:
        database = Database(settings.database)
    except StorageError as error:
        return Finding(
            "Registry", "fault", str(error), "Update the workbench, or restore a backup from the home folder."
        )
    with database.reading() as session:
        answer = session.connection().exec_driver_sql("PRAGMA integrity_check").scalar()
    database.close()
    if answer != "ok":
        return Finding("Registry", "fault", str(answer)[:200], f"Restore a backup of {settings.database}.")
    return Finding("Registry", "fine", "integrity check passed")


def _engine(settings: Settings) -> Finding:
    client = EngineClient(settings)
    status = client.status()
    if status is not None:
        doing = f"training run {', '.join(map(str, status['runs']))}" if status["runs"] else "idle"
        if status["notice"]:
            return Finding(
                "Engine",
                "note",
                f"running on {status['device']}, {doing}. {status['notice']}",
                f"Answers are right but slower; see {settings.engine_log}.",
            )
        return Finding("Engine", "fine", f"running on {status['device']}, {doing}")
    if client.alive:
        return Finding(
            "Engine",
            "fault",
            "holds its lock but does not answer",
            f"See {settings.engine_log}; end the process.",
        )
    return Finding("Engine", "fine", "not running; it starts when it is needed")


def examine_deeply(workbench: Workbench) -> list[Finding]:
    """Read every stored file, base model and export, and compare it with what it was."""
    registry = workbench.registry
    blobs, bases, exports = sorted(registry.referenced()), registry.all(Base), registry.all(Export)
    damaged = [why for digest in blobs if (why := _refusal(registry.blobs.verify, digest))]
    changed = [why for base in bases if (why := _refusal(workbench.models.verify, base.name))]
    unsound = _unsound(base.folder for base in bases if Path(base.folder).is_dir())
    spoilt = [why for one in exports if (why := _refusal(verify_export, one))]
    return [
        _verdict(
            "Stored files", f"{len(blobs)} are what their digests say", damaged, "Restore them from a backup."
        ),
        _verdict(
            "Base models", f"{len(bases)} are what their fingerprints say", changed, "Restore their files."
        ),
        _verdict(
            "Their architectures",
            f"{len(bases)} hold what their configurations describe",
            unsound,
            "Get their files again, and train again what was trained on them.",
        ),
        _verdict(
            "Exports",
            f"{len(exports)} are as they were written",
            spoilt,
            "Export them again, or forget them.",
        ),
    ]


def _unsound(folders: Iterable[str]) -> list[str]:
    """Why base models that were added earlier would be refused today. Asked in a process that has torch."""
    asked = list(folders)
    if not asked:
        return []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "core.base_model.soundness"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [f"They could not be looked at: {last}"]
    return list(json.loads(done.stdout.splitlines()[-1]).values())


def _refusal(check: Callable[[Any], object], what: Any) -> str:
    try:
        check(what)
    except USER_ERRORS as error:
        return str(error)
    return ""


def _verdict(what: str, found: str, faults: list[str], remedy: str) -> Finding:
    return Finding(what, "fault", " ".join(faults), remedy) if faults else Finding(what, "fine", found)
