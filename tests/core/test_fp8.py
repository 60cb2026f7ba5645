"""Frozen products in FP8: beside what rounding to e4m3 by rows gives in float32."""

import functools

import pytest
import torch

from core.base_model import load as loading
from core.base_model.quantisation import FP8, NF4, in_few_bits
from core.base_model.quantised_load import packed, quantised_layers, require_fp8
from core.data.formats import Example
from core.errors import InvalidModel
from core.events import RunFailed, StepDone
from core.lora.config import LoraConfig
from core.lora.fp8 import fp8_linear, fp8_product, quantised_rows, scaled_product
from core.lora.kinds import ADAPTER_KINDS
from core.lora.quantised import frozen_product
from core.train.config import TrainConfig
from core.train.group import TrainingGroup
from tests.core.helpers import load, plain_model, request


def _takes_rows():
    """Whether this torch multiplies in FP8 with scales of rows on a CPU, as before 2.13 it does not."""
    rows, scales = quantised_rows(torch.ones(16, 16))
    try:
        scaled_product(rows, scales, rows, scales[:, 0], torch.empty(0))
    except RuntimeError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _takes_rows(), reason="this torch has such products on GPUs alone")
KINDS = [kind for kind in ADAPTER_KINDS.names if not ADAPTER_KINDS.get(kind).whole]
ROWS = [
    Example(
        i,
        (
            {"role": "user", "content": f"hello {i}"},
            {"role": "assistant", "content": "fine thanks " * (1 + i % 5)},
        ),
    )
    for i in range(12)
]


