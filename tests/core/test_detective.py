"""LoRA files of unknown origin: recognised in every layout that is known, refused with a reason in every
other way.
"""

import functools
import json
import math
import os
import stat
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import InvalidAdapter, InvalidInput
from core.lora.foreign.fit import fit
from core.lora.foreign.look import look
from core.lora.foreign.take import take
from core.lora.kinds.lora import KIND as LORA
from core.lora.peft.config import DESCRIPTIVE, UNDERSTOOD, read_config
from core.lora.peft.files import save_adapter
from tests.core.helpers import load, random_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SECONDS, BYTES = 2.0, 200e6


@pytest.fixture
def base(tiny_llama):
    return load(tiny_llama)


@pytest.fixture
def folder(base, tmp_path):
    (tmp_path / "theirs").mkdir()
    save_adapter(tmp_path / "theirs", random_adapter(base))
    return tmp_path / "theirs"


@pytest.fixture
def staging(tmp_path):
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


def found(origin, staging, base, alpha=None):
    return fit(look(take(origin, staging)), base.layer_shapes, base.head, alpha)


def layers_of(base):
    return random_adapter(base).layers


def plain(name):
    return name.removeprefix("model.")


LAYOUTS = {
    "PEFT": lambda p, f: {
        f"base_model.model.{p}.lora_A.weight": f.A,
        f"base_model.model.{p}.lora_B.weight": f.B,
    },
    "PEFT, one of several": lambda p, f: {
        f"base_model.model.{p}.lora_A.mine.weight": f.A,
        f"base_model.model.{p}.lora_B.mine.weight": f.B,
    },
    "PEFT without its prefix": lambda p, f: {f"{p}.lora_A.weight": f.A, f"{p}.lora_B.weight": f.B},
    "loralib": lambda p, f: {f"{plain(p)}.lora_A": f.A, f"{plain(p)}.lora_B": f.B},
    "MLX": lambda p, f: {f"{p}.lora_a": f.A.T, f"{p}.lora_b": f.B.T},
    "torchtune": lambda p, f: {f"{plain(p)}.lora_a.weight": f.A, f"{plain(p)}.lora_b.weight": f.B},
    "kohya": lambda p, f: {
        f"lora_te_{p.replace('.', '_')}.lora_down.weight": f.A,
        f"lora_te_{p.replace('.', '_')}.lora_up.weight": f.B,
        f"lora_te_{p.replace('.', '_')}.alpha": torch.tensor(8.0),
    },
    "diffusers": lambda p, f: {f"{p}.lora.down.weight": f.A, f"{p}.lora.up.weight": f.B},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["folder", "zip", "file"])
def test_every_known_layout_becomes_the_same_adapter(base, tmp_path, staging, layout, how):
    layers = layers_of(base)
    tensors = {
        name: one.contiguous()
        for path, factors in layers.items()
        for name, one in LAYOUTS[layout](path, factors).items()
    }
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_file(tensors, theirs / WEIGHTS)
    alpha = 8.0
    if layout == "MLX":
        (theirs / CONFIG).write_text(
            json.dumps({"lora_parameters": {"rank": 4, "scale": 2.0}, "model": "org/name"})
        )
        alpha = None
    origin = theirs
    if how == "zip":
        origin = tmp_path / "theirs.zip"
        with zipfile.ZipFile(origin, "w") as archive:
            for path in theirs.iterdir():
                archive.write(path, f"inside/{path.name}")
    elif how == "file":
        origin = theirs / WEIGHTS
    adapter = found(origin, staging, base, alpha)
    assert set(adapter.layers) == set(layers)
    for path, factors in layers.items():
        torch.testing.assert_close(adapter.layers[path].delta_weight(), factors.delta_weight())
    evidence = look(staging).evidence
    assert (evidence.layout, evidence.ranks, evidence.layers) == (layout, (4,), 2)
    assert sum(evidence.modules.values()) == 14
    assert evidence.claims == ("org/name" if layout == "MLX" else "")
    assert layout in evidence.sentence()


def test_a_scale_that_nothing_states_is_asked_for(base, tmp_path, staging):
    (tmp_path / "theirs").mkdir()
    tensors = {
        name: one
        for path, factors in layers_of(base).items()
        for name, one in LAYOUTS["loralib"](path, factors).items()
    }
    save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    with pytest.raises(InvalidAdapter, match="do not say alpha"):
        found(tmp_path / "theirs", staging, base)
    assert look(staging).evidence.alpha is None


