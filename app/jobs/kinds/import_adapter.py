"""The job that imports an adapter, or only says what the files are and which base here they fit."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep, adapter_steps
from app.shared.bases import folder_of, shapes_of, wholes_in
from app.shared.identity import effective_template_hash, mismatch, require_fit
from app.shared.references import Reference, refer, referred
from app.shared.text import require_text
from core.errors import InvalidAdapter, WrongBase
from core.events import Progress
from storage.registry import Registry
from storage.tables import Adapter, Base

if TYPE_CHECKING:
    from core.lora.adapter import AdapterWeights
    from core.lora.foreign.fit import BaseFacts
    from core.lora.foreign.look import Found

    Tried = tuple[Base, AdapterWeights | None, str]


class ImportAdapter(JobKind):
    """Arguments: folder (or a .zip or .safetensors file), name, base (may be None), alpha (may be None),
    which (of several adapters in one file), shown (what the files are called if not by their path), look
    (only look, import nothing).
    """

    name, label, order = "import_adapter", "Import an adapter", 30
    help = "Find out what a folder, zip or file holds, which base here it fits, and register it."
    place = "Adapters, or adapters import"
    keeps = (Adapter,)

    def title(self, arguments: Mapping[str, Any]) -> str:
        what = arguments["shown"] or Path(arguments["folder"]).name
        return f"{'Look at' if arguments['look'] else 'Import'} {what}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NameTaken, NotFound."""
        given = {
            "name": "",
            "base": None,
            "alpha": None,
            "which": "",
            "shown": "",
            "look": False,
            **arguments,
        }
        origin, name = Path(given["folder"]), given["name"]
        require_text(str(origin), name)
        if not given["look"]:
            context.registry.require_free(Adapter, name or _default_name(origin, given["shown"]))
        if given["base"]:
            given["base"] = refer(referred(context.registry, Base, given["base"]))
        return given

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: what was found, the bases it was tried on, and of an imported one its name and its
        base's.
        """
        from core.lora.foreign.look import look
        from core.lora.foreign.take import take

        registry, report = context.registry, context.report
        origin, only_look = Path(arguments["folder"]).expanduser(), arguments.get("look")
        shown = arguments.get("shown") or origin.name
        name = arguments.get("name") or Path(shown).stem
        if not only_look:
            registry.require_free(Adapter, name)
        report(Progress("Looking at the files"))
        with registry.blobs.staging() as staging:
            (staging / "taken").mkdir()
            found = look(take(origin, staging / "taken", shown), arguments.get("which") or "")
            report(Progress("Looking for its base"))
            tried = [_tried(registry, found, base, arguments.get("alpha")) for base in registry.all(Base)]
            if only_look:
                return _said(found, tried)
            base, weights = _the_one(registry, found, tried, arguments.get("base"), shown)
            report(Progress("Storing"))
            digest = registry.blobs.put(_as_stored(found, weights, base, staging))
        said = _said(found, tried)
        return context.conclude(lambda: said | _registered(registry, found, base, weights, name, digest))

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return adapter_steps(result)


KIND = ImportAdapter()


def _default_name(origin: Path, shown: str) -> str:
    return Path(shown or origin.resolve().name).stem


def _tried(registry: Registry, found: Found, base: Base, alpha: float | None) -> Tried:
    """Whether an adapter fits a base, and why or why not."""
    from core.lora.foreign.fit import fit

    recorded, claimed = found.evidence.fingerprint, found.evidence.claims or "another base"
    if recorded and recorded != base.fingerprint:
        return base, None, mismatch(registry, "in these files", claimed, recorded, base)
    try:
        weights = fit(found, shapes_of(base), base.head, alpha, _facts(base), wholes_in(base))
    except InvalidAdapter as error:
        return base, None, str(error)
    if recorded:
        return base, weights, "It records this base's fingerprint."
    how = "Its layers fit; for which weights it was made it does not record."
    return base, weights, " ".join([how, *_another_base(found, base)])


def _another_base(found: Found, base: Base) -> list[str]:
    """A warning if the files name another base than this one and record no fingerprint that would tell."""
    claims = found.evidence.claims
    if not claims or found.evidence.fingerprint or _last(claims) in map(_last, _names_of(base)):
        return []
    return [
        f"The files say that it was made for {claims}, and {base.name} has layers of the same shapes: if it "
        "is another model, the answers will be noise."
    ]


def _names_of(base: Base) -> list[str]:
    return [base.name, base.origin, base.folder]


def _last(name: str) -> str:
    """The last part of a path or hub id, in the way that names are compared."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].partition("@")[0].casefold()


def _facts(base: Base) -> BaseFacts:
    """What a few files need to know of a base beside its layers."""
    from core.base_model.files import read_json
    from core.base_model.stored import has_tensor
    from core.lora.foreign.fit import BaseFacts

    folder = folder_of(base)
    if not folder.is_dir():
        return BaseFacts()  # its layers are known all the same
    return BaseFacts(read_json(folder / "config.json"), functools.partial(has_tensor, folder))


def _said(found: Found, tried: Sequence[Tried]) -> Arguments:
    """What the files are, and which bases they were tried on."""
    bases = [{"name": base.name, "fits": weights is not None, "why": why} for base, weights, why in tried]
    return {
        "evidence": asdict(found.evidence),
        "sentence": found.evidence.sentence(),
        "bases": bases,
    }


def _the_one(
    registry: Registry, found: Found, tried: Sequence[Tried], named: Reference | None, shown: str
) -> tuple[Base, AdapterWeights]:
    """The base that was named, or the only one that fits.

    Raises WrongBase or InvalidAdapter, saying why not the others.
    """
    if not tried:
        raise InvalidAdapter("There is no base model yet; add the one this adapter was made for first.")
    if named:
        wanted = referred(registry, Base, named).id
        base, weights, why = next(one for one in tried if one[0].id == wanted)
        if weights is None:
            raise WrongBase(f"The adapter {shown} does not fit {base.name}. {why}")
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
    return max(fitting, key=lambda one: _said_of(found, one[0]))


def _said_of(found: Found, base: Base) -> tuple[bool, bool]:
    """Whether the files record the tokenizer and the template of this base, of several with equal weights."""
    evidence = found.evidence
    return (
        evidence.tokenizer_hash == base.tokenizer_hash,
        evidence.template_hash == effective_template_hash(base),
    )


def _as_stored(found: Found, weights: AdapterWeights, base: Base, staging: Path) -> Path:
    """PEFT's own files for this base as they are, what is in another layout written anew."""
    from core.lora.peft.files import save_checked

    if found.is_pefts_own and set(found.tensors) == set(weights.layers):
        return found.weights_file.parent
    folder = staging / "converted"
    folder.mkdir()
    save_checked(folder, weights, shapes_of(base), base.head, wholes=wholes_in(base))
    return folder


def _registered(
    registry: Registry, found: Found, base: Base, weights: AdapterWeights, name: str, digest: str
) -> Arguments:
    """Its name, its base's, and what will go wrong with it."""
    from app.jobs.adapters import add_adapter

    hashes = {
        "tokenizer_hash": found.evidence.tokenizer_hash,
        "template_hash": found.evidence.template_hash,
    }
    row = add_adapter(registry, base, weights, name=name, source="imported", digest=digest, **hashes)
    warned = [*require_fit(registry, row, base), *_another_base(found, base)]
    if not weights.is_trained():
        warned.append("Every B is zero: this adapter was never trained.")
    return {"name": row.name, "base": base.name, "warning": " ".join(warned)}
