"""The adapter alone in PEFT's own files, which most tools load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from core.events import Progress
from core.export.formats import ExportFormat, Written
from core.reporting import Report

if TYPE_CHECKING:
    from torch import Tensor

    from core.export.duties import Exported, Exporting, Facts, Finding
    from core.lora.adapter import AdapterWeights

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""That its --max-lora-rank takes; 1 and 8, which only newer ones know, are served by 16."""


class Peft(ExportFormat):
    """adapter_config.json and adapter_model.safetensors.

    With one scale for all layers: servers such as vLLM read no rank_pattern and no alpha_pattern, so what
    differs from lora_alpha / r is folded into B, and they and PEFT compute the same.
    """

    name, label, order = "peft", "PEFT adapter", 10
    help = "The adapter alone."
    merges = False
    takes_classifiers = True
    no_other_dtype = "An adapter's factors stay in float32; leave out dtype for {name}."
    ending = ".safetensors"

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.lora.equal_scales import with_one_scale
        from core.lora.kinds import ADAPTER_KINDS
        from core.lora.peft.files import TEMPLATE_KEY, TOKENIZER_KEY, save_checked

        about = {TOKENIZER_KEY: what.about.tokenizer_hash, TEMPLATE_KEY: what.about.template_hash}
        recorded = {key: value for key, value in about.items() if value}
        adapter = replace(
            with_one_scale(what.adapter),
            base_name=what.about.base_source or what.about.base_name,
            base_revision=what.about.base_revision,
        )
        made_for = what.skeleton
        save_checked(staging, adapter, made_for.shapes, made_for.head, recorded, made_for.wholes)
        each = len(ADAPTER_KINDS.get(adapter.kind).peft_names)
        return {"tensors": each * len(adapter.layers) + len(adapter.head)}

    def warnings(self, what: Exporting) -> list[str]:
        """Servers know LoRA alone, and PEFT takes some layers for experts."""
        from core.base_model.files import read_json
        from core.lora.kinds import ADAPTER_KINDS
        from core.lora.peft.expert_names import taken_for_experts

        kind, experts = ADAPTER_KINDS.get(what.adapter.kind), what.adapter.experts
        model_type = read_json(what.base_folder / "config.json").get("model_type", "")
        if taken := taken_for_experts(model_type, [one for one in what.adapter.layers if one not in experts]):
            return [
                f"PEFT takes {taken[0]} ({len(taken)} such layers) for experts by the name: it leaves out "
                f"what it has there{', or does not load it at all' if experts else ''}. Train it on other "
                "layers to use it with PEFT, or export it merged."
            ]
        if experts:
            return [
                "It has factors on experts (target_parameters), which PEFT loads; vLLM, llama.cpp and others "
                "that know the factors of layers alone do not. For them, export it merged."
            ]
        if what.adapter.wholes:
            return [
                "It has an embedding, a head or biases of its own, which PEFT loads; vLLM, llama.cpp and "
                "others that know factors alone do not. For them, export it merged."
            ]
        if kind.plain_lora:
            return []
        return [f"PEFT loads {kind.label}; vLLM, llama.cpp and others that know LoRA alone do not."]

    def check(self, what: Exported, report: Report) -> Finding:
        """The exported adapter computes the same logits as the registered one: to the last bit, or up to the
        rounding of B where a scale was folded into it.
        """
        from core.base_model.probes import lack_of_memory
        from core.export.duties import FAILED, PASSED, Finding, read_back
        from core.lora.equal_scales import with_one_scale
        from core.lora.peft.files import load_adapter

        why = lack_of_memory(what.base_folder)
        report(Progress("Reading back every tensor" if why else "Loading the exported adapter"))
        found = load_adapter(what.folder, what.skeleton.shapes, what.skeleton.head, what.skeleton.wholes)
        if why:
            return read_back(_differing_layers(what, found), why)
        wanted_logits, logits = _probed(what, found)
        difference = float((wanted_logits - logits).abs().max())
        folded = with_one_scale(what.adapter) is not what.adapter
        allowed = 1e-5 * float(wanted_logits.abs().max()) if folded else 0.0
        passed = (
            difference <= allowed and bool(logits.isfinite().all()) and not _differing_layers(what, found)
        )
        sentence = (
            f"{'Passed' if passed else 'FAILED'}: loaded again from the folder, its logits differ by "
            f"{difference:.3g}."
        )
        return Finding(PASSED if passed else FAILED, sentence, {"max_logit_difference": difference})

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat. vLLM takes ranks up to 16 unless it is told otherwise."""
        if what.labels:
            return [("PEFT and transformers, in Python", _classifying(what))]
        from core.lora.peft.config import raw_config
        from core.lora.peft.config_checks import CONFIG_NAME

        config = what.folder / CONFIG_NAME
        served = not config.is_file() or _is_served(raw_config(config))
        rank = next((one for one in VLLM_RANKS if one >= what.rank), what.rank)
        loaded = f"--lora-modules {quote(f'{what.name}={what.folder}')}"
        most = f" --max-lora-rank {rank}" if rank > VLLM_RANKS[0] else ""
        load = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({str(what.folder)!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({what.base!r})"
        )
        serve = ("vLLM", f"vllm serve {quote(what.base)} --enable-lora{most} {loaded}")
        return [*([serve] if served else []), ("PEFT and transformers, in Python", load)]

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return f"The LoRA adapter {adapter} for {base}, in PEFT's format."


def _is_served(config: Mapping[str, Any]) -> bool:
    """Whether vLLM knows all that there is to an adapter."""
    from core.lora.peft.config import kind_of

    more = config.get("modules_to_save") or config.get("lora_bias") or config.get("bias", "none") != "none"
    return kind_of(config).plain_lora and not more


def _classifying(what: Written) -> str:
    return (
        "from peft import AutoPeftModelForSequenceClassification\nfrom transformers import AutoTokenizer\n\n"
        "model = AutoPeftModelForSequenceClassification.from_pretrained(\n"
        f"    {str(what.folder)!r}, num_labels={what.labels}\n)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({what.base!r})"
    )


def _differing_layers(what: Exported, found: AdapterWeights) -> list[str]:
    from core.lora.equal_scales import with_one_scale
    from core.lora.peft.files import differing_layers

    return differing_layers(with_one_scale(what.adapter), found)


def _probed(what: Exported, found: AdapterWeights) -> tuple[Tensor, Tensor]:
    """Logits with the registered adapter and with the exported one, each [positions, vocabulary]."""
    import torch

    from core.base_model.load import load_base
    from core.base_model.probes import PROBES, probe_ids, probe_logits
    from core.generate.labelling import classify
    from core.lora.mixed_bank import loaded_bank

    cpu = torch.device("cpu")
    base = load_base(what.base_folder, device=cpu, dtype=torch.float32, template=what.template)
    if what.adapter.labels is not None:
        told = classify(base, [what.adapter, found], PROBES)
        return torch.tensor(told[0].scores), torch.tensor(told[1].scores)
    probes, logits = probe_ids(base), []
    for one in (what.adapter, found):
        with loaded_bank(base.layers, [one]).use():
            logits.append(probe_logits(base, probes))
    return logits[0], logits[1]


KIND = Peft()
