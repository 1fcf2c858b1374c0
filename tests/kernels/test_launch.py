"""Launches, where Triton's launcher is unknown too, and plans; tests/host compares them with Triton's own."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

import sigtorch
from sigtorch.kernels import _map, _math, _plan, _probe, _reduce
from sigtorch.kernels._layout import INDEX, layout_of
from sigtorch.kernels._plan import Call, Plan, plan
from sigtorch.kernels.losses import BCE_PASSES

direct = pytest.mark.skipif(
    not hasattr(triton.knobs.runtime.launch_enter_hook, "calls"), reason="this Triton always launches publicly"
)


class Launcher:
    """Like Triton's: the launcher in Python calls the one in C."""

    def __init__(self, launched):
        self.launch = lambda *given: launched.append(("direct", given))

    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(x, y, z, stream, function, False, metadata, None, arguments)


class NoInnerLaunch(Launcher):
    def __init__(self, launched):
        pass


class Signature(Launcher):
    def __call__(self, grid, stream, function, arguments):
        self.launch(*grid, stream, function, arguments)


class Older(Launcher):
    """Like the one before Triton 3.7."""

    def __call__(self, x, y, z, stream, function, *arguments):
        self.launch(x, y, z, stream, function, False, *arguments)


class Twice(Launcher):
    def __call__(self, *given):
        super().__call__(*given)
        super().__call__(*given)


