"""Counts what a training run compiles whose shapes change: forward and backward, over 200 shapes."""

import pytest
from support.compiling import printed

pytestmark = [pytest.mark.kernels, pytest.mark.ptx_run(90)]  # the script compiles for sm_90
# Kernels at most; each adds 0.2 to 0.5 s to a training step.
BOUNDS = {
    "a gate a channel, images": 8,
    "a gate a channel, channels_last": 6,
    "a gate a pixel, images": 8,
    "a gate a pixel, channels_last": 4,
    "a gate in another order": 6,
    "BCE with a weight a channel": 10,
    "packed swiglu of any width": 10,
    "a gate a token of any width": 10,
    "focal loss with a normalizer that changes": 3,  # one of them is every loss' last step
    "sigmoid of a transposed tensor": 6,
    "focal loss of images with classes to ignore": 10,
    "the same, channels_last": 8,
    "the router of any number of tokens": 2,
}
SCRIPT = """
import json, random, sys, torch, sigtorch
from without_gpu.machine_code import compiled

def image(channels_last=False):
    shape = (2, 24, random.randint(7, 65), random.randint(7, 65))
    return torch.randn(shape).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

def width():
    return random.randint(3, 4000)

def gate(x, shape):
    return sigtorch.sigmoid_gate(x, torch.randn(shape, dtype=x.dtype, requires_grad=True))

def bce(x):
    target, weight = torch.rand_like(x), torch.rand(24, 1, 1)
    return sigtorch.binary_cross_entropy_with_logits(x, target, weight)

def of_classes(x):
    index = torch.zeros(x.shape[:1] + x.shape[2:], dtype=torch.int64)
    return sigtorch.sigmoid_focal_loss(x, index, reduction="mean", dim=1, ignore_index=255)

def focal(x):
    return sigtorch.sigmoid_focal_loss(x, torch.rand_like(x), reduction="sum", normalizer=random.uniform(1, 100))

def router(x):
    return sigtorch.sigmoid_topk(x, 8, torch.zeros(256), num_groups=8, topk_groups=4)[0]

RUNS = {
    "a gate a channel, images": (image, lambda x: gate(x, (2, 24, 1, 1))),
    "a gate a channel, channels_last": (lambda: image(True), lambda x: gate(x, (2, 24, 1, 1))),
    "a gate a pixel, images": (image, lambda x: gate(x, (2, 1, *x.shape[2:]))),
    "a gate a pixel, channels_last": (lambda: image(True), lambda x: gate(x, (2, 1, *x.shape[2:]))),
    "a gate in another order": (lambda: image(True), lambda x: gate(x, x.shape)),
    "BCE with a weight a channel": (image, bce),
    "packed swiglu of any width": (lambda: torch.randn(4, 2 * width()), sigtorch.swiglu),
    "a gate a token of any width": (lambda: torch.randn(4, width()), lambda x: gate(x, (4, 1))),
    "focal loss with a normalizer that changes": (lambda: torch.randn(4, 64), focal),
    "focal loss of images with classes to ignore": (image, of_classes),
    "the same, channels_last": (lambda: image(True), of_classes),
    "the router of any number of tokens": (lambda: torch.randn(random.randint(1, 9999), 256), router),
    "sigmoid of a transposed tensor": (lambda: torch.randn(random.randint(2, 99), width()).T, sigtorch.sigmoid),
}
found = {}
for name, (make, call) in RUNS.items():
    random.seed(0)
    with sigtorch.use_backend("triton"), compiled(90) as launches:
        for _ in range(200):
            x = make().bfloat16().requires_grad_()
            out = call(x)
            out.backward(torch.ones_like(out))
    found[name] = len({id(launch.kernel) for launch in launches})
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def compiles():
    return printed(SCRIPT)


@pytest.mark.parametrize("run", BOUNDS)
def test_few_kernels_serve_every_shape(run, compiles):
    assert 0 < compiles[run] <= BOUNDS[run], compiles
