"""The command line. Each command calls the same Workbench as the page.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_data import data
from app.cli_options import Home, Json, Yes, open_workbench
from app.console import Console, ProgressLine, guarded
from app.service import Workbench
from app.settings import HOME_VARIABLE, settings_for
from core.config import GenerationConfig
from core.sweep import parse_grid
from storage.tables import Adapter, Base, Job, Run

app = typer.Typer(
    name="lora-workbench", no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False,
    help="Train, keep, compare and merge LoRA adapters on your own machine. Without a command it opens the page.",
)  # fmt: skip
models = typer.Typer(no_args_is_help=True, help="Base models: add, list, show, verify, remove.")
runs = typer.Typer(no_args_is_help=True, help="Training runs: list, show, pause, save, resume, stop.")
adapters = typer.Typer(no_args_is_help=True, help="Adapters: list, show, import, export, remove.")
for name, group in (("models", models), ("data", data), ("runs", runs), ("adapters", adapters)):
    app.add_typer(group, name=name)

RunId = Annotated[int, typer.Argument(help="Number of the run.", min=1, max=2**63 - 1)]


def _finished(workbench: Workbench, job: Job, progress: ProgressLine) -> dict[str, Any]:
    """A job's result. Interrupting the command ends the job."""
    try:
        return workbench.wait_job(job, progress.job)
    except KeyboardInterrupt:
        workbench.cancel_job(job)
        raise


