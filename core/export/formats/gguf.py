"""The merged model as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from core.base_model.quantisation import NONE
from core.export.formats import AUTO, FLOAT_DTYPES, ExportFormat, Written
from core.export.formats.safetensors import ORIGINAL
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding

QUANTISED_DTYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


class Gguf(ExportFormat):
    """One file."""

    name, label, order = "gguf", "GGUF model", 20
    help = "Merged, for llama.cpp."
    merges = True
    dtypes = (AUTO, *FLOAT_DTYPES, *QUANTISED_DTYPES)
    ending = ".gguf"

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.export.cards import file_name
        from core.export.companions import copy_licences

        stored = "f16" if what.config.dtype == AUTO else what.config.dtype
        target = staging / f"{file_name(what.about.adapter_name)}-{stored}{self.ending}"
        copy_licences(what.base_folder, staging)
        return {"tensors": write_merged(what, target, report), **beside_what(what, report)}

    def warnings(self, what: Exporting) -> list[str]:
        """See ExportFormat."""
        return window_warnings(what)

    def check(self, what: Exported, report: Report) -> Finding:
        """See ExportFormat."""
        from core.export.duties import finding
        from core.gguf.check import check_merged_gguf

        return finding(
            check_merged_gguf(
                what.base_folder,
                what.adapter,
                what.skeleton.transposed,
                self.only_file(what.folder),
                what.config.dtype,
                report,
                what.template,
            )
        )

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat."""
        file = quote(str(what.folder / what.weights))
        return [
            ("llama.cpp, a chat in the terminal", f"llama-cli -m {file} -cnv"),
            ("llama.cpp, a server on port 8080", f"llama-server -m {file} --port 8080"),
            ("LM Studio", f"lms import {file}"),
            *self.for_ollama(what),
        ]

    def for_ollama(self, what: Written) -> list[tuple[str, str]]:
        """How Ollama makes a model of it."""
        source = quote(f"FROM {what.folder / what.weights}")
        made = f"echo {source} > Modelfile\nollama create {what.name} -f Modelfile\nollama run {what.name}"
        return [("Ollama", made)]

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return f"{base} with the LoRA adapter {adapter} merged in, for llama.cpp and what is built on it."


def window_warnings(what: Exporting) -> list[str]:
    """What goes wrong in llama.cpp behind the base's sliding window, if it has one."""
    from core.base_model.files import read_json
    from core.gguf.architecture import window_of

    window = window_of(read_json(what.base_folder / "config.json"))
    if window is None:
        return []
    return [
        f"The base attends to the last {window:,} tokens only, and llama.cpp does not do that for its kind: "
        f"in longer conversations it answers otherwise than the model does here. Keep its context at "
        f"{window:,}."
    ]


def beside_what(what: Exporting, report: Report) -> Facts:
    """That an adapter was trained beside weights in few bits, and by how much those that it is merged onto
    differ; nothing of another.
    """
    from core.export.trained_beside import difference_from_trained

    trained = what.about.trained_on
    if trained == NONE:
        return {}
    differs = difference_from_trained(what, report)
    return {"trained_on": trained, "merged_onto": ORIGINAL, "base_difference": differs}


def write_merged(what: Exporting, target: Path, report: Report) -> int:
    """Write the merged model as the file `target`; returns its number of tensors."""
    from core.gguf.write import write_merged_gguf

    return write_merged_gguf(
        what.base_folder,
        what.adapter,
        what.skeleton.transposed,
        target,
        report,
        what.about.adapter_name,
        what.config.dtype,
        what.about.base_template,
        what.about.base_licence,
    )


KIND = Gguf()
