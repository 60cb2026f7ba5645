"""Adapters of random shape go the whole way: made here and by PEFT, combined, resized, exported, imported and
asked. PEFT reads each that is written, and computes the same.

LORA_WORKBENCH_ROUND_TRIPS sets how many are tried; each has its own seed.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model

from core.combine.combining import Part, combine, resize
from core.combine.config import CombineConfig
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.config import LoraConfig
from core.lora.foreign.fit import fit
from core.lora.foreign.look import look
from core.lora.foreign.take import take
from core.lora.mixed_bank import loaded_bank
from core.lora.peft.files import differing_layers, load_adapter, save_checked
from core.lora.targets import select_targets
from core.reporting import silent
from tests.core.helpers import PROBE, load, plain_model

TRIPS = int(os.environ.get("LORA_WORKBENCH_ROUND_TRIPS", "24"))
BASES = ("tiny_llama", "tiny_qwen", "tiny_gpt2")


@pytest.fixture(scope="module")
def bases(request):
    """Each base as we have it, and as PEFT does."""
    folders = [request.getfixturevalue(name) for name in BASES]
    return [(load(folder), plain_model(folder)) for folder in folders]


@pytest.mark.filterwarnings("ignore:The following .* keys did not match")
@pytest.mark.parametrize("seed", range(TRIPS))
def test_an_adapter_of_any_shape_goes_the_whole_way(bases, tmp_path, seed):
    chance = random.Random(seed)
    base, model = chance.choice(bases)
    ours = _kept(base, model, tmp_path / "ours", _made_here(base, chance))
    wanted = _made_by_peft(model, tmp_path / "theirs", chance)
    theirs = replace(_imported(base, tmp_path / "theirs"), base_fingerprint=base.fingerprint)
    _are(base, theirs, *wanted)
    parts = [Part("ours", ours, chance.choice([1, 0.5, -0.7])), Part("theirs", theirs, 1.0)]
    config = CombineConfig(method=chance.choice(["svd", "linear", "cat", "ties", "dare_linear"]))
    combined = _kept(base, model, tmp_path / "combined", combine(parts, config, silent).adapter)
    small = _kept(base, model, tmp_path / "small", resize(combined, chance.randint(1, 4)).adapter)
    assert not differing_layers(_imported(base, tmp_path / "small"), small)


def _kept(base, model, folder, adapter):
    """Written and read back; PEFT reads it as well."""
    folder.mkdir()
    save_checked(folder, adapter, base.layer_shapes, base.head)
    found = load_adapter(folder, base.layer_shapes, base.head)
    assert set(found.layers) == set(adapter.layers)
    peft = PeftModel.from_pretrained(model, folder)
    _are(base, found, *_of_peft(model, peft))
    return found


def _imported(base, folder):
    staging = folder.with_name(f"{folder.name}-taken")
    staging.mkdir()
    return fit(look(take(folder, staging)), base.layer_shapes, base.head)


@torch.no_grad()
def _of_peft(model, peft):
    """The paths that PEFT puts factors on, and its logits; the model is a plain one again."""
    wanted = peft.eval()(input_ids=PROBE).logits
    held = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, module in peft.named_modules()
        if name.endswith(".lora_A.default")
    }
    peft.unload()
    model.__dict__.pop("peft_config", None)
    return held, wanted


def _are(base, adapter, held, wanted):
    assert held == set(adapter.layers)
    torch.testing.assert_close(_ours(base, adapter), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def _ours(base, adapter):
    with loaded_bank(base.layers, [adapter]).use():
        return base.model(input_ids=PROBE).logits


def _made_here(base, chance):
    """As training shapes it, with random factors."""
    names = sorted({path.rpartition(".")[2] for path in base.layer_shapes})
    targets = chance.choice([["all-linear"], chance.sample(names, chance.randint(1, len(names)))])
    within = names if "all-linear" in targets else targets
    within = [name for name in within if name != base.head] or within
    lora = LoraConfig(
        rank=chance.randint(1, 6),
        alpha=chance.choice([1.0, 3.0, 8.0, 16.5]),
        target_modules=",".join(targets),
        use_rslora=chance.random() < 0.3,
        rank_pattern=_pattern(within, chance, lambda: chance.randint(1, 6)),
        alpha_pattern=_pattern(within, chance, lambda: chance.choice([0.5, 7, 32])),
        layers_to_transform=chance.choice(["", "", "0", "1"]) if set(targets) != {base.head} else "",
    )
    paths = select_targets(list(base.layer_shapes), lora, base.head)
    return _random(base, {path: (lora.rank_of(path), lora.scaling_of(path)) for path in paths}, lora, chance)


def _pattern(names, chance, number):
    chosen = chance.sample(names, min(len(names), chance.choice([0, 0, 1, 2])))
    return ",".join(f"{name}={number()}" for name in chosen)


def _random(base, shapes, lora, chance):
    noise = torch.Generator().manual_seed(chance.randint(0, 10**6))
    layers = {}
    for path, (rank, scale) in shapes.items():
        n_in, n_out = base.layer_shapes[path]
        A, B = torch.randn(rank, n_in, generator=noise), torch.randn(n_out, rank, generator=noise)
        layers[path] = LayerFactors(A * 0.1, B * 0.1, scale)
    transposed = any(base.layers[path].transposed for path in layers)
    return AdapterWeights(
        lora.rank,
        lora.alpha,
        0.0,
        layers,
        base.fingerprint,
        base.name,
        fan_in_fan_out=transposed,
        use_rslora=lora.use_rslora,
    )


def _made_by_peft(model, folder, chance):
    """An adapter that PEFT saves, chosen in the ways that it knows."""
    linear = [name for name, one in model.named_modules() if type(one).__name__ in ("Linear", "Conv1D")]
    head = next(name for name, one in model.named_modules() if one is model.get_output_embeddings())
    linear = [path for path in linear if path != head]
    names = sorted({path.rpartition(".")[2] for path in linear})
    some = chance.sample(names, chance.randint(1, len(names)))
    chosen = chance.choice(
        [
            {"target_modules": "all-linear"},
            {"target_modules": some},
            {"target_modules": some, "layers_to_transform": chance.choice([0, [1], [0, 1]])},
            {"target_modules": some, "layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
            {"target_modules": chance.sample(linear, chance.randint(1, len(linear)))},
            {"target_modules": rf".*\.({'|'.join(some)})"},
            {"target_modules": rf"^(?!.*\.0\.).*\.(?:{'|'.join(some)})$"},
            {"target_modules": "all-linear", "exclude_modules": chance.sample(linear, 2)},
            {"target_modules": names, "exclude_modules": rf".*\.1\..*{names[0]}"},
        ]
    )
    keys = [names[0], rf".*\.0\..*{names[-1]}", f"^{linear[0]}", linear[1], rf"({'|'.join(names[:2])})"]
    config = PeftConfig(
        r=chance.randint(1, 6),
        lora_alpha=chance.choice([1, 8, 12.5]),
        use_rslora=chance.random() < 0.3,
        fan_in_fan_out=any(type(one).__name__ == "Conv1D" for one in model.modules()),
        rank_pattern={key: chance.randint(1, 6) for key in chance.sample(keys, chance.choice([0, 1]))},
        alpha_pattern={key: chance.choice([2, 30]) for key in chance.sample(keys, chance.choice([0, 1]))},
        task_type="CAUSAL_LM",
        **chosen,
    )
    peft = get_peft_model(model, config)
    noise = torch.Generator().manual_seed(chance.randint(0, 10**6))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
    peft.save_pretrained(folder)
    return _of_peft(model, peft)
