"""The merged model as GGUF with a Modelfile, from which Ollama makes a model."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from core.export.formats import Written
from core.export.formats.gguf import Gguf, write_merged
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exporting, Facts

_MOST_CONTEXT = 32768  # Ollama reserves memory for all of it


class Ollama(Gguf):
    """A GGUF file, checked as such, and a Modelfile beside it."""

    name, label, order = "ollama", "Ollama model", 40
    help = "GGUF with a Modelfile."

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.export.companions import copy_licences

        copy_licences(what.base_folder, staging)
        count = write_merged(what, staging / f"model{self.ending}", report)
        text, has_template = _modelfile(what, f"./model{self.ending}")
        (staging / "Modelfile").write_text(text, encoding="utf-8")
        return {"tensors": count, "template_in_modelfile": has_template}

    def for_ollama(self, what: Written) -> list[tuple[str, str]]:
        """See Gguf: the Modelfile is there already."""
        file = quote(str(what.folder / "Modelfile"))
        return [("Ollama", f"ollama create {what.name} -f {file}\nollama run {what.name}")]

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat; what it was made for comes first."""
        return sorted(super().commands(what), key=lambda one: one[0] != "Ollama")

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return (
            f"{base} with the LoRA adapter {adapter} merged in. `ollama create NAME -f Modelfile` "
            "makes a model of it."
        )


def _modelfile(what: Exporting, source: str) -> tuple[str, bool]:
    """The Modelfile for weights in `source`, and whether Ollama's language could say the chat template."""
    from core.base_model.files import read_json
    from core.base_model.tokenizer import end_token_ids, load_tokenizer
    from core.data.rendering import Renderer
    from core.gguf.modelfile import chat_parts, modelfile

    base = what.base_folder
    tokenizer = load_tokenizer(base, what.about.base_template)
    parts = chat_parts(tokenizer)
    ends = end_token_ids(base, Renderer(tokenizer))
    words = {str(tokenizer.decode([one])) for one in ends}  # a token's name has its bytes in another form
    stop = sorted(words - {""})
    settings = base / "generation_config.json"
    generation = read_json(settings) if settings.is_file() else {}
    context = int(read_json(base / "config.json").get("max_position_embeddings", 2048))
    licence = what.about.base_licence
    text = modelfile(source, parts, stop, generation, min(context, _MOST_CONTEXT), licence)
    return text, parts is not None


KIND = Ollama()
