"""What is said of an adapter's inside, against ΔW formed and decomposed densely."""

import math

import pytest
import torch

from core.errors import InvalidAdapter
from core.lora.anatomy import anatomy, compare_subspaces, subspace_similarity
from tests.core.test_combine import LLAMA, make


def test_norms_singular_values_and_ranks_are_those_of_the_dense_delta():
    adapter = make(LLAMA, 6, 12.0, 1)
    weights = {path: 10.0 for path in LLAMA}
    for one in anatomy(adapter, weights):
        S = torch.linalg.svdvals(adapter.layers[one.path].delta_weight().double())[:6]
        assert one.singular_values == pytest.approx(S.tolist(), rel=1e-5)
        assert one.delta_norm == pytest.approx(float(S.norm()), rel=1e-5)
        assert one.relative == pytest.approx(float(S.norm()) / 10, rel=1e-5)
        p = S / S.sum()
        assert one.effective_rank == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-5)


def test_an_adapter_that_uses_five_of_sixteen_directions_is_found_out():
    adapter = make(LLAMA, 16, 16.0, 1)
    for factors in adapter.layers.values():
        factors.A[5:] *= 1e-4
    for one in anatomy(adapter):
        assert one.rank == 16
        assert one.rank_held <= 5
        assert 3 < one.effective_rank < 5.1
        assert one.relative is None


def test_layers_come_in_the_order_of_their_numbers():
    shapes = {f"model.layers.{n}.mlp.up_proj": (8, 8) for n in (10, 9, 1)}
    assert [one.path.split(".")[2] for one in anatomy(make(shapes, 2, 2.0, 1))] == ["1", "9", "10"]


def test_an_untrained_adapter_has_no_rank_at_all():
    adapter = make(LLAMA, 4, 8.0, 1)
    for factors in adapter.layers.values():
        factors.B.zero_()
    assert all(
        one.rank_held == 0 and one.effective_rank == 0 and one.delta_norm == 0 for one in anatomy(adapter)
    )


def test_subspaces_are_compared_as_the_paper_defines_it():
    torch.manual_seed(0)
    one, other = torch.linalg.qr(torch.randn(30, 4)).Q.T, torch.linalg.qr(torch.randn(30, 7)).Q.T
    found = subspace_similarity(one, other)
    for i in range(4):
        for j in range(7):
            wanted = float((one[: i + 1] @ other[: j + 1].T).norm() ** 2) / min(i + 1, j + 1)
            assert float(found[i, j]) == pytest.approx(wanted, rel=1e-5)
    assert float(subspace_similarity(one, one)[3, 3]) == pytest.approx(1.0)


def test_an_adapter_shares_every_direction_with_itself_and_few_with_a_stranger():
    one, stranger = make(LLAMA, 4, 8.0, 1), make(LLAMA, 4, 8.0, 2)
    assert all(float(phi[-1, -1]) == pytest.approx(1.0) for phi in compare_subspaces(one, one).values())
    assert all(float(phi[-1, -1]) < 0.4 for phi in compare_subspaces(one, stranger).values())
    with pytest.raises(InvalidAdapter, match="no layer in common"):
        compare_subspaces(one, make({"other": (8, 8)}, 2, 2.0, 1))
