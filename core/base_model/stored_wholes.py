"""What of a base adapters can have of their own, as names and shapes in its files tell. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from core.base_model.files import stored_tensors
from core.lora.wholes import BIAS, WEIGHT, Wholes

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_USUAL_HEAD = "lm_head"  # what transformers calls a head that is not stored


def stored_wholes(folder: Path, layers: Collection[str], head: str | None, vocabulary: int) -> Wholes:
    """The same as wholes_of() tells of a model in memory. layers: the paths of its linear layers; head: that
    of an output head with a weight of its own, None where it is the embedding.

    Raises InvalidModel if the folder holds no weights.
    """
    shapes = {name: entry.shape for name, (_, entry) in stored_tensors(folder).items()}
    called = _naming(layers, shapes)
    rows = [name for name, shape in shapes.items() if len(shape) == 2 and shape[0] == vocabulary]
    embedding = _embedding([name for name in rows if called(name) != f"{head}{WEIGHT}"])
    if not embedding:
        return Wholes()
    found = {called(embedding): shapes[embedding]}
    if head is not None:
        found |= {called(name): shapes[name] for name in rows if called(name) == f"{head}{WEIGHT}"}
    biases = {
        called(name): shape for name, shape in shapes.items() if name.endswith(BIAS) and len(shape) == 1
    }
    return Wholes(called(embedding).removesuffix(WEIGHT), head or _USUAL_HEAD, head is None, found | biases)


def _embedding(names: list[str]) -> str:
    """The input embedding among what has a row for each token; empty if there is none."""
    return next((name for name in names if name.endswith(_EMBEDDINGS)), next(iter(names), ""))


def _naming(layers: Collection[str], stored: Mapping[str, object]) -> Callable[[str], str]:
    """From the names in files to the model's: some leave out the outermost module, others have one more."""
    path = next(iter(layers), "")
    outer, _, rest = path.partition(".")
    if f"{path}{WEIGHT}" in stored:
        return lambda name: name
    if f"{rest}{WEIGHT}" in stored:
        return lambda name: name if name.startswith(_USUAL_HEAD) else f"{outer}.{name}"
    more = _more(path, stored)
    return lambda name: name.removeprefix(more)


def _more(path: str, stored: Iterable[str]) -> str:
    """What stands before a layer's path in the files."""
    found = (name for name in stored if name.endswith(f".{path}{WEIGHT}"))
    return next(found, "").removesuffix(f"{path}{WEIGHT}")
