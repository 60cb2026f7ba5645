"""A tokenizer in GGUF's words, read from tokenizer.json: what text becomes which ids there as here.

llama.cpp knows two kinds. "gpt2" splits text by a regular expression that has a name of its own, then merges
bytes; "llama" merges by scores, as SentencePiece does. Anything that is neither, or whose regular expression
has no name there, is refused: a model that reads other tokens than it was trained on is broken without
anybody noticing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from core.errors import InvalidModel

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {_WORD + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORD + r"\p{N}" + _REST: "qwen2"}
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and how text is cut into them."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float] | None
    space_prefix: bool | None
    """Whether a space is put before the text; None where the kind has no such thing."""

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Put it into a file's header."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)


def vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of the model in `folder`, filled up to the `size` of its embedding.

    Raises InvalidModel if llama.cpp has no tokenizer that does the same.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidModel(
            f"{folder.name} has no tokenizer.json, from which the vocabulary of a GGUF file is made."
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    model = about["model"]
    if model.get("type") != "BPE":
        raise InvalidModel(
            f"Its tokenizer is of the kind {model.get('type')}, for which llama.cpp has no equal; BPE has."
        )
    if model.get("byte_fallback"):
        return _sentencepiece(about, size)
    return Vocabulary("gpt2", _pre_tokenizer(about), *_tokens(about, size), _merges(model), None, None)


def _pre_tokenizer(about: dict[str, Any]) -> str:
    """The name that llama.cpp has for the way this tokenizer splits text."""
    before = about.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    pattern = next((step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"), None)
    bytes_by_regex = steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space", True)
    if kinds == ["ByteLevel"] and bytes_by_regex:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and bytes_by_regex and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and pattern in _PRE_TOKENIZERS:
        return _PRE_TOKENIZERS[pattern]
    raise InvalidModel(
        f"Its tokenizer splits text by {', '.join(map(str, kinds)) or 'nothing'} in a way that has no "
        "name in llama.cpp; there "
        "the model would read other tokens than it was trained on. Export it as safetensors instead."
    )


def _tokens(about: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id. Ids that nothing has, up to the embedding's size, are unused."""
    tokens, types = [f"[PAD{at}]" for at in range(size)], [int(gguf.TokenType.UNUSED)] * size
    for token, at in about["model"]["vocab"].items():
        tokens[at], types[at] = token, int(gguf.TokenType.NORMAL)
    for one in about.get("added_tokens", []):
        tokens[one["id"]] = one["content"]
        types[one["id"]] = int(gguf.TokenType.CONTROL if one.get("special") else gguf.TokenType.USER_DEFINED)
    return tokens, types


def _merges(model: dict[str, Any]) -> list[str]:
    return [one if isinstance(one, str) else " ".join(one) for one in model.get("merges", [])]


def _sentencepiece(about: dict[str, Any], size: int) -> Vocabulary:
    """Scores take the place of merges: the earlier a merge, the higher the score of what it makes."""
    tokens, types = _tokens(about, size)
    unknown = about["model"].get("unk_token")
    for at, token in enumerate(tokens):
        if token.startswith("<0x") and len(token) == 6 and types[at] == gguf.TokenType.NORMAL:
            types[at] = int(gguf.TokenType.BYTE)
        elif token == unknown:
            types[at] = int(gguf.TokenType.UNKNOWN)
    merges = _merges(about["model"])
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    scores = [-float(ranks.get(token, len(merges) + at)) for at, token in enumerate(tokens)]
    return Vocabulary("llama", "default", tokens, types, [], scores, _prepends_space(about))


def _prepends_space(about: dict[str, Any]) -> bool:
    normalizer, before = about.get("normalizer") or {}, about.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    by_normalizer = any(step.get("type") == "Prepend" and step.get("prepend") == _SPACE for step in steps)
    by_metaspace = before.get("type") == "Metaspace" and before.get("prepend_scheme", "always") != "never"
    return by_normalizer or by_metaspace
