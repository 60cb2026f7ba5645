"""What is shown of one export: facts, check, commands, files, card."""

from __future__ import annotations

from html import escape
from pathlib import Path

from app.service.workbench import Workbench
from app.shared.adapter_labels import labels_of_row
from app.web.parts.markup import Html, command_html, day, empty, facts, size
from app.web.parts.routes import link
from core.errors import InvalidConfig
from core.export.cards import MUCH_ROUNDED, file_name, quantised_rows, rounding_words
from core.export.formats import AUTO, EXPORT_FORMATS, ExportFormat, Written
from storage.tables import NOT_PASSED, PASSED, Adapter, Base, Export

VERDICTS = {PASSED: "good", NOT_PASSED: "bad"}
_LONGEST = 200_000  # characters of a card that are shown


def format_of(name: str) -> ExportFormat | None:
    """The format's head; None of one that came from a module that is not loaded now."""
    try:
        return EXPORT_FORMATS.get(name)
    except InvalidConfig:
        return None


def format_label(name: str) -> str:
    """What people call a format."""
    kind = format_of(name)
    return kind.label if kind else name


def is_there(row: Export) -> bool:
    """Whether its folder is still where it was written."""
    return Path(row.folder).is_dir()


def became(workbench: Workbench, row: Export) -> Base | None:
    """The base model that lies in its folder, of a merged one."""
    return next((one for one in workbench.registry.all(Base) if one.folder == row.folder), None)


def facts_html(workbench: Workbench, row: Export) -> str:
    """Where it lies, what it was made of and what its check found."""
    base = became(workbench, row)
    gone = "" if is_there(row) else " (gone: it was moved or deleted; export the adapter again)"
    about = facts(
        [
            ("Adapter", _adapter(workbench, row)),
            ("Base model", _base(workbench, row.base_name)),
            ("Became the base model", Html(link(base.name, "models", name=base.name)) if base else ""),
            ("Format", format_label(row.format)),
            ("Weights as", _number_format(row)),
            ("Folder", f"{row.folder}{gone}"),
            ("Size", size(row.size_bytes)),
            ("Written", day(row.created)),
        ]
    )
    return f"{_check(row)}{about}"


def _check(row: Export) -> str:
    advice = (
        "" if row.verdict != NOT_PASSED else "<p class='fault'>Do not use it; export the adapter again.</p>"
    )
    warned = "".join(f"<p class='fault'>{escape(str(one))}</p>" for one in row.check.get("warnings", ()))
    said = f"<p class='lead'>{escape(row.sentence)}</p>"
    losses = facts(rows) if (rows := quantised_rows(row.check)) else ""
    return f"<div class='card'><h3>Check</h3>{said}{advice}{rounding_html(row)}{losses}{warned}</div>"


def rounding_html(row: Export) -> str:
    """How much of the adapter rounding took, and what to do where that is much."""
    share = row.check.get("rounding_loss")
    if not share:
        return ""
    taken = escape(rounding_words(share, _number_format(row) or "16 bits"))
    if share < MUCH_ROUNDED:
        return f"<p class='hint'>{taken}, which is hardly to be noticed.</p>"
    return (
        f"<p class='fault'>{taken}. Export it again with “Weights as” float32 to keep all of it, or use the "
        "adapter alone (PEFT), which loses nothing.</p>"
    )


def _number_format(row: Export) -> str:
    """Of the weights; nothing for an adapter alone, whose factors are float32."""
    kind, chosen = format_of(row.format), str(row.check.get("dtype", ""))
    if kind is None or not kind.merges:
        return ""
    usual = "the base's number format" if kind.is_base else "float16"
    return usual if chosen == AUTO else chosen


def _adapter(workbench: Workbench, row: Export) -> Html | str:
    found = workbench.registry.adapters.with_digest(row.adapter_digest)
    return Html(link(found.name, "adapters", name=found.name)) if found else f"{row.adapter_name}, deleted"


def _base(workbench: Workbench, name: str) -> Html | str:
    return Html(link(name, "models", name=name)) if name in workbench.registry.names(Base) else name


def commands_html(workbench: Workbench, row: Export) -> str:
    """What to type in other software, each with a button that copies it."""
    kind = format_of(row.format)
    found = kind.commands(_written(workbench, row, kind)) if kind else []
    if not is_there(row):
        return empty("Its folder is gone; export the adapter again.")
    if not found:
        return empty("For this format no commands are known here; its files are in the folder.")
    return "".join(command_html(what, typed) for what, typed in found)


def _written(workbench: Workbench, row: Export, kind: ExportFormat) -> Written:
    adapter: Adapter | None = workbench.registry.adapters.with_digest(row.adapter_digest)
    names = workbench.registry.names(Base)
    base = workbench.registry.find(Base, row.base_name) if row.base_name in names else None
    labels = labels_of_row(workbench.registry, adapter) if adapter else None
    weights = sorted(name for name in _names(row) if name.endswith(kind.ending))
    return Written(
        folder=Path(row.folder),
        weights=weights[0] if weights else f"model{kind.ending}",
        name=file_name(row.adapter_name).lower(),
        rank=adapter.rank if adapter else 0,
        labels=len(labels) if labels else 0,
        base=row.base_name if base is None else base.origin if base.source == "hub" else base.folder,
    )


def _names(row: Export) -> list[str]:
    """The files in its folder, as they were recorded or, of an old export, as they are."""
    if row.files or not is_there(row):
        return list(row.files)
    return sorted(path.name for path in Path(row.folder).iterdir())


def files_html(row: Export) -> str:
    """Its files with their sizes and digests."""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{_size_of(Path(row.folder) / name)}</td>"
        f"<td class='mono'>{escape(str(row.files.get(name, ''))[:16])}</td></tr>"
        for name in _names(row)
    )
    head = "<thead><tr><th>File</th><th>Size</th><th>SHA-256</th></tr></thead>"
    return f"<div class='card'><table class='rows'>{head}<tbody>{lines}</tbody></table></div>"


def _size_of(path: Path) -> str:
    try:
        return size(path.stat().st_size) if path.is_file() else "folder" if path.is_dir() else "gone"
    except OSError:
        return "not readable"


def card_html(row: Export) -> str:
    """Its model card, as it is written."""
    try:
        text = (Path(row.folder) / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return empty("Its README.md is gone.")
    return (
        f"<pre class='mono card wrapped' tabindex='0' aria-label='Model card'>{escape(text[:_LONGEST])}</pre>"
    )
