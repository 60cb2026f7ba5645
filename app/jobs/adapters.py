"""Jobs about adapters: importing, looking inside, verifying, resizing, combining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.jobs.evaluating import validation_losses
from app.shared.bases import base_for, folder_of, shapes_of, source_of
from app.shared.identity import effective_template_hash, mismatch, require_fit
from app.shared.settings import Settings
from core.base_model.skeleton import skeleton
from core.base_model.source import check_unchanged
from core.combine.combining import Combination, Part, combine, compare_parents, resize
from core.combine.config import CombineConfig
from core.errors import InvalidAdapter, InvalidConfig, InvalidModel, WrongBase
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.lora.anatomy import anatomy, compare_subspaces
from core.lora.foreign.fit import fit
from core.lora.foreign.layouts import LAYOUTS
from core.lora.foreign.look import Found, look
from core.lora.foreign.take import take
from core.lora.peft.files import load_adapter, save_adapter
from core.merge.merge import weight_norms
from core.reporting import Report
from storage.blobs import content_size
from storage.errors import StorageError
from storage.registry import Registry
from storage.tables import Adapter, Base

Arguments = dict[str, Any]


def load_row(registry: Registry, row: Adapter, base: Base) -> AdapterWeights:
    """The factors of a registered adapter, after its files' digest was compared. Raises BlobDamaged,
    InvalidAdapter.

    What came from elsewhere may not record its base; from its import on it is the one that it is registered
    for.
    """
    weights = load_adapter(registry.blobs.verify(row.digest), shapes_of(base), base.head)
    return replace(weights, base_fingerprint=base.fingerprint, base_name=base.name)


# Importing.


def import_adapter(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Find out what the files are and which local base they fit; unless only `look` was asked for, import
    them.

    Result: what was found, the bases it was tried on, and of an imported one its name and its base's.
    """
    origin = Path(arguments["folder"]).expanduser()
    shown = arguments.get("shown") or origin.name
    name = (
        "" if arguments.get("look") else registry.require_free(Adapter, arguments["name"] or Path(shown).stem)
    )
    report(Progress("Looking at the files"))
    with registry.blobs.staging() as staging:
        (staging / "taken").mkdir()
        found = look(take(origin, staging / "taken", shown))
        report(Progress("Looking for its base"))
        tried = [_tried(registry, found, base, arguments.get("alpha")) for base in registry.all(Base)]
        said = {
            "evidence": asdict(found.evidence),
            "sentence": found.evidence.sentence(),
            "bases": [
                {"name": base.name, "fits": weights is not None, "why": why} for base, weights, why in tried
            ],
        }
        if arguments.get("look"):
            return said
        base, weights = _the_one(registry, found, tried, arguments.get("base"), shown)
        report(Progress("Storing"))
        digest = registry.blobs.put(_as_stored(found, weights, staging))
    told = {"tokenizer_hash": found.evidence.tokenizer_hash, "template_hash": found.evidence.template_hash}
    row = _add(registry, base, weights, name=name, source="imported", digest=digest, **told)
    warned = require_fit(registry, row, base)
    if not weights.is_trained():
        warned.append("Every B is zero: this adapter was never trained.")
    return {**said, "name": row.name, "base": base.name, "warning": " ".join(warned)}


Tried = tuple[Base, AdapterWeights | None, str]


def _tried(registry: Registry, found: Found, base: Base, alpha: float | None) -> Tried:
    """Whether an adapter fits a base, and why or why not."""
    recorded, claimed = found.evidence.fingerprint, found.evidence.claims or "another base"
    if recorded and recorded != base.fingerprint:
        return base, None, mismatch(registry, "in these files", claimed, recorded, base)
    try:
        weights = fit(found, shapes_of(base), base.head, alpha)
    except InvalidAdapter as error:
        return base, None, str(error)
    how = (
        "It records this base's fingerprint."
        if recorded
        else "Its layers fit; for which weights it was made it does not record."
    )
    return base, weights, how


