"""Whether a folder holds a base that can be trained and answered with, beyond what its description tells.

As a process of its own it reads a JSON list of folders from standard input, and writes an object of those
that are not sound, with the reason of each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.base_model.agreement import find_way
from core.base_model.describe import look_over
from core.base_model.load import load_generation_config
from core.base_model.model_config import is_writing, load_config
from core.base_model.tensors import check_tensors
from core.base_model.tokenizer import load_tokenizer
from core.data.rendering import Renderer
from core.errors import InvalidModel, WorkbenchError

_MOST_NAMED = 3


def require_sound(folder: Path) -> str:
    """The name of the way on which the base is computed; empty where it writes no text. No weight is read.

    Raises InvalidModel if the files do not hold the tensors of their architecture, if the tokenizer cannot be
    used or does not fit them, or if the architecture is not computed here as transformers does it.
    """
    look_over(folder)
    model, config = check_tensors(folder), load_config(folder)
    writes = is_writing(config)
    if writes:
        load_generation_config(folder, model)
    tokenizer = load_tokenizer(folder)
    Renderer(tokenizer)  # which needs a fast one
    _require_ids_within(folder, tokenizer, model)
    return find_way(config).name if writes else ""


def _require_ids_within(folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """The embedding may have more rows than there are tokens, never fewer."""
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    rows = embedding.shape[0]
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if not 0 <= number < rows}
    if beyond:
        first = sorted(beyond, key=beyond.__getitem__)[:_MOST_NAMED]
        shown = ", ".join(f"{token[:40]!r} ({beyond[token]:,})" for token in first)
        more = f" and {len(beyond) - len(first):,} more" if len(beyond) > len(first) else ""
        raise InvalidModel(
            f"The tokenizer of {folder.name} has tokens beyond the model's embedding, which has {rows:,} "
            f"rows: {shown}{more}. Put back the tokenizer files that belong to these weights, or take the "
            "added tokens out of them."
        )


def refusals(folders: Iterable[str]) -> dict[str, str]:
    """Why models would be refused if they were added now, by folder; those that would not are left out."""
    refused = {}
    for folder in folders:
        try:
            require_sound(Path(folder))
        except (WorkbenchError, OSError) as error:
            refused[folder] = str(error)
    return refused


def main() -> int:
    """Answer the question on standard input."""
    print(json.dumps(refusals(json.loads(sys.stdin.read()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
