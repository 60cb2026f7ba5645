"""The command line. Each command calls the same Workbench as the page.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli.adapters import adapters, show_export
from app.cli.console import Console, guarded
from app.cli.data import data
from app.cli.options import Home, Json, Yes, finished, open_workbench
from app.cli.runs import preflight, presets, runs, train
from app.cli.storage import backup, restore_backup, space
from app.shared.private import private_by_default
from app.shared.settings import HOME_VARIABLE, settings_for
from core.config import FORMATS, GenerationConfig
from storage.tables import Base

app = typer.Typer(
    name="lora-workbench",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Train, keep, compare and merge LoRA adapters on your own machine. Without a command it opens "
        "the page."
    ),
)
models = typer.Typer(no_args_is_help=True, help="Base models: add, list, show, verify, remove.")
groups = (("models", models), ("data", data), ("runs", runs), ("presets", presets), ("adapters", adapters))
for name, group in groups:
    app.add_typer(group, name=name)
app.command()(train)
app.command()(preflight)
app.command()(backup)
app.command("restore")(restore_backup)
app.command()(space)


@app.callback(invoke_without_command=True)
@guarded
def open_app(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    certfile: Annotated[
        Path | None, typer.Option(help="Certificate (PEM) for https.", exists=True, dir_okay=False)
    ] = None,
    keyfile: Annotated[
        Path | None, typer.Option(help="The certificate's key (PEM).", exists=True, dir_okay=False)
    ] = None,
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
    from app.web.server import Listening, serve

    listening = Listening(host, port, certfile, keyfile)
    serve(settings_for(home), listening, open_browser=not no_browser, tell=Console(json).result)


@app.command()
@guarded
def address(
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Make a new token; it counts from the page's next start.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Print the address of the open page, with the token that opens it."""
    from app.web.server import running_address
    from app.web.token import page_token

    settings = settings_for(home)
    if new_token:
        page_token(settings, anew=True)
        Console(json).result({"new_token": True}, [("Token", "a new one, from the page's next start on")])
        return
    found = running_address(settings)
    Console(json).result({"address": found}, [("Open", found)])


@app.command()
@guarded
def quickstart(home: Home = None, json: Json = False) -> None:
    """Starter model, sample data, a short training, base beside adapter, checked merged export: all in one
    go.
    """
    from app.service.quickstart import Watchers, run_quickstart

    console = Console(json)
    with console.progress() as progress:
        watchers = Watchers(
            progress.say, progress.job, progress.run_watcher(workbench := open_workbench(home))
        )
        result = run_quickstart(workbench, watchers)
    console.result(
        result.to_dict(),
        [
            ("Loss, first and last step", f"{result.first_loss:.3f} → {result.last_loss:.3f}"),
            ("Prompt", result.prompt),
            (f"Base ({result.base})", result.base_answer),
            (f"Adapter ({result.adapter})", result.adapter_answer),
            ("Merged model", result.export_folder),
            ("Check", result.check),
            ("Largest logit difference", f"{result.max_logit_difference:.4f}"),
            ("Took", f"{result.seconds:.0f} s"),
        ],
    )
    if not result.check_passed:
        raise typer.Exit(1)


# Base models.


@models.command("add")
@guarded
def models_add(
    origin: Annotated[
        str, typer.Argument(help="starter, a folder of safetensors, a .gguf file, or a hub id (owner/name).")
    ],
    name: Annotated[str, typer.Option(help="Name to show; default from the source.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Add a base model."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.add_model(origin, name), progress)
    rows = [("Added", result["name"]), ("Fingerprint", result["fingerprint"])]
    console.result(result, rows + ([("The same model as", result["same_as"])] if result["same_as"] else []))


@models.command("list")
@guarded
def models_list(home: Home = None, json: Json = False) -> None:
    """List the base models."""

    Console(json).table(
        open_workbench(home).registry.all(Base),
        ["name", "architecture", "parameters", "dtype", "size_bytes", "source"],
    )


@models.command("show")
@guarded
def models_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show everything known of a base model."""

    Console(json).row(open_workbench(home).registry.find(Base, name), leave_out=("layer_shapes",))


@models.command("verify")
@guarded
def models_verify(
    name: str,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take over changes in files other than the weights.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Compute the fingerprint afresh and compare it, and every other file, with what was recorded."""
    found = open_workbench(home).verify_model(name, accept=accept)
    Console(json).result({"name": name, "fingerprint": found, "unchanged": True}, [("Unchanged", found)])


@models.command("remove")
@guarded
def models_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Forget a base model; files that the workbench downloaded or converted are deleted."""
    console = Console(json)
    console.confirm(f"Remove the base model {name}?", yes)
    open_workbench(home).remove_model(name)
    console.result({"removed": name}, [("Removed", name)])


# Chat and export.


@app.command()
@guarded
def chat(
    base: Annotated[str, typer.Option(help="Name of the base model.")],
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="An adapter; repeat for several side by side. None: the plain base."),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask the base or adapters one question.

    With several adapters the plain base answers too, side by side.
    """
    config = GenerationConfig.parse(
        {"max_tokens": max_tokens, "seed": seed, **({"temperature": 0} if greedy else {})}
    )
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
    to: Annotated[Path, typer.Option(help="A new folder.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "safetensors",
    dtype: Annotated[
        str, typer.Option(help="Number format of the weights: auto, float32, bfloat16, float16, q8_0, …")
    ] = "auto",
    shard_gigabytes: Annotated[
        float, typer.Option(help="Largest safetensors file, in GB; 0: as the base's files.")
    ] = 0.0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, or write it alone, for other software; the result is loaded again and
    checked.
    """
    console, workbench = Console(json), open_workbench(home)
    options = {"format": format, "dtype": dtype, "shard_gigabytes": shard_gigabytes}
    with console.progress() as progress:
        result = finished(workbench, workbench.export(adapter, to.expanduser().absolute(), options), progress)
    show_export(console, result)


@app.command()
@guarded
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every stored file and compare it with its digest.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Look at python, torch, GPU, memory, disk, SQLite, the home folder and the engine."""
    from app.service.doctor import examine, examine_deeply

    findings = examine(settings_for(home))
    if deep:
        findings += examine_deeply(open_workbench(home))
    Console(json).findings(findings)
    if any(finding.level == "fault" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console command."""
    private_by_default()
    app()


if __name__ == "__main__":
    main()
