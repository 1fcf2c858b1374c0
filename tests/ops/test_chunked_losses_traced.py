"""Losses over a product that is never whole, traced at one size: right at others, as eager code and in float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.chunked_cases import indices, siglip_oracle
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import sigtorch
from sigtorch import linear_binary_cross_entropy, siglip_loss

D, LABELS, TRACED = 3, 7, 4


@dataclass(frozen=True)
class Traced:
    """A loss of tensors, and their sizes that differ from call to call: by the place of each, names of its axes."""

    name: str
    loss: torch.nn.Module
    make: object  # tensors for a batch of n
    oracle: object
    axes: tuple


class Loss(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *given):
        return self.function(*given)


def siglip_case(name, *numbers):
    def make(n):
        features = torch.randn(2, n, D).unbind()
        return [*features, *[t.clone() for t in numbers if isinstance(t, torch.Tensor)]]

    def with_numbers(function):
        def loss(image, text, *traced):
            left = iter(traced)
            return function(image, text, *(next(left) if isinstance(t, torch.Tensor) else t for t in numbers))

        return loss

    axes = ({0: "n"}, {0: "n"}, *[{} for t in numbers if isinstance(t, torch.Tensor)])
    return Traced(name, Loss(with_numbers(siglip_loss)), make, with_numbers(siglip_oracle), axes)


def dense_of(n, labels):
    """Another share of positives in each size; a row without any."""
    sample, label = torch.arange(n)[:, None], torch.arange(labels)
    return ((sample + label) % n == 0) & (sample != n - 2)


def linear_case(name, kind, bias=False, weights=None, labels_vary=False, **options):
    """Tensors are input, weight, bias and pos_weight where they are, and targets: a bool matrix, or a CSR's two parts."""
    varying = [t for t, there in (("bias", bias), ("pos_weight", weights is not None)) if there]

    def make(n):
        labels = 2 * n + 1 if labels_vary else LABELS
        layer = [torch.randn(n, D), torch.randn(labels, D), *([torch.randn(labels)] if bias else [])]
        if weights is not None:
            layer.append(weights(labels))
        dense = dense_of(n, labels)
        return [*layer, *([dense] if kind == "dense" else [t.to(kind) for t in indices(dense)])]

    def parts(x, weight, *rest):
        named = dict(zip(varying, rest))
        return x, weight, named.get("bias"), rest[len(varying) :], named.get("pos_weight")

    def loss(*given):
        x, weight, left, targets, pos_weight = parts(*given)
        targets = targets[0] if kind == "dense" else tuple(targets)
        return linear_binary_cross_entropy(x, weight, targets, linear_bias=left, pos_weight=pos_weight, **options)

    def oracle(*given):
        x, weight, left, targets, pos_weight = parts(*given)
        dense = targets[0] if kind == "dense" else torch.zeros(len(x), len(weight), dtype=torch.bool)
        if kind != "dense":
            crow, col = targets
            dense[torch.arange(len(x)).repeat_interleave(crow.diff()), col.long()] = True
        z = F.linear(x, weight, left)
        return F.binary_cross_entropy_with_logits(z, dense.to(z), pos_weight=pos_weight, **options)

    along = {0: "labels"} if labels_vary else {}
    others = [{} if name == "pos_weight" and weights(9).numel() == 1 else along for name in varying]
    targets = [{0: "n", **({1: "labels"} if labels_vary else {})}]
    if kind != "dense":
        targets = [{0: "n + 1"}, {0: "hits"}]
    return Traced(name, Loss(loss), make, oracle, ({0: "n"}, along, *others, *targets))


def one(labels):
    return torch.tensor(3.0)


def row_of_one(labels):
    return torch.tensor([3.0])


def of_each(labels):
    return 1 + torch.arange(labels) % 3.0


