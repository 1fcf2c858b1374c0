"""Compiled code: which operators its graph holds, their values and gradients, and how often it is compiled.

``SIGTORCH_BACKEND=triton`` has CPU tensors take the operators that CUDA tensors take.
"""

import functools

import pytest
import torch
from functorch.compile import min_cut_rematerialization_partition
from support import cases, chunked_cases, loss_cases
from support.device import DEVICE, TORCH
from support.graphs import compiled, every_choice
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import sigtorch
from sigtorch import _backend

pytestmark = [
    pytest.mark.usefixtures("on_device"),
    # Dynamo hides it, but not from "error".
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
OPAQUE = {  # a compiler fuses all others as well
    "glu": "glu", "glu-first": "glu", "swiglu-packed": "swiglu_packed", "swiglu-weighted": "swiglu_weighted",
    "swiglu-packed-clamped": "swiglu_packed_variant", "swiglu-interleaved": "swiglu_packed_variant",
    "swiglu-interleaved-weighted": "swiglu_packed_weighted",
}  # fmt: skip


@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_elementwise(case, variable):
    variable("triton")
    inputs = case.inputs((4, 6), torch.float32, DEVICE)
    whole, graphs = compiled(case.ours)
    exact, exact_grads = cases.gradients(
        case.oracle, [t.detach().double().requires_grad_() for t in inputs], torch.ones_like
    )
    out, grads = cases.gradients(whole, inputs, torch.ones_like)
    assert graphs.ours == ([OPAQUE[case.name]] if case.name in OPAQUE else [])
    for mine, theirs in zip((out, *grads), (exact, *exact_grads), strict=True):
        torch.testing.assert_close(mine.double(), theirs, **cases.tolerance(torch.float32, 2))


def check_loss(loss, kind, reduction, options, backend, compiler="aot_eager"):
    x, target = loss_cases.make((3, 6), torch.float32, kind, DEVICE)
    given = options(6, lambda n: torch.rand(n))
    target = loss_cases.suit(target, given)
    whole, graphs = compiled(lambda x, t: loss(x, t, reduction=reduction, **given), compiler)
    value = whole(x, target)
    oracle = loss_cases.ORACLES[loss](x.double(), target, reduction=reduction, **given)
    expected = torch.autograd.grad(oracle.sum(), x)[0]
    assert graphs.ours == ([loss.__name__] if backend == "triton" or DEVICE == "cuda" else [])
    torch.testing.assert_close(value.double(), oracle, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], expected, rtol=2e-4, atol=1e-6)


@every_choice
@pytest.mark.parametrize(("kind", "reduction"), loss_cases.KINDS_AND_REDUCTIONS)
@loss_cases.every_loss_with_options
def test_losses(loss, kind, reduction, backend, variable):
    variable(backend)
    check_loss(loss, kind, reduction, lambda n, like: {}, backend)


@every_choice
@pytest.mark.parametrize(("loss", "options"), loss_cases.OPTIONS)
def test_options_of_losses(loss, options, backend, variable):
    variable(backend)
    # A formula's operators are differentiated ahead of time above.
    check_loss(loss, "index", "mean", options, backend, "aot_eager" if backend == "triton" else "eager")


@every_choice
@chunked_cases.every_traced_case
def test_losses_in_chunks(case, backend, variable):
    variable(backend)
    tensors = case.make(6, 4, torch.float32, DEVICE)
    value, grads = chunked_cases.expected_of(case, tensors)
    case.ours(*tensors)  # makes the targets
    whole, graphs = compiled(lambda *given: case.ours(*given, chunk_size=3))
    loss = whole(*tensors)
    assert len(graphs.ours) == 1, "one operator, which chunks inside"
    chunked_cases.close(loss.detach(), value)
    for mine, theirs in zip(torch.autograd.grad(loss, tensors), grads, strict=True):
        chunked_cases.close(mine, theirs)