def _the_one(
    registry: Registry, found: Found, tried: Sequence[Tried], named: str | None, shown: str
) -> tuple[Base, AdapterWeights]:
    """The base that was named, or the only one that fits.

    Raises WrongBase or InvalidAdapter, saying why not the others.
    """
    if not tried:
        raise InvalidAdapter("There is no base model yet; add the one this adapter was made for first.")
    if named:
        base, weights, why = next(one for one in tried if one[0].name == registry.find(Base, named).name)
        if weights is None:
            raise WrongBase(f"The adapter {shown} does not fit {named}. {why}")
        return base, weights
    fitting = [(base, weights) for base, weights, _ in tried if weights is not None]
    if not fitting:
        why = f"{tried[0][0].name}: {tried[0][2]}"
        raise WrongBase(f"The adapter {shown} fits no base model here. {found.evidence.sentence()} {why}")
    if len({base.fingerprint for base, _ in fitting}) > 1:
        names = ", ".join(base.name for base, _ in fitting)
        raise WrongBase(
            f"The adapter {shown} does not record its base (it says "
            f"{found.evidence.claims or 'nothing'}) and fits several: "
            f"{names}. Name the right one with --base."
        )
    return fitting[0]


def _as_stored(found: Found, weights: AdapterWeights, staging: Path) -> Path:
    """PEFT's own files as they are, what is in another layout written anew."""
    if found.layout is LAYOUTS[0] and found.config is not None:
        return found.weights_file.parent
    folder = staging / "converted"
    folder.mkdir()
    save_adapter(folder, weights)
    return folder


def _add(
    registry: Registry,
    base: Base,
    weights: AdapterWeights,
    *,
    name: str,
    source: str,
    digest: str,
    **about: Any,
) -> Adapter:
    return registry.add(
        Adapter(
            name=name,
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            source=source,
            rank=weights.highest_rank,
            alpha=weights.alpha,
            target_modules=", ".join(weights.target_names),
            parameters=weights.parameter_count,
            digest=digest,
            size_bytes=content_size(registry.blobs.path(digest)),
            **about,
        )
    )


# Looking inside.


def inspect_adapter(
    settings: Settings, registry: Registry, arguments: Arguments, report: Report
) -> Arguments:
    """The anatomy of an adapter; with `other`, how far the two work in the same directions.

    Result: one entry for each layer.
    """
    row = registry.find(Adapter, arguments["adapter"])
    base = base_for(registry, row)
    adapter = load_row(registry, row, base)
    report(Progress("Measuring the base's layers"))
    folder = folder_of(base)
    modules = anatomy(adapter, weight_norms(folder, adapter, skeleton(folder).transposed, report))
    result: Arguments = {
        "adapter": row.name,
        "digest": row.digest,
        "modules": [asdict(one) | {"relative": one.relative} for one in modules],
        "sentence": usage_sentence([one.rank_held for one in modules], [one.rank for one in modules]),
    }
    if arguments.get("other"):
        other = registry.find(Adapter, arguments["other"])
        require_fit(registry, other, base)
        report(Progress("Comparing the directions"))
        found = compare_subspaces(adapter, load_row(registry, other, base))
        result |= {"other": other.name, "similarity": {path: phi.tolist() for path, phi in found.items()}}
    return result


def usage_sentence(held: Sequence[int], ranks: Sequence[int]) -> str:
    """How much of its rank an adapter uses."""
    used = sum(held) / len(held)
    most = f"{max(held)} in the layer that needs most"
    return (
        f"It uses about rank {used:.1f} of {max(ranks)}: so many directions hold 99 % of what it "
        f"changes, {most}."
    )


