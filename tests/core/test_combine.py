"""Combined adapters against the dense definition in float64 and against plain references written out element
by element.
"""

import math

import numpy as np
import pytest
import torch

from core.combine.combining import Part, combine, compare_parents, resize
from core.combine.config import CombineConfig
from core.combine.methods import COMBINE_METHODS
from core.combine.sparse import dropped
from core.errors import InvalidConfig, WrongBase
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.low_rank import decompose_dense
from core.reporting import silent

LLAMA = {
    "model.layers.0.self_attn.q_proj": (48, 48),
    "model.layers.0.self_attn.k_proj": (48, 16),
    "model.layers.1.mlp.up_proj": (48, 96),
}
GPT2 = {"transformer.h.0.attn.c_attn": (40, 120), "transformer.h.1.mlp.c_proj": (160, 40)}


def make(shapes, rank, alpha, seed, rslora=False, fingerprint="f" * 64, only=None):
    generator = torch.Generator().manual_seed(seed)
    scale = alpha / math.sqrt(rank) if rslora else alpha / rank
    layers = {
        path: LayerFactors(
            torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator), scale
        )
        for path, (n_in, n_out) in shapes.items()
        if only is None or path in only
    }
    return AdapterWeights(rank, alpha, 0.0, layers, fingerprint, "base", use_rslora=rslora)


def parents(shapes):
    """Mixed ranks, one with rsLoRA, one that leaves a layer out, one subtracted."""
    first = next(iter(shapes))
    return [
        Part("a", make(shapes, 4, 8.0, 1), 0.7),
        Part("b", make(shapes, 8, 16.0, 2, rslora=True), 0.3),
        Part("c", make(shapes, 3, 5.0, 3, only=[first]), -0.5),
    ]


def dense(parts, path):
    return sum(
        part.weight * part.adapter.layers[path].delta_weight().double()
        for part in parts
        if path in part.adapter.layers
    )


