"""What belongs to what: why an adapter does not fit a base, and what would go wrong where it fits only in
part.
"""

from __future__ import annotations

from pathlib import Path

from core.base_model.describe import chat_template
from core.base_model.difference import difference
from core.base_model.fingerprint import Manifest, text_hash, tokenizer_hash
from core.base_model.templates import PLAIN, TEMPLATES, chosen_template
from core.errors import WrongBase
from storage.registry import Registry
from storage.tables import Adapter, Base, BaseManifest


def remember(registry: Registry, name: str, found: Manifest) -> None:
    """Keep what a fingerprint was taken over, to say later what differs from it."""
    tensors = [list(row) for row in found.tensors]
    registry.bases.keep_manifest(
        BaseManifest(
            fingerprint=found.fingerprint, name=name, tensors=tensors, architecture=found.architecture
        )
    )


def manifest_of(registry: Registry, fingerprint: str) -> Manifest | None:
    """What was remembered of a fingerprint; None for one that never was here."""
    row = registry.bases.manifest(fingerprint)
    return Manifest.from_json(row.tensors, row.architecture) if row else None


def effective_template_hash(base: Base) -> str:
    """SHA-256 of the chat template that is used with a base, be it its own or one chosen for it."""
    return base.template_hash if base.has_chat_template else text_hash(chosen_template(base.template))


def effective_template(base: Base) -> str:
    """The chat template that is used with a base, as its files are now: its own, or the one chosen for it."""
    return chat_template(Path(base.folder)) or chosen_template(base.template)


def up_to_date(registry: Registry, base: Base) -> Base:
    """The row, its tokenizer and template read anew from its files: they may have been edited since it was
    added.
    """
    folder = Path(base.folder)
    if not folder.is_dir():
        return base
    template = chat_template(folder)
    now = {
        "tokenizer_hash": tokenizer_hash(folder),
        "template_hash": text_hash(template or TEMPLATES[PLAIN]),
        "has_chat_template": template is not None,
    }
    if all(getattr(base, name) == value for name, value in now.items()):
        return base
    return registry.save(Base(**base.model_dump() | now))


def require_fit(registry: Registry, adapter: Adapter, base: Base) -> list[str]:
    """As require_same_weights(). Returns warnings: sentences on what will go wrong where the weights fit but
    the tokenizer or the template does not.
    """
    require_same_weights(registry, adapter, base)
    return warnings(adapter, up_to_date(registry, base))


def require_same_weights(registry: Registry, adapter: Adapter, base: Base) -> None:
    """Raise WrongBase, saying what differs, unless `adapter` was made for the weights of `base`."""
    if adapter.base_fingerprint != base.fingerprint:
        raise WrongBase(mismatch(registry, adapter.name, adapter.base_name, adapter.base_fingerprint, base))


def mismatch(registry: Registry, adapter: str, claimed: str, wanted: str, base: Base) -> str:
    """Why an adapter made for the fingerprint `wanted` does not fit `base`,
    and which base here it would fit.
    """
    said = (
        f"The adapter {adapter} was made for {claimed} ({wanted[:12]}), not for {base.name} "
        f"({base.fingerprint[:12]})."
    )
    if base.merged.get("base_fingerprint") == wanted:
        said += (
            f" {base.name} is {base.merged['base_name']} with {base.merged['adapter_name']} merged "
            "in already."
        )
    elif (meant := manifest_of(registry, wanted)) and (found := manifest_of(registry, base.fingerprint)):
        said += f" {difference(meant, found).sentence}"
    fitting = [one.name for one in registry.all(Base) if one.fingerprint == wanted]
    advice = (
        f"It fits {fitting[0]}: choose that."
        if fitting
        else "Its own base is not here; add that model first."
    )
    return f"{said} {advice}"


def warnings(adapter: Adapter, base: Base) -> list[str]:
    """What will go wrong although the weights are the right ones."""
    found = []
    if adapter.tokenizer_hash and base.tokenizer_hash != adapter.tokenizer_hash:
        found.append(
            f"The tokenizer of {base.name} is not the one that {adapter.name} was trained with: the "
            "same text becomes other "
            "tokens, and its answers may be noise. Put the tokenizer files back."
        )
    if adapter.template_hash and effective_template_hash(base) != adapter.template_hash:
        found.append(
            f"The chat template of {base.name} is not the one that {adapter.name} was trained with: it "
            "is asked in a format it "
            "has not seen, and may not know when to stop. Put the template back, or choose the same "
            "one under Models."
        )
    return found
