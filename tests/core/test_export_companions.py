"""What goes with an export: the files of the base, the name of the base, one scale for servers, warnings."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoTokenizer

from core.base_model.hub import fetched_revision
from core.base_model.skeleton import skeleton
from core.export.cards import Provenance
from core.export.check_process import check
from core.export.config import split_export_options
from core.export.duties import PASSED, Exporting
from core.export.exporting import export
from core.gguf.architecture import window_of
from core.lora.adapter import LayerFactors
from core.lora.peft.files import save_adapter
from core.reporting import silent
from tests.core.helpers import load, logits, peft_from, random_adapter

ABOUT = Provenance("base", "f" * 64, "mit", "adapter", "a" * 64, "", {}, None, None)
TOOLS = "{% for message in messages %}TOOL {{ message['content'] }}{% endfor %}"


@pytest.fixture
def whole(tiny_llama, tmp_path):
    """A base with all kinds of files beside it, some of them nobody else's business."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama, folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md", "vocab.txt"):
        (folder / name).write_text(name)
    for name in (".env", "notes.txt", "modeling_own.py", "trainer_state.json", "optimizer.pt", "license.py"):
        (folder / name).write_text("not for others")
    return folder


def exported(folder, adapter, target, about=ABOUT, **options):
    config = split_export_options(options)
    return export(Exporting(folder, skeleton(folder), adapter, about, *config), target, silent)


def checked(folder, adapter, target, tmp_path, **options):
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapter)
    question = {"base": str(folder), "adapter": str(tmp_path / "adapter"), "target": str(target)}
    return check({**question, "config": options, "template": ""}, silent)


def test_all_files_of_a_model_travel_and_nothing_else(whole, tmp_path):
    adapter = random_adapter(load(whole))
    exported(whole, adapter, tmp_path / "out", format="safetensors")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE.txt", "NOTICE", "USE_POLICY.md", "vocab.txt", "additional_chat_templates"} <= found
    assert not found & {
        ".env",
        "notes.txt",
        "modeling_own.py",
        "trainer_state.json",
        "optimizer.pt",
        "license.py",
    }
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template["tool_use"] == TOOLS
    assert checked(whole, adapter, tmp_path / "out", tmp_path)["verdict"] == PASSED


def test_a_gguf_file_has_all_templates_and_the_licence_beside_it(whole, tmp_path):
    adapter = random_adapter(load(whole))
    exported(whole, adapter, tmp_path / "out", format="gguf")
    assert (tmp_path / "out" / "NOTICE").is_file()
    assert TOOLS.encode() in next((tmp_path / "out").glob("*.gguf")).read_bytes()
    assert checked(whole, adapter, tmp_path / "out", tmp_path, format="gguf")["verdict"] == PASSED


def test_pefts_own_loader_finds_the_base_of_an_exported_adapter(tiny_llama, tmp_path):
    adapter = random_adapter(load(tiny_llama))
    exported(
        tiny_llama, adapter, tmp_path / "out", replace(ABOUT, base_source=str(tiny_llama)), format="peft"
    )
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    (tmp_path / "plain").mkdir()
    save_adapter(tmp_path / "plain", adapter)
    torch.testing.assert_close(logits(model), logits(peft_from(tiny_llama, tmp_path / "plain")))
    hub = replace(ABOUT, base_source="owner/name", base_revision="c" * 40)
    exported(tiny_llama, adapter, tmp_path / "hub", hub, format="peft")
    config = json.loads((tmp_path / "hub" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "c" * 40)


def test_the_commit_of_a_fetched_base_is_known_from_its_folder(tmp_path):
    assert fetched_revision(tmp_path) == ""
    noted = tmp_path / ".cache" / "huggingface" / "download"
    noted.mkdir(parents=True)
    (noted / "config.json.metadata").write_text(f"{'c' * 40}\netag\n1.0\n")
    assert fetched_revision(tmp_path) == "c" * 40
    (noted / "config.json.metadata").write_text("main\n")
    assert fetched_revision(tmp_path) == ""


@pytest.fixture
def uneven(tiny_llama):
    """An adapter with another rank and another scale on some layers."""
    adapter = random_adapter(load(tiny_llama))
    layers = dict(adapter.layers)
    for path, rank, scale in (
        ("model.layers.0.mlp.up_proj", 2, 2.0),
        ("model.layers.1.self_attn.q_proj", 4, 0.3),
    ):
        one = layers[path]
        layers[path] = LayerFactors(one.A[:rank].clone(), one.B[:, :rank].clone(), scale)
    return replace(adapter, layers=layers)


def test_an_adapter_for_servers_has_one_scale(tiny_llama, tmp_path, uneven):
    exported(tiny_llama, uneven, tmp_path / "out", format="peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, one in uneven.layers.items():  # a server's own: lora_alpha / r for each layer
        A, B = (tensors[f"base_model.model.{path}.lora_{name}.weight"] for name in "AB")
        torch.testing.assert_close(config["lora_alpha"] / config["r"] * B @ A, one.delta_weight())
    assert checked(tiny_llama, uneven, tmp_path / "out", tmp_path, format="peft")["verdict"] == PASSED
    torch.testing.assert_close(
        logits(peft_from(tiny_llama, tmp_path / "out")), logits(peft_from(tiny_llama, tmp_path / "adapter"))
    )


WINDOWS = [
    ({"model_type": "mistral", "sliding_window": 64}, 64),
    ({"model_type": "mistral", "sliding_window": None}, None),
    ({"model_type": "mistral", "sliding_window": 4096}, None),
    ({"model_type": "qwen2", "sliding_window": 64}, None),
    ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, None),
    ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 64),
    (
        {
            "model_type": "qwen3",
            "sliding_window": 64,
            "use_sliding_window": True,
            "layer_types": ["full_attention"],
        },
        None,
    ),
    ({"model_type": "llama"}, None),
]


@pytest.mark.parametrize(("config", "window"), WINDOWS)
def test_windows_that_llama_cpp_does_not_keep_are_known(config, window):
    assert window_of({"max_position_embeddings": 256, **config}) == window


def test_a_gguf_of_a_model_with_a_window_says_so(tiny_qwen, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_qwen, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}
    adapter = random_adapter(load(tiny_qwen))
    (folder / "config.json").write_text(json.dumps(config))
    facts = exported(folder, adapter, tmp_path / "out", format="gguf")
    assert "last 64 tokens" in facts["warnings"][0]
    assert "last 64 tokens" in (tmp_path / "out" / "README.md").read_text()
    assert exported(folder, adapter, tmp_path / "peft", format="peft")["warnings"] == []
