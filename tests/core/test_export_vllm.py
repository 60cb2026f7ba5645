"""The folder for vLLM's server: read back by PEFT, with a command of the form that vLLM takes."""

import os
import subprocess
from dataclasses import replace

import pytest
import torch

from core.base_model.skeleton import skeleton
from core.errors import InvalidAdapter
from core.export.cards import Provenance
from core.export.check_process import check
from core.export.config import split_export_options
from core.export.duties import PASSED, Exporting
from core.export.exporting import export
from core.export.formats import EXPORT_FORMATS, Written
from core.export.formats.vllm import max_rank
from core.lora.adapter import LayerFactors, LayerWeights
from core.lora.peft.config import raw_config
from core.lora.peft.files import save_adapter
from core.reporting import silent
from tests.core.helpers import as_shards, load, logits, peft_from, plain_model, random_adapter

ABOUT = Provenance(
    "base", "f" * 64, "mit", "my adapter", "a" * 64, "data", {}, None, None, base_source="org/base"
)


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load(tiny_llama)


def _uneven(base):
    """Layers with other ranks and scales than the stated ones, as AdaLoRA or patterns leave them."""
    adapter = random_adapter(base, rank=20, size=0.1)
    layers = {
        path: LayerFactors(one.A[: 20 - at % 3], one.B[:, : 20 - at % 3], one.scale * (1 + at % 2))
        for at, (path, one) in enumerate(adapter.layers.items())
    }
    return replace(adapter, layers=layers)


def _exported(folder, adapter, out):
    what = Exporting(folder, skeleton(folder), adapter, ABOUT, *split_export_options({"format": "vllm"}))
    export(what, out, silent)
    return out


@pytest.mark.parametrize("make", [_uneven, lambda base: as_shards(random_adapter(base, rank=2, size=0.1))])
def test_peft_reads_the_adapter_back_and_it_computes_the_same(base, tiny_llama, tmp_path, make):
    adapter = make(base)
    out = _exported(tiny_llama, adapter, tmp_path / "out")
    assert sorted(one.name for one in out.iterdir()) == ["README.md", "VLLM.md", "adapter", "serve.sh"]
    settings = raw_config(out / "adapter" / "adapter_config.json")
    ranks, alphas = settings["rank_pattern"], settings["alpha_pattern"]
    stated = settings["lora_alpha"] / settings["r"]  # vLLM reads no patterns: one scale for all layers
    assert all(alphas[path] / rank == pytest.approx(stated) for path, rank in ranks.items())
    assert set(alphas) == set(ranks)
    model = plain_model(tiny_llama)
    with torch.no_grad():
        for path, layer in adapter.as_lora().layers.items():
            model.get_submodule(path).weight.add_(layer.delta_weight())
    torch.testing.assert_close(
        logits(peft_from(tiny_llama, out / "adapter")), logits(model), atol=1e-4, rtol=1e-4
    )
    (tmp_path / "own").mkdir()
    save_adapter(tmp_path / "own", adapter)
    asked = {"base": tiny_llama, "adapter": tmp_path / "own", "target": out, "template": ""}
    found = check({name: str(one) for name, one in asked.items()} | {"config": {"format": "vllm"}}, silent)
    assert found["verdict"] == PASSED, found


def test_the_script_and_the_commands_say_what_vllm_takes(base, tiny_llama, tmp_path):
    out = _exported(tiny_llama, _uneven(base), tmp_path / "out of here")
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "vllm"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "VLLM_ARGS": "--max-loras 8"}
    done = subprocess.run(
        ["sh", out / "serve.sh", "other=/elsewhere"],
        env=path,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n") == [
        "serve", "org/base", "--enable-lora", "--max-lora-rank", "32", "--max-loras", "8",
        "--lora-modules", f"my-adapter={out / 'adapter'}", "other=/elsewhere", "",
    ]  # fmt: skip
    (_, command), (_, by_script) = EXPORT_FORMATS.get("vllm").commands(
        Written(out, "", "my-adapter", 20, "org/base")
    )
    assert "serve org/base --enable-lora --max-lora-rank 32 --lora-modules" in command
    assert f"'{out / 'serve.sh'}'" in by_script
    assert "--max-lora-rank 32 --lora-modules my-adapter=adapter" in (out / "VLLM.md").read_text()
    assert [max_rank(rank) for rank in (1, 16, 17, 300, 512)] == [16, 16, 32, 320, 512]
    with pytest.raises(InvalidAdapter, match="up to rank 512, and this one has 600; resize it first"):
        max_rank(600)


def test_what_vllm_does_not_know_is_refused_with_the_reason(base, tiny_llama, tmp_path):
    plain = random_adapter(base)
    lengths = {
        path: LayerWeights({**one.tensors, "m": torch.ones(one.B.shape[0])}, one.scale)
        for path, one in plain.layers.items()
    }
    with pytest.raises(InvalidAdapter, match="low-rank adapter such as LoRA, and DoRA is none"):
        _exported(tiny_llama, replace(plain, kind="dora", layers=lengths), tmp_path / "dora")
    biased = replace(plain, head={"model.norm.bias": torch.ones(1)})
    with pytest.raises(InvalidAdapter, match="vLLM's server would leave them out"):
        _exported(tiny_llama, biased, tmp_path / "biased")
    assert not (tmp_path / "dora").exists()
