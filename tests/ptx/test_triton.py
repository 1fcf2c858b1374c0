"""Kernels of Triton's tutorials, and wrong ones, compiled and executed: run by ``make test-ptx``, and by ``test_plugin``."""

import re
import sys

import pytest
import torch
import triton
import triton.language as tl
from without_gpu.machine_code import count
from without_gpu.ptx.driver import install
from without_gpu.ptx.fault import Fault

if "without_gpu.ptx.plugin" not in sys.modules:
    pytest.skip("run with -p without_gpu.ptx.plugin, as test_plugin does", allow_module_level=True)

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")]


@pytest.fixture
def gpu(pytestconfig):
    """The engine, anew: nothing launched and nothing counted."""
    yield install(pytestconfig.getoption("--ptx-arch"))
    triton.runtime.driver.set_active(pytestconfig.ptx_gpu)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=mask) + tl.load(y_ptr + at, mask=mask), mask=mask)


@triton.jit
def softmax_kernel(out_ptr, x_ptr, x_stride, out_stride, rows, columns, BLOCK: tl.constexpr):
    """A program does several rows."""
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_stride + at, mask=at < columns, other=-float("inf"))
        e = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * out_stride + at, e / tl.sum(e, axis=0), mask=at < columns)


@triton.jit
def layer_norm_kernel(x_ptr, weight_ptr, out_ptr, mean_ptr, columns, eps, BLOCK: tl.constexpr):
    """Normalises BLOCK columns at a time, for rows may be long."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        x = tl.where(at < columns, x - mean, 0.0)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    tl.store(mean_ptr + row, mean)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + at, mask=at < columns)
        tl.store(out_ptr + row * columns + at, (x - mean) * scale * weight, mask=at < columns)


@triton.jit
def scan_kernel(x_ptr, out_ptr, total_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(out_ptr + tl.arange(0, BLOCK), tl.cumsum(x, axis=0))
    tl.atomic_add(total_ptr, tl.sum(x, axis=0))


@triton.jit
def transpose_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    """Through shared memory."""
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + rows * SIZE + columns, tl.load(x_ptr + rows * SIZE + columns).T)


def add(x, y, block=1024):
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), block),)](x, y, out, x.numel(), BLOCK=block)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("size", [1, 1000, 98432])
def test_vector_add(gpu, size, dtype):
    x, y = (torch.randint(-99, 99, (size,)).to(dtype) for _ in range(2))
    torch.testing.assert_close(add(x, y), x + y, rtol=0, atol=0)
    assert (gpu.loads, gpu.stores) == (x.nbytes + y.nbytes, x.nbytes)


@pytest.mark.parametrize("shape", [(3, 7), (19, 781), (5, 4096)], ids=str)
def test_softmax(gpu, shape):
    x = torch.randn(shape)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(shape[1])
    softmax_kernel[(2,)](out, x, x.stride(0), out.stride(0), *shape, BLOCK=block, num_warps=8)
    torch.testing.assert_close(out, torch.softmax(x, 1))
    assert (gpu.loads, gpu.stores) == (x.nbytes, x.nbytes)


@pytest.mark.parametrize("columns", [5, 700])
def test_layer_norm(gpu, columns):
    x, weight = torch.randn(6, columns, dtype=torch.bfloat16), torch.randn(columns)
    out, mean = torch.empty(6, columns), torch.empty(6)
    layer_norm_kernel[(6,)](x, weight, out, mean, columns, 1e-5, BLOCK=256)
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(x.float(), (columns,), weight, None, 1e-5))
    torch.testing.assert_close(mean, x.float().mean(1))
    assert gpu.stores == out.nbytes + mean.nbytes


def test_scan_and_atomic(gpu):
    x, total = torch.randint(-9, 9, (512,)), torch.zeros(1, dtype=torch.int64)
    out = torch.empty_like(x)
    scan_kernel[(3,)](x, out, total, BLOCK=512)
    torch.testing.assert_close(out, x.cumsum(0))
    assert total == 3 * x.sum()
    assert gpu.launches[-1].kernel.metadata.shared > 0


def test_transpose(gpu):
    x = torch.randn(64, 64, dtype=torch.float16)
    out = torch.empty_like(x)
    transpose_kernel[(1,)](x, out, SIZE=64)
    torch.testing.assert_close(out, x.T, rtol=0, atol=0)


def test_what_is_launched_can_be_looked_at(gpu):
    add(*torch.randn(2, 5000))
    (launch,) = gpu.launches
    assert launch.grid == (5, 1, 1)
    assert launch.threads == 5 * 128
    assert launch.kernel is gpu.seen[-1]
    assert f".target sm_{gpu.target.arch}" in launch.ptx
    assert launch.signature["x_ptr"] == "*fp32"
    assert launch.alignment[(0,)] == [["tt.divisibility", 16]]
    assert not launch.alignment.get((3,))  # 5,000 is a multiple of 8 only
    counts = count(launch)
    assert counts.name == "add_kernel"
    assert set(counts.accesses) <= {f"{kind} {bits}" for kind in ("load", "store") for bits in (32, 128)}
    assert counts.instructions > 10
    assert 0 < counts.registers < 64


def test_few_programs_of_many(gpu):
    gpu.programs = [(0, 0, 0), (-1, 0, 0)]
    x = torch.ones(2**20)
    out = torch.zeros_like(x)
    add_kernel[(1024,)](x, x, out, x.numel(), BLOCK=1024)
    assert out.view(1024, -1).any(1).nonzero().flatten().tolist() == [0, 1023]


@triton.autotune([triton.Config({"BLOCK": 256}), triton.Config({"BLOCK": 512})], key=["n"])
@triton.jit
def double_kernel(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at, 2 * tl.load(x_ptr + at, mask=at < n), mask=at < n)


def test_autotuning_takes_the_first(gpu):
    x = torch.arange(2000)
    double_kernel[lambda meta: (triton.cdiv(2000, meta["BLOCK"]),)](x, 2000)
    torch.testing.assert_close(x, 2 * torch.arange(2000))
    assert [launch.grid[0] for launch in gpu.launches] == [8]


def test_a_mask_that_is_too_long(gpu):
    x, out = torch.randn(1000), torch.empty(1000)
    message = "access outside of every tensor passed: [4000, 4016) relative to the nearest tensor of 4000 bytes; "
    with pytest.raises(
        Fault, match=re.escape(message) + r"program \(0, 0, 0\), thread \d+ \(add_kernel, at '@%p\d+ ld.global"
    ):
        add_kernel[(1,)](x, x, out, 1024, BLOCK=1024)


@triton.jit
def hint_kernel(x_ptr, n, BLOCK: tl.constexpr):
    at = tl.max_contiguous(tl.multiple_of(n + tl.arange(0, BLOCK), BLOCK), BLOCK)
    tl.store(x_ptr + at, 1.0)


def test_a_hint_that_lies(gpu):
    x = torch.zeros(2048)
    hint_kernel[(1,)](x, 32, BLOCK=1024)
    with pytest.raises(Fault, match="misaligned access: width 16 at offset 4"):
        hint_kernel[(1,)](x, 33, BLOCK=1024)


def test_too_large_a_grid(gpu):
    x = torch.empty(1)
    with pytest.raises(Fault, match=r"grid .* is outside of what CUDA takes"):
        add_kernel[(1, 65536)](x, x, x, 1, BLOCK=32)
    with pytest.raises(Fault, match="counts its programs in an int"):
        add_kernel[(2**16, 2**15)](x, x, x, 1, BLOCK=32)


@triton.jit
def dot_kernel(x_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(x_ptr + at, tl.dot(x, x).to(tl.float16))


def test_a_product_of_matrices(gpu):
    """So small a one takes no tensor memory, on any architecture."""
    x = torch.randint(-4, 5, (32, 32)).half()
    expected = x @ x
    dot_kernel[(1,)](x, BLOCK=32)
    assert torch.equal(x, expected)
