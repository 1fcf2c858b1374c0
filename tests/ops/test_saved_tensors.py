"""Hooks that change how saved tensors are kept: every operation trains with them."""

import pickle

import pytest
import torch
from support.cases import CASES
from support.loss_cases import WITH_OPTIONS

import sigtorch
from sigtorch import _autograd


def as_bytes(t):
    return t.dtype, t.shape, t.device, t.numpy(force=True).tobytes()


def from_bytes(packed):
    dtype, shape, device, content = packed
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape).to(device)


def quantized(t):
    """Quantizes to 255 steps between the lowest and the highest value."""
    if not t.is_floating_point():
        return t, None, None
    low, high = t.min(), t.max()
    step = (high - low) / 255
    return ((t - low) / step).round().to(torch.uint8), low, step


def dequantized(packed):
    t, low, step = packed
    return t if low is None else t.to(low.dtype) * step + low


def in_half(t):
    return (t.half(), t.dtype) if t.is_floating_point() else (t, t.dtype)


def by_largest(t):
    largest = t.max()
    return (t / largest, largest) if t.is_floating_point() else (t, None)


HOOKS = {
    "serialize": (lambda t: (pickle.dumps(t.numpy(force=True)), t.device),
                  lambda packed: torch.from_numpy(pickle.loads(packed[0])).to(packed[1])),
    "bytes": (as_bytes, from_bytes),
    "copy": (torch.clone, torch.clone),
    "move": (lambda t: (t.device, t.cpu()), lambda packed: packed[1].to(packed[0])),
    "half": (in_half, lambda packed: packed[0].to(packed[1])),
    "quantize": (quantized, dequantized),
    "largest": (by_largest, lambda packed: packed[0] if packed[1] is None else packed[0] * packed[1]),
}  # fmt: skip
NEAR = {"half": 1e-2, "quantize": 0.2, "largest": 1e-5}


def calls():
    for case in CASES:
        yield pytest.param(case.ours, case.inputs((4, 6), torch.float32), id=case.name)
    yield pytest.param(lambda x: sigtorch.sigmoid_topk(x, 3)[0], [torch.randn(4, 6)], id="router")
    heads = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    yield pytest.param(sigtorch.sigmoid_attention, heads, id="attention")
    for loss in WITH_OPTIONS:
        x = torch.randn(4, 6, requires_grad=True)
        for kind, target in (("soft", torch.rand(4, 6)), ("index", torch.arange(1, 5))):
            yield pytest.param(
                lambda x, f=loss, t=target: f(x, t.to(x.device), reduction="sum"), [x], id=f"{loss.__name__}-{kind}"
            )


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize(("call", "inputs"), list(calls()))
def test_hooks_change_how_tensors_are_saved(call, inputs, hooks, device):
    leaves = [t.detach().to(device).requires_grad_() for t in inputs]
    pack, unpack = HOOKS[hooks]
    with sigtorch.use_backend("triton"):
        expected = torch.autograd.grad(call(*leaves).sum(), leaves)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            found = torch.autograd.grad(call(*leaves).sum(), leaves)
    near = NEAR.get(hooks, 0)
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_a_marker_is_small_and_of_its_operation_alone():
    markers = [_autograd.marker(op) for op in _autograd.MARKED]
    assert len({m.shape for m in markers}) == len(markers)
    assert all(8 < m.dim() <= 32 and m.numel() * m.element_size() <= 64 for m in markers)


def test_an_error_names_a_hook_that_changes_shapes():
    x = torch.randn(4, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(torch.squeeze, lambda t: t):
        loss = sigtorch.sigmoid(x, save="input").sum()
    with pytest.raises(RuntimeError, match="a hook changed the shape"):
        loss.backward()
