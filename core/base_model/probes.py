"""Fixed questions to a base model, by which two models, or one in two files, are compared."""

from __future__ import annotations

import inspect
from pathlib import Path

import psutil
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from core.base_model.attention import set_attention
from core.base_model.files import weight_files
from core.base_model.load import ResidentBase
from core.data.templating import apply_template
from core.files.safetensors_file import read_header

PROBES = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "def add(a, b):",
    "Zwei plus zwei ist",
    "The quick brown fox jumps over the lazy dog. 0123456789",
)
ANSWER_TOKENS = 64


def probe_texts(base: ResidentBase) -> list[str]:
    """The probes as the base's own template renders them."""
    return [
        apply_template(base.tokenizer, [{"role": "user", "content": probe}], add_generation_prompt=True)
        for probe in PROBES
    ]


def probe_ids(base: ResidentBase) -> list[Tensor]:
    """The same in tokens, each [1, length]."""
    encoded = [
        base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for text in probe_texts(base)
    ]
    return [ids[:, : base.context_length] for ids in encoded]


@torch.no_grad()
def probe_logits(base: ResidentBase, probes: list[Tensor]) -> Tensor:
    """Logits at every position of every probe, [positions, vocabulary]."""
    return torch.cat([base.model(input_ids=ids, use_cache=False).logits[0].float() for ids in probes])


@torch.no_grad()
def greedy_answer(base: ResidentBase, prompt: Tensor, tokens: int = ANSWER_TOKENS) -> Tensor:
    """The likeliest token again and again, [tokens]; not stopped by an end token, so that there is something
    to compare.
    """
    # Our own attends to what a row was given, not to a cache behind it.
    set_attention(base.model, _plain_attention(base))
    tokens = min(tokens, base.context_length - prompt.shape[1])
    ids, answer = prompt, []
    cached = {_cache_name(base.model): DynamicCache(config=base.model.config)}
    for _ in range(tokens):
        ids = base.model(input_ids=ids, use_cache=True, **cached).logits[:, -1:].argmax(-1)
        answer.append(ids)
    return torch.cat(answer, dim=1)[0] if answer else prompt.new_zeros(0)


def _plain_attention(base: ResidentBase) -> str:
    """By which of transformers' own a base attends beside a cache; gpt-oss and its kin know eager alone."""
    if not base.way.quick:
        return base.way.attention
    return "sdpa" if base.model._supports_sdpa else "eager"


def _cache_name(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache: transformers has renamed it on the way from 5.17 to 5.40."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def lack_of_memory(folder: Path) -> str:
    """Why the model cannot be computed in float32 in this machine's memory; empty if it can."""
    count = sum(entry.count for path in weight_files(folder) for entry in read_header(path).tensors)
    needed, free = 4.5 * count, psutil.virtual_memory().available
    if needed <= free:
        return ""
    return (
        f"computing the model in float32 takes {needed / 1e9:,.0f} GB of memory, {free / 1e9:,.0f} "
        "GB are free"
    )