def model_of_all(x, target, weight):
    """A layer, each operation that is opaque, and losses of every kind."""
    hidden = sigtorch.glu(sigtorch.swiglu(x @ weight))
    dense = sigtorch.binary_cross_entropy_with_logits(hidden, hidden.detach().sigmoid())
    focal = sigtorch.sigmoid_focal_loss(hidden, target, reduction="mean", ignore_index=1)
    return dense + focal + sigtorch.siglip_loss(hidden, hidden.cos(), 2.0, -1.0) + sigtorch.sigmoid(hidden).mean()


def inputs_of_all(rows=6):
    return torch.randn(rows, 8, requires_grad=True), torch.arange(rows) % 3, torch.randn(8, 12, requires_grad=True)


def agrees(whole, given):
    """The gradients of a compiled model are those of the eager one."""
    x, _, weight = given
    expected = torch.autograd.grad(model_of_all(*given), [x, weight])
    for mine, theirs in zip(torch.autograd.grad(whole(*given), [x, weight]), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@every_choice
def test_one_recompilation_makes_a_size_dynamic(backend, variable):
    variable(backend)
    whole, graphs = compiled(model_of_all)
    for rows in (6, 8, 10, 7, 33):
        agrees(whole, inputs_of_all(rows))
    assert len(graphs.graphs) == 2


def test_by_inductor(variable):
    variable("triton")
    torch._dynamo.reset()
    agrees(torch.compile(model_of_all, fullgraph=True), inputs_of_all())


@pytest.mark.skipif(TORCH == (2, 8), reason="it asks the GPU of a tensor without data")
def test_cuda_tensors_take_operators(monkeypatch, variable):
    """Tensors without data stand for those of a GPU: what is seen is the choice."""
    variable("auto")
    _backend._select_cached.cache_clear()
    monkeypatch.setattr(_backend, "_triton_works_on", lambda index: True)
    whole, graphs = compiled(model_of_all, "eager")
    with FakeTensorMode(allow_non_fake_inputs=True):
        whole(*[torch.empty_like(t, device="cuda", requires_grad=t.requires_grad) for t in inputs_of_all()])
    _backend._select_cached.cache_clear()
    expected = ["swiglu_packed", "glu", "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "siglip_loss"]
    assert graphs.ours == expected
    assert not any(isinstance(target, type) for target in graphs.targets), (
        "which PyTorch's caches of graphs do not take"
    )


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_a_selective_checkpoint_names_operators(saves, variable):
    variable("triton")
    torch._dynamo.reset()
    ours = torch.ops.sigtorch.swiglu_packed.default
    seen = []

    def keep(graph, inputs):
        seen.append([node.target for node in graph.graph.nodes])
        return graph

    def policy(context, operator, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if operator is ours and saves else CheckpointPolicy.PREFER_RECOMPUTE

    def block(x, weight):
        return (sigtorch.swiglu(x @ weight) @ weight[:3]).sin()

    @functools.partial(
        torch.compile, fullgraph=True,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition),
    )  # fmt: skip
    def whole(x, weight):
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(block, x, weight, use_reentrant=False, context_fn=contexts)

    given = [torch.randn(4, 8, requires_grad=True), torch.randn(8, 6, requires_grad=True)]
    found = torch.autograd.grad(whole(*given).sum(), given)
    forward, backward = seen
    assert forward.count(ours) == 1
    assert backward.count(ours) == (0 if saves else 1)
    torch.testing.assert_close(found, torch.autograd.grad(block(*given).sum(), given))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_on_a_gpu(mode):
    torch._dynamo.reset()
    whole = torch.compile(model_of_all, fullgraph=True, mode=mode)
    given = inputs_of_all(64)
    for _ in range(4):
        agrees(whole, given)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast(DEVICE, torch.bfloat16)]
)
def test_in_a_context(context, variable):
    variable("triton")
    whole, _ = compiled(model_of_all)
    given = inputs_of_all()
    with context():
        torch.testing.assert_close(whole(*given), model_of_all(*given), rtol=2e-2, atol=2e-2)
        dtype = whole(*given).dtype
    assert dtype == torch.float32


