"""What all groups of commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.console import ProgressLine
from app.service.workbench import Workbench
from app.shared.settings import settings_for
from core.errors import InvalidConfig, InvalidInput
from core.generate.config import GenerationConfig
from core.options import Config
from storage.tables import Job

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; default $LORA_WORKBENCH_HOME or the user's data folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One option, such as rank=8; repeatable. See: options."),
]
Sampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One option of the sampling, such as min_p=0.05; repeatable. See: options chat.",
    ),
]
BaseName = Annotated[
    str, typer.Option("--base", help="Name of the base model; default: default_base, as set.")
]
Certificate = Annotated[
    Path | None, typer.Option("--certfile", help="Certificate (PEM) for https.", exists=True, dir_okay=False)
]
CertificateKey = Annotated[
    Path | None, typer.Option("--keyfile", help="The certificate's key (PEM).", exists=True, dir_okay=False)
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")]


def listed(config: type[Config], option: str) -> str:
    """The choices of an option, for its help. Plug-ins that cannot be loaded are told there, not raised:
    the command itself refuses them in one sentence.
    """
    try:
        found = next(one for one in config.options() if one.name == option)
    except InvalidConfig as error:
        return str(error)
    return f"One of {', '.join(found.listed)}."


def parsed_settings(given: list[str] | None) -> dict[str, str]:
    """The options that --set names, as text."""
    found = {}
    for setting in given or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting}: expected KEY=VALUE, such as --set rank=8.")
        found[key.strip()] = value.strip()
    return found


def sampling(given: list[str] | None, greedy: bool, **said: Any) -> GenerationConfig:
    """How answers are sampled: as --set says, and as the command's own switches do. Raises BadParameter where
    both say something of the same, InvalidConfig.
    """
    said |= {"temperature": 0} if greedy else {}
    found = parsed_settings(given)
    if both := [name for name in found if name in said]:
        switch = "greedy" if both[0] == "temperature" else both[0].replace("_", "-")
        raise typer.BadParameter(f"--set {both[0]}: --{switch} says it; give one of the two.")
    return GenerationConfig.parse(said | found)


def open_workbench(home: Path | None) -> Workbench:
    """The workbench of a home folder, after a look at what has died since."""
    workbench = Workbench(settings_for(home))
    workbench.notice_deaths()
    return workbench


def base_or_default(workbench: Workbench, name: str) -> str:
    """The base that was named, or else the one that is set. Raises InvalidConfig if neither is."""
    found = name or workbench.preferences.values().default_base
    if not found:
        raise InvalidConfig(
            "Name the base model with --base, or set one for always: settings set default_base NAME"
        )
    return found


def finished(workbench: Workbench, job: Job, progress: ProgressLine) -> dict[str, Any]:
    """A job's result. Interrupting the command ends the job."""
    try:
        return workbench.jobs.wait(job, progress.job)
    except KeyboardInterrupt:
        workbench.jobs.cancel(job)
        raise


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, whole or not at all. Raises InvalidInput if it is there."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise InvalidInput(f"{path} exists already; choose a new file.") from None
    try:
        with file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise
