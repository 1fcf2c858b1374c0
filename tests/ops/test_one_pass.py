"""A summed loss whose forward writes the gradient: bytes, launches, who may write into it, and a second backward pass."""

import functools

import pytest
import torch
from _measure import peak_extra_bytes
from support.counting import engine_that_counts
from support.device import DEVICE
from support.loss_cases import (
    IGNORED,
    LOSSES,
    OPTIONS,
    every_kind,
    every_loss,
    every_loss_with_options,
    make,
    suit,
    target_name,
)
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import asymmetric_loss, quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from sigtorch.kernels import _plan, _scale

pytestmark = pytest.mark.usefixtures("with_kernels")
SHAPE = (6, 40)
LARGE = (32, 128)  # for what is measured
ONE_PASS = (torch.bfloat16, torch.float32, torch.float64)  # float16 takes two


@pytest.fixture
def with_kernels():
    with sigtorch.use_backend("triton"):
        yield


@pytest.fixture
def launched(monkeypatch, plans):
    """Lists the inputs and outputs of each launch."""
    seen, launch = [], _plan.Plan.launch

    def recorded(plan, inputs, outputs):
        seen.append((inputs, outputs))
        launch(plan, inputs, outputs)
        del plan.launch  # the next launch comes here, too

    monkeypatch.setattr(_plan.Plan, "launch", recorded)
    return seen


def loss_of(loss, kind="soft", dtype=torch.float32, shape=SHAPE, **options):
    """Logits, and a loss of them."""
    x, target = make(shape, dtype, kind, DEVICE)
    return x, functools.partial(loss, **{target_name(loss): suit(target, options)}, **{"reduction": "mean", **options})


BYTES = {  # of an element, forward and backward
    (torch.bfloat16, "soft"): 6, (torch.bfloat16, "uint8"): 5, (torch.bfloat16, "index"): 4 + 8 / LARGE[1],
    (torch.float32, "soft"): 12, (torch.float32, "uint8"): 9, (torch.float32, "index"): 8 + 8 / LARGE[1],
}  # fmt: skip
PARTIALS = 0.25  # bytes an element that a sum's last step takes at this size


@pytest.mark.kernels
@every_loss
@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize(("dtype", "kind"), BYTES)
def test_each_element_is_read_once(loss, dtype, kind, factor):
    gpu = engine_that_counts()
    x, call = loss_of(loss, kind, dtype, LARGE, reduction="sum")
    before = gpu.loads + gpu.stores
    torch.autograd.grad(call(x), x, torch.tensor(factor, dtype=dtype, device=DEVICE))
    moved = (gpu.loads + gpu.stores - before) / x.numel()
    scaling = 0 if factor == 1 else 2 * x.element_size()
    assert moved <= BYTES[dtype, kind] + scaling + PARTIALS


@pytest.mark.kernels
@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_gradients_only_sums_are_written(loss, reduction, launched):
    x, call = loss_of(loss, reduction=reduction)
    with torch.no_grad():
        call(x)
    call(x.detach())
    assert len(launched) == 4
    assert all(t.dtype == torch.float64 or not t.dim() for _, outputs in launched for t in outputs)


@pytest.mark.kernels
@every_kind
@every_loss_with_options
@pytest.mark.parametrize("ignore", [False, True])
def test_backward_is_one_launch(loss, kind, ignore, launched):
    x, call = loss_of(loss, kind, **({"ignore_index": IGNORED[kind]} if ignore else {}))
    value = call(x)
    assert len(launched) == 2
    torch.autograd.grad(value, x)
    assert len(launched) == 3


@pytest.mark.kernels
@pytest.mark.parametrize(("dtype", "factor"), [*zip(ONE_PASS, (3.7, 1.0, 3.7), strict=True)], ids=str)
@pytest.mark.parametrize(("loss", "options"), OPTIONS)
def test_backward_twice(loss, options, dtype, factor):
    """The first returns what forward wrote, the second a tensor of its own that is equal to the last bit."""
    given = options(SHAPE[1], lambda n: torch.rand(n, device=DEVICE, dtype=dtype))
    x, call = loss_of(loss, "index", dtype, **given)
    value = call(x)
    saved = value.grad_fn.saved_tensors
    grad = torch.tensor(factor, dtype=dtype, device=DEVICE)
    first = torch.autograd.grad(value, x, grad, retain_graph=True)[0]
    assert first.data_ptr() == saved[-1].data_ptr()
    kept = first.clone()
    first.fill_(torch.nan)  # as clipping a gradient changes it
    second = torch.autograd.grad(value, x, grad, retain_graph=True)[0]
    third = torch.autograd.grad(value, x, grad)[0]
    assert len({t.data_ptr() for t in (first, second, third)}) == 3
    torch.testing.assert_close((second, third), (kept, kept), rtol=0, atol=0)


