"""What a prompt of plain text or of token ids is to a model: its ids, and how likely each of them is."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from core.base_model.load import ResidentBase
from core.data.token_view import token_text
from core.echoes import Echo
from core.errors import InvalidInput
from core.generate.scoring import Speakers, score

_PART_OF_A_CHARACTER = "\ufffd"


def known_ids(base: ResidentBase, ids: Sequence[int]) -> list[int]:
    """Ids that somebody else has made of a prompt. Raises InvalidInput for one that the base has not."""
    count = int(base.model.config.get_text_config().vocab_size)
    if strange := next((one for one in ids if not 0 <= one < count), None):
        raise InvalidInput(
            f"The prompt has the token id {strange:,}; {base.name} has 0 to {count - 1:,}. Was it made with "
            "the tokenizer of another model?"
        )
    return list(ids)


def echo(base: ResidentBase, groups: Sequence[Speakers], ids: Sequence[int], text: str) -> Echo:
    """How likely each of `ids` is to the last row of the groups, given those before it. text: what the ids
    were made of; empty for ids that came as such.

    Raises InvalidInput where a model's output is not finite.
    """
    tokens = score(base, groups, ids, 1)[-1].tokens if len(ids) > 1 else []
    offsets, whole = _offsets(base.tokenizer, ids)
    opening = len(whole) - len(text) if text and whole.endswith(text) else 0  # such as <s>, which none wrote
    at = [max(0, one - opening) for one in offsets]
    return Echo(text or whole, token_text(base.tokenizer, ids[0]), tokens, at)


def _offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[int], str]:
    """Where each token begins in the text of all, and that text. Tokens are decoded behind those before
    them, since some tokenizers drop a space at the beginning.
    """
    found, parts, length, before, shown = [], [], 0, 0, 0
    for at in range(len(ids)):
        found.append(length)
        known, now = (str(tokenizer.decode(list(ids[before:stop]))) for stop in (shown, at + 1))
        if not now.endswith(_PART_OF_A_CHARACTER) or at == len(ids) - 1:
            parts.append(now[len(known) :])
            length, before, shown = length + len(parts[-1]), shown, at + 1
    return found, "".join(parts)