def verify_adapter(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """Check one adapter, or all: digest, keys, shapes, finite numbers, B not zero, and its base.

    Result: problems by name.
    """
    rows = (
        [registry.find(Adapter, arguments["adapter"])] if arguments.get("adapter") else registry.all(Adapter)
    )
    problems: dict[str, str] = {}
    checked: set[str] = set()
    for number, row in enumerate(rows):
        report(Progress(f"Verifying {row.name}", number / len(rows)))
        try:
            base = base_for(registry, row)
            if base.fingerprint not in checked:
                check_unchanged(source_of(registry, base), afresh=arguments.get("deep", False))
                checked.add(base.fingerprint)
            if not load_row(registry, row, base).is_trained():
                problems[row.name] = "Every B is zero: it was never trained and does nothing."
        except (InvalidAdapter, InvalidModel, WrongBase, StorageError) as error:
            problems[row.name] = str(error)
    return {"checked": [row.name for row in rows], "problems": problems}


# Making new ones.


def resize_adapter(settings: Settings, registry: Registry, arguments: Arguments, report: Report) -> Arguments:
    """An adapter cut to a lower rank: the energy it loses and the change of its validation loss; kept if a
    name is given.
    """
    row = registry.find(Adapter, arguments["adapter"])
    base = base_for(registry, row)
    rank = int(arguments["rank"])
    adapter = load_row(registry, row, base)
    report(Progress("Decomposing"))
    found = resize(adapter, rank)
    losses = None
    if arguments.get("evaluate"):
        losses = validation_losses(settings, registry, row, base, [adapter, found.adapter], report)
    parents = [{"name": row.name, "digest": row.digest, "weight": 1.0}]
    return {
        "adapter": row.name,
        "rank": rank,
        "energy_lost": found.energy_lost,
        "losses": losses,
        "bytes": 4 * found.adapter.parameter_count,
    } | _kept(registry, base, found, arguments.get("name"), "resized", parents, {"rank": rank}, row)


def combine_adapters(
    settings: Settings, registry: Registry, arguments: Arguments, report: Report
) -> Arguments:
    """Adapters of one base combined: norms, cosines, sign conflicts and the energy lost; kept if a name is
    given.
    """
    config = CombineConfig.parse(arguments["config"])
    rows = [(registry.find(Adapter, one["name"]), float(one["weight"])) for one in arguments["parts"]]
    if len({row.id for row, _ in rows}) < len(rows):
        raise InvalidConfig("An adapter is named twice; name each once, with the weight it gets in all.")
    base = base_for(registry, rows[0][0])
    warned = [line for row, _ in rows for line in require_fit(registry, row, base)]
    parts = [Part(row.name, load_row(registry, row, base), weight) for row, weight in rows]
    report(Progress("Comparing the parents"))
    parents = compare_parents(parts)
    found = combine(parts, config, report)
    family = [{"name": row.name, "digest": row.digest, "weight": weight} for row, weight in rows]
    return {
        "parents": [row.name for row, _ in rows],
        "weights": [weight for _, weight in rows],
        "norms": parents.norms,
        "cosines": parents.cosines,
        "sign_conflicts": parents.sign_conflicts,
        "energy_lost": found.energy_lost,
        "rank": found.adapter.highest_rank,
        "bytes": 4 * found.adapter.parameter_count,
        "warnings": warned,
    } | _kept(registry, base, found, arguments.get("name"), "combined", family, config.to_dict(), rows[0][0])


def _kept(
    registry: Registry,
    base: Base,
    found: Combination,
    name: str | None,
    source: str,
    parents: list[dict[str, Any]],
    config: Arguments,
    like: Adapter,
) -> Arguments:
    """Register what was made, if it was given a name;
    tokenizer and template are those of its first parent.
    """
    if not name:
        return {}
    with registry.blobs.staging() as staging:
        (staging / "adapter").mkdir()
        save_adapter(staging / "adapter", found.adapter)
        digest = registry.blobs.put(staging / "adapter")
    row = _add(
        registry,
        base,
        found.adapter,
        name=name,
        source=source,
        digest=digest,
        parents=parents,
        config={source: {**config, "energy_lost": found.energy_lost}},
        dataset_name=like.dataset_name if len(parents) == 1 else "",
        tokenizer_hash=like.tokenizer_hash or base.tokenizer_hash,
        template_hash=like.template_hash or effective_template_hash(base),
    )
    return {"name": row.name, "digest": digest}