@pytest.mark.kernels
@pytest.mark.parametrize("divisor", [None, 2.0])
def test_every_program_scales_several_blocks(divisor, monkeypatch, plans):
    monkeypatch.setattr(_scale, "MAX_PROGRAMS", 2)
    scaled, factor = torch.ones(5003, device=DEVICE), torch.tensor(6.0, device=DEVICE)
    _scale.launch_scale(scaled, factor, None if divisor is None else torch.tensor(divisor, device=DEVICE))
    torch.testing.assert_close(scaled, torch.full_like(scaled, 6 / (divisor or 1)))


@pytest.mark.parametrize("dtype", ONE_PASS, ids=str)
@every_loss
def test_a_power_of_two_rounds_nothing(loss, dtype):
    """Equal to two passes, which multiply before they round; compiled, another kernel's float32 has other last bits."""
    for factor in (1.0, -4.0, 2.0**-20):
        x, call = loss_of(loss, "soft", dtype)
        (one,) = torch.autograd.grad(call(x), x, torch.tensor(factor, dtype=dtype, device=DEVICE))
        two = two_passes(loss, x, call.keywords, factor)
        assert torch.equal(one, two)


OWN = {  # the numbers of a loss, by default
    sigmoid_focal_loss: {"alpha": 0.25, "gamma": 2.0},
    quality_focal_loss: {"beta": 2.0},
    varifocal_loss: {"alpha": 0.75, "gamma": 2.0},
    asymmetric_loss: {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
}


def two_passes(loss, x, options, factor):
    grad = torch.tensor(factor, dtype=x.dtype, device=DEVICE)
    given = dict.fromkeys(("weight", "pos_weight", "normalizer", "ignore_index", "divisor"))
    given |= {
        "reduction": "mean",
        "dtype": x.dtype,
        "background_index": -1,
        "label_smoothing": 0.0,
        **OWN.get(loss, {}),
    }
    backward = getattr(torch.ops.sigtorch, f"{loss.__name__}_backward").default
    names = [a.name for a in backward._schema.arguments][3:]
    return backward(grad, x.detach(), options[target_name(loss)], **{name: given[name] for name in names})


def test_a_derivative_takes_nothing():
    x, call = loss_of(LOSSES[0])
    value = call(x)
    (expected,) = torch.autograd.grad(value, x, create_graph=True)
    saved = value.grad_fn.saved_tensors[-1]
    (first,) = torch.autograd.grad(value, x)
    assert first.data_ptr() == saved.data_ptr()
    torch.testing.assert_close(first, expected.detach())


def test_of_two_threads_one_takes_the_gradient(monkeypatch):
    """Both find the mark, were it looked at first and removed after."""
    x, call = loss_of(LOSSES[0])
    value, grad = call(x), torch.tensor(3.0, device=DEVICE)
    (expected,) = torch.autograd.grad(call(x), x, grad)
    scale, found = _scale.launch_scale, []

    def interrupted(*given):
        """Runs the other pass before this one multiplies."""
        monkeypatch.setattr("sigtorch.kernels.losses.launch_scale", scale)
        found.extend(torch.autograd.grad(value, x, grad, retain_graph=True))
        scale(*given)

    monkeypatch.setattr("sigtorch.kernels.losses.launch_scale", interrupted)
    found.extend(torch.autograd.grad(value, x, grad, retain_graph=True))
    torch.testing.assert_close(found, [expected, expected], rtol=0, atol=0)


def test_a_captured_pass_writes_into_a_copy(monkeypatch):
    """A graph may replay it twice, and forward once."""
    x, call = loss_of(LOSSES[0])
    value = call(x)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    kept = value.grad_fn.saved_tensors[-1]
    (grad,) = torch.autograd.grad(value, x, torch.tensor(3.0, device=DEVICE))
    assert grad.data_ptr() != kept.data_ptr()
    torch.testing.assert_close(grad, 3 * kept)


def test_what_a_mode_keeps_stays():
    results = []

    class Keeping(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            results.extend(out if func.namespace == "sigtorch" else ())
            return out

    x, call = loss_of(LOSSES[0])
    with Keeping():
        value = call(x)
    before = [t.clone() for t in results]
    torch.autograd.grad(value, x, torch.tensor(3.0, device=DEVICE))
    torch.testing.assert_close(results, before, rtol=0, atol=0)


def keeping(kept):
    return saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)


def keeping_memory(kept):
    return saved_tensors_hooks(lambda t: kept.append(t.detach()) or t, lambda t: t)


def replacing(kept):
    """By tensors that it keeps."""
    return saved_tensors_hooks(lambda t: (kept.append(t.clone()), len(kept) - 1)[1], lambda place: kept[place])


@every_loss_with_options
@pytest.mark.parametrize("hooks", [keeping, keeping_memory, replacing])
def test_what_a_hook_keeps_stays(loss, hooks):
    x, call = loss_of(loss)
    (expected,) = torch.autograd.grad(call(x), x, torch.tensor(3.0, device=DEVICE))
    kept = []
    with hooks(kept):
        value = call(x)
    before = [t.clone() for t in kept]
    for _ in range(2):
        (grad,) = torch.autograd.grad(value, x, torch.tensor(3.0, device=DEVICE), retain_graph=True)
        assert torch.equal(grad, expected)
        assert grad.data_ptr() not in {t.data_ptr() for t in kept}
        grad.fill_(torch.nan)
    torch.testing.assert_close(kept, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "pack", [lambda kept, t: kept.append(t) or t, lambda kept, t: kept.append(t.clone()) or kept[-1]]
)
def test_what_a_node_s_own_hook_keeps_stays(pack):
    x, call = loss_of(LOSSES[0])
    (expected,) = torch.autograd.grad(call(x), x, torch.tensor(3.0, device=DEVICE))
    kept, value = [], call(x)
    value.grad_fn._raw_saved_tensors[-1].register_hooks(functools.partial(pack, kept), lambda t: t)
    before = kept[0].clone()
    (grad,) = torch.autograd.grad(value, x, torch.tensor(3.0, device=DEVICE))
    assert torch.equal(grad, expected)
    assert torch.equal(kept[0], before)


@every_loss_with_options
@pytest.mark.parametrize("dtype", ONE_PASS, ids=str)
def test_offloaded_and_recomputed(loss, dtype):
    x, call = loss_of(loss, "index", dtype, ignore_index=255)
    grad = torch.tensor(3.0, dtype=dtype, device=DEVICE)
    (expected,) = torch.autograd.grad(call(x), x, grad)
    with save_on_cpu():
        value = call(x)
    (offloaded,) = torch.autograd.grad(value, x, grad)
    (recomputed,) = torch.autograd.grad(checkpoint(call, x, use_reentrant=False), x, grad)
    torch.testing.assert_close((offloaded, recomputed), (expected, expected), rtol=0, atol=0)


@every_loss_with_options
def test_a_step_holds_one_gradient(loss):
    """Takes no more memory than two passes, which float16 takes."""

    def peak(dtype):
        x, call = loss_of(loss, "bool", dtype, LARGE)
        return peak_extra_bytes(lambda: torch.autograd.grad(call(x), x), x.device)

    peak(torch.bfloat16)  # makes what is made once
    assert peak(torch.bfloat16) <= peak(torch.float16) + 64


@every_loss_with_options
def test_compiled_code_keeps_the_gradient_alone(loss):
    """The inputs are not kept, and a second pass finds the gradient as it was."""
    x, call = loss_of(loss)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sigtorch._backend._named_by_variable", lambda: "triton")
        value = torch.compile(lambda x: call(x * 2), backend="aot_eager", fullgraph=True)(x)
    saved = [t for t in value.grad_fn.saved_tensors if t.dim()]
    assert [t.shape for t in saved] == [x.shape]
    grads = [torch.autograd.grad(value, x, torch.tensor(3.0), retain_graph=True)[0] for _ in range(2)]
    expected = torch.autograd.grad(call(x * 2), x, torch.tensor(3.0))[0]
    for grad in grads:
        torch.testing.assert_close(grad, expected)
