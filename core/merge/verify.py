"""Is a merged model what it claims to be? Reload it from disk and compare its logits with base + adapter."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from core.base_model.load import ResidentBase, load_base
from core.data.render import apply_template
from core.errors import InvalidAdapter
from core.events import Progress
from core.lora.adapter import AdapterWeights
from core.lora.inject import AdapterBank
from core.reporting import Report

PROBES = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "def add(a, b):",
    "Zwei plus zwei ist",
    "The quick brown fox jumps over the lazy dog. 0123456789",
)
# Weights rounded to bf16 differ by up to 2⁻⁹ of their size, which moves logits by about a hundredth of their spread.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-4}


@dataclass(frozen=True)
class MergeCheck:
    """The result of comparing a merged model with base + adapter, both computed in float32."""

    passed: bool
    max_logit_difference: float
    """Largest absolute difference of any logit."""
    relative_difference: float
    """Root mean square of the differences, as a share of the logits' own spread (standard deviation)."""
    tolerance: float
    """The largest relative difference that passes, by the dtype of the merged weights."""
    adapter_effect: float
    """The same share between base and base + adapter: how much there was to merge."""
    greedy_agreement: float
    """Share of positions with the same likeliest token."""
    problems: tuple[str, ...]
    """What else differs: template, end tokens."""

    def sentence(self) -> str:
        """The result in words."""
        figures = (
            f"logits differ by at most {self.max_logit_difference:.3g}, {self.relative_difference:.2%} of their spread "
            f"(allowed {self.tolerance:.2%}; the adapter itself moves them by {self.adapter_effect:.2%}); "
            f"same next token at {self.greedy_agreement:.1%} of positions"
        )
        return f"{'Passed' if self.passed else 'FAILED'}: {'; '.join([figures, *self.problems])}."


def verify_merge(
    base_folder: Path, adapter: AdapterWeights, merged_folder: Path, report: Report, template: str = ""
) -> MergeCheck:
    """Load base + adapter, then the merged model, and compare them on fixed prompts. Works in float32 on the CPU."""
    report(Progress("Computing base + adapter"))
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, template=template)
    bank = AdapterBank(base.layers, list(adapter.layers), slots=1, rank=adapter.highest_rank)
    bank.load(0, adapter)
    probes = _probe_ids(base)
    plain = _logits(base, probes)
    with bank.use():
        expected = _logits(base, probes)
    written, ends = base.tokenizer.chat_template, base.end_token_ids()
    del base, bank
    gc.collect()
    report(Progress("Loading the merged model"))
    merged = load_base(merged_folder, device=torch.device("cpu"), dtype=torch.float32)
    problems = _differences(merged, written, ends)
    return _compare(plain, expected, _logits(merged, probes), _stored_dtype(merged_folder), problems)


def _probe_ids(base: ResidentBase) -> list[Tensor]:
    """The probes as the base's own template and tokenizer render them, each [1, length]."""
    texts = [apply_template(base.tokenizer, [{"role": "user", "content": probe}], add_generation_prompt=True) for probe in PROBES]
    encoded = [base.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
    return [ids[:, : base.context_length] for ids in encoded]


@torch.no_grad()
def _logits(base: ResidentBase, probes: list[Tensor]) -> Tensor:
    """Logits at every position of every probe, [positions, vocabulary]."""
    return torch.cat([base.model(input_ids=ids, use_cache=False).logits[0].float() for ids in probes])


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype the merged weights are stored in, which decides how exact they can be."""
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None)
    return stored if stored in TOLERANCE else torch.bfloat16


def _differences(merged: ResidentBase, template: str | None, ends: set[int]) -> tuple[str, ...]:
    problems = []
    if merged.tokenizer.chat_template != template:
        problems.append("the chat template is not the base's")
    if merged.end_token_ids() != ends:
        problems.append(f"the end tokens are {sorted(merged.end_token_ids())}, the base's are {sorted(ends)}")
    return tuple(problems)


def _compare(plain: Tensor, expected: Tensor, found: Tensor, dtype: torch.dtype, problems: tuple[str, ...]) -> MergeCheck:
    if not (expected.isfinite().all() and found.isfinite().all()):
        raise InvalidAdapter("The logits hold NaN or infinite numbers: the adapter or the base is damaged.")
    spread = max(float(expected.std()), 1e-12)
    relative = float((found - expected).square().mean().sqrt()) / spread
    same = expected.argmax(-1) == found.argmax(-1)
    return MergeCheck(
        passed=relative <= TOLERANCE[dtype] and not problems,
        max_logit_difference=float((found - expected).abs().max()),
        relative_difference=relative,
        tolerance=TOLERANCE[dtype],
        adapter_effect=float((plain - expected).square().mean().sqrt()) / spread,
        greedy_agreement=float(same.float().mean()),
        problems=problems,
    )