class OtherOrder(Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(z, y, x, function, stream, False, metadata, None, arguments)


class OtherStream(Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(x, y, z, function, stream, False, metadata, None, arguments)


class Scratch(Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(x, y, z, stream, function, torch.empty(1), arguments)


class Refuses(Launcher):
    def __call__(self, *given):
        raise AssertionError(given)


class OtherArguments(Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(x, y, z, stream, function, False, arguments[:-1])


@pytest.fixture
def launched(monkeypatch):
    """Launches, each as (way, arguments); the driver's current device is 3, whose stream is 77."""
    driver = SimpleNamespace(get_current_device=lambda: 3, get_current_stream=lambda device: 74 + device)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    return []


def plan_with(launcher, launched, grid=(2, 3, 4)):
    """Returns a plan for a kernel whose compiled form has this launcher."""
    compiled = SimpleNamespace(run=launcher(launched), function="function", packed_metadata="metadata")

    class Kernel:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                launched.append(("public", (grid, arguments)))
                return compiled

            return launch

    return Plan(Call(Kernel(), grid, (5, "constant")), index_input=-1)


@direct
@pytest.mark.parametrize("launcher", [Launcher, Older])
def test_a_second_launch_is_direct(launcher, launched):
    ready = plan_with(launcher, launched)
    operands = [((torch.zeros(i),), (torch.ones(i),)) for i in (1, 2)]
    for inputs, outputs in operands:
        ready.launch(inputs, outputs)
    (inputs, outputs), (later_inputs, later_outputs) = operands
    assert launched[0][0] == "public"
    assert launched[0][1] == ((2, 3, 4), (inputs, outputs, 5, "constant"))
    arguments = (later_inputs, later_outputs, 5, "constant")
    given = ("metadata", None, arguments) if launcher is Launcher else ("metadata", None, None, None, *arguments)
    assert launched[1:] == [("direct", (2, 3, 4, 77, "function", False, *given))]


@pytest.mark.parametrize(
    "strange",
    [NoInnerLaunch, Signature, Twice, OtherOrder, OtherStream, Scratch, Refuses, OtherArguments],
    ids=lambda c: c.__name__,
)
def test_strange_internals_launch_publicly(strange, launched):
    ready = plan_with(strange, launched)
    for _ in range(3):
        ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public"] * 3
    assert ready.launch == ready.launch_publicly  # not tried again


@direct
@pytest.mark.parametrize("hook", [None, print])
def test_strange_hooks_launch_publicly(hook, launched, monkeypatch):
    """A launch expects chains of hooks."""
    ready = plan_with(Launcher, launched)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    monkeypatch.setattr(triton.knobs.runtime, "launch_exit_hook", hook)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public"] * 2


KEPT = []


class Kept(Launcher):
    """Is kept with all of its copies."""

    def __copy__(self):
        copied = object.__new__(Kept)
        copied.launch = self.launch
        KEPT.append(copied)
        return copied


@direct
@pytest.mark.parametrize("launcher", [Launcher, Kept])
def test_a_plan_keeps_its_kernel_and_no_tensors(launcher, launched):
    """A direct launch knows the compiled function by its address, which is gone with the kernel."""
    ready, out = plan_with(launcher, launched), torch.ones(1)
    ready.launch((torch.zeros(1),), (out,))
    assert ready.compiled.function == "function"
    launched.clear()
    there = weakref.ref(out)
    del out
    gc.collect()
    assert there() is None


def test_a_strange_driver_launches_publicly(launched, monkeypatch):
    monkeypatch.setattr(triton.runtime.driver, "active", SimpleNamespace())
    ready = plan_with(Launcher, launched)
    for _ in range(2):
        ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public"] * 2


@direct
@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profilers_hooks_are_called(name, launched):
    """Only the public launch calls them."""
    ready, hooks = plan_with(Launcher, launched), getattr(triton.knobs.runtime, name)
    ready.launch((torch.zeros(1),), (torch.ones(1),))

    def profile(metadata):
        pass

    hooks.add(profile)
    try:
        ready.launch((torch.zeros(1),), (torch.ones(1),))
    finally:
        hooks.remove(profile)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public", "public", "direct"]


@direct
def test_another_device_is_made_current(launched, monkeypatch):
    ready, current, entered = plan_with(Launcher, launched), [3], []

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            entered.append(self.index)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(triton.runtime.driver.active, "get_current_device", lambda: current[0])
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    monkeypatch.setattr(torch.cuda, "device", Device)
    current[0] = 0
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert entered == [3]
    assert launched[1][1][3] == 77  # the stream of the operands' device


@direct
def test_a_plan_is_of_its_operands_device(launched, monkeypatch):
    """Whatever device is current around the first launch."""
    current = [0]

    class DeviceOf:
        def __init__(self, tensor):
            pass

        def __enter__(self):
            self.before, current[0] = current[0], 7

        def __exit__(self, *_):
            current[0] = self.before

    monkeypatch.setattr(triton.runtime.driver.active, "get_current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    ready = plan_with(Launcher, launched)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    current[0] = 7
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert launched[1][1][3] == 74 + 7  # the stream of that device


def test_what_is_kept_is_bounded(plans, monkeypatch, device):
    monkeypatch.setattr(_plan, "MAX_PLANS", 8)
    with sigtorch.use_backend("triton"):
        for n in range(1, 40):
            x = torch.randn(n, device=device)
            torch.testing.assert_close(sigtorch.sigmoid(x), torch.sigmoid(x))
            assert len(plans) <= 8


class Elsewhere(torch.Tensor):
    """Returns another device than its own."""

    def get_device(self):
        return 7


@dataclass
class Launch:
    """Arguments of a call of plan()."""

    x: torch.Tensor
    out: torch.Tensor
    number: float | None = 2.0
    make: Callable = _map._map_call
    function: Any = _math.sigmoid
    settings: tuple = (None, 4)

    def plan(self):
        return plan(self.make, self.function, (self.x, self.number), (self.out,), self.settings)[0]


@pytest.fixture
def like(device):
    x = torch.randn(8, 16, device=device)
    return Launch(x, torch.empty_like(x))


def half_aligned(t):
    """Returns a copy that is aligned to 8 bytes, where an access may take 16."""
    return t.new_empty(t.numel() + 8 // t.element_size())[8 // t.element_size() :].view(t.shape)


# Launches that differ from another one in a single part of a plan's key.
PARTS = {
    "maker": lambda like: {"make": lambda *given: _map._map_call(*given)},
    "function": lambda like: {"function": _math.dsigmoid_from_output},
    "settings": lambda like: {"settings": (None, 8)},
    "output's device": lambda like: {"out": like.out.as_subclass(Elsewhere)},
    "output's strides": lambda like: {"out": like.out.new_empty(8, 32)[:, :16]},
    "output's alignment": lambda like: {"out": half_aligned(like.out)},
    "output's dtype": lambda like: {"out": like.out.bfloat16()},
    "input's dtype": lambda like: {"x": like.x.bfloat16()},
    "input's shape": lambda like: {"x": like.x.new_empty(1, 16)},
    "input's strides": lambda like: {"x": like.x.new_empty(8, 32)[:, :16]},
    "input's alignment": lambda like: {"x": half_aligned(like.x)},
    "number's kind": lambda like: {"number": 1},
}


def differing(plans):
    """Returns the positions of the parts in which two keys differ."""
    return [i for i, parts in enumerate(zip(*plans, strict=True)) if parts[0] != parts[1]]


@pytest.mark.parametrize("part", PARTS)
def test_a_plan_depends_on_each_part_of_its_key(part, like, plans):
    """Two launches that differ in that part alone: without it, the second would run the first's plan."""
    first, second = like.plan(), replace(like, **PARTS[part](like)).plan()
    assert first is not second
    assert len(differing(plans)) == 1


def test_no_part_of_a_key_is_untested(like, plans):
    places = []
    for other in PARTS.values():
        plans.clear()
        like.plan()
        replace(like, **other(like)).plan()
        places += differing(plans)
        (key, _) = plans
    assert sorted(places) == [*range(len(key))]


def test_an_index_is_no_number(like):
    assert len({replace(like, number=n).plan() for n in (INDEX, 1, 2.0)}) == 3


def test_a_plan_serves_like_operands(like):
    """Other tensors and numbers, of the same kinds."""
    again = replace(like, x=like.x.clone(), out=like.out.clone(), number=3.0)
    assert like.plan() is again.plan()


def test_a_sums_plan_depends_on_the_results_dtype(like):
    """No tensor shows it: partial sums are float64, whatever the result."""
    operands, dtypes = (1, 1, like.x, like.x, *[1] * 6), (torch.float32, torch.bfloat16)
    value = BCE_PASSES[torch.float32].value
    found = [plan(_reduce._sum_call, value, operands, (like.x,), (dtype, None)) for dtype in dtypes]
    assert len({ready for ready, _ in found}) == 2


@pytest.mark.parametrize(("rows_of", "cols", "vector"), [(32, 16, 8), (24, 12, 1), (22, 16, 1)])
def test_whole_vectors_fill_rows(rows_of, cols, vector, device):
    """A write past the end of one half of a tensor would meet the other half."""
    half = torch.empty(4, rows_of, dtype=torch.bfloat16, device=device)[:, :cols]
    assert layout_of((half,), (half,)).vector == vector


def test_the_probe_loads_what_it_compiles(monkeypatch):
    """Only loading shows that a binary is for another chip."""

    class Compiled:
        @property
        def run(self):
            raise RuntimeError("no such chip")

    monkeypatch.setattr(_probe, "_probe_kernel", SimpleNamespace(warmup=lambda *_, **__: Compiled()))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="no such chip"):
        _probe.probe(0)
