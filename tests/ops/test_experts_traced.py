"""The router's function in compiled, exported, traced and autocast code, under checkpoints and modes."""

import pytest
import torch
from support.device import DEVICE
from support.graphs import compiled, every_choice
from support.recording import Recorded
from support.router_cases import CASES, RouterCase
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import sigtorch

pytestmark = [
    pytest.mark.usefixtures("on_device"),
    # Dynamo hides it, but not from "error".
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
GROUPS = RouterCase("", 16, 3, 4, 2, scale=2.5)


def of(function, logits, bias):
    """Weights, indices and the gradient of the logits."""
    weights, indices = function(logits, bias)
    (slope,) = torch.autograd.grad(weights, logits, torch.linspace(-1, 1, weights.numel()).view(weights.shape))
    return weights, indices, slope


def assert_same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


@every_choice
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_compiled(case, backend, variable):
    variable(backend)
    logits, bias = case.inputs((4,), torch.float32, DEVICE)
    whole, graphs = compiled(case.ours)
    found = of(whole, logits, bias)
    assert graphs.ours == (["sigmoid_topk"] if backend == "triton" or DEVICE == "cuda" else [])
    assert_same(found, of(case.oracle, logits, bias))


@every_choice
def test_compiled_once_for_every_number_of_rows(backend, variable):
    variable(backend)
    whole, graphs = compiled(GROUPS.ours)
    for rows in (3, 5, 8, 9):
        logits, bias = GROUPS.inputs((rows,), torch.float32, DEVICE)
        torch._dynamo.maybe_mark_dynamic(logits, 0)
        assert_same(of(whole, logits, bias), of(GROUPS.oracle, logits, bias))
    assert len(graphs.graphs) == 1


def test_compiled_for_every_size(variable):
    variable("triton")
    torch._dynamo.reset()
    whole = torch.compile(GROUPS.ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (GROUPS, RouterCase("", 24, 3, 4, 2)):
        logits, bias = case.inputs((4,), torch.float32, DEVICE)
        assert_same(of(whole, logits, bias), of(GROUPS.oracle, logits, bias))


def test_a_mistake_in_compiled_code():
    whole, _ = compiled(lambda x: sigtorch.sigmoid_topk(x, 9))
    with pytest.raises(Exception, match=r"k=9 must be from 1 to 4|Observed exception"):
        whole(torch.zeros(2, 4))


def test_exported_and_traced():
    logits, bias = GROUPS.inputs((4,), torch.float32, DEVICE)
    logits = logits.detach()

    class Model(torch.nn.Module):
        def forward(self, x, bias):
            return GROUPS.ours(x, bias)

    exported = torch.export.export(Model(), (logits, bias)).module()
    with sigtorch.use_backend("triton"):
        graph = make_fx(lambda x, bias: GROUPS.ours(x, bias))(logits, bias)
    for function in (exported, graph):
        assert_same(function(logits, bias), GROUPS.oracle(logits, bias))
    assert "sigtorch" not in str(graph.graph)


def test_without_data():
    with FakeTensorMode():
        weights, indices = sigtorch.sigmoid_topk(torch.empty(5, 8, dtype=torch.bfloat16), 2)
    assert (weights.shape, weights.dtype, indices.dtype) == ((5, 2), torch.float32, torch.int64)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_autocast_changes_nothing(backend):
    logits, bias = GROUPS.inputs((4,), torch.float32, DEVICE)
    with sigtorch.use_backend(backend):
        expected = of(GROUPS.ours, logits, bias)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            found = of(GROUPS.ours, logits, bias)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_checkpointed(backend, reentrant):
    logits, bias = GROUPS.inputs((4,), torch.float32, DEVICE)
    with sigtorch.use_backend(backend):
        weights, indices = checkpoint(GROUPS.ours, logits, bias, use_reentrant=reentrant)
        weights.square().sum().backward()
        expected, order = GROUPS.ours(logits, bias)
        (slope,) = torch.autograd.grad(expected.square().sum(), logits)
    for a, b in ((weights, expected), (indices, order), (logits.grad, slope)):
        assert torch.equal(a, b)


def test_a_mode_sees_one_operator_a_pass():
    logits, bias = GROUPS.inputs((4,), torch.float32, DEVICE)
    with sigtorch.use_backend("triton"), Recorded() as seen:
        of(GROUPS.ours, logits, bias)
    assert seen.names == ["sigmoid_topk", "sigmoid_topk_backward"]


def test_only_logits_and_indices_are_kept():
    logits, bias = GROUPS.inputs((4,), torch.float32, DEVICE)
    kept = []
    with (
        sigtorch.use_backend("triton"),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        _, indices = GROUPS.ours(logits, bias)
    _, *tensors = kept  # behind a marker
    assert [t.data_ptr() for t in tensors] == [logits.data_ptr(), indices.data_ptr()]
