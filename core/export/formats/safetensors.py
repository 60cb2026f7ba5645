"""The merged model as transformers loads it: W + (α/r)BA in safetensors files beside the base's own files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from core.base_model.quantisation import FP8, INT8, NF4, NONE
from core.errors import InvalidConfig
from core.events import Progress
from core.export.formats import AUTO, FLOAT_DTYPES, ExportFormat, Written
from core.options import Config, option
from core.reporting import Report

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding
    from core.merge.held import Held
    from core.merge.merge import MergeReport

ORIGINAL = "original"


@dataclass(frozen=True)
class SafetensorsOptions(Config):
    """How the files are cut, and what the adapter is merged into."""

    shard_gigabytes: float = option(
        0.0,
        "Shard size",
        "Largest safetensors file; 0: as the base's files.",
        unit="GB",
        minimum=0.0,
        maximum=1000.0,
    )
    merge_onto: str = option(
        ORIGINAL,
        "Merge onto",
        "original: the base's own weights. nf4, int8, fp8: those that a base held so computes with, made "
        "float32 again (written as float32 if nothing else is chosen), which an adapter was trained beside "
        "that learnt on such a base. The report says what each loses.",
        choices=(ORIGINAL, NF4, INT8, FP8),
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

    def dtype_for(self, dtype: str, own: Config) -> str:
        """float32 beside a quantised weight: unlike the base's own numbers, what it stands for is none of 16
        bits, and rounding it would drown the adapter.
        """
        assert isinstance(own, SafetensorsOptions)
        return "float32" if dtype == AUTO and own.merge_onto != ORIGINAL else dtype

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        """See ExportFormat."""
        from core.merge.merge import merge_into_base

        assert isinstance(what.own, SafetensorsOptions)
        held = _held(what, what.own.merge_onto)
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
            held=held,
            **classifier,
        )
        _write_companions(what, staging)
        facts = asdict(written)
        del facts["bytes_written"]  # the folder's size is told in any case
        del facts["base_difference"]
        return facts | _losses(what, written, report)

    def check(self, what: Exported, report: Report) -> Finding:
        """See ExportFormat."""
        from core.base_model.probes import lack_of_memory
        from core.export.classifiers_out import check_merged
        from core.export.duties import finding, read_back
        from core.merge.verify import differing_tensors, verify_merge

        if what.adapter.labels is not None:
            return check_merged(what, report)
        assert isinstance(what.own, SafetensorsOptions)
        onto, merged = what.own.merge_onto, (what.base_folder, what.adapter)
        if why := lack_of_memory(what.base_folder):
            report(Progress("Reading back every tensor"))
            held = _held(what, onto)
            return read_back(differing_tensors(*merged, what.skeleton.transposed, what.folder, held), why)
        quantisation = NONE if onto == ORIGINAL else onto
        return finding(verify_merge(*merged, what.folder, report, what.template, quantisation))

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


def _held(what: Exporting | Exported, onto: str) -> dict[str, Held]:
    """The tensors that are quantised before ΔW is added. Raises InvalidConfig where there is no ΔW."""
    if onto == ORIGINAL:
        return {}
    if what.adapter.whole:
        raise InvalidConfig(
            "Full fine-tuning has weights of its own, to be merged as they are; choose merge_onto=original."
        )
    from core.merge.held import held_tensors

    return held_tensors(what.base_folder, what.skeleton, onto)


def _losses(what: Exporting, written: MergeReport, report: Report) -> Facts:
    """What merging costs where a quantised base has a part in it; nothing where none has."""
    from core.export.trained_beside import difference_from_trained

    assert isinstance(what.own, SafetensorsOptions)
    trained, onto = what.about.trained_on, what.own.merge_onto
    if onto == ORIGINAL and trained == NONE:
        return {}
    differs = difference_from_trained(what, report) if onto == ORIGINAL else written.base_difference
    # where rounding all of W moves it by more than ΔW, what is left of ΔW is no share of it
    kept = {"energy_kept": 1 - written.rounding_loss**2} if written.rounding_loss < 1 else {}
    return {"trained_on": trained, "merged_onto": onto, **kept, "base_difference": differs}


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