CASES = [
    siglip_case("siglip", torch.tensor(2.0), torch.tensor([-1.0])),
    siglip_case("siglip-no-bias", torch.tensor([[2.0]])),
    siglip_case("siglip-numbers", 2.0, -1.0),
    linear_case("dense", "dense"),
    linear_case("dense-bias-sum", "dense", bias=True, reduction="sum", weights=one),
    linear_case("dense-labels", "dense", bias=True, labels_vary=True, weights=row_of_one),
    linear_case("dense-weights", "dense", labels_vary=True, weights=of_each),
    linear_case("indices", torch.int64),
    linear_case("indices-int32", torch.int32, bias=True, weights=of_each),
    linear_case("indices-sum", torch.int64, reduction="sum", weights=one),
    linear_case("indices-labels", torch.int64, bias=True, labels_vary=True),
]


def by_jit(case, given):
    return torch.jit.trace(case.loss, tuple(given))


def by_make_fx(case, given):
    return make_fx(case.loss, tracing_mode="symbolic")(*given)


def by_export(case, given, strict=False):
    n = Dim("n", max=1000)
    dims = {"n": n, "n + 1": n + 1, "labels": Dim("labels", max=1000), "hits": Dim("hits", max=1000)}
    axes = tuple({at: dims[name] for at, name in one.items()} for one in case.axes)
    return torch.export.export(case.loss, tuple(given), dynamic_shapes=(axes,), strict=strict).module()


def by_strict_export(case, given):
    return by_export(case, given, strict=True)


@pytest.mark.parametrize("trace", [by_jit, by_make_fx, by_export, by_strict_export])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_traced_at_one_size_it_runs_at_others(case, trace):
    traced = trace(case, case.make(TRACED))
    for n in (TRACED, 8, 3, 9) if "export" in trace.__name__ else (TRACED, 8, 3, 1, 9):
        given = case.make(n)
        exact = [t.double() if t.is_floating_point() else t for t in given]
        features, exact[0] = given[0].requires_grad_(), exact[0].requires_grad_()
        expected = case.oracle(*exact)
        (grad,) = torch.autograd.grad(expected, exact[0])
        for loss in (traced, case.loss):
            value = loss(*given)
            assert_close(value.double(), expected, rtol=1e-5, atol=0)
            assert_close(torch.autograd.grad(value, features)[0].double(), grad, rtol=1e-4, atol=1e-6)


class SomePairs(torch.nn.Module):
    """Traces a batch whose size only a device knows."""

    def forward(self, image, text, among):
        at = among.nonzero()[:, 0]
        return siglip_loss(image[at], text[at], 2.0, -1.0), linear_binary_cross_entropy(
            image[at], text, image[at] @ text.t() > 0
        )


def test_exports_where_the_size_is_not_known():
    image, text, among = torch.randn(6, D), torch.randn(6, D), torch.arange(6) % 3 > 0
    exported = torch.export.export(SomePairs(), (image, text, among), strict=False).module()
    for some in (among, ~among, torch.ones(6, dtype=torch.bool)):
        assert_close(exported(image, text, some)[0], siglip_oracle(image[some], text[some], 2.0, -1.0))
        assert_close(exported(image, text, some), SomePairs()(image, text, some))
    with pytest.raises(RuntimeError):
        exported(image, text, torch.zeros(6, dtype=torch.bool))


def test_a_trace_takes_no_features_of_unlike_shapes():
    traced = torch.jit.trace(lambda u, v: siglip_loss(u, v, 2.0, -1.0), tuple(torch.randn(2, TRACED, D)))
    with pytest.raises(RuntimeError):
        traced(torch.randn(5, D), torch.randn(4, D))
    with pytest.raises(RuntimeError):
        traced(torch.randn(5, D), torch.randn(1, D))


def test_modules_trace_too():
    layer, hits = sigtorch.nn.LinearBCE(D, LABELS), [dense_of(n, LABELS) for n in (TRACED, 9)]
    traced = torch.jit.trace(layer, (torch.randn(TRACED, D), hits[0]))
    x = torch.randn(9, D)
    assert_close(traced(x, hits[1]), F.binary_cross_entropy_with_logits(layer(x), hits[1].float()))
    features = [torch.randn(2, n, D).unbind() for n in (TRACED, 9)]
    traced = torch.jit.trace(sigtorch.nn.SigLIPLoss(), (*features[0], torch.tensor(2.0)))
    assert_close(traced(*features[1], torch.tensor(3.0)), siglip_oracle(*features[1], 3.0))
