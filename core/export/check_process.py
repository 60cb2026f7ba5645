"""Checking what was exported, in a process of its own: nothing that wrote it is left in memory.

Reads one JSON object from standard input, writes lines of JSON to standard output: {"progress": …} now and
then, at the end {"result": …} or {"refused": …}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from core.base_model.files import weight_files
from core.base_model.load import load_base
from core.base_model.skeleton import Skeleton, skeleton
from core.errors import WorkbenchError
from core.events import Progress
from core.export.config import ExportConfig
from core.export.exporting import gguf_file
from core.export.verify import probe_ids, probe_logits, verify_merge
from core.files.safetensors_file import read_header
from core.gguf.check import check_adapter_gguf, check_merged_gguf
from core.lora.adapter import AdapterWeights
from core.lora.bank import loaded_bank
from core.lora.peft.files import load_adapter
from core.merge.merge import differing_tensors
from core.reporting import Report

Result = dict[str, Any]


def check_export(
    base_folder: Path, adapter_folder: Path, target: Path, config: ExportConfig, template: str, report: Report
) -> Result:
    """The result: verdict, a sentence, and the figures. Raises WorkbenchError."""
    question = {
        "base": str(base_folder),
        "adapter": str(adapter_folder),
        "target": str(target),
        "config": config.to_dict(),
        "template": template,
    }
    return ask_process(question, report)


def ask_process(question: dict[str, Any], report: Report) -> Result:
    """Have a process of its own do what check() does.

    Raises WorkbenchError if it refuses or ends without a result.
    """
    command = [sys.executable, "-m", "core.export.check_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question))
        process.stdin.close()
        answer: dict[str, Any] = {}
        for line in process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "progress" in answer:
                    report(Progress(answer["progress"]))
    if "refused" in answer:
        raise WorkbenchError(answer["refused"])
    if "result" not in answer:
        raise WorkbenchError(
            f"The check of the export ended without a result (exit code {process.returncode})."
        )
    return dict(answer["result"])


def check(question: dict[str, Any], report: Report) -> Result:
    """Do what was asked."""
    base_folder, target = Path(question["base"]), Path(question["target"])
    config, template = ExportConfig.parse(question["config"]), question["template"]
    layers = skeleton(base_folder)
    adapter = load_adapter(Path(question["adapter"]), layers.shapes, layers.head)
    if config.format in ("safetensors", "peft") and (why := _too_large(base_folder)):
        return _not_checkable(base_folder, layers, adapter, target, config, why, report)
    if config.format == "safetensors":
        return _told(verify_merge(base_folder, adapter, target, report, template))
    if config.format == "peft":
        return _check_peft(base_folder, layers, adapter, target, template, report)
    if config.format == "gguf-adapter":
        return _told(check_adapter_gguf(base_folder, adapter, gguf_file(target)))
    file = gguf_file(target)
    return _told(check_merged_gguf(base_folder, adapter, layers.transposed, file, config, report, template))


def _told(found: Any) -> Result:
    return {**asdict(found), "verdict": _verdict(found.passed), "sentence": found.sentence()}


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def _too_large(base_folder: Path) -> str:
    """Why the model cannot be computed in float32 in this machine's memory; empty if it can."""
    count = sum(entry.count for path in weight_files(base_folder) for entry in read_header(path).tensors)
    needed, free = 4.5 * count, psutil.virtual_memory().available
    if needed <= free:
        return ""
    return (
        f"computing the model in float32 takes {needed / 1e9:,.0f} GB of memory, {free / 1e9:,.0f} "
        "GB are free"
    )


def _not_checkable(
    base_folder: Path,
    layers: Skeleton,
    adapter: AdapterWeights,
    target: Path,
    config: ExportConfig,
    why: str,
    report: Report,
) -> Result:
    """What can be said without computing: whether every tensor is the one that was meant."""
    report(Progress("Reading back every tensor"))
    if config.format == "peft":
        found = load_adapter(target, layers.shapes, layers.head)
        different = [path for path, one in adapter.layers.items() if not found.layers[path].equals(one)]
    else:
        different = differing_tensors(base_folder, adapter, layers.transposed, target)
    if different:
        return {
            "verdict": "failed",
            "sentence": f"FAILED: {different[0]} is not what was written ({len(different)} such tensors).",
        }
    sentence = f"Its answers were not checkable: {why}. Every tensor was read back and is what it should be."
    return {"verdict": "not checkable", "sentence": sentence}


def _check_peft(
    base_folder: Path, layers: Skeleton, adapter: AdapterWeights, target: Path, template: str, report: Report
) -> Result:
    """The exported adapter computes the same logits as the registered one, to the last bit."""
    report(Progress("Loading the exported adapter"))
    found = load_adapter(target, layers.shapes, layers.head)
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, template=template)
    logits = []
    for one in (adapter, found):
        with loaded_bank(base.layers, [one]).use():
            logits.append(probe_logits(base, probe_ids(base)))
    difference = float((logits[0] - logits[1]).abs().max())
    passed = difference == 0 and bool(logits[0].isfinite().all())
    sentence = (
        f"{'Passed' if passed else 'FAILED'}: loaded again from the folder, its logits differ by "
        f"{difference:.3g}."
    )
    return {"verdict": _verdict(passed), "sentence": sentence, "max_logit_difference": difference}


def main() -> int:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.read())

    def say(**line: object) -> None:
        print(json.dumps(line), flush=True)

    try:
        say(result=check(question, lambda progress: say(progress=progress.message)))
    except WorkbenchError as error:
        say(refused=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
