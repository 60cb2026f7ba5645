"""The bytes that a token stands for, also where they are only a part of a character."""

from __future__ import annotations

import functools
import re

from transformers import PreTrainedTokenizerBase

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes | None:
    """UTF-8 of the token's text; of a part of a character its own bytes, as byte-level vocabularies and those
    with byte fallback name them. None where neither tells.
    """
    text = str(tokenizer.decode([token]))
    if "\ufffd" not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token))
    if found := _FALLBACK.fullmatch(name):
        return bytes([int(found[1], 16)])
    known = _byte_of()
    return bytes(known[char] for char in name) if all(char in known for char in name) else None


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for, as GPT-2 chose them: what prints
    stands for itself, the others in order for those from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
