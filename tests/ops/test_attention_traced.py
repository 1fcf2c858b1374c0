"""Sigmoid attention in compiled, exported, transformed and autocast code, under checkpoints and modes."""

import pytest
import torch
from support.attention_cases import TOLERANCES, AttentionCase, check_case, error, oracle
from support.device import DEVICE
from support.graphs import compiled, every_choice
from support.recording import Recorded
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import sigmoid_attention, sigmoid_attention_varlen

pytestmark = [
    pytest.mark.usefixtures("on_device"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # Dynamo hides it, but not from "error"
]
SOME = [
    AttentionCase("plain", 9, 11, batch=(1,)),
    AttentionCase("shared keys", 9, 11, 2, 1, causal=True, batch=(1,)),
    AttentionCase("alibi, causal", 9, 11, alibi=True, causal=True, bias=(2,), batch=(1,)),
    AttentionCase("mask", 9, 11, mask=(torch.bool, (9, 11))),
    AttentionCase("added to keys", 9, 11, mask=(torch.float32, (2, 2, 1, 11))),
]
of_some = pytest.mark.parametrize("case", SOME, ids=lambda c: c.name)
SMALL = {
    "causal": AttentionCase("", 3, 4, causal=True, d=2, dv=3, bias=(2,), batch=(1,)),
    "shared keys": AttentionCase("", 3, 2, heads=4, d=2, dv=1, alibi=True, batch=(1,)),
    "added": AttentionCase("", 2, 3, d=2, dv=2, mask=(torch.float64, (2, 1, 3)), batch=(1,)),
}
CU = torch.tensor([0, 2, 2, 5], dtype=torch.int32)


def varlen(q, k, v, bias=None):
    cu = CU.to(q.device)
    return sigmoid_attention_varlen(q, k, v, cu, cu, 3, 3, causal=True, bias=bias)


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_gradients_of_every_order(case):
    given, options = case.inputs(torch.float64)
    tensors = [t.double().detach().requires_grad_() for t in (*given, *options.values())]

    def called(*t):
        return case.ours(*t[:3], **dict(zip(options, t[3:], strict=True)))

    assert gradcheck(called, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(called, tensors)


def test_gradients_of_every_order_of_packed_sequences():
    tensors = [torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    tensors.append(torch.randn(2, dtype=torch.float64, requires_grad=True))
    assert gradcheck(varlen, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(varlen, tensors)


def test_vmap_and_transforms():
    q, k, v = (torch.randn(3, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(torch.vmap(sigmoid_attention)(q, k, v), oracle(q, k, v))
    per_sample = torch.vmap(torch.func.grad(lambda q, k, v: sigmoid_attention(q, k, v).square().sum()))(q, k, v)
    torch.testing.assert_close(per_sample, torch.func.grad(lambda q: oracle(q, k, v).square().sum())(q))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(sigmoid_attention(forward_ad.make_dual(q, q), k, v)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(lambda q: oracle(q, k, v), (q,), (q,))[1])


def test_packed_sequences_in_transforms():
    q, k, v = (torch.randn(3, 5, 2, 4, dtype=torch.float64) for _ in range(3))
    expected = torch.stack([varlen(*parts) for parts in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.vmap(varlen)(q, k, v), expected)


@of_some
@every_choice
def test_compiled(case, backend, variable):
    variable(backend)
    whole, graphs = compiled(case.ours)
    object.__setattr__(compiled_case := AttentionCase(**{**vars(case)}), "ours", whole)
    check_case(compiled_case, torch.float32, DEVICE)
    assert graphs.ours == ["sigmoid_attention"]


@every_choice
def test_compiled_packed_sequences(backend, variable):
    variable(backend)
    tensors = [torch.randn(5, 2, 4, requires_grad=True) for _ in range(3)]
    whole, graphs = compiled(varlen)
    grad = torch.randn(5, 2, 4)
    found = torch.autograd.grad(whole(*tensors), tensors, grad)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(varlen(*exact), exact, grad.double())
    assert graphs.ours == ["sigmoid_attention"]
    assert all(error(a, b) < 1e-6 for a, b in zip(found, expected, strict=True))


def test_compiled_once_for_every_length(variable):
    variable("auto")
    whole, graphs = compiled(sigmoid_attention)
    for n in (3, 5, 8, 9):
        q, k, v = (torch.randn(1, 2, n, 8, dtype=torch.float64) for _ in range(3))
        for t in (q, k, v):
            torch._dynamo.mark_dynamic(t, 2)
        torch.testing.assert_close(whole(q, k, v), oracle(q, k, v))
    assert len(graphs.graphs) == 1


@of_some
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_the_operators_keep_their_promises(case, backend, variable):
    variable(backend)
    given, options = case.inputs(torch.float32, DEVICE)
    bias = options.get("bias")
    args = (*given, options.get("attn_mask"), bias, options.get("alibi_slopes"), None, None, 0, 0, case.causal, 0.25,
            None if bias is None else 0.0)  # fmt: skip
    torch.library.opcheck(torch.ops.sigtorch.sigmoid_attention.default, args)
    grad = torch.randn(*given[0].shape[:-1], given[2].shape[-1])
    wanted = [True, True, True, "attn_mask" in options, bias is not None, False]
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    torch.library.opcheck(torch.ops.sigtorch.sigmoid_attention_backward.default, (grad, *detached, wanted))


def test_exported_for_every_length():
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return sigmoid_attention(q, k, v, is_causal=True)

    q, k, v = (torch.randn(1, 2, 6, 8) for _ in range(3))
    n, m = (torch.export.Dim(name, min=2) for name in "nm")
    program = torch.export.export(Model(), (q, k, v), dynamic_shapes=({2: n}, {2: m}, {2: m})).module()
    for sizes in ((6, 6, 6), (4, 9, 9)):
        q, k, v = (torch.randn(1, 2, size, 8) for size in sizes)
        torch.testing.assert_close(program(q, k, v), oracle(q, k, v, causal=True))


def test_without_data():
    with FakeTensorMode():
        out = sigmoid_attention(*(torch.empty(2, 3, n, 8, dtype=torch.bfloat16) for n in (5, 6, 6)))
        packed = sigmoid_attention_varlen(
            *(torch.empty(5, 3, 8) for _ in range(3)), *(torch.empty(2, dtype=torch.int32) for _ in range(2)), 5, 5
        )
    assert (out.shape, out.dtype, packed.shape) == ((2, 3, 5, 8), torch.bfloat16, (5, 3, 8))


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_autocast_rounds_its_inputs_alone(backend):
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))
    with sigtorch.use_backend(backend), torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = sigmoid_attention(q, k, v)
        (slope,) = torch.autograd.grad(out.float().sum(), q)
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (q, k, v)]
    expected = oracle(*rounded)
    assert (out.dtype, slope.dtype) == (torch.bfloat16, torch.float32)
    assert error(out, expected) < TOLERANCES[torch.bfloat16]
    assert error(slope, *torch.autograd.grad(expected.sum(), rounded[0])) < TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_checkpointed(backend, reentrant):
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))
    with sigtorch.use_backend(backend):
        out = checkpoint(sigmoid_attention, q, k, v, use_reentrant=reentrant)
        out.square().sum().backward()
        expected = torch.autograd.grad(sigmoid_attention(q, k, v).square().sum(), (q, k, v))
    for t, slope in zip((q, k, v), expected, strict=True):
        assert torch.equal(t.grad, slope)


def test_a_mode_sees_one_operator_a_pass():
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))
    grad = torch.ones(1, 2, 9, 16)
    for backend in ("auto", "triton"):
        with sigtorch.use_backend(backend), Recorded() as seen:
            torch.autograd.grad(sigmoid_attention(q, k, v, is_causal=True), (q, k, v), grad)
        assert seen.names == ["sigmoid_attention", "sigmoid_attention_backward"]
