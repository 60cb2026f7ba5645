"""The adapter alone as a GGUF file, for llama.cpp's --lora."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from core.export.formats import ExportFormat, Written
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding


class GgufAdapter(ExportFormat):
    """One file, which llama.cpp applies to its own file of the base."""

    name, label, order = "gguf-adapter", "GGUF adapter", 30
    help = "The adapter alone, for llama.cpp."
    merges = False
    no_other_dtype = "An adapter's factors stay in float32; leave out dtype for {name}."
    ending = ".gguf"

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.export.cards import file_name
        from core.gguf.write import write_adapter_gguf

        name = what.about.adapter_name
        file = staging / f"{file_name(name)}-lora{self.ending}"
        return {"tensors": write_adapter_gguf(what.base_folder, what.adapter, file, name)}

    def warnings(self, what: Exporting) -> list[str]:
        """See ExportFormat."""
        from core.export.formats.gguf import window_warnings

        return window_warnings(what)

    def check(self, what: Exported, report: Report) -> Finding:
        """See ExportFormat."""
        from core.export.duties import finding
        from core.gguf.check import check_adapter_gguf

        return finding(check_adapter_gguf(what.base_folder, what.adapter, self.only_file(what.folder)))

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat."""
        file = quote(str(what.folder / what.weights))
        return [
            ("llama.cpp, a chat in the terminal", f"llama-cli -m BASE.gguf --lora {file} -cnv"),
            ("llama.cpp, a server on port 8080", f"llama-server -m BASE.gguf --lora {file} --port 8080"),
        ]

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return f"The LoRA adapter {adapter} for {base}, for llama.cpp's `--lora`."


KIND = GgufAdapter()
