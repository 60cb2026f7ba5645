"""The whole journey as one command."""

from __future__ import annotations

import typer

from app.cli.common import Home, Json, open_workbench
from app.cli.console import Console, guarded


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
