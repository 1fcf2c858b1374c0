"""Losses over a product that is never whole, and what they keep: lifetimes, hooks, checkpoints, batched gradients."""

import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from support.chunked_cases import SIGLIP, chunked, csr, every_case, expected_of, indices, positives
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import sigtorch
from sigtorch import linear_binary_cross_entropy
from sigtorch.ops.chunked_losses import linear, siglip
from sigtorch.ops.chunked_losses.products import Needs


@pytest.fixture
def made(monkeypatch):
    """Weak references to the gradients that forward passes make."""
    refs, original = [], siglip.loss_and_gradients

    def recording(*args):
        result = original(*args)
        held = [t for gradient in result.gradients for t in gradient if t is not None]
        refs.extend(weakref.ref(t.untyped_storage()) for t in held)
        return result

    for module in (siglip, linear):
        monkeypatch.setattr(module, "loss_and_gradients", recording)
    return refs


def alive(refs):
    gc.collect()
    return [ref() for ref in refs if ref() is not None]


# Lifetimes.


def pytorchs(x, weight, bias, targets, pos_weight):
    """PyTorch's own, which takes targets as floats."""
    return F.binary_cross_entropy_with_logits(F.linear(x, weight, bias), targets, pos_weight=pos_weight)


def ours(x, weight, bias, targets, pos_weight):
    return linear_binary_cross_entropy(x, weight, targets, linear_bias=bias, pos_weight=pos_weight, chunk_size=4)


@pytest.mark.parametrize("loss_of", [pytorchs, ours])
@pytest.mark.parametrize("kind", [lambda dense: dense, csr, indices], ids=["dense", "csr", "indices"])
def test_nothing_lives_as_long_as_the_loss(loss_of, kind):
    leaves = [torch.randn(5, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)]
    given = [t * 1 for t in leaves]
    targets, pos_weight = kind(positives(9)), torch.rand(9)
    if loss_of is pytorchs:
        targets = positives(9).float()
    refs = [weakref.ref(t) for t in (*given, pos_weight, *(targets if isinstance(targets, tuple) else (targets,)))]
    loss = loss_of(*given, None, targets, pos_weight)
    del given, targets, pos_weight
    loss.backward()
    assert not alive(refs)
    assert loss.grad_fn is not None


@every_case
def test_gradients_are_gone_after_backward(case, made):
    tensors = case.make(7, 4)
    loss = case.ours(*tensors)
    assert len(alive(made)) == len(tensors)
    torch.autograd.grad(loss, tensors)
    assert not alive(made)
    assert loss.grad_fn is not None


@every_case
def test_a_checkpoint_around_the_loss_keeps_no_gradients(case, made):
    tensors = case.make(7, 4)
    loss = checkpoint(lambda *given: case.ours(*given), *tensors, use_reentrant=False)
    assert made
    assert not alive(made)
    _, grads = expected_of(case, tensors)
    assert_close(torch.autograd.grad(loss, tensors, retain_graph=True), grads)
    assert_close(torch.autograd.grad(loss * 3, tensors), tuple(3 * g for g in grads))
    assert not alive(made)


def test_gradients_that_a_backward_took_and_lost():
    tensors = SIGLIP.make(5, 4)
    loss = SIGLIP.ours(*tensors)

    def fails(*_):
        raise RuntimeError("after backward")

    handle = loss.grad_fn.register_hook(fails)
    with pytest.raises(RuntimeError, match="after backward"):
        loss.backward()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"siglip_loss\(\): an earlier backward has taken the gradients; give"):
        loss.backward()


# Hooks.


def pack_bytes(t):
    file = io.BytesIO()
    torch.save(t.detach(), file)
    return file.getvalue()


def quantised(t):
    """Quantizes to 16 bits, by a scale of the tensor."""
    if not t.is_floating_point() or not t.numel():
        return t, None
    scale = t.abs().max().double().clamp_min(1e-300) / 32767
    return (t.double() / scale).round().to(torch.int16), (scale, t.dtype)


def dequantised(packed):
    t, rest = packed
    return t if rest is None else (t.double() * rest[0]).to(rest[1])


HOOKS = {
    "serialise": lambda: saved_tensors_hooks(pack_bytes, lambda packed: torch.load(io.BytesIO(packed))),
    "quantise": lambda: saved_tensors_hooks(quantised, dequantised),
    "move": save_on_cpu,
    "copy": lambda: saved_tensors_hooks(torch.clone, torch.clone),
    "same": lambda: saved_tensors_hooks(lambda t: t, lambda t: t),
}


@chunked
@pytest.mark.parametrize("name", HOOKS)
@every_case
def test_hooks_see_the_gradients(case, name, backend, device):
    tensors = case.make(7, 4, torch.float64, device)
    with HOOKS[name](), sigtorch.use_backend(backend):
        loss = case.ours(*tensors)
    _, grads = expected_of(case, tensors)
    tolerance = {"rtol": 0, "atol": 1e-4 * max(g.abs().max().item() for g in grads)} if name == "quantise" else {}
    for times in (1, 3):
        found = torch.autograd.grad(loss * times, tensors, retain_graph=times == 1)
        for mine, theirs in zip(found, grads):
            assert_close(mine, theirs * times, **{k: v * times for k, v in tolerance.items()})


