"""The one launch where Triton is not as expected, and what it keeps; tests/host compares it with Triton's own."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
import triton

import sigtorch
from sigtorch.kernels import _launch, _map, _math
from sigtorch.kernels._launch import Call, Plan, plan

direct = pytest.mark.skipif(
    not hasattr(triton.knobs.runtime.launch_enter_hook, "calls"), reason="this Triton always launches publicly"
)


class Launcher:
    """As Triton's: what is called in Python calls what is in C."""

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
    """As before Triton 3.7."""

    def __call__(self, x, y, z, stream, function, *arguments):
        self.launch(x, y, z, stream, function, False, *arguments)


class Twice(Launcher):
    def __call__(self, *given):
        super().__call__(*given)
        super().__call__(*given)


class OtherOrder(Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        self.launch(z, y, x, function, stream, False, metadata, None, arguments)


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
    """What was launched, and by which way; the driver is one of device 3, whose stream is 77."""
    driver = SimpleNamespace(get_current_device=lambda: 3, get_current_stream=lambda device: 74 + device)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
    return []


def plan_with(launcher, launched, grid=(2, 3, 4)):
    """A plan, as for a kernel whose compiled form has this launcher."""
    compiled = SimpleNamespace(run=launcher(launched), function="function", packed_metadata="metadata")

    class Kernel:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                launched.append(("public", (grid, arguments)))
                return compiled

            return launch

    return Plan(Call(Kernel(), grid, (5, "constant")), columns=-1)


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
    [NoInnerLaunch, Signature, Twice, OtherOrder, Scratch, Refuses, OtherArguments],
    ids=lambda c: c.__name__,
)
def test_strange_internals_launch_publicly(strange, launched):
    ready = plan_with(strange, launched)
    for _ in range(3):
        ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public"] * 3
    assert ready.direct == ()  # not asked again


@direct
@pytest.mark.parametrize("hook", [None, print])
def test_strange_hooks_launch_publicly(hook, launched, monkeypatch):
    """Where a chain of hooks is expected."""
    ready = plan_with(Launcher, launched)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    monkeypatch.setattr(triton.knobs.runtime, "launch_exit_hook", hook)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert [way for way, _ in launched] == ["public"] * 2


@direct
def test_a_plan_keeps_its_kernel_and_no_tensors(launched):
    """A direct launch knows the kernel's function by a number, which is gone with the kernel."""
    ready, out = plan_with(Launcher, launched), torch.ones(1)
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
    """Which only the public launch does."""
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
    """Whichever is current around the first launch."""
    current = [0]

    class DeviceOf:
        def __init__(self, tensor):
            pass

        def __enter__(self):
            current[0] = 7

        def __exit__(self, *_):
            current[0] = 0

    monkeypatch.setattr(triton.runtime.driver.active, "get_current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device_of", DeviceOf)
    ready = plan_with(Launcher, launched)
    ready.launch((torch.zeros(1),), (torch.ones(1),))
    assert 7 in ready.direct


def test_what_is_kept_is_bounded(monkeypatch, device):
    monkeypatch.setattr(_launch, "MAX_PLANS", 8)
    with sigtorch.use_backend("triton"):
        for n in range(1, 40):
            x = torch.randn(n, device=device)
            torch.testing.assert_close(sigtorch.sigmoid(x), torch.sigmoid(x))
            assert len(_launch._plans) <= 8


KEYS = {
    "alike": lambda x: torch.empty_like(x),
    "shape": lambda x: x.new_empty(x.shape[0], x.shape[1] + 1)[:, :-1],
    "fewer": lambda x: x.new_empty(x.shape[0] - 1, x.shape[1]),
    "dtype": lambda x: x.bfloat16(),
    "strides": lambda x: x.new_empty(x.shape[::-1]).T,
    "alignment": lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_plan_serves_what_lies_alike(kind, device):
    x = torch.randn(8, 16, device=device)
    first, _ = plan(_map._call, _math.sigmoid, (x,), (torch.empty_like(x),), (1, 0))
    other = KEYS[kind](x)
    second, _ = plan(_map._call, _math.sigmoid, (other,), (torch.empty_like(other),), (1, 0))
    assert (first is second) == (kind == "alike")


def test_a_plan_knows_its_outputs_dtypes(device):
    """Which inputs do not tell: a loss' sum is float64, whatever the loss is."""
    x = torch.randn(8, 16, device=device)
    plans = {
        plan(_map._call, _math.sigmoid, (x,), (torch.empty_like(x, dtype=d),), (1, 0))[0]
        for d in (None, torch.bfloat16)
    }
    assert len(plans) == 2
