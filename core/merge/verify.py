"""Is a merged model what it claims to be? Reload it from disk and compare its logits with base + adapter; or,
where that takes too much memory, compare its tensors one by one.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import AutoConfig

from core.base_model.files import weight_files
from core.base_model.load import ResidentBase, load_base
from core.base_model.probes import PROBES, greedy_answer, probe_ids, probe_logits
from core.base_model.quantisation import NONE
from core.base_model.tokenizer import configured_end_ids
from core.data.templating import apply_template
from core.errors import InvalidAdapter
from core.events import Progress
from core.files.safetensors_file import TensorEntry, read_header
from core.lora.adapter import AdapterWeights
from core.lora.whole import computing_bank
from core.merge.chosen_experts import SameChoices, given_choices, recorded_choices
from core.merge.held import Held
from core.merge.merge import Source, merged_weight, sources
from core.merge.stream import read_range
from core.merge.whole_tensors import TORCH_DTYPES
from core.reporting import Report

RENDERED = (
    ({"role": "user", "content": PROBES[0]},),
    (
        {"role": "user", "content": PROBES[1]},
        {"role": "assistant", "content": "It is wide."},
        {"role": "user", "content": PROBES[2]},
    ),
)
# Weights rounded to bf16 differ by up to 2⁻⁹ of their size, which moves logits by about a hundredth of their
# spread.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-4}
# Share of tokens that rounding may send to other experts; of random models in bf16 it is up to a fiftieth.
_SAME_EXPERTS = 0.9
_LAST_DIGIT = {"F64": 1e-6, "F32": 1e-6, "F16": 2**-10, "BF16": 2**-7}


@dataclass(frozen=True)
class MergeCheck:
    """The result of comparing a merged model with base + adapter, both computed in float32; a mixture of
    experts with the choices that base + adapter makes.
    """

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
    """Share of the probes' positions with the same likeliest token."""
    answer_agreement: float
    """Share of the 64 tokens of a greedy answer of base + adapter that the
    merged model would give as well.
    """
    expert_agreement: float
    """Share of tokens, over all layers, that the merged model by itself sends to the same experts; 1 where
    there are none.
    """
    problems: tuple[str, ...]
    """What else differs: template, end tokens, tied weights, number of tensors, the routing to experts."""

    def sentence(self) -> str:
        """The result in words."""
        figures = (
            f"logits differ by at most {self.max_logit_difference:.3g}, {self.relative_difference:.2%} "
            "of their spread "
            f"(allowed {self.tolerance:.2%}; the adapter itself moves them by {self.adapter_effect:.2%}); "
            f"same next token at {self.greedy_agreement:.1%} of positions and "
            f"{self.answer_agreement:.1%} of a greedy answer{self._of_experts}"
        )
        return f"{'Passed' if self.passed else 'FAILED'}: {'; '.join([figures, *self.problems])}."

    @property
    def _of_experts(self) -> str:
        if self.expert_agreement == 1.0:
            return ""
        own = f"{self.expert_agreement:.1%} of the tokens go by themselves"
        return f", both with the same experts, to which {own}"


def verify_merge(
    base_folder: Path,
    adapter: AdapterWeights,
    merged_folder: Path,
    report: Report,
    template: str = "",
    quantisation: str = NONE,
) -> MergeCheck:
    """Load base + adapter, then the merged model, and compare them on fixed prompts.

    Works in float32 on the CPU; quantisation: how the base is held to which ΔW was added.
    """
    report(Progress("Computing base + adapter"))
    how = {"template": template, "quantisation": quantisation}
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, **how)
    bank = computing_bank(base.model, base.layers, [adapter])
    probes = probe_ids(base)
    plain = probe_logits(base, probes)
    with bank.use():
        with recorded_choices(base.model) as choices:
            expected = probe_logits(base, probes)
        answer = greedy_answer(base, probes[0])
    facts, ends = _facts(base, base_folder), base.end_token_ids()
    del base, bank
    gc.collect()
    report(Progress("Loading the merged model"))
    merged = load_base(merged_folder, device=torch.device("cpu"), dtype=torch.float32)
    with given_choices(merged.model, choices) as same:
        found = probe_logits(merged, probes)
    same_answer = _follows(merged, probes[0], answer)
    problems = _differences(_facts(merged, merged_folder), facts) + _unstated_ends(merged_folder, ends)
    return _compare(plain, expected, found, same_answer, same, _stored_dtype(merged_folder), problems)


