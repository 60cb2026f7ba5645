"""A base of which each process holds a part trains what one process trains on the whole of it."""

import pytest
import torch

from tests.core.helpers import load
from tests.core.test_data_apart import CASES, _alone, _case, _factors, _run, one_process, together  # noqa: F401


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", ["plain", "packed with dropout"])
def test_base_apart_gives_the_adapters_of_one_process(tiny_llama, together, one_process, processes, case):  # noqa: F811
    runs, (alone, expected) = _case(CASES[case]), one_process(case)
    found, out = together(processes, tiny_llama, runs, base_apart=True)
    base = load(tiny_llama)
    for name in runs:
        torch.testing.assert_close(
            _factors(base, out / name), _factors(base, expected / name), atol=1e-5, rtol=0
        )
        assert [loss for *_, loss in found[name]["losses"]] == pytest.approx(
            [loss for *_, loss in alone[name]["losses"]], abs=1e-5
        )


def test_each_layer_is_computed_again_and_a_process_has_no_rows_left(tiny_llama, together, tmp_path):  # noqa: F811
    runs = {"run": _run(rows=9, gradient_checkpointing="on", packing="off", micro_batch_size=3)}
    _, expected = _alone(tmp_path, tiny_llama, runs)
    _, out = together(4, tiny_llama, runs, base_apart=True)
    base = load(tiny_llama)
    torch.testing.assert_close(
        _factors(base, out / "run"), _factors(base, expected / "run"), atol=1e-5, rtol=0
    )


def test_a_kind_that_reads_the_weights_is_refused(tiny_llama, together):  # noqa: F811
    found, _ = together(2, tiny_llama, {"run": _run(lora={"kind": "dora"})}, base_apart=True)
    assert "not trained on a base of which each process holds a part" in found["run"]["error"]
