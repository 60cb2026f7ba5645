"""Checking what was exported, in a process of its own: nothing that wrote it is left in memory.

Reads one JSON object from standard input, writes lines of JSON to standard output: {"progress": …} now and then, at the
end {"result": …} or {"refused": …}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from core.base_model.load import load_base
from core.base_model.skeleton import Skeleton, skeleton
from core.config import ExportConfig
from core.errors import WorkbenchError
from core.events import Progress
from core.gguf.check import check_adapter_gguf, check_merged_gguf
from core.lora.adapter import AdapterWeights
from core.lora.inject import AdapterBank
from core.lora.peft_format import load_adapter
from core.merge.export import gguf_file
from core.merge.verify import probe_ids, probe_logits, verify_merge
from core.reporting import Report

Result = dict[str, Any]


def check_export(
    base_folder: Path, adapter_folder: Path, target: Path, config: ExportConfig, template: str, report: Report
) -> Result:
    """Start the process and wait for its result: passed, a sentence, and the figures. Raises WorkbenchError."""
    question = {
        "base": str(base_folder), "adapter": str(adapter_folder), "target": str(target), "config": config.to_dict(),
        "template": template,
    }  # fmt: skip
    command = [sys.executable, "-m", "core.merge.check_process"]
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
        raise WorkbenchError(f"The check of the export ended without a result (exit code {process.returncode}).")
    return dict(answer["result"])


def check(question: dict[str, Any], report: Report) -> Result:
    """Do what was asked."""
    base_folder, target = Path(question["base"]), Path(question["target"])
    config, template = ExportConfig.parse(question["config"]), question["template"]
    layers = skeleton(base_folder)
    adapter = load_adapter(Path(question["adapter"]), layers.shapes, layers.head)
    if config.format == "safetensors":
        return _told(verify_merge(base_folder, adapter, target, report, template))
    if config.format == "peft":
        return _check_peft(base_folder, layers, adapter, target, template, report)
    if config.format == "gguf-adapter":
        return _told(check_adapter_gguf(base_folder, adapter, gguf_file(target)))
    file = gguf_file(target)
    return _told(check_merged_gguf(base_folder, adapter, layers.transposed, file, config, report, template))


def _told(found: Any) -> Result:
    return {**asdict(found), "passed": found.passed, "sentence": found.sentence()}


def _check_peft(
    base_folder: Path, layers: Skeleton, adapter: AdapterWeights, target: Path, template: str, report: Report
) -> Result:
    """The exported adapter computes the same logits as the registered one, to the last bit."""
    report(Progress("Loading the exported adapter"))
    found = load_adapter(target, layers.shapes, layers.head)
    base = load_base(base_folder, device=torch.device("cpu"), dtype=torch.float32, template=template)
    logits = []
    for one in (adapter, found):
        bank = AdapterBank(base.layers, list(one.layers), slots=1, rank=one.highest_rank)
        bank.load(0, one)
        with bank.use():
            logits.append(probe_logits(base, probe_ids(base)))
    difference = float((logits[0] - logits[1]).abs().max())
    passed = difference == 0 and bool(logits[0].isfinite().all())
    sentence = f"{'Passed' if passed else 'FAILED'}: loaded again from the folder, its logits differ by {difference:.3g}."
    return {"passed": passed, "sentence": sentence, "max_logit_difference": difference}


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
