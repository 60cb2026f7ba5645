"""Who answers, named by one text: an adapter, a checkpoint `run-<id>@<step>`, a blend, or another base.

    my-adapter                 an adapter by its name, with the weight 1
    run-3@200                  the checkpoint of run 3 at step 200, also while the run is training
    a=0.7+run-3@200=-0.3       the weighted sum of their ΔW
    base:other-model           another base by itself, which answers after the others

The exact name of an adapter wins over all of this. Who has no name is the plain base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.shared.adapter_labels import has_own_weights, require_writing
from app.shared.checkpoint_rows import as_adapter, checkpoint_at
from app.shared.identity import require_same_weights
from core.combine.config import require_weights
from core.errors import InvalidConfig
from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base, Run

PLAIN = ""
"""The speaker that is the base by itself."""
PLAIN_BASE = "Plain base"
"""What it is called where people read it."""
_OTHER_BASE = "base:"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PART = re.compile(rf"(?P<name>.+?)=(?P<weight>{_NUMBER})(?:\+|$)")
_CHECKPOINT = re.compile(r"run-(?P<run>\d{1,15})@(?P<step>\d{1,15})")
_HOW = "A blend is written as name=weight with + between, such as a=0.7+b=-0.3."


@dataclass(frozen=True)
class Part:
    """One of those that a speaker is made of."""

    adapter: Adapter
    """Its row; of a checkpoint one as keeping it would give it, called as the checkpoint is."""
    weight: float


def speaker_parts(registry: Registry, speaker: str | None) -> list[Part]:
    """What a speaker is made of; nothing of the plain base.

    Raises NotFound, with what there is, InvalidConfig for a text that is no blend, a weight that is no
    number, or one that is there twice.
    """
    speaker = (speaker or "").strip()
    if not speaker:
        return []
    found = _named(registry, speaker)
    if found is not None:
        return [Part(found, 1.0)]
    parts = [Part(_adapter(registry, name), weight) for name, weight in _split(registry, speaker)]
    _require_each_once(parts)
    require_weights([part.weight for part in parts])
    return parts


def other_base(registry: Registry, speaker: str | None) -> Base | None:
    """The base that a speaker is, where it is one by itself and no adapter is called so. Raises NotFound."""
    name = (speaker or "").strip()
    if not name.startswith(_OTHER_BASE) or name in registry.names(Adapter):
        return None
    return registry.find(Base, name.removeprefix(_OTHER_BASE))


def as_other_base(name: str) -> str:
    """How a base is spelled as a speaker beside those of another one."""
    return f"{_OTHER_BASE}{name}"


def called(speaker: str) -> str:
    """What a speaker is called where people read it."""
    return speaker.removeprefix(_OTHER_BASE) if speaker else PLAIN_BASE


def speaker_told(registry: Registry, speaker: str | None, base: Base) -> dict[str, Any] | None:
    """What the engine is told of a speaker on `base`; None for the plain base.

    Raises what speaker_parts() and parts_told() raise, and InvalidConfig for another base.
    """
    if other := other_base(registry, speaker):
        raise InvalidConfig(
            f"{other.name} is another base than {base.name}: it answers in a conversation, and takes no part "
            "in what is computed with those of one base together."
        )
    return parts_told(registry, speaker or "", speaker_parts(registry, speaker), base)


def parts_told(registry: Registry, name: str, parts: Sequence[Part], base: Base) -> dict[str, Any] | None:
    """What the engine is told of these parts under one name.

    Raises WrongBase, and InvalidConfig for who tells labels, or has whole weights and is blended.
    """
    for part in parts:
        require_same_weights(registry, part.adapter, base)
        require_writing(registry, part.adapter, "a chat")
    if not parts:
        return None
    if len(parts) == 1 and parts[0].weight == 1:
        return _told(registry, parts[0].adapter)
    return {"name": name, "parts": [_part_told(registry, part) for part in parts]}


def checkpoint_name(run_id: int, step: int) -> str:
    """What the checkpoint of a run at a step is called."""
    return f"run-{run_id}@{step}"


def _told(registry: Registry, row: Adapter) -> dict[str, Any]:
    """Of one adapter: core.adapter_source.AdapterSource but for its files."""
    told = {name: getattr(row, name) for name in ("name", "digest", "base_fingerprint", "base_name")}
    return told | {"whole": has_own_weights(registry, row)}


def _part_told(registry: Registry, part: Part) -> dict[str, Any]:
    if has_own_weights(registry, part.adapter):
        raise InvalidConfig(
            f"{part.adapter.name} cannot be part of a blend: it is full fine-tuning, whole weights in the "
            "place of the base's, which do not add up with others'. It answers by itself, beside the others."
        )
    return _told(registry, part.adapter) | {"weight": part.weight}


def _adapter(registry: Registry, name: str) -> Adapter:
    """The adapter or the checkpoint of this name. Raises NotFound, with what there is."""
    return _named(registry, name) or registry.find(Adapter, name)


def _named(registry: Registry, name: str) -> Adapter | None:
    """The adapter of exactly this name, else the checkpoint that it names. Raises NotFound for a checkpoint
    that is not there.
    """
    if name in registry.names(Adapter):
        return registry.find(Adapter, name)
    if not (found := _CHECKPOINT.fullmatch(name)):
        return None
    run_id = int(found["run"])
    row = checkpoint_at(registry, run_id, int(found["step"]))
    return as_adapter(registry.get(Run, run_id), row, name)


def _split(registry: Registry, speaker: str) -> Iterator[tuple[str, float]]:
    """The names in a blend with their weights. Raises NotFound for what is a single name, InvalidConfig."""
    at = 0
    while at < len(speaker):
        found = _PART.match(speaker, at)
        if found is None:
            raise _not_understood(registry, speaker[at:], alone=at == 0)
        yield found["name"].strip(), float(found["weight"])
        at = found.end()
    if speaker.endswith("+"):
        raise InvalidConfig(f"Nothing stands behind the last + of {speaker[:120]!r}. {_HOW}")


def _not_understood(registry: Registry, text: str, *, alone: bool) -> Exception:
    """Why `text` is no part of a blend; alone: it is all there is, and may have been meant as one name."""
    name = max((one for one in registry.names(Adapter) if text.startswith(f"{one}=")), key=len, default="")
    if not name:
        name = text.partition("=")[0] if _CHECKPOINT.fullmatch(text.partition("=")[0]) else ""
    if name:
        given = text[len(name) + 1 :].partition("+")[0]
        return InvalidConfig(f"The weight of {name} is {given[:40]!r}, which is no number. {_HOW}")
    if alone:
        try:
            registry.find(Adapter, text)
        except NotFound as error:
            return NotFound(f"{error} {_HOW}") if "=" in text else error
    return InvalidConfig(f"{text[:120]!r} has no weight. {_HOW}")


def _require_each_once(parts: list[Part]) -> None:
    names = [part.adapter.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise InvalidConfig(f"{name} is in the blend twice; give it one weight, the sum of both.")