def test_an_adapter_for_another_model_is_told_so(base, folder, staging, tiny_gpt2):
    gpt2 = load(tiny_gpt2)
    with pytest.raises(InvalidAdapter, match="has no layer"):
        fit(look(take(folder, staging)), gpt2.layer_shapes, gpt2.head)


def test_dora_is_recognised_and_refused(base, folder, staging):
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight"] = torch.ones(32)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InvalidAdapter, match="DoRA"):
        look(take(folder, staging))


# Hostile files. Each is refused with a reason, quickly, with little memory, and nothing is written anywhere
# else.


class Bounded:
    """Within the block: no more than 2 s and 200 MB."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.start, self.before = time.perf_counter(), self._kilobytes("VmRSS")
        return self

    def __exit__(self, *about):
        assert time.perf_counter() - self.start < SECONDS
        assert (self._kilobytes("VmHWM") - self.before) * 1024 < BYTES

    @staticmethod
    def _kilobytes(name):
        return next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(name)
        )


def tree(folder, but):
    return {
        path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and but not in path.parents
    }


def container(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def tensor(dtype="F32", shape=(4, 32), offsets=(0, 512), name=NAME):
    return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


EMPTY = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})


def many(count):
    """So many empty tensors; megabytes, which are made where they are needed."""
    named = ", ".join(f'"t{at}": {EMPTY}' for at in range(count))
    return container(f"{{{named}}}".encode())


MALFORMED = {
    "empty": b"",
    "a few bytes": b"abc",
    "only a length": struct.pack("<Q", 100),
    "length beyond the file": container({}, length=10**6),
    "a huge length": container({}, length=2**63),
    "length zero": container(b"", length=0),
    "no JSON": container(b"not json at all"),
    "cut JSON": container(b'{"a": {"dtype"'),
    "a list": container([]),
    "a number": container(b"12"),
    "deep nesting": container(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "an entry that is a list": container({NAME: []}),
    "no dtype": container({NAME: {"shape": [1], "data_offsets": [0, 4]}}, b"0000"),
    "an unknown dtype": container(tensor("F128"), bytes(512)),
    "a dtype that is a number": container(tensor(3), bytes(512)),
    "no offsets": container({NAME: {"dtype": "F32", "shape": [1]}}, b"0000"),
    "three offsets": container({NAME: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"0000"),
    "negative offsets": container(tensor(offsets=(-512, 0)), bytes(512)),
    "offsets the wrong way": container(tensor(offsets=(512, 0)), bytes(512)),
    "offsets beyond the file": container(tensor(offsets=(0, 512)), bytes(100)),
    "a hole": container(tensor(offsets=(8, 520)), bytes(520)),
    "bytes left over": container(tensor(), bytes(600)),
    "a shape that is too large": container(tensor(shape=(2**40, 2**40)), bytes(512)),
    "a negative shape": container(tensor(shape=(-4, 32)), bytes(512)),
    "a shape of text": container(tensor(shape=("4", 32)), bytes(512)),
    "metadata that is no text": container({"__metadata__": {"a": 1}, **tensor()}, bytes(512)),
    "two tensors on the same bytes": container(
        {**tensor(), **tensor(name=NAME.replace("lora_A", "lora_B"))}, bytes(512)
    ),
    "700,000 empty tensors": functools.partial(many, 700_000),
    "20,000 tensors": functools.partial(many, 20_000),
}


@pytest.mark.parametrize("how", MALFORMED)
def test_malformed_safetensors_are_refused(folder, staging, how):
    content = MALFORMED[how]
    (folder / WEIGHTS).write_bytes(content() if callable(content) else content)
    before = tree(staging.parent, staging)
    with Bounded(), pytest.raises(InvalidAdapter):
        look(take(folder, staging))
    assert tree(staging.parent, staging) == before


def a_zip(path, *members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def encrypted(path):
    whole = bytearray(a_zip(path, (WEIGHTS, b"x")).read_bytes())
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        at = whole.index(mark)
        whole[at + (6 if mark[2] == 3 else 8)] |= 1
    path.write_bytes(bytes(whole))


def a_link(path):
    about = zipfile.ZipInfo(WEIGHTS)
    about.external_attr = (stat.S_IFLNK | 0o777) << 16
    a_zip(path, (about, "/etc/passwd"))


def wrong_sum(path):
    whole = bytearray(a_zip(path, (WEIGHTS, b"content")).read_bytes())
    whole[whole.index(b"content")] ^= 1
    path.write_bytes(bytes(whole))


def announced_too_small(path):
    whole = bytearray(a_zip(path, (WEIGHTS, b"0" * 1000)).read_bytes())
    at = whole.index(b"PK\x01\x02")
    whole[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(bytes(whole))


ARCHIVES = {
    "no zip": lambda path: path.write_bytes(b"this is no zip"),
    "cut off": lambda path: path.write_bytes(a_zip(path, (WEIGHTS, b"x")).read_bytes()[:-30]),
    "empty": lambda path: a_zip(path),
    "nothing of use": lambda path: a_zip(path, ("readme.txt", b"x")),
    "up and out": lambda path: a_zip(path, (f"../../{WEIGHTS}", b"x")),
    "an absolute path": lambda path: a_zip(path, (f"/tmp/{WEIGHTS}", b"x")),
    "backslashes": lambda path: a_zip(path, (f"..\\..\\{WEIGHTS}", b"x")),
    "a drive": lambda path: a_zip(path, (f"C:\\{WEIGHTS}", b"x")),
    "a link": a_link,
    "encrypted": encrypted,
    "a bomb": lambda path: a_zip(path, (WEIGHTS, bytes(150 << 20)), compression=zipfile.ZIP_DEFLATED),
    "2,000 files": lambda path: a_zip(path, *[(f"f{at}", b"") for at in range(2000)]),
    "two adapters": lambda path: a_zip(path, (f"a/{WEIGHTS}", b"x"), (f"b/{WEIGHTS}", b"x")),
    "a wrong sum": wrong_sum,
    "announced too small": announced_too_small,
    "only pickle": lambda path: a_zip(path, ("adapter_model.bin", b"x"), (CONFIG, b"{}")),
}


@pytest.mark.parametrize("how", ARCHIVES)
def test_hostile_archives_are_refused(tmp_path, staging, how):
    path = tmp_path / "theirs.zip"
    ARCHIVES[how](path)
    before = tree(tmp_path, staging)
    with Bounded(), pytest.raises(InvalidAdapter):
        look(take(path, staging))
    assert tree(tmp_path, staging) == before
    assert not Path(f"/tmp/{WEIGHTS}").exists()


@pytest.mark.parametrize("within", ["", "out/"])
def test_a_zip_of_a_runs_folder_is_of_the_adapter_beside_its_checkpoints(folder, staging, tmp_path, within):
    weights, config = (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes()
    path = a_zip(
        tmp_path / "run.zip",
        (f"{within}checkpoint-10/{WEIGHTS}", b"an older one"),
        (f"{within}checkpoint-10/{CONFIG}", b"{}"),
        (f"{within}{WEIGHTS}", weights),
        (f"{within}{CONFIG}", config),
    )
    take(path, staging)
    assert ((staging / WEIGHTS).read_bytes(), (staging / CONFIG).read_bytes()) == (weights, config)


def test_a_zip_of_several_adapters_names_them(staging, tmp_path):
    path = a_zip(tmp_path / "two.zip", (f"b/{WEIGHTS}", b"x"), (f"a/{WEIGHTS}", b"x"))
    with pytest.raises(InvalidAdapter, match=rf"2 adapters' weights \(a/{WEIGHTS}, b/{WEIGHTS}\)"):
        take(path, staging)


@pytest.mark.parametrize("given", ["folder", "adapter_model.bin", "adapter.pt", "run.zip"])
def test_pickle_is_called_so_however_it_is_given(staging, tmp_path, given):
    origin = tmp_path / given
    if given == "folder":
        origin.mkdir()
        (origin / "adapter_model.bin").write_bytes(b"x")
    elif given == "run.zip":
        a_zip(origin, ("run/adapter_model.bin", b"x"), (f"run/{CONFIG}", b"{}"))
    else:
        origin.write_bytes(b"x")
    with pytest.raises(InvalidAdapter, match=r"a pickle adapter, .* never opened here.*weights_only=True"):
        take(origin, staging)


NAMES, NUMBERS = ("target_modules", "exclude_modules"), ("r", "lora_alpha", "lora_dropout")
BAD = {
    **{key: [None, "4", True, -1, 10**9] for key in ("r",)},
    "lora_alpha": [None, "16", True, math.nan, 1e30],
    "lora_dropout": ["0.1", True, -0.1, 1.0, math.nan],
    "peft_type": [None, "", "LOHA", 3, ["LORA"]],
    "target_modules": [None, [], "q_proj|.*", "(a+)+$", [1], {"a": 1}],
    "exclude_modules": ["(q_proj", [1], {"a": 1}, 3, [None]],
    "fan_in_fan_out": ["yes", 1, [], "false", {}],
    "use_rslora": ["yes", 1, [], "false", {}],
    "bias": ["some", "All", True, 1, ["none"]],
    "rank_pattern": [["x"], {"q_proj": 10**9}, {"q_proj": "4"}, {"(.*": 4}, {"q_proj": 0}],
    "alpha_pattern": [["x"], {"q_proj": 1e30}, {"q_proj": "4"}, {r"(a)\1": 4}, {"q_proj": math.nan}],
    "layers_to_transform": ["x", ["x"], [-1], [1.5], [10**6]],
    "init_lora_weights": ["pissa", "olora", "corda", "loftq", "pissa_niter_4"],
    "use_dora": [True, "true", 1, [1], {"a": 1}],
    "modules_to_save": [["lm_head"], "lm_head", True, {"a": 1}, 1],
    "trainable_token_indices": [[1], {"a": [1]}, 1, "x", True],
    "lora_bias": [True, "true", 1, [1], {"a": 1}],
    "ensure_weight_tying": ["true", 1, [1], {"a": 1}, "x"],
    "target_parameters": [["x"], "x", 1, True, {"a": 1}],
    "a_new_setting": [1, "x", True, [1], {"a": 1}],
    "auto_mapping": [{"base_model_class": "os.system", "parent_library": "os"}, {"a": 1}, ["x"], "x", 1],
    "base_model_name_or_path": [3, ["x"], {"a": 1}, "x" * 3000, True],
    "revision": [3, ["x"], {"a": 1}, "x" * 3000, True],
    "task_type": [3, ["x"], {"a": 1}, "x" * 3000, True],
    "inference_mode": [3, ["x"], {"a": 1}, "x" * 3000, "yes"],
    "peft_version": [3, ["x"], {"a": 1}, "x" * 3000, True],
    "layers_pattern": [3, ["x"], {"a": 1}, "layers", True],
    "megatron_core": [3, ["x"], {"a": 1}, "os", True],
    **{
        key: [3, "x", ["x"], True]
        for key in ("eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config")
    },
    **{
        key: [True, [1], {"a": 1}, "x"]
        for key in ("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "megatron_config")
    },
    **{key: [True, [1], {"a": 1}] for key in ("layer_replication", "kasa_config", "monteclora_config")},
    "qalora_group_size": ["x", ["x"], {"a": 1}, -1, True],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_every_key_of_the_configuration_is_checked(folder, staging, base, key, value):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with Bounded(), pytest.raises(InvalidAdapter, match=r"\w"):
        found(folder, staging, base)


def test_every_key_that_is_accepted_is_among_those_that_were_tried():
    assert UNDERSTOOD | DESCRIPTIVE | LORA.peft_keys | set(LORA.peft_refused) <= set(BAD)


@pytest.mark.parametrize("name", ["folder", "adapter.safetensors", "adapter.zip", "adapter.bin"])
def test_what_is_not_there_is_said_to_be_missing(tmp_path, staging, name):
    with pytest.raises(InvalidAdapter, match="There is no file or folder"):
        take(tmp_path / name, staging)


def test_links_and_pickle_are_not_followed(folder, staging, tmp_path):
    (folder / "real").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    os.symlink(folder / "real", folder / WEIGHTS)
    with pytest.raises(InvalidAdapter, match="link"):
        take(folder, staging)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidAdapter, match="pickle"):
        take(folder, staging)
    os.symlink(folder, tmp_path / "linked")
    with pytest.raises(InvalidAdapter, match="link"):
        take(tmp_path / "linked", staging)
    with pytest.raises(InvalidAdapter, match="no file or folder"):
        take(tmp_path / "missing", staging)
    with pytest.raises(InvalidInput):
        read_config(folder / "adapter_model.bin")
