"""What the export formats say of themselves, and the check in a process of its own."""

import subprocess
import sys

import pytest

from core.base_model.skeleton import skeleton
from core.combine.config import CombineConfig
from core.combine.methods import COMBINE_METHODS
from core.errors import InvalidConfig, WorkbenchError
from core.export.cards import Provenance, rounding_words
from core.export.check_process import check_export
from core.export.config import ExportConfig, require_own_options, split_export_options
from core.export.duties import PASSED, Exporting
from core.export.exporting import export
from core.export.formats import EXPORT_FORMATS
from core.gguf.write import kind_of
from core.lora.peft.files import save_adapter
from core.reporting import silent
from tests.core.helpers import load, random_adapter
from tests.zygote import forking

ABOUT = Provenance("base", "f" * 64, "mit", "mine", "a" * 64, "data", {}, None, None)


def test_the_formats_and_methods_are_listed_without_torch():
    """In the order in which they are shown."""
    program = (
        "import sys; from core.export.config import export_options; "
        "from core.combine.config import CombineConfig; "
        "export_options(), CombineConfig(); print('torch' in sys.modules, 'gguf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert EXPORT_FORMATS.names[:5] == ("safetensors", "peft", "gguf", "gguf-adapter", "ollama")
    assert COMBINE_METHODS.names[:3] == ("svd", "cat", "linear")


def test_help_and_choices_come_from_the_lists():
    about = {one.name: one for one in (*ExportConfig.options(), *CombineConfig.options())}
    assert "safetensors: merged, for transformers and vLLM. peft: the adapter alone." in about["format"].help
    assert "ollama: GGUF with a Modelfile." in about["format"].help
    assert about["dtype"].listed[:5] == ("auto", "float32", "bfloat16", "float16", "q8_0")
    assert about["method"].listed == COMBINE_METHODS.names
    assert "cat: exact, ranks add up." in about["method"].help
    assert "that ties, dare_linear, dare_ties, magnitude_prune keep" in about["density"].help
    assert about["seed"].help == "Of what dare_linear, dare_ties drop."


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        (
            "safetensors",
            "q8_0",
            "q8_0 is a kind of GGUF weights; safetensors takes float32, bfloat16, float16",
        ),
        ("peft", "bfloat16", "An adapter's factors stay in float32; leave out dtype for peft"),
        ("peft", "q4_0", "An adapter's factors stay in float32"),
        ("gguf-adapter", "float16", "leave out dtype for gguf-adapter"),
        ("ollama", "q9", "dtype must be one of auto, float32"),
    ],
)
def test_a_number_format_that_a_format_cannot_hold_is_refused_with_the_reason(name, dtype, said):
    with pytest.raises(InvalidConfig, match=said):
        ExportConfig(format=name, dtype=dtype)


def test_every_number_format_that_gguf_is_said_to_hold_it_holds():
    for name in ("gguf", "ollama"):
        for dtype in EXPORT_FORMATS.get(name).dtypes:
            kind_of(ExportConfig(format=name, dtype=dtype).dtype)  # raises KeyError for one it does not know


def test_a_formats_own_options_go_with_it_and_those_of_others_are_only_checked():
    config, own = split_export_options({"format": "safetensors", "shard_gigabytes": "1.5"})
    assert config.to_dict() | own.to_dict() == {
        "format": "safetensors",
        "dtype": "auto",
        "shard_gigabytes": 1.5,
        "merge_onto": "original",
    }
    config, own = split_export_options({"format": "gguf", "shard_gigabytes": 1.5})
    assert config.to_dict() | own.to_dict() == {"format": "gguf", "dtype": "auto"}
    with pytest.raises(InvalidConfig, match="shard_gigabytes must be between 0 and 1,000"):
        split_export_options({"format": "gguf", "shard_gigabytes": -1})
    with pytest.raises(InvalidConfig, match="Did you mean shard_gigabytes"):
        split_export_options({"shard_gigabyte": 1})


def test_who_names_an_option_of_another_format_is_told():
    require_own_options("safetensors", ["merge_onto", "shard_gigabytes", "dtype"])
    require_own_options("gguf", ["dtype"])
    said = "merge_onto is an option of safetensors, not of gguf, which has format, dtype"
    with pytest.raises(InvalidConfig, match=said):
        require_own_options("gguf", ["merge_onto"])


def test_rounding_is_told_as_a_share_only_where_it_is_one():
    assert rounding_words(0.25, "float16") == "Rounding to float16 took 25.0% of what the adapter changes"
    assert "moves the weights by 4.2 times as much as the adapter does" in rounding_words(4.17, "float16")


@pytest.fixture
def exported(tiny_llama, tmp_path):
    """The base, an adapter, and that adapter exported for PEFT."""
    adapter = random_adapter(load(tiny_llama))
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter)
    what = Exporting(
        tiny_llama, skeleton(tiny_llama), adapter, ABOUT, *split_export_options({"format": "peft"})
    )
    export(what, tmp_path / "out", silent)
    return tiny_llama, tmp_path / "adapter", tmp_path / "out"


def test_a_working_folder_with_a_core_of_its_own_is_not_run(exported, tmp_path, monkeypatch):
    hostile = tmp_path / "work"
    for name in ("app", "core", "core/export", "storage", "json", "torch"):
        (hostile / name).mkdir(parents=True)
        (hostile / name / "__init__.py").write_text(
            f"open({str(tmp_path / 'was run')!r}, 'w').close(); raise SystemExit('hostile')"
        )
    monkeypatch.chdir(hostile)
    found = check_export(*exported, {"format": "peft"}, "", silent)
    assert (found["verdict"], found["max_logit_difference"]) == (PASSED, 0)
    assert not (tmp_path / "was run").exists()


def test_what_the_process_refuses_is_told_in_its_words(exported, zygote, monkeypatch):
    base, adapter, folder = exported
    started = "core.export.check_process._started"
    monkeypatch.setattr(started, forking(zygote)[started])
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(WorkbenchError, match=r"adapter_model\.safetensors"):
        check_export(base, adapter, folder, {"format": "peft"}, "", silent)
