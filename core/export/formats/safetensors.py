"""The merged model as transformers loads it: W + (α/r)BA in safetensors files beside the base's own files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from core.events import Progress
from core.export.formats import AUTO, FLOAT_DTYPES, ExportFormat, Written
from core.options import Config, option
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding


@dataclass(frozen=True)
class SafetensorsOptions(Config):
    """How the files are cut."""

    shard_gigabytes: float = option(
        0.0,
        "Shard size",
        "Largest safetensors file; 0: as the base's files.",
        unit="GB",
        minimum=0.0,
        maximum=1000.0,
    )


class Safetensors(ExportFormat):
    """A folder that is a base model of its own."""

    name, label, order = "safetensors", "Merged model", 0
    help = "Merged, for transformers and vLLM."
    options = SafetensorsOptions
    merges = is_base = takes_classifiers = True
    dtypes = (AUTO, *FLOAT_DTYPES)
    no_other_dtype = "{dtype} is a kind of GGUF weights; {name} takes {dtypes}."
    ending = ".safetensors"

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.merge.merge import merge_into_base

        assert isinstance(what.own, SafetensorsOptions)
        classifier = _classifier_parts(what)
        written = merge_into_base(
            what.base_folder,
            what.adapter,
            what.skeleton.transposed,
            staging,
            report,
            what.about.metadata(),
            what.config.dtype,
            what.own.shard_gigabytes * 1e9,
            **classifier,
        )
        _write_companions(what, staging)
        facts = asdict(written)
        del facts["bytes_written"]  # the folder's size is told in any case
        return facts

    def check(self, what: Exported, report: Report) -> Finding:
        """See ExportFormat."""
        from core.base_model.probes import lack_of_memory
        from core.export.classifiers_out import check_merged
        from core.export.duties import finding, read_back
        from core.merge.verify import differing_tensors, verify_merge

        if what.adapter.labels is not None:
            return check_merged(what, report)
        if why := lack_of_memory(what.base_folder):
            report(Progress("Reading back every tensor"))
            transposed = what.skeleton.transposed
            return read_back(differing_tensors(what.base_folder, what.adapter, transposed, what.folder), why)
        return finding(verify_merge(what.base_folder, what.adapter, what.folder, report, what.template))

    def commands(self, what: Written) -> list[tuple[str, str]]:
        """See ExportFormat."""
        if what.labels:
            return [("transformers, in Python", _classifying(what))]
        chat = (
            "from transformers import pipeline\n\n"
            f'chat = pipeline("text-generation", model={str(what.folder)!r})\n'
            'print(chat([{"role": "user", "content": "Hello"}]))'
        )
        return [
            ("vLLM", f"vllm serve {quote(str(what.folder))} --served-model-name {what.name}"),
            ("transformers, in Python", chat),
        ]

    def describe(self, base: str, adapter: str) -> str:
        """See ExportFormat."""
        return f"{base} with the LoRA adapter {adapter} merged in: W + (α/r)BA."


def _classifying(what: Written) -> str:
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model={str(what.folder)!r}, top_k=None)\n'
        'print(classify("A text"))'
    )


def _classifier_parts(what: Exporting) -> dict[str, Any]:
    """What makes a standard classifier of the merged files: other names, and the head."""
    if what.adapter.labels is None:
        return {}
    from core.export.classifiers_out import named_tensors

    return {"named": named_tensors(what.base_folder), "added": what.adapter.head}


def _write_companions(what: Exporting, staging: Path) -> None:
    """The base's files beside its weights, with what the export says otherwise."""
    from core.base_model.describe import chat_template
    from core.base_model.templates import chosen_template
    from core.export.companions import copy_companions

    copy_companions(what.base_folder, staging)
    if what.config.dtype != AUTO:
        _state_dtype(staging / "config.json", what.config.dtype)
    if what.adapter.labels is not None:
        from core.export.classifiers_out import state_labels

        state_labels(staging / "config.json", what.base_folder, what.adapter.labels)
        (staging / "generation_config.json").unlink(missing_ok=True)
        return
    _state_end_tokens(what, staging / "generation_config.json")
    if chat_template(what.base_folder) is None:
        template = chosen_template(what.about.base_template)
        (staging / "chat_template.jinja").write_text(template, encoding="utf-8")


def _state_end_tokens(what: Exporting, path: Path) -> None:
    """Servers stop at the tokens that this file names, and know nothing of what the chat template ends a turn
    with.
    """
    import json

    from core.base_model.files import read_json
    from core.base_model.tokenizer import configured_end_ids, end_token_ids, load_tokenizer
    from core.data.rendering import Renderer

    stated = configured_end_ids(what.base_folder)
    tokenizer = load_tokenizer(what.base_folder, what.about.base_template)
    missing = end_token_ids(what.base_folder, Renderer(tokenizer)) - set(stated)
    if not missing:
        return
    settings = read_json(path) if path.is_file() else {}
    ends = [*stated, *sorted(missing)]
    settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _state_dtype(path: Path, dtype: str) -> None:
    """Software that loads the model takes its number format from the configuration."""
    import json

    from core.base_model.files import read_json

    config = read_json(path)
    config.pop("torch_dtype", None)
    stated = json.dumps(config | {"dtype": dtype}, indent=2, ensure_ascii=False)
    path.write_text(stated + "\n", encoding="utf-8")


KIND = Safetensors()
