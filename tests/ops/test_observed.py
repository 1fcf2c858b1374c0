"""Eager code under dispatch modes: each pass that would run a kernel is one operator, by the same autograd Function."""

import functools
import gc
import itertools

import pytest
import torch
from support import cases, chunked_cases, loss_cases
from support.device import DEVICE
from support.loss_cases import every_loss_with_options
from support.recording import Recorded
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

import sigtorch

pytestmark = [pytest.mark.usefixtures("on_device"), pytest.mark.any_arch]


def flops():
    return FlopCounterMode(display=False)


@pytest.mark.parametrize("mode", [Recorded, flops])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_values_are_the_same(case, mode):
    """To the bit: the operators run the kernels."""
    inputs = case.inputs((4, 6), torch.bfloat16, DEVICE)
    with sigtorch.use_backend("triton"):
        expected = cases.gradients(case.ours, inputs, torch.ones_like)
        with mode() as seen:
            found = cases.gradients(case.ours, inputs, torch.ones_like)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert mode is flops or len(seen.names) == 2


@every_loss_with_options
@pytest.mark.parametrize("reduction", loss_cases.REDUCTIONS)
@pytest.mark.parametrize("dim", [1, -1])
def test_losses_of_classes(loss, reduction, dim):
    """Along any dimension, with a count of those that are not ignored."""
    x, target = loss_cases.images(torch.float32, "channels_last", DEVICE)
    if dim == -1:
        x = x.detach().movedim(1, -1).requires_grad_()
    call = functools.partial(loss, target=target) if loss is sigtorch.binary_cross_entropy_with_logits else None
    call = call or functools.partial(loss, targets=target)
    call = functools.partial(call, reduction=reduction, ignore_index=255, dim=dim)
    with sigtorch.use_backend("triton"):
        expected = cases.gradients(call, [x], torch.ones_like)
        with Recorded() as seen:
            found = cases.gradients(call, [x], torch.ones_like)
    assert seen.names == [
        loss.__name__, f"{loss.__name__}_backward" if reduction == "none" else "scale_loss_gradient_"
    ]  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found[1][0].stride() == expected[1][0].stride()


@chunked_cases.chunked
@chunked_cases.every_case
def test_losses_in_chunks(case, backend):
    """On a CPU too: the pass between the products would run there."""
    dtype = torch.float32 if case.name == "siglip-far" else torch.float16  # it holds no logits so large
    tensors = case.make(6, 4, dtype, DEVICE)
    case.ours(*tensors)  # makes the targets
    with sigtorch.use_backend(backend), Recorded() as seen:
        chunked_cases.check(case, tensors, backend)
    assert len(seen.names) == 1


def test_a_mode_that_is_switched_off_sees_nothing():
    x = torch.randn(3, 4)
    with sigtorch.use_backend("triton"):
        expected = sigtorch.swiglu(x), sigtorch.siglip_loss(x, x, 2.0)
        with Recorded() as seen, torch._C._DisableTorchDispatch():
            found = sigtorch.swiglu(x), sigtorch.siglip_loss(x, x, 2.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not seen.names


def test_what_runs_no_kernel_is_pytorchs_operators():
    x = torch.randn(3, 4, device="cpu", requires_grad=True)
    with Recorded() as seen:
        sigtorch.swiglu(x).sum().backward()
        sigtorch.binary_cross_entropy_with_logits(x, torch.ones_like(x)).backward()
    assert not seen.names


def test_a_backward_pass_is_observed_alone():
    x = torch.randn(3, 4, requires_grad=True)
    with sigtorch.use_backend("triton"):
        out = sigtorch.swiglu(x, x)
        with Recorded() as seen:
            out.sum().backward()
    assert seen.names == ["swiglu_backward"]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traced_code_keeps_its_formula(mode):
    """A tracer is a dispatch mode, too, whose graph others run."""
    with sigtorch.use_backend("triton"):
        graph = make_fx(lambda x: sigtorch.swiglu(sigtorch.sigmoid(x)), tracing_mode=mode)(torch.randn(3, 4))
    assert "sigtorch" not in graph.code


# A checkpoint whose forward is observed and whose recompute is not, and the other way round: right, or loud.
OBSERVERS = {"plain": lambda: sigtorch.use_backend("triton"), "recorded": Recorded, "flops": flops}


@pytest.mark.parametrize(("forth", "back"), [*itertools.permutations(OBSERVERS, 2)])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda c: c.name)
def test_checkpoints_whatever_observes(case, forth, back):
    inputs = case.inputs((4, 6), torch.float32, DEVICE)
    with sigtorch.use_backend("triton"):
        _, expected = cases.gradients(lambda *given: case.ours(*given).sin(), inputs, torch.ones_like)
        with OBSERVERS[forth]():
            out = checkpoint(lambda *given: case.ours(*given).sin(), *inputs, use_reentrant=False)
        with OBSERVERS[back]():
            found = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


POLICIES = {"saved": CheckpointPolicy.MUST_SAVE, "recomputed": CheckpointPolicy.PREFER_RECOMPUTE}
FAMILIES = {
    "sigmoid": lambda x: sigtorch.sigmoid(x),
    "sigmoid_from_input": lambda x: sigtorch.sigmoid(x, save="input"),
    "sigmoid_gate": lambda x: sigtorch.sigmoid_gate(x, x),
    "sigmoid_lerp": lambda x: sigtorch.sigmoid_lerp(x, x, x),
    "swiglu": lambda x: sigtorch.swiglu(x, x),
    "swiglu_packed": lambda x: sigtorch.swiglu(x),
    "glu": lambda x: sigtorch.glu(x),
    "binary_cross_entropy_with_logits": lambda x: sigtorch.binary_cross_entropy_with_logits(
        x, x.detach(), reduction="none"
    ),
    "sigmoid_focal_loss": lambda x: sigtorch.sigmoid_focal_loss(x, x.detach()),
    "quality_focal_loss": lambda x: sigtorch.quality_focal_loss(x, x.detach(), reduction="none"),
    "asymmetric_loss": lambda x: sigtorch.asymmetric_loss(x, x.detach().sigmoid(), reduction="none"),
    "sigmoid_dice_loss": lambda x: sigtorch.sigmoid_dice_loss(x, x.detach().sigmoid(), dims=-1),
    "varifocal_loss": lambda x: sigtorch.varifocal_loss(x, x.detach(), reduction="none"),
}


@pytest.mark.parametrize("choice", POLICIES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_selective_checkpoint_names_them(name, choice):
    """Keeps an operator's result if the policy saves it, and computes it again if not."""
    x = torch.randn(4, 6, requires_grad=True)

    def block(x):
        return FAMILIES[name](x * 2) * 3

    def policy(context, operator, *args, **kwargs):
        ours = operator is getattr(torch.ops.sigtorch, name).default
        return POLICIES[choice] if ours else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with sigtorch.use_backend("triton"):
        expected = torch.autograd.grad(block(x).sum(), x)
        with Recorded() as seen:  # outside of the checkpoint's mode: sees what that runs
            out = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
            (kept,) = seen.results
            gc.collect()  # Triton's interpreter leaves a cycle
            assert kept.expired() == (choice == "recomputed")
            found = torch.autograd.grad(out.sum(), x)
    assert seen.names == [name] * (1 if choice == "saved" else 2) + [f"{name}_backward"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
