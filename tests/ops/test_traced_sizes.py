"""A trace at one size is right at others."""

import functools
import itertools
import warnings

import pytest
import torch
from support.cases import CASES, tolerance
from support.loss_cases import LOSSES, WITH_OPTIONS
from torch.fx.experimental.proxy_tensor import make_fx

TRACED, OTHERS = 4, (8, 6, 10)  # an even number of rows, for what halves them


def by_jit(call, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # PyTorch's own functions compare sizes, too
        return torch.jit.trace(lambda *tensors: call(*tensors), tuple(inputs), check_trace=False)


def by_fx(call, inputs):
    return make_fx(lambda *tensors: call(*tensors), tracing_mode="symbolic")(*inputs)


class Called(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *tensors):
        return self.call(*tensors)


def by_export(call, inputs):
    rows = torch.export.Dim.AUTO
    shapes = (tuple({0: rows} if t.shape[0] == TRACED else None for t in inputs),)
    exported = torch.export.export(Called(call), tuple(inputs), dynamic_shapes=shapes, strict=False)
    return exported.module()


WAYS = {"jit.trace": by_jit, "make_fx": by_fx, "export": by_export}
SYMBOLIC = ("make_fx", "export")  # which take most of the time, and the same symbols


def operations():
    """Each with what makes its inputs for a number of rows, and a way to trace it."""
    for case, way in itertools.product(CASES, WAYS):
        if case.name != "gate-channel":  # for two axes, the same as gate-token
            yield pytest.param(
                case.ours,
                lambda n, c=case: [t.detach() for t in c.inputs((n, 6), torch.float32)],
                way,
                id=f"{case.name}-{way}",
            )
    targets = {
        "soft": lambda n: torch.rand(n, 6),
        "mask": lambda n: torch.rand(n, 6).round().byte(),
        "bool": lambda n: torch.rand(n, 6) > 0.5,
        "classes": lambda n: torch.arange(n) % 7,
    }
    kinds_and_reductions = [*((kind, "mean") for kind in targets), ("soft", "none"), ("soft", "sum")]
    for (i, loss), (j, (kind, reduction)) in itertools.product(enumerate(LOSSES), enumerate(kinds_and_reductions)):
        for k, options in enumerate(({}, {"ignore_index": 1}) if loss in WITH_OPTIONS else ({},)):
            for way in ("jit.trace", SYMBOLIC[(i + j + k) % 2]):  # by turns for every loss, kind of target and option
                yield pytest.param(
                    functools.partial(loss, reduction=reduction, **options),
                    lambda n, t=targets[kind]: [torch.randn(n, 6), t(n)],
                    way,
                    id=f"{loss.__name__}-{kind}-{reduction}-{[*options]}-{way}",
                )
    for loss, way in itertools.product(WITH_OPTIONS, WAYS):
        yield pytest.param(
            functools.partial(loss, dim=1, reduction="mean"),
            lambda n: [torch.randn(n, 3, 5), (torch.arange(n * 5) % 4).view(n, 5)],
            way,
            id=f"{loss.__name__}-images-{way}",
        )


@pytest.mark.parametrize(("call", "inputs", "way"), list(operations()))
def test_runs_at_other_sizes(call, inputs, way):
    traced = WAYS[way](call, inputs(TRACED))
    for n in OTHERS:
        given = inputs(n)
        torch.testing.assert_close(traced(*given), call(*given), **tolerance(torch.float32, 4))
