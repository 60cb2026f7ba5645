"""A folder for vLLM's server: the adapter as it takes it, the command that serves it, and a script that does.

vLLM (its v0.11 to v0.22 were looked at) reads r, lora_alpha and use_rslora of adapter_config.json and no
patterns, refuses DoRA and whole modules, and takes ranks up to --max-lora-rank, which has a few choices.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from core.errors import InvalidAdapter
from core.export.formats import Written
from core.export.formats.peft import VLLM_RANKS, Peft
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding
    from core.lora.adapter import AdapterWeights

ADAPTER, SCRIPT, NOTES = "adapter", "serve.sh", "VLLM.md"
_SCRIPT = """#!/bin/sh
# Serves {name} on its base with vLLM, under OpenAI's API on port 8000. More adapters of the same base:
#   ./serve.sh other=/path/to/another/export/adapter
# What stands in VLLM_ARGS is given to vLLM too, such as VLLM_ARGS="--port 9000 --max-loras 8".
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec vllm serve {base} --enable-lora --max-lora-rank {rank} $VLLM_ARGS \\
  --lora-modules {name}="$here/adapter" "$@"
"""
_NOTES = """# {name} with vLLM

    {command}

or `sh serve.sh`, which finds the adapter beside itself and takes more adapters of the same base as further
`name=folder`. Clients name the adapter as `model`: `{name}`.

- `--max-lora-rank` must be at least the highest rank of all that are served (here {own}); vLLM takes {ranks}.
- `--max-loras` (1 if nothing is said) is how many adapters may answer in one batch.
- The adapter has one scale, `lora_alpha / r`, on every layer; what differed is folded into B.
- The adapter belongs to the weights of {base} alone: on others its answers are noise.
"""


class Vllm(Peft):
    """The adapter in a folder of its own, a script and notes."""

    name, label, order = "vllm", "vLLM server", 60
    help = "The adapter alone, with the command for vLLM's server of several adapters."
    takes_classifiers = False

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat. Raises InvalidAdapter, with the reason, for what vLLM does not know."""
        from core.export.cards import file_name

        adapter = _served(what.adapter)
        (staging / ADAPTER).mkdir()
        facts = super().write(replace(what, adapter=adapter), staging / ADAPTER, report)
        name, base = file_name(what.about.adapter_name), what.about.base_source or str(what.base_folder)
        rank = max_rank(adapter.highest_rank)
        script = _SCRIPT.format(name=name, base=quote(base), rank=rank)
        (staging / SCRIPT).write_text(script, encoding="utf-8")
        (staging / SCRIPT).chmod(0o755)
        written = Written(Path("."), "", name, adapter.highest_rank, base)
        said = {"name": name, "base": base, "own": adapter.highest_rank, "command": _command(written)}
        notes = _NOTES.format(**said, ranks=", ".join(map(str, VLLM_RANKS)))
        (staging / NOTES).write_text(notes, encoding="utf-8")
        return facts

    def warnings(self, what: Exporting) -> list[str]:
        """What vLLM does not know is refused; an embedding's factors are left to its versions."""
        if not what.adapter.embedding:
            return []
        return [
            "It has factors on the input embedding, which vLLM serves for some architectures only; if it "
            "refuses them, export it merged."
        ]

    def check(self, what: Exported, report: Report) -> Finding:
        """As PEFT's, of the adapter's folder."""
        return super().check(
            replace(what, folder=what.folder / ADAPTER, adapter=_served(what.adapter)), report
        )

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat."""
        return [("vLLM", _command(what)), ("vLLM, by the script", f"sh {quote(str(what.folder / SCRIPT))}")]

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return f"The LoRA adapter {adapter} for {base}, with the command that serves it with vLLM."


def max_rank(rank: int) -> int:
    """The least --max-lora-rank that serves this rank. Raises InvalidAdapter for one that is too high."""
    found = next((one for one in VLLM_RANKS if one >= rank), None)
    if found is None:
        raise InvalidAdapter(
            f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}, and this one has {rank}; resize it first."
        )
    return found


def _command(what: Written) -> str:
    module = quote(f"{what.name}={what.folder / ADAPTER}")
    rank = max_rank(max(what.rank, 1))
    return f"vllm serve {quote(what.base)} --enable-lora --max-lora-rank {rank} --lora-modules {module}"


def _served(adapter: AdapterWeights) -> AdapterWeights:
    """As vLLM can serve it: a plain LoRA. Raises InvalidAdapter with the reason where there is none."""
    from core.lora.kinds import ADAPTER_KINDS

    adapter.require_factors_alone("vLLM's server")
    adapter.require_no_experts("vLLM's server")
    return adapter if ADAPTER_KINDS.get(adapter.kind).plain_lora else adapter.as_lora()


KIND = Vllm()