@every_case
def test_what_a_hook_keeps_stays_as_it_was(case):
    tensors, seen = case.make(7, 4), []

    def keep(t):
        seen.append((t, t.detach().clone()))
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        loss = case.ours(*tensors)
    assert len(seen) == 1 + 2 * len(tensors)
    (loss * 3).backward()
    for now, then in seen:
        assert torch.equal(now, then)


@every_case
def test_a_hook_on_one_gradient(case):
    """Put there after forward, as PyTorch lets one do; it hands out what is its own."""
    tensors = case.make(7, 4)
    loss = case.ours(*tensors)
    raw, own = loss.grad_fn._raw_saved_tensors, []
    at = 1 + len(Needs._fields)  # the gradient of the first tensor

    def pack(t):
        own.append(t.clone())
        return len(own) - 1

    raw[at].register_hooks(pack, own.__getitem__)
    before = own[0].clone()
    found = torch.autograd.grad(loss * 3, tensors)
    assert torch.equal(own[0], before)
    assert_close(found, tuple(3 * g for g in expected_of(case, tensors)[1]))


# Gradients of several at once.


def batched_grad(case, tensors, loss, incoming):
    return torch.autograd.grad(loss, tensors, incoming, is_grads_batched=True, create_graph=True)


def vmapped_grad(case, tensors, loss, incoming):
    return torch.func.vmap(lambda g: torch.autograd.grad(loss, tensors, g, create_graph=True, retain_graph=True))(
        incoming
    )


def nested_vmap(case, tensors, loss, incoming):
    def grad(g):
        return torch.autograd.grad(loss, tensors, g, create_graph=True, retain_graph=True)

    grads = torch.func.vmap(torch.func.vmap(grad))(incoming.view(-1, 1))
    return tuple(g.flatten(0, 1) for g in grads)


def jacobian(case, tensors, loss, incoming):
    """Several losses, each a multiple."""
    return torch.autograd.functional.jacobian(
        lambda *given: case.ours(*given) * incoming, tuple(tensors), create_graph=True, vectorize=True
    )


BATCHING = [batched_grad, vmapped_grad, nested_vmap, jacobian]


@chunked
@pytest.mark.parametrize("transform", BATCHING)
@every_case
def test_batched_gradients_are_not_differentiated_again(case, transform, backend, device):
    tensors = case.make(5, 4, torch.float64, device)
    incoming = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64, device=device)
    with sigtorch.use_backend(backend):
        loss = case.ours(*tensors)
        found = transform(case, tensors, loss, incoming)
    for mine, expected in zip(found, expected_of(case, tensors)[1]):
        assert_close(mine.detach(), torch.stack([expected * g for g in incoming]))
        assert mine.requires_grad
        with pytest.raises(RuntimeError, match=r"cannot be differentiated again; under .with sigtorch.use_backend"):
            torch.autograd.grad(mine.square().sum(), tensors, retain_graph=True, allow_unused=True)
    assert_close(torch.autograd.grad(loss, tensors), expected_of(case, tensors)[1])


@every_case
def test_batched_gradients_of_a_formula(case):
    tensors = case.make(5, 4)
    incoming = torch.tensor([1.0, 2.0], dtype=torch.float64)
    results = []
    for call in (case.ours, case.oracle):
        with sigtorch.use_backend("aten"):
            loss = call(*tensors)
        grads = torch.autograd.grad(loss, tensors, incoming, is_grads_batched=True, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), tensors))
    assert_close(*results)


@every_case
def test_batched_gradients_without_a_graph(case):
    tensors = case.make(5, 4)
    loss = case.ours(*tensors)
    incoming = torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, expected = expected_of(case, tensors)
    expected = tuple(torch.stack([g, 2 * g]) for g in expected)
    assert_close(torch.autograd.grad(loss, tensors, incoming, is_grads_batched=True, retain_graph=True), expected)
    by_vmap = torch.func.vmap(lambda g: torch.autograd.grad(loss, tensors, g, retain_graph=True))
    assert_close(by_vmap(incoming), expected)
    assert_close(torch.autograd.grad(loss, tensors, incoming, is_grads_batched=True), expected)


@every_case
def test_gradients_in_the_incoming_one(case):
    """They are linear in it, which a transform may ask for."""
    tensors = case.make(5, 4)
    loss, one = case.ours(*tensors), torch.ones((), dtype=torch.float64)

    def first(g):
        return torch.autograd.grad(loss, tensors[0], g, create_graph=True, retain_graph=True)[0].sum()

    expected = expected_of(case, tensors)[1][0].sum()
    assert_close(torch.func.grad(first)(one).detach(), expected)
    assert_close(torch.func.jvp(first, (one,), (one * 2,))[1].detach(), expected * 2)
    assert_close(torch.autograd.grad(first(incoming := one.clone().requires_grad_()), incoming)[0], expected)
