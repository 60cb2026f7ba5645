"""Several processes that train one group learn what one process learns."""

import functools
import json

import pytest
import torch

from core.base_model.quantisation import NONE
from core.lora.peft.files import load_adapter
from tests.core.helpers import CLOSE, load
from tests.core.training_worker import train

LORA = {"rank": 4, "alpha": 8}
TRAIN = {"max_steps": 5, "micro_batch_size": 4, "max_length": 96, "learning_rate": 5e-3}


def _run(word="hello", rows=22, lora=None, **options):
    return {"word": word, "rows": rows, "lora": LORA | (lora or {}), "train": TRAIN | options}


SEVERAL = {
    "plain": _run(),
    "other": _run(
        "world",
        30,
        {"rank": 2, "alpha": 8, "use_rslora": True, "target_modules": "q_proj,v_proj"},
        max_steps=4,
        gradient_accumulation_steps=2,
        seed=2,
    ),
}
CASES = {
    "plain": {"packing": "off"},
    "dropout": {"packing": "off", "dropout": 0.3},
    "packed": {"packing": "on"},
    "packed with dropout": {"packing": "on", "dropout": 0.3},
}


def _case(options):
    """Both runs, changed alike."""
    lora = {"dropout": options["dropout"]} if "dropout" in options else {}
    return {
        name: one | {"lora": one["lora"] | lora, "train": one["train"] | {"packing": options["packing"]}}
        for name, one in SEVERAL.items()
    }


@pytest.fixture
def together(zygote, tmp_path, monkeypatch):
    """Train a job in several processes; what came of it, and where its files are."""
    zygote.import_too("tests.core.training_worker")

    def start(processes, base, runs, **job):
        if job.get("quantisation", NONE) != NONE:
            zygote.import_too("bitsandbytes")
        out = tmp_path / f"{processes}-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        (out / "job.json").write_text(json.dumps({"base": str(base), "runs": runs, "out": str(out), **job}))
        monkeypatch.setenv("LORA_WORKBENCH_MEETING", str(out / "meeting"))
        monkeypatch.setenv("LORA_WORKBENCH_WORLD", str(processes))
        started = []
        for rank in range(processes):
            monkeypatch.setenv("LORA_WORKBENCH_RANK", str(rank))
            log = out / f"{rank}.log"
            started.append(zygote.start("tests.core.training_worker", [str(out / "job.json")], log))
        codes = [process.wait() for process in started]
        assert codes == [0] * processes, "\n".join(one.read_text()[-3000:] for one in out.glob("*.log"))
        return json.loads((out / "found.json").read_text()), out

    return start


def _alone(tmp_path, base, runs, **job):
    out = tmp_path / f"alone-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    return train({"base": str(base), "runs": runs, "out": str(out), **job}), out


@pytest.fixture(scope="module")
def one_process(tiny_llama, tmp_path_factory):
    """A function that trains the runs of a case in this process: as _alone(), once for each."""
    return functools.cache(
        lambda case, how=NONE, float64=False: _alone(
            tmp_path_factory.mktemp("alone"),
            tiny_llama,
            _case(CASES[case]),
            quantisation=how,
            float64=float64,
        )
    )


def _factors(base, folder):
    adapter = load_adapter(folder, base.layer_shapes, base.head)
    return torch.cat([one.flatten() for layer in adapter.layers.values() for one in (layer.A, layer.B)])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_data_apart_gives_the_adapters_of_one_process(tiny_llama, together, one_process, processes, case):
    """In float64, see load_float64()."""
    runs, (alone, expected) = _case(CASES[case]), one_process(case, float64=True)
    found, out = together(processes, tiny_llama, runs, float64=True)
    base = load(tiny_llama)
    for name in runs:
        torch.testing.assert_close(_factors(base, out / name), _factors(base, expected / name), **CLOSE)
        for one, other in zip(found[name]["losses"], alone[name]["losses"], strict=True):
            assert one[:2] == other[:2]
            assert one[2] == pytest.approx(other[2], abs=1e-5)


