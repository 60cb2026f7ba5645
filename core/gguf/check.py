"""Is a GGUF file what it claims to be? Read back tensor by tensor, and asked to answer where llama.cpp is
installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor
from transformers import PreTrainedModel

from core.base_model.load import ResidentBase, load_base
from core.base_model.probes import greedy_answer, probe_ids, probe_texts
from core.events import Progress
from core.gguf.architecture import Array, gguf_architecture
from core.gguf.write import ADAPTER_ALPHA, Planned, adapter_tensors, exact_values, kind_of, planned
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
# Share of a greedy answer's tokens that llama.cpp must find likeliest too. Beside quantised weights it rounds
# activations to 8 bits.
_LEAST_AGREEMENT = {Kind.F32: 0.95, Kind.F16: 0.95, Kind.BF16: 0.95}
_LEAST_AGREEMENT_QUANTISED = 0.8


@dataclass(frozen=True)
class GgufCheck:
    """What was found when a GGUF file was read again."""

    tensors: int
    worst_error: float
    """Of any tensor: the root mean square of what rounding changed, as a share of its values' own."""
    answer_agreement: float | None
    """Share of the tokens of a greedy answer, given here by the numbers in the file, that llama.cpp finds
    likeliest as well; None where it was not asked.
    """
    problems: tuple[str, ...]
    asked: str = "llama.cpp's Python binding is not installed, so it was not asked to answer"
    """What is said of llama.cpp where it was not asked."""
    rounding_agreement: float | None = None
    """Share of the tokens of the answer without rounding that the numbers in the file find likeliest too."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def sentence(self) -> str:
        """The result in words."""
        asked = self.asked
        if self.answer_agreement is not None:
            asked = f"llama.cpp gives the same next token at {self.answer_agreement:.1%} of a greedy answer"
        if self.rounding_agreement is not None:
            asked += f", and {self.rounding_agreement:.1%} of one without rounding stay the likeliest"
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
    check = GgufCheck(len(found), worst, None, tuple(problems))
    if not llama_cpp_is_installed():
        return check
    if problems:
        return replace(check, asked="llama.cpp was not asked")
    report(Progress("Asking llama.cpp"))
    own = (
        (one.source.entry.name, architecture.restored(one.source.entry.name, _values(found[one.name], one)))
        for one in wanted
        if one.source is not None
    )
    return _asked(check, base_folder, adapter, file, dtype, template, own)


def _values(tensor: gguf.ReaderTensor, one: Planned) -> Array:
    """The numbers of a tensor of the file in float32, in a copy: the file is mapped, and read-only."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(one.shape)
    return np.array(values, np.float32)


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


def _asked(
    check: GgufCheck,
    base_folder: Path,
    adapter: AdapterWeights,
    file: Path,
    dtype: str,
    template: str,
    own: Iterator[tuple[str, Array]],
) -> GgufCheck:
    """llama.cpp's likeliest tokens against those that its file's numbers `own`, by the base's names, give
    here, along one greedy answer: what rounding has changed is no fault of either.
    """
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, template=template)
    prompt, text = probe_ids(base)[0], probe_texts(base)[0]
    with computing_bank(base.model, base.layers, [adapter]).use():
        exact = greedy_answer(base, prompt)
    _take_over(base.model, own)
    kept = float((_likeliest(base, prompt, exact) == exact).float().mean())
    answer = greedy_answer(base, prompt)
    ids, expected = prompt[0].tolist(), answer.tolist()
    del base
    tokens, likeliest = llama_cpp_answer(file, None, text, ids + expected[:-1])
    problems = []
    if tokens != ids:
        problems.append("llama.cpp cuts the prompt into other tokens")
    agreement = float(
        np.mean([one == other for one, other in zip(likeliest[len(ids) - 1 :], expected, strict=True)])
    )
    if agreement < _LEAST_AGREEMENT.get(kind_of(dtype), _LEAST_AGREEMENT_QUANTISED):
        problems.append("llama.cpp answers something else")
    return replace(
        check, answer_agreement=agreement, rounding_agreement=kept, problems=(*check.problems, *problems)
    )


@torch.no_grad()
def _take_over(model: PreTrainedModel, own: Iterator[tuple[str, Array]]) -> None:
    """Put these numbers into the model, in place of its own. Files may leave out the outermost module."""
    modules = dict(model.named_modules())
    for name, values in own:
        path, _, parameter = name.rpartition(".")
        module = modules.get(path) or modules[f"{model.base_model_prefix}.{path}"]
        getattr(module, parameter).copy_(torch.from_numpy(np.ascontiguousarray(values)))


@torch.no_grad()
def _likeliest(base: ResidentBase, prompt: Tensor, answer: Tensor) -> Tensor:
    """The likeliest token at each place of an answer behind a prompt."""
    ids = torch.cat([prompt[0], answer[:-1]])[None]
    return base.model(input_ids=ids, use_cache=False).logits[0, prompt.shape[1] - 1 :].argmax(-1)


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
