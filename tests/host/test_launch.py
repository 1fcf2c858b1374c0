"""Direct launches call Triton's launcher in C with the arguments of public ones."""

import threading

import pytest
import torch
import triton
from support.cases import CASES
from support.launching import for_a_stand_in
from support.loss_cases import LOSSES, WITH_OPTIONS
from without_gpu import standin

import sigtorch
from sigtorch.kernels import _map, _reduce, _scale
from sigtorch.kernels._plan import Plan

pytestmark = for_a_stand_in
DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5)
INPUTS = {c.name: (c.ours, lambda c=c: c.inputs((4, 6, 16), torch.bfloat16)) for c in CASES}
INPUTS |= {
    loss.__name__: (lambda x, loss=loss: loss(x, torch.rand_like(x)), lambda: [torch.randn(4, 16, requires_grad=True)])
    for loss in LOSSES
}
INPUTS["sigmoid_dice_loss"] = (
    lambda x: sigtorch.sigmoid_dice_loss(x, torch.rand_like(x), dims=-1, bce_weight=0.5),
    lambda: [torch.randn(4, 16, requires_grad=True)],
)
INPUTS |= {
    f"{loss.__name__}, ignoring": (
        lambda x, loss=loss: loss(x, torch.arange(4), reduction="mean", ignore_index=2),
        lambda: [torch.randn(4, 16, requires_grad=True)],
    )
    for loss in WITH_OPTIONS
}


def same(a, b):
    if type(a).__name__ in ("HookChain", "LazyDict"):  # a profiler's hooks, of which there are none, and their argument
        return b is None and not getattr(a, "calls", None)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b or (not isinstance(a, torch.Tensor) and a == b)


@pytest.mark.skipif(not DIRECT, reason="older versions of Triton always launch publicly")
@pytest.mark.parametrize("name", INPUTS)
def test_argument_for_argument(name, plans, monkeypatch):
    received, direct = [], []
    launcher, first_launch = triton.backends.nvidia.driver.CudaLauncher, Plan.launch

    def recording(self, *args, init=launcher.__init__):
        init(self, *args)
        inner = self.launch
        self.launch = lambda *given: (received.append(given), inner(*given))

    def twice(self, inputs, outputs):
        """Launches publicly, and directly, and forgets how."""
        first_launch(self, inputs, outputs)
        direct.append(self.launch != self.launch_publicly)
        self.launch(inputs, outputs)
        del self.launch

    monkeypatch.setattr(launcher, "__init__", recording)
    monkeypatch.setattr(Plan, "launch", twice)
    function, make = INPUTS[name]
    for kernel in _kernels():  # compiled before, without the recording
        kernel.device_caches.clear()
    before = standin.launches()
    with sigtorch.use_backend("triton"):
        inputs = make()
        out = function(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert direct
    assert all(direct)
    assert standin.launches() - before == 2 * len(direct) == len(received)
    assert all(map(same, received[::2], received[1::2]))


def _kernels():
    return (
        _map._map_kernel, _reduce._map_and_sum_kernel, _reduce._sum_kernel, _reduce._finish_kernel, _scale._scale_kernel,
    )  # fmt: skip


def test_threads_launch_at_once():
    def run(n):
        with sigtorch.use_backend("triton"), torch.no_grad():
            for _ in range(50):
                sigtorch.sigmoid(torch.empty(n))

    before = standin.launches()
    threads = [threading.Thread(target=run, args=(n,)) for n in (7, 8, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert standin.launches() - before == 150