def close(found, wanted, tolerance=1e-6):
    return float((found.double() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("shapes", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("method", ["cat", "linear"])
def test_sums_are_exact(shapes, method):
    parts = parents(shapes)
    found = combine(parts, CombineConfig(method=method), silent)
    assert found.energy_lost == 0
    for path in shapes:
        assert close(found.adapter.layers[path].delta_weight(), dense(parts, path))
        ranks = sum(part.adapter.layers[path].rank for part in parts if path in part.adapter.layers)
        assert found.adapter.layers[path].rank == ranks


def test_linear_takes_no_more_rank_than_the_sum_needs():
    one = make(LLAMA, 4, 8.0, 1)
    found = combine(
        [Part("a", one, 0.5), Part("b", one, 0.25)], CombineConfig(method="linear"), silent
    ).adapter
    assert {factors.rank for factors in found.layers.values()} == {4}
    for path in LLAMA:
        assert close(found.layers[path].delta_weight(), 0.75 * one.layers[path].delta_weight().double())


@pytest.mark.parametrize("shapes", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_svd_is_as_good_as_the_dense_one(shapes):
    parts = parents(shapes)
    found = combine(parts, CombineConfig(method="svd", rank=5), silent)
    lost = energy = 0.0
    for path in shapes:
        whole = dense(parts, path)
        S = torch.linalg.svdvals(whole)
        error = float((found.adapter.layers[path].delta_weight().double() - whole).norm())
        assert error == pytest.approx(float(S[5:].norm()), rel=1e-5)
        assert found.adapter.layers[path].rank == 5
        lost, energy = lost + float(S[5:].square().sum()), energy + float(S.square().sum())
    assert found.energy_lost == pytest.approx(lost / energy, rel=1e-6)


def _reference(method, deltas, density, generator):
    """Loops over elements, as the papers write it."""
    thin = []
    for delta, weight in deltas:
        if method in ("ties", "magnitude_prune"):
            order = np.sort(np.abs(delta), axis=None)[::-1]
            threshold = order[max(1, round(density * delta.size)) - 1]
            thin.append(np.where(np.abs(delta) >= threshold, delta, 0) * weight)
        else:
            kept = torch.rand(delta.shape, generator=generator).numpy() < density
            thin.append(np.where(kept, delta / density, 0) * weight)
    result = np.zeros_like(thin[0])
    for at in np.ndindex(result.shape):
        values = [one[at] for one in thin]
        if method in ("magnitude_prune", "dare_linear"):
            result[at] = sum(values)
        else:
            sign = np.sign(sum(values))
            agree = [value for value in values if value and np.sign(value) == sign]
            result[at] = sum(agree) / len(agree) if agree else 0
    return result


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
@pytest.mark.parametrize("shapes", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_element_wise_methods_equal_a_plain_reference(shapes, method):
    import zlib

    parts, config = parents(shapes), CombineConfig(method=method, density=0.4, rank=1024, seed=7)
    found = combine(parts, config, silent)
    for path in shapes:
        mine = [
            (part.adapter.layers[path].delta_weight(), part.weight)
            for part in parts
            if path in part.adapter.layers
        ]
        generator = torch.Generator().manual_seed(7 * 1_000_003 + zlib.crc32(path.encode()))
        wanted = _reference(
            method, [(delta.numpy().astype(np.float64), weight) for delta, weight in mine], 0.4, generator
        )
        np.testing.assert_allclose(
            COMBINE_METHODS.get(method).dense(path, mine, config).numpy(), wanted, rtol=1e-5, atol=1e-5
        )
        assert close(
            found.adapter.layers[path].delta_weight(), torch.from_numpy(wanted), 1e-5
        )  # the rank holds all of it
    assert found.energy_lost < 1e-9


def test_a_cut_of_an_element_wise_method_reports_what_it_loses():
    parts = parents(LLAMA)
    config = CombineConfig(method="ties", density=0.4, rank=4)
    found = combine(parts, config, silent)
    lost = energy = 0.0
    for path in LLAMA:
        mine = [
            (part.adapter.layers[path].delta_weight(), part.weight)
            for part in parts
            if path in part.adapter.layers
        ]
        whole = COMBINE_METHODS.get("ties").dense(path, mine, config).double()
        lost += float((found.adapter.layers[path].delta_weight().double() - whole).square().sum())
        energy += float(whole.square().sum())
    assert found.energy_lost == pytest.approx(lost / energy, rel=1e-5)
    assert 0.05 < found.energy_lost < 0.95


def test_dare_keeps_the_mean():
    delta = torch.ones(400, 400)
    kept = dropped(delta, 0.3, torch.Generator().manual_seed(0))
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.3])


def test_wide_layers_are_decomposed_as_exactly():
    generator = torch.Generator().manual_seed(0)
    delta = (
        torch.randn(2100, 24, generator=generator)
        * 0.5 ** torch.arange(24)
        @ torch.randn(24, 2200, generator=generator)
    )
    found, exact = decompose_dense(delta, 8), torch.linalg.svdvals(delta.double())
    torch.testing.assert_close(found.S[:8], exact[:8], rtol=1e-5, atol=0)


def test_parents_are_compared_before_anything_is_kept():
    one = make(LLAMA, 4, 8.0, 1)
    opposite = Part("opposite", one, -1.0)
    same = compare_parents([Part("a", one, 1.0), Part("b", one, 1.0)])
    against = compare_parents([Part("a", one, 1.0), opposite])
    stranger = compare_parents([Part("a", one, 1.0), Part("c", make(LLAMA, 4, 8.0, 9), 1.0)])
    assert same.cosines[0][1] == pytest.approx(1.0)
    assert same.sign_conflicts == pytest.approx(0.0, abs=1e-6)
    assert against.sign_conflicts == pytest.approx(0.5)
    assert abs(stranger.cosines[0][1]) < 0.2
    assert 0.1 < stranger.sign_conflicts < 0.4
    total = math.sqrt(sum(float(one.layers[path].delta_weight().double().square().sum()) for path in LLAMA))
    assert same.norms[0] == pytest.approx(total, rel=1e-6)


def test_resizing_loses_what_it_says():
    one = make(LLAMA, 8, 16.0, 4)
    found = resize(one, 3)
    error = sum(
        float((found.adapter.layers[p].delta_weight() - one.layers[p].delta_weight()).double().square().sum())
        for p in LLAMA
    )
    energy = sum(float(one.layers[p].delta_weight().double().square().sum()) for p in LLAMA)
    assert found.energy_lost == pytest.approx(error / energy, rel=1e-4)
    assert found.adapter.rank == 3
    assert resize(one, 64).energy_lost == pytest.approx(0, abs=1e-12)
    assert resize(one, 64).adapter.rank == 8


def test_adapters_of_two_bases_are_not_combined():
    other = make(LLAMA, 4, 8.0, 1, fingerprint="e" * 64)
    with pytest.raises(WrongBase, match="a and b are of different bases"):
        combine([Part("a", make(LLAMA, 4, 8.0, 1), 1.0), Part("b", other, 1.0)], CombineConfig(), silent)
    with pytest.raises(InvalidConfig, match="weight other than 0"):
        combine([Part("a", make(LLAMA, 4, 8.0, 1), 0.0)], CombineConfig(), silent)
