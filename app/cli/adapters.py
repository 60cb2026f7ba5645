"""The command line's part about adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.common import Home, Json, Yes, finished, listed, open_workbench
from app.cli.console import Console, guarded
from app.cli.export import show_export
from app.service.costs import latency_rows
from app.service.workbench import Workbench
from core.combine.config import CombineConfig
from core.errors import InvalidConfig
from storage.adapters import ORDERS, AdapterQuery
from storage.tables import Adapter

adapters = typer.Typer(
    no_args_is_help=True,
    help=(
        "Adapters: list, show, note, import, inspect, compare, verify, speed, resize, convert, combine, "
        "export, remove, bring-back."
    ),
)
Alpha = Annotated[float | None, typer.Option(help="Alpha of files that do not say theirs.")]
Which = Annotated[str, typer.Option(help="Which adapter of a file that holds several.")]


@adapters.command("list")
@guarded
def adapters_list(
    words: Annotated[
        str, typer.Argument(help="Words that the name, tags, note, base or data set hold.")
    ] = "",
    base: Annotated[str, typer.Option(help="Of this base model.")] = "",
    tag: Annotated[str, typer.Option(help="With this tag.")] = "",
    starred: Annotated[bool, typer.Option("--starred", help="With a star.")] = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those that can be brought back.")] = False,
    order: Annotated[str, typer.Option(help=f"One of {', '.join(ORDERS)}.")] = "newest",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    home: Home = None,
    json: Json = False,
) -> None:
    """List the adapters, all or those that match."""
    registry = open_workbench(home).registry
    if order not in ORDERS:
        raise InvalidConfig(f"There is no order {order!r}; choose from {', '.join(ORDERS)}.")
    query = AdapterQuery(words=words, base=base, tag=tag, starred=starred, order=order)
    rows = registry.adapters.deleted() if deleted else registry.adapters.search(query, limit)[0]
    columns = ["name", "base_name", "dataset_name", "rank", "train_loss", "validation_loss", "source", "tags"]
    Console(json).table(rows, ["id", *columns] if deleted else columns)


@adapters.command("show")
@guarded
def adapters_show(name: str, home: Home = None, json: Json = False) -> None:
    """Show everything known of an adapter, with what was made of it."""
    registry = open_workbench(home).registry
    row = registry.find(Adapter, name)
    made = {
        "children": [one.name for one in registry.adapters.children_of(row.digest)],
        "exports": [f"{one.format}, {one.verdict}: {one.folder}" for one in registry.exports.of(row.digest)],
    }
    Console(json).row(row, extra=made)


@adapters.command("note")
@guarded
def adapters_note(
    name: str,
    rename: Annotated[str | None, typer.Option(help="A new name.")] = None,
    star: Annotated[
        bool | None, typer.Option("--star/--no-star", help="Give it a star, or take it away.")
    ] = None,
    tags: Annotated[
        str | None, typer.Option(help="Tags with a comma between them; replaces those it has.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="What to remember of it.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Change the name, star, tags or note of an adapter."""
    registry = open_workbench(home).registry
    given = {"name": rename, "starred": star, "tags": tags, "note": note}
    values = {key: value for key, value in given.items() if value is not None}
    if not values:
        raise InvalidConfig("Give what to change: --rename, --star, --no-star, --tags or --note.")
    row = registry.adapters.change(registry.find(Adapter, name).id or 0, **values)
    Console(json).result({"name": row.name, **values}, [("Changed", row.name)])


@adapters.command("import")
@guarded
def adapters_import(
    origin: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, a .zip or a .safetensors file.")],
    name: Annotated[str, typer.Option(help="Name to show; default the file's.")] = "",
    base: Annotated[str | None, typer.Option(help="The base it was made for, if it fits several.")] = None,
    alpha: Alpha = None,
    which: Which = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Import an adapter from PEFT or another tool; see inspect for what it is and where it fits."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(
            workbench, workbench.adapters.import_files(origin, name, base, alpha=alpha, which=which), progress
        )
    rows = [("Imported", result["name"]), ("Base", result["base"]), ("Found", result["sentence"])]
    console.result(result, rows + ([("Warning", result["warning"])] if result["warning"] else []))