def test_gradients_are_the_same_to_the_last_digits_whatever_is_left_for_the_last_process(
    tiny_llama, together, tmp_path
):
    runs = {
        "odd": _run(rows=13, micro_batch_size=3, gradient_accumulation_steps=2, max_steps=6, packing="off")
    }
    alone, expected = _alone(tmp_path, tiny_llama, runs, float64=True)
    found, out = together(2, tiny_llama, runs, float64=True)
    base = load(tiny_llama)
    torch.testing.assert_close(_factors(base, out / "odd"), _factors(base, expected / "odd"), **CLOSE)
    assert found["odd"]["losses"] == [
        [kind, step, pytest.approx(loss)] for kind, step, loss in alone["odd"]["losses"]
    ]


@pytest.mark.parametrize("kinds", [("dora", "miss", "adalora"), ("full",)])
def test_other_kinds_of_adapters_learn_the_same(tiny_llama, together, tmp_path, kinds):
    """Those of several banks side by side, and whole parameters."""
    runs = {kind: _run(lora={"kind": kind}, max_steps=4, packing="off", learning_rate=1e-3) for kind in kinds}
    alone, _ = _alone(tmp_path, tiny_llama, runs)
    found, _ = together(2, tiny_llama, runs)
    for kind in kinds:
        assert len(found[kind]["losses"]) > 4
        assert [loss for *_, loss in found[kind]["losses"]] == pytest.approx(
            [loss for *_, loss in alone[kind]["losses"]], abs=1e-5
        )


def test_what_the_first_process_is_asked_all_do(tiny_llama, together, tmp_path):
    runs = {"run": _run(max_steps=20, packing="off")}
    asked = {"change": {"at": 2, "values": {"learning_rate": 1e-3}}, "stop": 4}
    _, expected = _alone(tmp_path, tiny_llama, runs, asked=asked)
    found, out = together(2, tiny_llama, runs, asked=asked)
    assert 4 <= found["run"]["steps"] <= 5  # all stop at the same micro-batch, which may be one later
    shorter = {"run": _run(max_steps=20, packing="off")}
    asked_later = {**asked, "stop": found["run"]["steps"]}
    _, expected = _alone(tmp_path, tiny_llama, shorter, asked=asked_later)
    base = load(tiny_llama)
    torch.testing.assert_close(
        _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
    )


def test_a_run_goes_on_with_another_number_of_processes(tiny_llama, together, tmp_path):
    whole = {"run": _run(max_steps=6, lora={"dropout": 0.2}, packing="off")}
    _, expected = _alone(tmp_path, tiny_llama, whole)
    _, half = together(2, tiny_llama, whole, asked={"save": 3})
    resumed = {"run": whole["run"] | {"resume": str(half / "run-saved")}}
    base = load(tiny_llama)
    for out in (together(3, tiny_llama, resumed)[1], _alone(tmp_path, tiny_llama, resumed)[1]):
        torch.testing.assert_close(
            _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
        )


def test_processes_that_have_other_data_or_options_are_refused_before_the_first_step(tiny_llama, together):
    runs = {"run": _run()}
    for differs, said in (({"word": "world"}, "first one's data"), ({"train": {}}, "first one's options")):
        found, _ = together(2, tiny_llama, runs, differs=differs)
        assert said in found["run"]["error"]
        assert "Process 1 of 2" in found["run"]["error"]
        assert not found["run"]["losses"]


def test_processes_that_go_on_from_other_checkpoints_of_one_step_are_refused(tiny_llama, together, tmp_path):
    saved = [
        str(_alone(tmp_path, tiny_llama, {"run": _run(word)}, asked={"save": 3})[1] / "run-saved")
        for word in ("hello", "world")
    ]
    runs = {"run": _run(max_steps=6) | {"resume": saved[0]}}
    found, _ = together(2, tiny_llama, runs, differs={"resume": saved[1]})
    assert "does not have the first one's checkpoint: its is step 3 (" in found["run"]["error"]


def test_torchrun_starts_the_processes(tiny_llama, zygote, tmp_path):
    job = {"base": str(tiny_llama), "runs": {"run": _run(max_steps=2)}, "out": str(tmp_path)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = ["--standalone", "--nproc-per-node", "2", "-m", "tests.core.training_worker"]
    log = tmp_path / "log"
    torchrun = zygote.start("torch.distributed.run", [*command, str(tmp_path / "job.json")], log)
    assert torchrun.wait() == 0, log.read_text()[-2000:]
    assert json.loads((tmp_path / "found.json").read_text())["run"]["steps"] == 2
