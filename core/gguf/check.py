"""Is a GGUF file what it claims to be? Read back tensor by tensor, and asked to answer where llama.cpp is
installed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from core.base_model.load import load_base
from core.base_model.probes import greedy_answer, probe_ids, probe_texts
from core.events import Progress
from core.gguf.architecture import gguf_architecture
from core.gguf.write import ADAPTER_ALPHA, adapter_tensors, exact_values, kind_of, planned
from core.lora.adapter import AdapterWeights
from core.lora.whole import computing_bank
from core.reporting import Report

# Root mean square of the error, as a share of the weights' own, that each kind's rounding explains with room
# to spare.
_TOLERANCE = {
    Kind.F32: 1e-7,
    Kind.F16: 1e-3,
    Kind.BF16: 5e-3,
    Kind.Q8_0: 0.02,
    Kind.Q5_1: 0.06,
    Kind.Q5_0: 0.08,
    Kind.Q4_1: 0.12,
    Kind.Q4_0: 0.16,
}
# Share of a greedy answer's tokens that llama.cpp must find likeliest too.
_LEAST_AGREEMENT = {Kind.F32: 0.95, Kind.F16: 0.95, Kind.BF16: 0.95, Kind.Q8_0: 0.9}
_LEAST_AGREEMENT_BELOW = 0.6


@dataclass(frozen=True)
class GgufCheck:
    """What was found when a GGUF file was read again."""

    tensors: int
    worst_error: float
    """Of any tensor: the root mean square of what rounding changed, as a share of its values' own."""
    answer_agreement: float | None
    """Share of the tokens of a greedy answer that llama.cpp gives as well; None where it is not installed."""
    problems: tuple[str, ...]
    asked: str = "llama.cpp's Python binding is not installed, so it was not asked to answer"
    """What is said of llama.cpp where it was not asked."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def sentence(self) -> str:
        """The result in words."""
        asked = self.asked
        if self.answer_agreement is not None:
            asked = f"llama.cpp gives the same next token at {self.answer_agreement:.1%} of a greedy answer"
        figures = (
            f"{self.tensors} tensors read back, rounded by at most {self.worst_error:.2g} of "
            f"their size; {asked}"
        )
        return f"{'Passed' if self.passed else 'FAILED'}: {'; '.join([figures, *self.problems])}."


def llama_cpp_is_installed() -> bool:
    """Whether llama.cpp's Python binding is there."""
    return importlib.util.find_spec("llama_cpp") is not None


def check_merged_gguf(
    base_folder: Path,
    adapter: AdapterWeights,
    transposed: frozenset[str],
    file: Path,
    dtype: str,
    report: Report,
    template: str = "",
) -> GgufCheck:
    """Compare every tensor of `file` with base + adapter computed anew, then have llama.cpp answer if it is
    there.
    """
    report(Progress("Reading the GGUF file back"))
    architecture, wanted = planned(base_folder, adapter, transposed, dtype)
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    problems, worst = [], 0.0
    if set(found) != {one.name for one in wanted}:
        problems.append(f"it holds {len(found)} tensors, {len(wanted)} were expected")
    for one in wanted:
        if one.name not in found:
            continue
        exact, stored = exact_values(architecture, one), found[one.name]
        if tuple(int(n) for n in stored.shape[::-1]) != one.shape or stored.tensor_type != one.kind:
            problems.append(f"{one.name} has another shape or number format")
            continue
        error = _error(gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(one.shape), exact)
        worst = max(worst, error)
        if not error <= _TOLERANCE[one.kind]:
            problems.append(f"{one.name} differs by {error:.2g} of its size")
    agreement = None
    if llama_cpp_is_installed():
        report(Progress("Asking llama.cpp"))
        agreement, problem = _ask(base_folder, adapter, file, dtype, template)
        problems += problem
    return GgufCheck(len(found), worst, agreement, tuple(problems))


def check_adapter_gguf(base_folder: Path, adapter: AdapterWeights, file: Path) -> GgufCheck:
    """Compare every tensor of an adapter's file with the factors. llama.cpp is not asked: it needs the base
    as GGUF too.
    """
    wanted = dict(adapter_tensors(gguf_architecture(base_folder), adapter))
    reader = gguf.GGUFReader(file)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    problems = (
        [] if set(found) == set(wanted) else [f"it holds {len(found)} tensors, {len(wanted)} were expected"]
    )
    problems += [
        f"{name} is not as it was"
        for name, data in found.items()
        if name in wanted and not np.array_equal(data, wanted[name])
    ]
    alpha = reader.get_field(gguf.Keys.Adapter.LORA_ALPHA)
    if alpha is None or float(alpha.contents()) != ADAPTER_ALPHA:
        problems.append("it does not state its alpha")
    return GgufCheck(
        len(found),
        0.0,
        None,
        tuple(problems),
        "llama.cpp was not asked, which would need the base as GGUF too",
    )


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    size = float(np.sqrt(np.mean(np.square(exact, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(found.astype(np.float64) - exact)))) / max(size, 1e-12)


def _ask(
    base_folder: Path, adapter: AdapterWeights, file: Path, dtype: str, template: str
) -> tuple[float, list[str]]:
    """llama.cpp's likeliest tokens against those of base + adapter computed here, along one greedy answer."""
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, template=template)
    prompt = probe_ids(base)[0]
    with computing_bank(base.model, base.layers, [adapter]).use():
        answer = greedy_answer(base, prompt)
    text = probe_texts(base)[0]
    ids, expected = prompt[0].tolist(), answer.tolist()
    del base
    tokens, likeliest = llama_cpp_answer(file, None, text, ids + expected[:-1])
    problems = []
    if tokens != ids:
        problems.append("llama.cpp cuts the prompt into other tokens")
    agreement = float(
        np.mean([one == other for one, other in zip(likeliest[len(ids) - 1 :], expected, strict=True)])
    )
    if agreement < _LEAST_AGREEMENT.get(kind_of(dtype), _LEAST_AGREEMENT_BELOW):
        problems.append("llama.cpp answers something else")
    return agreement, problems


def llama_cpp_answer(file: Path, lora: Path | None, text: str, ids: list[int]) -> tuple[list[int], list[int]]:
    """How llama.cpp cuts `text` into tokens, and after each of `ids` the token that it finds likeliest."""
    from llama_cpp import Llama

    model = Llama(
        str(file),
        n_ctx=max(512, len(ids) + 8),
        logits_all=True,
        verbose=False,
        lora_path=str(lora) if lora else None,
    )
    tokens = model.tokenize(text.encode(), add_bos=False, special=True)
    model.eval(ids)
    likeliest = [int(np.argmax(model.scores[at])) for at in range(len(ids))]
    model.close()
    return tokens, likeliest