@adapters.command("inspect")
@guarded
def adapters_inspect(
    what: Annotated[
        str, typer.Argument(metavar="NAME_OR_PATH", help="An adapter, or files that are not imported yet.")
    ],
    alpha: Alpha = None,
    which: Which = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Look inside an adapter: what it changes in each layer, what rank it uses.

    Of files: what they are, which base fits.
    """
    console, workbench = Console(json), open_workbench(home)
    registered = what in workbench.registry.names(Adapter)
    with console.progress() as progress:
        job = (
            workbench.adapters.inspect(what)
            if registered
            else workbench.adapters.look_at(Path(what), alpha=alpha, which=which)
        )
        result = finished(workbench, job, progress)
    if json:
        console.result(result, [])
        return
    console.result(result, [("Found", result["sentence"])])
    if not registered:
        console.records(
            [
                {"base": one["name"], "fits": "yes" if one["fits"] else "no", "why": one["why"]}
                for one in result["bases"]
            ],
            "There is no base model yet that it could fit; add one with: models add",
        )
        return
    console.records(
        [
            {
                "layer": one["path"],
                "rank": one["rank"],
                "effective rank": one["effective_rank"],
                "99 % in": one["rank_held"],
                "‖ΔW‖": one["delta_norm"],
                "of ‖W‖": f"{one['relative']:.3%}" if one["relative"] is not None else None,
            }
            for one in result["modules"]
        ]
    )


@adapters.command("compare")
@guarded
def adapters_compare(name: str, other: str, home: Home = None, json: Json = False) -> None:
    """Compare the directions that two adapters work in: 0 nothing in common, 1 the same."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.adapters.inspect(name, other), progress)
    rows = [{"layer": path, "shared": phi[-1][-1]} for path, phi in result["similarity"].items()]
    console.result(result, []) if json else console.records(rows, "They have no layer in common.")


@adapters.command("verify")
@guarded
def adapters_verify(
    name: Annotated[str, typer.Argument(help="An adapter; without a name all are verified.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Check digest, layers, shapes, numbers and base of one adapter or all."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.adapters.verify(name), progress)
    console.result(
        result,
        [("Sound", str(len(result["checked"]) - len(result["problems"]))), *result["problems"].items()],
    )
    if result["problems"]:
        raise typer.Exit(1)


@adapters.command("speed")
@guarded
def adapters_speed(name: str, home: Home = None, json: Json = False) -> None:
    """Time answers of the base, of base + adapter, and of both merged, in turns on this device."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.costs.measure(name), progress)
    if json:
        console.result(result, [])
        return
    console.say(f"{result['adapter']} on {result['device']}, {result['dtype']}")
    console.records(latency_rows(result))


@adapters.command("resize")
@guarded
def adapters_resize(
    adapter: str,
    rank: Annotated[int, typer.Option(min=1, help="The new, lower rank.")],
    name: Annotated[
        str, typer.Option(help="Keep it under this name; without, only show what would be lost.")
    ] = "",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure the validation loss before and after.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Cut an adapter to a lower rank, as well as that can be done."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(
            workbench, workbench.adapters.resize(adapter, rank, name, evaluate=evaluate), progress
        )
    losses = [f"{loss:.4f}" for loss in result["losses"] or []]
    console.result(
        result,
        [
            ("Energy lost", f"{result['energy_lost']:.2%}"),
            ("Size", f"{result['bytes'] / 1e6:,.1f} MB"),
            *([("Validation loss", f"{losses[0]} before, {losses[1]} after")] if losses else []),
            ("Kept as", result.get("name", "not kept; give --name")),
        ],
    )


@adapters.command("convert")
@guarded
def adapters_convert(
    adapter: str,
    name: Annotated[str, typer.Option(help="Under which the LoRA is kept.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Write an adapter of another kind, such as MiSS, as a LoRA that computes the same and loads anywhere."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(workbench, workbench.adapters.convert(adapter, name), progress)
    console.result(
        result,
        [
            ("Was", result["kind"]),
            ("Rank", str(result["rank"])),
            ("Size", f"{result['bytes'] / 1e6:,.1f} MB"),
            ("Kept as", result["name"]),
        ],
    )


@adapters.command("combine")
@guarded
def adapters_combine(
    parts: Annotated[
        list[str], typer.Argument(metavar="NAME=WEIGHT …", help="The adapters, each with its weight.")
    ],
    method: Annotated[str, typer.Option(help=listed(CombineConfig, "method"))] = "svd",
    rank: Annotated[int, typer.Option(help="Rank of the result; 0: the highest of its parents.")] = 0,
    density: Annotated[
        float, typer.Option(help="Share of elements that ties, dare and magnitude_prune keep.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
    name: Annotated[
        str, typer.Option(help="Keep it under this name; without, only show what would become of them.")
    ] = "",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure each one's validation loss beside the result's.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Combine adapters of one base into a new one, on ΔW."""
    console, workbench = Console(json), open_workbench(home)
    options = {"method": method, "rank": rank, "density": density, "seed": seed}
    with console.progress() as progress:
        started = workbench.adapters.combine(_weights(workbench, parts), options, name, evaluate=evaluate)
        result = finished(workbench, started, progress)
    pairs = [
        f"{one} · {other}: {result['cosines'][i][j]:.3f}"
        for i, one in enumerate(result["parents"])
        for j, other in enumerate(result["parents"])
        if i < j
    ]
    console.result(
        result,
        [
            ("Cosines", "; ".join(pairs)),
            ("Sign conflicts", f"{result['sign_conflicts']:.1%}"),
            ("Energy lost", f"{result['energy_lost']:.2%}"),
            ("Rank", str(result["rank"])),
            *[
                (
                    f"Validation loss of {one}",
                    f"{pair[0]:.4f} → {pair[1]:.4f}" if pair else "its data are not here",
                )
                for one, pair in zip(result["parents"], result["losses"], strict=False)
            ],
            *[("Warning", line) for line in result["warnings"]],
            ("Kept as", result.get("name", "not kept; give --name")),
        ],
    )


def _weights(workbench: Workbench, parts: list[str]) -> dict[str, float]:
    """NAME=WEIGHT; a name may hold = itself, and one that is given alone weighs 1."""
    found: dict[str, float] = {}
    names = workbench.registry.names(Adapter)
    for part in parts:
        name, equals, number = part.rpartition("=")
        if part in names or not equals:
            name, number = part, "1"
        try:
            weight = float(number)
        except ValueError:
            raise InvalidConfig(f"{part!r} is not NAME=WEIGHT; write for example pirate=0.7.") from None
        if name in found:
            raise InvalidConfig(
                f"{name} is named twice; name each adapter once, with the weight it gets in all."
            )
        found[name] = weight
    return found


@adapters.command("export")
@guarded
def adapters_export(name: str, folder: Path, home: Home = None, json: Json = False) -> None:
    """Write an adapter in PEFT's format into a new folder, and check it. See also: export --format."""
    console, workbench = Console(json), open_workbench(home)
    with console.progress() as progress:
        result = finished(
            workbench,
            workbench.exports.start(name, folder.expanduser().absolute(), {"format": "peft"}),
            progress,
        )
    show_export(console, result)


@adapters.command("remove")
@guarded
def adapters_remove(name: str, yes: Yes = False, home: Home = None, json: Json = False) -> None:
    """Delete an adapter; for a day it can be brought back."""
    console, registry = Console(json), open_workbench(home).registry
    row = registry.find(Adapter, name)
    console.confirm(f"Delete the adapter {name}?", yes)
    registry.adapters.delete(row.id or 0)
    console.result(
        {"removed": name, "id": row.id}, [("Removed", name), ("To undo", f"adapters bring-back {row.id}")]
    )


@adapters.command("bring-back")
@guarded
def adapters_bring_back(
    number: Annotated[
        int, typer.Argument(help="Its number; see adapters list --deleted.", min=1, max=2**63 - 1)
    ],
    home: Home = None,
    json: Json = False,
) -> None:
    """Bring a deleted adapter back."""
    row = open_workbench(home).registry.adapters.bring_back(number)
    Console(json).result({"name": row.name}, [("Back as", row.name)])
