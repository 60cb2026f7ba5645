"""Tensors in adapter files that are no LoRA factors of linear layers: what they are, in a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from core.errors import InvalidAdapter

_CONVOLUTIONS = (
    "It adapts convolutions of an image model ({name}); only linear layers can have adapters here."
)
_KINDS = (
    (
        r"lora_magnitude_vector|\.magnitude$|dora_scale$|\.m$",
        "It is a DoRA adapter ({name}); only PEFT's own two files, with use_dora in "
        "adapter_config.json, are taken of this kind.",
    ),
    (
        r"trainable_tokens|token_adapter",
        "It carries trained tokens ({name}): embeddings of single tokens, which an adapter here cannot "
        "hold. Train without trainable_token_indices.",
    ),
    (
        r"lora_embedding_[AB]",
        "It adapts the input embedding ({name}); only PEFT's own two files are taken with factors on one.",
    ),
    (
        r"lora_[ABab].*\.bias$",
        "It has a bias on B ({name}); only PEFT's own two files, with lora_bias in adapter_config.json, are "
        "taken with one.",
    ),
    (
        r"\.modules_to_save\.",
        "It carries a whole trained module ({name}); only PEFT's own two files, with modules_to_save in "
        "adapter_config.json, are taken with one.",
    ),
    (
        r"\.lora_E$|\.ranknum$",
        "It is an AdaLoRA adapter ({name}); of this kind only PEFT's own two files are taken.",
    ),
    (r"\.hada_|\.lokr_", "It is a LoHa or LoKr adapter ({name}); PEFT's convert_to_lora makes a LoRA of it."),
    (r"\.ia3_l", "It is an (IA)³ adapter ({name}), which cannot be used yet."),
    (r"\.oft_|\.boft_", "It is an OFT adapter ({name}), which cannot be used yet."),
    (
        r"vera_lambda|vera_A|vera_B",
        "It is a VeRA adapter ({name}); PEFT's convert_to_lora makes a LoRA of it.",
    ),
    (r"prompt_embeddings|prefix", "It is a soft prompt ({name}), not a LoRA adapter."),
    (r"lora_mid", _CONVOLUTIONS),
    (
        r"\.bias$",
        "It carries trained biases of the base ({name}); only PEFT's own two files, with bias: all or "
        "lora_only in adapter_config.json, are taken with such.",
    ),
)
_VISION = re.compile(
    r"(^|[._])(vision|visual|vision_tower|vision_model|image_encoder|multi_modal_projector|mm_projector"
    r"|audio_tower)([._]|$)|(^|[._])unet[._](down|mid|up|input|output|middle|time|conv|label)"
)
_EXPERTS = re.compile(r"[._]experts([._]|$)|switch_mlp")
_HEADS = ("lm_head", "embed_out", "output")


def refuse_stranger(names: Sequence[str]) -> None:
    """Raise InvalidAdapter with what the first tensor is that tells the kind of the file."""
    for pattern, sentence in _KINDS:
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise InvalidAdapter(sentence.format(name=found[:120]))


def refuse_convolution(name: str) -> NoReturn:
    """Raise InvalidAdapter for a factor that is a kernel of a convolution."""
    raise InvalidAdapter(_CONVOLUTIONS.format(name=name[:120]))


def refuse_path(own: str, paths: Iterable[str], *, ambiguous: int = 0) -> None:
    """Raise InvalidAdapter with why a base with these module paths has no one layer for a file's path."""
    shown, paths = own[:120], list(paths)
    if ambiguous:
        why = f"The base has {ambiguous} layers that could be {shown}; the adapter is for another model."
    elif _VISION.search(own):
        why = (
            f"It adapts {shown}, a part for pictures or sound that this base has not; its text part cannot "
            "be used alone."
        )
    elif _EXPERTS.search(own) and not any(_EXPERTS.search(path) for path in paths):
        why = (
            f"It adapts experts ({shown}), and in this base they are no layers of their own: it has none, or "
            "keeps those of a layer in one tensor, as transformers 5 does. For such experts the files have "
            "to be PEFT's, with target_parameters in adapter_config.json."
        )
    elif _is_head(own) and not any(_is_head(path) for path in paths):
        why = (
            f"It adapts the output head ({shown}), which in this base is the input embedding too (tied): an "
            "adapter would change both. Train it without the head among its target_modules."
        )
    else:
        why = f"The base has no layer {shown}; the adapter is for another model."
    raise InvalidAdapter(why)


def _is_head(path: str) -> bool:
    return path.endswith(_HEADS) and not any(char.isdigit() for char in path)