@every_choice
def test_a_normalizer_may_change(backend, variable):
    """A number of each batch: compiled once as a constant, and once for all others."""
    variable(backend)
    whole, graphs = compiled(
        lambda x, n: sigtorch.sigmoid_focal_loss(x, torch.ones_like(x), reduction="sum", normalizer=n)
    )
    for normalizer in (1.0, 2.5, 3.5, 7.25):
        x = torch.randn(3, 4, requires_grad=True)
        expected = focal_sum(x.double(), normalizer)
        loss = whole(x, normalizer)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        (wanted,) = torch.autograd.grad(expected, x)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], wanted, rtol=1e-4, atol=1e-6)
    assert len(graphs.graphs) == 2


def focal_sum(x, normalizer):
    return loss_cases.focal_oracle(x, torch.ones_like(x), reduction="sum") / normalizer


def test_values_are_not_looked_at(variable):
    """A class that is out of range gives NaN, as on a GPU."""
    variable("triton")
    whole, _ = compiled(lambda x, t: sigtorch.sigmoid_focal_loss(x, t, reduction="mean"))
    assert whole(torch.randn(3, 4), torch.tensor([0, 77, 1])).isnan()


def test_a_linear_loss_checks_its_target_when_it_runs(variable):
    variable("auto")
    whole, _ = compiled(lambda x, w, crow, col: sigtorch.linear_binary_cross_entropy(x, w, (crow, col)))
    given = torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 1, 2])
    whole(*given, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="target names label 4, expected 0 to 3"):
        whole(*given, torch.tensor([4, 0]))


def test_the_tag_of_what_waits_for_the_device():
    unsafe = torch.Tag.cudagraph_unsafe
    assert unsafe in torch.ops.sigtorch.linear_binary_cross_entropy.default.tags
    assert unsafe not in torch.ops.sigtorch.siglip_loss.default.tags


MISTAKES = {
    "glu": lambda x: sigtorch.glu(x[:, :3]),
    "swiglu": lambda x: sigtorch.swiglu(x[:, :3]),
    "bce": lambda x: sigtorch.binary_cross_entropy_with_logits(x, x[:1]),
    "focal": lambda x: sigtorch.sigmoid_focal_loss(x, x, reduction="median"),
    "siglip": lambda x: sigtorch.siglip_loss(x, x[:1], 1.0),
    "linear": lambda x: sigtorch.linear_binary_cross_entropy(x, x[:, :2], x > 0),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_the_same_line(name, variable):
    variable("triton")
    torch._dynamo.reset()
    x = torch.randn(4, 6)
    with pytest.raises((TypeError, ValueError)) as eager:
        MISTAKES[name](x)
    with pytest.raises(type(eager.value)) as seen:
        torch.compile(MISTAKES[name], backend="aot_eager")(x)
    assert str(seen.value) == str(eager.value)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum()),
    "vmap": lambda f: torch.func.vmap(f),
    "jacrev": lambda f: torch.func.jacrev(f),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    "function", [sigtorch.glu, sigtorch.swiglu, lambda x: sigtorch.sigmoid_focal_loss(x, torch.ones_like(x))]
)
def test_transformed_code_keeps_its_formula(function, transform, variable):
    variable("triton")
    x = torch.randn(3, 4)
    whole, graphs = compiled(TRANSFORMS[transform](function))
    torch.testing.assert_close(whole(x), TRANSFORMS[transform](function)(x))
    assert not graphs.ours


def test_exported_code_keeps_its_formula(variable):
    variable("triton")

    class Model(torch.nn.Module):
        def forward(self, x, target, weight):
            return model_of_all(x, target, weight)

    given = inputs_of_all()
    for strict in (True, False):
        exported = torch.export.export(Model(), given, strict=strict)
        assert "sigtorch" not in exported.graph_module.code
        torch.testing.assert_close(exported.module()(*given), model_of_all(*given))


def test_the_variable_alone_chooses(variable):
    variable("aten")
    whole, graphs = compiled(sigtorch.glu)
    with sigtorch.use_backend("triton"):
        whole(torch.randn(3, 4))
    assert not graphs.ours