@torch.no_grad()
def _follows(merged: ResidentBase, prompt: Tensor, answer: Tensor) -> float:
    """The share of the answer's tokens that are the merged model's likeliest too, given those before."""
    if not len(answer):
        return 1.0
    logits = merged.model(input_ids=torch.cat([prompt, answer[None]], dim=1), use_cache=False).logits[0]
    return float((logits[prompt.shape[1] - 1 : -1].argmax(-1) == answer).float().mean())


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype the merged weights are stored in, which decides how exact they can be."""
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None)
    return stored if stored in TOLERANCE else torch.bfloat16


def _facts(base: ResidentBase, folder: Path) -> dict[str, object]:
    """What must be the same in the merged model, by the words in which a difference is told."""
    config = base.model.config
    rendered = [apply_template(base.tokenizer, list(probe), add_generation_prompt=True) for probe in RENDERED]
    return {
        "chat template": base.tokenizer.chat_template,
        "rendering of the chat template": rendered,
        "end token of the tokenizer": base.tokenizer.eos_token_id,
        "end tokens of the configuration": getattr(config, "eos_token_id", None),
        "end tokens of an answer": sorted(base.end_token_ids()),
        "tying of input and output embeddings": bool(getattr(config, "tie_word_embeddings", False)),
        "number of tensors": sum(len(read_header(path).tensors) for path in weight_files(folder)),
    }


def _unstated_ends(folder: Path, ends: set[int]) -> tuple[str, ...]:
    """Servers stop at the tokens that the generation configuration names."""
    if set(configured_end_ids(folder)) == ends:
        return ()
    return (f"the generation configuration does not name exactly the end tokens {sorted(ends)}",)


def _differences(found: dict[str, object], wanted: dict[str, object]) -> tuple[str, ...]:
    differing = [name for name, value in wanted.items() if found[name] != value]
    short = [name for name in differing if len(str(wanted[name])) < 60]
    return tuple(
        f"the {name} is {found[name]}, the base's is {wanted[name]}"
        if name in short
        else f"the {name} is not the base's"
        for name in differing
    )


def _compare(
    plain: Tensor,
    expected: Tensor,
    found: Tensor,
    same_answer: float,
    choices: SameChoices,
    dtype: torch.dtype,
    problems: tuple[str, ...],
) -> MergeCheck:
    if not (expected.isfinite().all() and found.isfinite().all()):
        raise InvalidAdapter("The logits hold NaN or infinite numbers: the adapter or the base is damaged.")
    spread = max(float(expected.std()), 1e-12)
    relative = float((found - expected).square().mean().sqrt()) / spread
    same = expected.argmax(-1) == found.argmax(-1)
    problems += _other_routing(choices, TOLERANCE[dtype])
    return MergeCheck(
        passed=relative <= TOLERANCE[dtype] and not problems,
        max_logit_difference=float((found - expected).abs().max()),
        relative_difference=relative,
        tolerance=TOLERANCE[dtype],
        adapter_effect=float((plain - expected).square().mean().sqrt()) / spread,
        greedy_agreement=float(same.float().mean()),
        answer_agreement=same_answer,
        expert_agreement=choices.agreement,
        problems=problems,
    )


def _other_routing(choices: SameChoices, tolerance: float) -> tuple[str, ...]:
    """What rounding does not explain of how tokens are sent to experts."""
    if choices.agreement < _SAME_EXPERTS:
        return (f"only {choices.agreement:.1%} of the tokens go to the same experts",)
    if choices.weight_difference > tolerance:
        return (f"experts count {choices.weight_difference:.2%} more or less (allowed {tolerance:.2%})",)
    return ()


def differing_tensors(
    base_folder: Path,
    adapter: AdapterWeights,
    transposed: frozenset[str],
    merged: Path,
    held: Mapping[str, Held] = MappingProxyType({}),
) -> list[str]:
    """The names of tensors in the folder `merged` that are not base + adapter, rounded once; missing and
    extra ones count. held: as of sources().
    """
    written = {
        entry.name: (path, entry) for path in weight_files(merged) for entry in read_header(path).tensors
    }
    wanted = {one.entry.name: one for rows in sources(base_folder, adapter, transposed, held) for one in rows}
    both = set(written) & set(wanted)
    different = {name for name in both if not _is_as_meant(wanted[name], *written[name])}
    return sorted(different | (set(written) ^ set(wanted)))


def _is_as_meant(source: Source, path: Path, entry: TensorEntry) -> bool:
    """Whether a tensor in a merged file is what the merge should have written there."""
    found = read_range(path, entry.start, entry.end)
    if not source.is_changed and entry.dtype == source.entry.dtype:
        return found == read_range(source.path, source.entry.start, source.entry.end)
    meant = merged_weight(source).to(TORCH_DTYPES[entry.dtype])
    stored = torch.frombuffer(found, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape)
    # Products of other sizes may differ in float32's last digit, and with it the rounding to 16 bits.
    return torch.allclose(stored.float(), meant.float(), rtol=_LAST_DIGIT[entry.dtype], atol=1e-7)
