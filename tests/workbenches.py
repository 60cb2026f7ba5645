"""Homes with a tiny base model and a small data set; engines are ended after each test."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from filelock import FileLock

from app.jobs.process import run_job
from app.service.doctor import Finding
from app.service.workbench import Workbench
from app.shared.processes import is_held
from app.shared.settings import Settings, settings_for
from core.train.training_options import TrainingOptions
from storage.tables import Adapter, Job
from tests.zygote import SMALL_PRODUCT, Forks, Zygote, forking

if TYPE_CHECKING:
    from app.engine.session import RunSession
    from core.base_model.load import ResidentBase

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 4)},
        ]
    }
    for i in range(24)
]
QUICK = {
    "max_steps": 6,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "rank": 2,
    "learning_rate": 0.01,
}


def write_rows(path: Path) -> Path:
    """A small data set of conversations."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


_STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_refusing_template(model: Path, folder: Path, template: str = _STRICT) -> Path:
    """A copy of a model with another chat template: by default one that refuses system turns; with an empty
    one, none.
    """
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def end_engine(settings: Settings) -> None:
    """Kill the engine of a home, if there is one. It may end by itself at any moment, and takes its file
    along; one that was killed has left it, and its number may be another's.
    """
    if not is_held(settings.engine_lock):
        return
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        process = psutil.Process(json.loads(settings.engine_file.read_text())["pid"])
        process.kill()
        psutil.wait_procs([process], timeout=10)


@pytest.fixture(scope="session")
def zygote(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Forks engines and jobs that need not import torch anew: one for all workers of pytest-xdist."""
    if address := getattr(request.config, "workerinput", {}).get("zygote"):
        shared = Forks(address)
        shared.wait_until_ready()
        yield shared
        return
    found = Zygote()
    found.wait_until_ready()
    yield found
    found.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A fresh home folder."""
    return settings_for(tmp_path / "home")


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A home with the base "llama" and the data set "data", made once and copied for each test."""
    settings = settings_for(tmp_path_factory.mktemp("furnished") / "home")
    found = Workbench(settings)
    do_job(found, "add_model", {"origin": str(tiny_llama), "name": "llama"})
    found.datasets.add(write_rows(settings.home / "rows.jsonl"), "data")
    found.close()
    return settings.home


@pytest.fixture
def workbench(
    settings: Settings,
    furnished: Path,
    float32_engine: None,
    zygote: Forks,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workbench]:
    """A workbench with the base "llama" and the data set "data".

    Its engines and jobs are forked; those of other processes are started as users' are.
    """
    from core.base_model.soundness import refusals

    for starter, forked in forking(zygote).items():
        monkeypatch.setattr(starter, forked)
    monkeypatch.setattr("core.train.hardware._SIZE", SMALL_PRODUCT)
    for waits in ("app.service.jobs", "app.service.runs"):
        monkeypatch.setattr(f"{waits}._POLL_SECONDS", 0.05)
    # As the doctor has it asked in processes of its own, which have tests of their own.
    monkeypatch.setattr("app.service.doctor._torch", lambda: [Finding("torch", "fine", "there")])
    monkeypatch.setattr("app.service.doctor._unsound", lambda folders: list(refusals(folders).values()))
    shutil.copytree(furnished, settings.home, dirs_exist_ok=True)
    found = Workbench(settings)
    yield found
    found.close()
    end_engine(settings)


def do_job(workbench, kind: str, arguments: dict[str, object]) -> Job:
    """Do a job in this process, which has torch loaded already;
    the job's own process has tests of its own.
    """
    job = workbench.registry.save(Job(kind=kind, title=kind, arguments=arguments))
    with FileLock(workbench.settings.job_lock(job.id or 0)):  # a server takes one that nobody does for lost
        run_job(workbench.settings, job.id or 0)
    return workbench.registry.get(Job, job.id or 0)


@pytest.fixture
def jobs_here(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are done in this process, in float32, when they are started."""
    import torch

    monkeypatch.setattr("core.base_model.load.best_dtype", lambda device: torch.float32)
    monkeypatch.setattr(
        workbench.jobs, "start", lambda kind, arguments: do_job(workbench, kind, dict(arguments))
    )


@pytest.fixture
def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are checked in this process too; the check's own process has tests of its own."""
    from core.export import check_process

    monkeypatch.setattr(check_process, "ask_process", check_process.check)


@pytest.fixture(scope="session")
def loaded_llama(tiny_llama: Path) -> ResidentBase:
    """The tiny Llama in memory, to be looked at only."""
    from tests.core.helpers import load

    return load(tiny_llama)


@pytest.fixture
def trained(workbench: Workbench, loaded_llama: ResidentBase) -> Callable[..., Adapter]:
    """A function that puts an adapter with random numbers for "llama" into the registry: lora or miss."""
    from core.lora.peft.files import save_adapter
    from storage.tables import Base
    from tests.core.helpers import as_shards, random_adapter

    def make(name: str, kind: str = "lora") -> Adapter:
        base = workbench.registry.find(Base, "llama")
        model = replace(loaded_llama, fingerprint=base.fingerprint)
        plain = random_adapter(model, rank=2, seed=len(name))
        weights = plain if kind == "lora" else as_shards(plain)
        with workbench.registry.blobs.staging() as staging:
            (staging / "adapter").mkdir()
            save_adapter(staging / "adapter", weights)
            digest = workbench.registry.blobs.put(staging / "adapter")
        return workbench.registry.add(
            Adapter(
                name=name,
                base_name="llama",
                base_fingerprint=base.fingerprint,
                source="trained",
                rank=2,
                alpha=8,
                target_modules="all",
                parameters=1,
                digest=digest,
                size_bytes=1,
            )
        )

    return make


def copy_adapter(workbench: Workbench, name: str, folder: Path) -> None:
    """The files of a registered adapter, as PEFT loads them."""
    row = workbench.registry.find(Adapter, name)
    shutil.copytree(workbench.registry.blobs.verify(row.digest), folder)


_PORTS = itertools.count(random.SystemRandom().randrange(20_000))


def free_port() -> int:
    """A port of this machine that nothing listens on, and that nobody is given until it is used: systems give
    those above 32,767 to whoever asks for any, which every connection does. No process gets one twice.
    """
    while True:
        port = 12_000 + next(_PORTS) % 20_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether something answers on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> object:
    """Wait until `condition` holds, and return what it gave."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


STEADY = {
    **QUICK,
    "max_steps": 30,
    "save_steps": 10,
    "save_minutes": 0,
    "save_best": False,
    "eval_steps": 10,
    "dropout": 0.1,
}


@pytest.fixture
def session(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, RunSession]]:
    """A function that begins a run in this process, where everything can be seen and faults can be put into
    it.
    """
    import torch

    from app.engine.session import RunSession
    from core.engine import Engine

    monkeypatch.setattr(workbench.engine, "wake", lambda: None)
    engine = Engine(dtype=torch.float32)

    def begin(name: str, **options: object) -> tuple[int, RunSession]:
        run = workbench.training.start("llama", "data", TrainingOptions.parse({**STEADY, **options}), name)
        return run.id or 0, begin.next()  # type: ignore[attr-defined]

    begin.engine = engine  # type: ignore[attr-defined]
    begin.next = lambda: RunSession(
        workbench.registry, engine, workbench.registry.queue.next(), workbench.settings
    )  # type: ignore[attr-defined]
    return begin


def finish(session: RunSession) -> None:
    """Train to the end."""
    while session.advance():
        pass