@app.callback(invoke_without_command=True)
@guarded
def open_app(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond this machine a token is asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser window.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Open the page."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter(f"put --json behind the command: {context.invoked_subcommand} … --json")
        if home is not None:
            os.environ[HOME_VARIABLE] = str(home)  # for the command that follows
        return
    from app.server import serve

    serve(settings_for(home), host=host, port=port, open_browser=not no_browser, console=Console(json))


@app.command()
@guarded
def quickstart(home: Home = None, json: Json = False) -> None:
    """Starter model, sample data, a short training, base beside adapter, checked merged export: all in one go."""
    from app.quickstart import Watchers, run_quickstart

    console = Console(json)
    with console.progress() as progress:
        watchers = Watchers(progress.say, progress.job, progress.run_watcher(workbench := open_workbench(home)))
        result = run_quickstart(workbench, watchers)
    console.result(result.to_dict(), [
        ("Loss, first and last step", f"{result.first_loss:.3f} → {result.last_loss:.3f}"),
        ("Prompt", result.prompt),
        (f"Base ({result.base})", result.base_answer),
        (f"Adapter ({result.adapter})", result.adapter_answer),
        ("Merged model", result.export_folder),
        ("Check", result.check),
        ("Largest logit difference", f"{result.max_logit_difference:.4f}"),
        ("Took", f"{result.seconds:.0f} s"),
    ])  # fmt: skip
    if not result.check_passed:
        raise typer.Exit(1)


# Base models.


@models.command("add")
@guarded
def models_add(
    origin: Annotated[str, typer.Argument(help="starter, a folder of safetensors, a .gguf file, or a hub id (owner/name).")],
    name: Annotated[str, typer.Option(help="Name to show; default from the source.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Add a base model."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = _finished(workbench, workbench.add_model(origin, name), progress)
    rows = [("Added", result["name"]), ("Fingerprint", result["fingerprint"])]
    console.result(result, rows + ([("The same model as", result["same_as"])] if result["same_as"] else []))


@models.command("list")
@guarded
def models_list(home: Home = None, json: Json = False) -> None:
    """List the base models."""

    Console(json).table(
        open_workbench(home).registry.all(Base), ["name", "architecture", "parameters", "dtype", "size_bytes", "source"]
    )


@models.command("show")
@guarded
def models_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show everything known of a base model."""

    Console(json).row(open_workbench(home).registry.find(Base, name), leave_out=("layer_shapes",))


@models.command("verify")
@guarded
def models_verify(name: str, home: Home = None, json: Json = False) -> None:
    """Compute the fingerprint afresh and compare it with the recorded one."""
    found = open_workbench(home).verify_model(name)
    Console(json).result({"name": name, "fingerprint": found, "unchanged": True}, [("Unchanged", found)])


@models.command("remove")
@guarded
def models_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Forget a base model; files that the workbench downloaded or converted are deleted."""
    console = Console(json)
    console.confirm(f"Remove the base model {name}?", yes)
    open_workbench(home).remove_model(name)
    console.result({"removed": name}, [("Removed", name)])


# Training.


@app.command()
@guarded
def train(
    base: Annotated[str, typer.Option(help="Name of the base model.")],
    dataset: Annotated[str, typer.Option("--data", help="Name of the data set.")],
    name: Annotated[str, typer.Option(help="Name of the adapter; default from the data set.")] = "",
    config: Annotated[Path | None, typer.Option(help="TOML file of training options.", exists=True, dir_okay=False)] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One option, such as rank=8; repeatable.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="KEY=A,B,…", help="Several values of one option, trained at once; repeatable."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on in the engine.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Train an adapter, or a sweep of them at once. Interrupting this command leaves runs going; end one with: runs stop ID."""
    console, workbench = Console(json), open_workbench(home)
    options = _train_options(config, option or [])
    if sweep:
        runs = workbench.sweep(base, dataset, options, parse_grid(sweep), name)
    else:
        runs = [workbench.train(base, dataset, options, name)]
    if not detach:
        try:
            with console.progress() as progress:
                one = progress.run_watcher(workbench)
                watch = progress.sweep_watcher(workbench) if sweep else lambda runs: one(runs[0])
                runs = workbench.wait_runs([run.id or 0 for run in runs], watch)
        except KeyboardInterrupt:
            for run in runs:
                console.say(f"Run {run.id} ({run.name}) goes on in the engine. Stop it with: lora-workbench runs stop {run.id}")
            raise typer.Exit(130) from None
    if sweep:
        _show_sweep(console, workbench, runs)
    else:
        _show_run(console, workbench, runs[0], json)
    if any(run.state in ("failed", "interrupted") for run in runs):
        raise typer.Exit(1)


def _show_sweep(console: Console, workbench: Workbench, runs: list[Run]) -> None:
    """All runs of a sweep beside each other, the best first."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        adapter = workbench.registry.get(Adapter, run.adapter_id) if run.adapter_id is not None else None
        rows.append({
            "id": run.id, "name": run.name, "state": run.state, "train_loss": adapter.train_loss if adapter else None,
            "validation_loss": adapter.validation_loss if adapter else None, "reason": run.reason,
        })  # fmt: skip
    console.records(sorted(rows, key=_loss))


def _loss(row: Mapping[str, Any]) -> float:
    """What a run of a sweep is judged by: the validation loss, or the last training loss where there is none."""
    return next((row[key] for key in ("validation_loss", "train_loss") if row[key] is not None), math.inf)


def _show_run(console: Console, workbench: Workbench, run: Run, json: bool) -> None:
    """How a run stands, with its adapter's name and losses if it has one."""
    extra: dict[str, Any] = {}
    if run.adapter_id is not None:
        adapter = workbench.registry.get(Adapter, run.adapter_id)
        extra = {"adapter": adapter.name, "train_loss": adapter.train_loss, "validation_loss": adapter.validation_loss}
    console.row(run, leave_out=() if json else ("config", "details", "base_id", "dataset_id", "adapter_id"), extra=extra)


def _train_options(config: Path | None, settings: list[str]) -> dict[str, Any]:
    """Options from the file, then from --set. A file may group them under [lora] and [train]."""
    options: dict[str, Any] = {}
    if config:
        try:
            content = tomllib.loads(config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{config} is not valid TOML: {error}") from None
        for key, value in content.items():
            if isinstance(value, dict) and key not in ("lora", "train"):
                raise typer.BadParameter(f"{config} has a table [{key}]; only [lora] and [train] are known.")
            options.update(value if isinstance(value, dict) else {key: value})
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {setting}: expected KEY=VALUE, such as --set rank=8.")
        options[key.strip()] = value.strip()
    return options


@runs.command("list")
@guarded
def runs_list(home: Home = None, json: Json = False) -> None:
    """List the runs."""

    Console(json).table(open_workbench(home).registry.all(Run), ["id", "name", "state", "base_name", "dataset_name", "reason"])


@runs.command("show")
@guarded
def runs_show(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Show a run: its configuration, its log and its last measurement."""

    registry = open_workbench(home).registry
    row = registry.get(Run, run_id)
    last = registry.last_point(run_id)
    extra = {"last": last.model_dump() if last else None, "log": [note.text for note in registry.notes(run_id)]}
    Console(json).row(row, extra=extra)


@runs.command("stop")
@guarded
def runs_stop(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Stop a run and keep what it has learnt as an adapter."""
    workbench, console = open_workbench(home), Console(json)
    if not workbench.runs.stop(run_id).active:
        console.say(f"Run {run_id} is not under way any more.")
    _show_run(console, workbench, workbench.wait_run(run_id, lambda run: None), json)


@runs.command("pause")
@guarded
def runs_pause(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Save where a run stands and let go of it; go on with runs resume."""
    workbench, console = open_workbench(home), Console(json)
    workbench.runs.pause(run_id)
    _show_run(console, workbench, workbench.wait_run(run_id, lambda run: None), json)


@runs.command("save")
@guarded
def runs_save(run_id: RunId, home: Home = None, json: Json = False) -> None:
    """Have a run write a checkpoint now."""
    workbench = open_workbench(home)
    workbench.runs.save(run_id)
    Console(json).result({"run": run_id, "asked": True}, [("Asked", f"run {run_id} saves after the step at hand")])


@runs.command("resume")
@guarded
def runs_resume(
    run_id: RunId, detach: Annotated[bool, typer.Option("--detach", help="Return at once; the run goes on.")] = False,
    home: Home = None, json: Json = False,
) -> None:  # fmt: skip
    """Go on with a run that was paused, interrupted, stopped or has failed, from its last checkpoint."""
    workbench, console = open_workbench(home), Console(json)
    run = workbench.runs.resume(run_id)
    if not detach:
        with console.progress() as progress:
            run = workbench.wait_run(run_id, progress.run_watcher(workbench))
    _show_run(console, workbench, run, json)


# Adapters.


@adapters.command("list")
@guarded
def adapters_list(home: Home = None, json: Json = False) -> None:
    """List the adapters."""

    columns = ["name", "base_name", "dataset_name", "rank", "train_loss", "validation_loss", "source"]
    Console(json).table(open_workbench(home).registry.all(Adapter), columns)


@adapters.command("show")
@guarded
def adapters_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show everything known of an adapter."""

    Console(json).row(open_workbench(home).registry.find(Adapter, name))


@adapters.command("import")
@guarded
def adapters_import(
    folder: Annotated[Path, typer.Argument(help="A folder with adapter_config.json and adapter_model.safetensors.")],
    name: Annotated[str, typer.Option(help="Name to show; default the folder's.")] = "",
    base: Annotated[str | None, typer.Option(help="The base it was made for, if it fits several.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Import a PEFT adapter."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = _finished(workbench, workbench.import_adapter(folder, name, base), progress)
    rows = [("Imported", result["name"]), ("Base", result["base"])]
    console.result(result, rows + ([("Warning", result["warning"])] if result["warning"] else []))


@adapters.command("export")
@guarded
def adapters_export(name: str, folder: Path, home: Home = None, json: Json = False) -> None:
    """Write an adapter in PEFT's format into a new folder."""
    open_workbench(home).copy_adapter(name, folder)
    Console(json).result({"adapter": name, "folder": str(folder)}, [("Written", str(folder))])


@adapters.command("remove")
@guarded
def adapters_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete an adapter."""
    console = Console(json)
    console.confirm(f"Delete the adapter {name}?", yes)
    open_workbench(home).registry.remove_adapter(name)
    console.result({"removed": name}, [("Removed", name)])


# Chat and export.


@app.command()
@guarded
def chat(
    base: Annotated[str, typer.Option(help="Name of the base model.")],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="An adapter; repeat for several side by side. None: the plain base.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask the base or adapters one question. With several adapters the plain base answers too, side by side."""
    config = GenerationConfig.parse({"max_tokens": max_tokens, "seed": seed, **({"temperature": 0} if greedy else {})})
    chosen = list(dict.fromkeys(adapter or []))
    speakers: list[str | None] = [None, *chosen] if len(chosen) != 1 else list(chosen)
    messages = [{"role": "user", "content": prompt}]
    console, answers = Console(json), [""] * len(speakers)
    for token in open_workbench(home).answer(base, speakers, [messages] * len(speakers), config):
        answers[token.row] += token.text
        if len(speakers) == 1:
            console.stream(token.text)
    said = [{"adapter": speaker, "answer": answer} for speaker, answer in zip(speakers, answers, strict=True)]
    console.answers({"prompt": prompt, "base": base, "answers": said}, streamed=len(speakers) == 1)


@app.command()
@guarded
def export(
    adapter: Annotated[str, typer.Option(help="Name of the adapter.")],
    to: Annotated[Path, typer.Option(help="A new folder for the merged model.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, as safetensors; the result is loaded again and checked."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = _finished(workbench, workbench.export(adapter, to.expanduser().absolute()), progress)
    console.result(result, [("Merged model", result["folder"]), ("Check", result["sentence"])])
    if not result["passed"]:
        raise typer.Exit(1)


@app.command()
@guarded
def doctor(home: Home = None, json: Json = False) -> None:
    """Look at python, torch, GPU, memory, disk, SQLite, the home folder and the engine."""
    from app.doctor import examine

    findings = examine(settings_for(home))
    Console(json).findings(findings)
    if any(finding.level == "fault" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
