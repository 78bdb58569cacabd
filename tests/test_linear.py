"""Linear layers beside torch's: exact on small integers, the same bits for a row whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernels import DTYPES
from torch import Tensor

import cnnext
from cnnext import nn

SHAPES = [  # of the input, K
    ((1,), 1),
    ((7,), 5),
    ((1, 300), 33),
    ((2, 33), 16),
    ((3, 256), 31),
    ((4, 512), 70),
    ((5, 515), 48),
    ((8, 17), 1000),
    ((9, 600), 40),
    ((12, 2100), 24),  # long rows of weights
    ((40, 64), 65),
    ((2, 3, 4, 35), 29),
    ((1, 1, 1, 1, 1, 20), 8),
]


def integers(*size: int, seed: int = 0) -> Tensor:
    return torch.randint(-2, 3, size, generator=torch.Generator().manual_seed(seed)).double()


def operands(size: tuple[int, ...], outputs: int, dtype: torch.dtype, make: Callable[..., Tensor]) -> list[Tensor]:
    return [make(*shape).to(dtype).requires_grad_() for shape in (size, (outputs, size[-1]), (outputs,))]


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "outputs"), SHAPES, ids=str)
def test_exact(size: tuple[int, ...], outputs: int, dtype: torch.dtype) -> None:
    ours, torchs = operands(size, outputs, dtype, integers), operands(size, outputs, torch.float64, integers)
    gradient = integers(*size[:-1], outputs, seed=1)
    for tensors in (ours, torchs):
        tensors.append((cnnext.functional if tensors is ours else F).linear(*tensors))
        tensors[-1].backward(gradient.to(tensors[-1].dtype))
    assert torch.equal(ours[-1], torchs[-1].to(dtype))
    for mine, other in zip(ours[:-1], torchs[:-1], strict=True):
        assert mine.grad is not None and other.grad is not None
        assert mine.grad.dtype == dtype and torch.equal(mine.grad, other.grad.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "outputs"), [(300, 70), (2100, 64), (64, 1000), (31, 33)])
def test_a_row_does_not_depend_on_the_others(channels: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*size).to(dtype) for size in ((200, channels), (outputs, channels), (outputs,)))
    together = cnnext.functional.linear(x, weight, bias)
    for rows in (1, 2, 3, 7, 8, 9, 17, 33, 130):
        assert torch.equal(cnnext.functional.linear(x[:rows], weight, bias), together[:rows]), rows


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 3, 8, 12, 100])
def test_threads_do_not_change_a_bit(rows: int) -> None:
    torch.manual_seed(0)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        tensors = operands((rows, 700), 200, torch.float32, torch.randn)
        output = cnnext.functional.linear(*tensors)
        results.append([output, *torch.autograd.grad(output, tensors, torch.randn_like(output))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("no_fallback")
def test_derivatives() -> None:
    torch.manual_seed(0)
    tensors = operands((2, 3, 5), 4, torch.float64, torch.randn)
    tensors = [each.detach().double().requires_grad_() for each in tensors]
    assert torch.autograd.gradcheck(cnnext.functional.linear, tensors)
    assert torch.autograd.gradgradcheck(cnnext.functional.linear, tensors)


@pytest.mark.usefixtures("no_fallback")
def test_rows_that_are_not_contiguous() -> None:
    x, weight = integers(5, 9, 6).float().transpose(0, 2), integers(5, 4).float().t()
    assert torch.equal(cnnext.functional.linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("no_fallback")
def test_autocast() -> None:
    layer, x = nn.Linear(40, 30), torch.randn(6, 40)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        expected = F.linear(x, layer.weight, layer.bias)
        assert output.dtype == torch.bfloat16
        layer(output.new_ones(2, 40)).sum().backward()  # of the lower precision already
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ((torch.ones(0, 3), torch.ones(2, 3), torch.ones(2)), "empty tensor"),
        ((torch.ones(2, 0), torch.ones(2, 0), torch.ones(2)), "empty tensor"),
        ((torch.ones(2, 3).long(), torch.ones(2, 3).long(), None), "element type"),
        ((torch.ones(2, 3).cfloat(), torch.ones(2, 3).cfloat(), None), "arguments that only torch takes"),
        ((torch.ones(2, 3), torch.ones(3), None), "arguments that only torch takes"),
    ],
)
def test_what_is_left_to_torch(tensors: tuple[Tensor, ...], reason: str) -> None:
    cnnext.reset_fallbacks()
    assert torch.equal(cnnext.functional.linear(*tensors), F.linear(*tensors))
    assert cnnext.fallbacks() == {f"linear: {reason}": 1}
    cnnext.reset_fallbacks()


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.ones(2, 3), torch.ones(2, 4), None),
        (torch.ones(2, 3), torch.ones(2, 3, 1), None),
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(2, 3).double(), None),
        (torch.tensor(1.0), torch.ones(2, 1), None),
        ("input", torch.ones(2, 1), None),
    ],
    ids=range(6),
)
def test_errors_are_torchs(tensors: tuple[object, ...]) -> None:
    with pytest.raises((RuntimeError, TypeError)) as torchs:
        F.linear(*tensors)  # type: ignore[arg-type]
    with pytest.raises(torchs.type) as ours:
        cnnext.functional.linear(*tensors)  # type: ignore[arg-type]
    assert str(ours.value) == str(torchs.value)


def test_layer_is_a_drop_in() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Linear(12, 7)
    ours = nn.Linear(12, 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 12)
    torch.testing.assert_close(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)
    lazy = nn.LazyLinear(7)
    assert lazy(x).shape == (3, 7) and type(lazy) is nn.Linear


def test_layer_whose_weight_is_no_parameter() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    x = torch.randn(2, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_attention_of_torchs_keeps_working_after_convert() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    for train in (True, False):
        model.train(train)
        expected = model(x)
        torch.testing.assert_close(cnnext.convert(model)(x), expected)
        assert isinstance(model.linear1, nn.Linear)
        cnnext.revert(model)


def test_vmap_and_forward_mode() -> None:
    weights, x = torch.randn(3, 4, 5), torch.randn(2, 5)
    mapped = torch.vmap(lambda w: cnnext.functional.linear(x, w))(weights)
    torch.testing.assert_close(mapped, torch.stack([F.linear(x, w) for w in weights]))
    _, tangent = torch.func.jvp(lambda w: cnnext.functional.linear(x, w), (weights[0],), (weights[1],))
    torch.testing.assert_close(tangent, F.linear(x, weights[1]))


@pytest.mark.usefixtures("no_fallback")
def test_traced_and_exported() -> None:
    model, x = torch.nn.Sequential(nn.Linear(6, 5), torch.nn.ReLU(), nn.Linear(5, 4)), torch.randn(3, 6)
    expected = model(x)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: rows},)).module()
    torch.testing.assert_close(exported(torch.cat([x, x])), torch.cat([expected, expected]))