def _rounded(x):
    """To e4m3 with one scale for each row, and back."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def _of_rounded(weight, x):
    return _rounded(x) @ weight.T


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _close(found, wanted):
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.fixture
def fp8_llama(tiny_llama, monkeypatch):
    monkeypatch.setattr(loading, "require_fp8", lambda *about: None)
    return load(tiny_llama, quantisation=FP8)


def test_scales_are_of_rows_and_zeros_stay_zeros():
    x = torch.stack([torch.zeros(32), _random(32), 1e4 * _random(32), 1e-4 * _random(32)])
    rounded, scale = quantised_rows(x)
    assert rounded.dtype == torch.float8_e4m3fn
    assert rounded.float().abs().amax(-1).tolist() == [0, 448, 448, 448]
    back = rounded.float() * scale
    assert not back[0].any()
    # three bits behind the first, and what is below 2⁻⁶·scale in steps of 2⁻⁹
    assert bool(((back - x).abs() <= x.abs() / 16 + scale * 2**-10).all())


def test_the_product_and_its_gradient_are_those_of_rounded_rows():
    weight, bias = _random(48, 32), _random(48, seed=3)
    x, dy = _random(2, 5, 32, seed=1).requires_grad_(), _random(2, 5, 48, seed=2)
    held = packed(weight, FP8)
    y = frozen_product(x, held, bias)
    y.backward(dy)
    used = _rounded(weight)
    assert torch.equal(held.dense(), used)
    assert _close(y, _rounded(x.detach()) @ used.T + bias)
    of_rows = weight.abs().amax(-1) / 448
    assert _close(x.grad, _rounded(dy * of_rows) @ (used / of_rows[:, None]))
    assert _close(x.grad, dy @ used) is False  # dY is rounded, too
    assert float((x.grad - dy @ used).norm() / (dy @ used).norm()) < 0.04


@pytest.mark.parametrize("learns_a", [True, False])
@pytest.mark.parametrize("adapters", [1, 3])
def test_factors_get_the_gradients_that_ordinary_differentiation_gives(adapters, learns_a):
    held = packed(_random(48, 32), FP8)
    x, dy = _random(3, 5, 32, seed=1), _random(3, 5, 48, seed=2)
    A, B = (
        _random(adapters, 4, 32, seed=4).requires_grad_(),
        _random(adapters, 48, 4, seed=5).requires_grad_(),
    )
    scale = torch.tensor([2.0, 0.5, 1.0][:adapters])
    y, _ = fp8_linear(
        one := x.clone().requires_grad_(), *quantised_rows(x), held.tensors, None, A if learns_a else None, B,
        A.detach(), B.detach(), scale,
    )  # fmt: skip
    y.backward(dy)
    a, b = A.detach().requires_grad_(), B.detach().requires_grad_()
    low = (other := x.clone().requires_grad_()).view(adapters, -1, 32).bmm(a.mT) * scale[:, None, None]
    wanted = frozen_product(other, held, None) + low.bmm(b.mT).view(3, 5, 48)
    wanted.backward(dy)
    assert _close(y, wanted)
    assert _close(one.grad, other.grad)
    assert _close(B.grad, b.grad)
    assert A.grad is None if not learns_a else _close(A.grad, a.grad)


@pytest.mark.parametrize("with_a", [True, False])
def test_the_operators_keep_what_torch_asks_of_them(with_a):
    held, x = packed(_random(48, 32), FP8), _random(2, 5, 32).requires_grad_()
    rounded = quantised_rows(x.detach())
    A, B = _random(1, 4, 32).requires_grad_(with_a), _random(1, 48, 4).requires_grad_()
    checks = ("test_autograd_registration", "test_faketensor")  # the others compare e4m3, which torch cannot
    torch.library.opcheck(fp8_product, (x, *rounded, held.tensors, None), test_utils=checks)
    given = (x, *rounded, held.tensors, None, A if with_a else None, B, A.detach(), B.detach(), torch.ones(1))
    torch.library.opcheck(fp8_linear, given, test_utils=checks)


def test_a_compiler_takes_it_as_it_is():
    held, x = packed(_random(48, 32), FP8), _random(2, 5, 32)

    def step(x):
        return frozen_product(torch.nn.functional.silu(x), held, None).square().sum()

    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    step(one).backward()
    torch.compile(step, backend="aot_eager", fullgraph=True)(other).backward()
    assert torch.allclose(one.grad, other.grad, rtol=1e-5)


def test_linear_layers_but_the_last_and_the_head_are_held_so(fp8_llama):
    held = quantised_layers(fp8_llama.model)
    last = f".{fp8_llama.model.config.num_hidden_layers - 1}."
    inside = {path: one for path, one in fp8_llama.layers.items() if path != fp8_llama.head}
    assert {id(one) for one in held} == {id(one.base) for path, one in inside.items() if last not in path}
    assert {one.how for one in held} == {FP8}
    assert fp8_llama.quantisation == FP8


def test_what_is_held_in_fp8_is_told_by_the_shapes_alone():
    shapes = {
        "model.layers.0.q": (32, 64),
        "model.layers.0.odd": (32, 40),
        "model.layers.1.q": (32, 64),
        "lm_head": (32, 160),
    }
    assert in_few_bits(shapes, "lm_head", FP8) == {"model.layers.0.q": (64, 32)}
    assert len(in_few_bits(shapes, "lm_head", NF4)) == 3
    one_layer = {"model.layers.0.q": (32, 64)}
    assert in_few_bits(one_layer, None, FP8) == {"model.layers.0.q": (64, 32)}


@torch.no_grad()
def test_logits_are_transformers_with_rounded_factors(tiny_llama, fp8_llama):
    model, ids = plain_model(tiny_llama), torch.arange(24)[None]
    plain = model(input_ids=ids, use_cache=False).logits
    last = f".{model.config.num_hidden_layers - 1}."
    for path, one in model.named_modules():
        if isinstance(one, torch.nn.Linear) and path != "lm_head" and last not in path:
            one.forward = functools.partial(_of_rounded, _rounded(one.weight))
    wanted = model(input_ids=ids, use_cache=False).logits
    found = fp8_llama.model(input_ids=ids, use_cache=False).logits
    off = float((wanted - plain).norm())
    assert float((found - wanted).norm()) < 0.1 * off  # of a number at the border of two the other is taken


def _trained(base, kind, runs=2):
    config = TrainConfig(max_steps=4, micro_batch_size=2, gradient_accumulation_steps=1, learning_rate=5e-3)
    options = LoraConfig(kind, rank=4, alpha=8, target_modules="q_proj,v_proj,down_proj")
    group = TrainingGroup(base, [request(base, ROWS, options, config, key=number) for number in range(runs)])
    losses = []
    for _, event in group.run():
        if isinstance(event, RunFailed):
            raise event.error
        losses += [event.loss] if isinstance(event, StepDone) else []
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_nearly_as_on_the_plain_base(tiny_llama, fp8_llama, kind):
    wanted, found = (_trained(base, kind) for base in (load(tiny_llama), fp8_llama))
    assert found == pytest.approx(wanted, rel=0.02)
    assert found != wanted


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [("cpu", torch.bfloat16, "the CPU of this machine"), ("mps", torch.float16, "MPS")],
)
def test_where_there_is_no_fp8_it_is_refused(device, dtype, said):
    with pytest.raises(InvalidModel, match=f"needs an NVIDIA GPU.*{said}.*Choose"):
        require_fp8(torch.device(device), dtype)


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((9, 0), torch.float32)])
def test_a_card_without_it_and_another_dtype_are_refused(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(InvalidModel, match="here it is NVIDIA A100 and"):
        require_fp8(torch.device("cuda"), dtype)
