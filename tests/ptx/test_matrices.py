"""Products of matrices by a warp and by four, against NumPy."""

import numpy as np
import pytest
from support.ptx.running import bits_of, execute
from without_gpu.ptx.fault import Fault

RANDOM = np.random.default_rng(0)
LANE = np.arange(32)
KINDS = {"bf16": (16, 2), "f16": (16, 2), "tf32": (8, 1)}  # columns of the left matrix, and elements of a register


def matrices(*shapes):
    """Small whole numbers over 8, which every kind holds."""
    return [RANDOM.integers(-20, 20, shape) / 8 for shape in shapes]


def packed(values, kind):
    """Elements of registers, side by side along the last axis, as 32 bits each."""
    name = "f32" if kind == "tf32" else kind
    return np.ascontiguousarray(bits_of(values.astype(np.float32), name)).view(np.uint32)


def left_registers(a, kind):
    """Four registers of each lane, as the PTX manual places the elements of a 16 x k matrix: (4, 32)."""
    k, each = KINDS[kind]
    registers = np.zeros((4, 32, each))
    for i in range(4):
        for lane in LANE:
            row = lane // 4 + 8 * (i % 2)
            first = lane % 4 * each + k // 2 * (i // 2)
            registers[i, lane] = a[row, first : first + each]
    return packed(registers, kind).reshape(4, 32)


def right_registers(b, kind):
    k, each = KINDS[kind]
    registers = np.zeros((2, 32, each))
    for i in range(2):
        for lane in LANE:
            first = lane % 4 * each + k // 2 * i
            registers[i, lane] = b[first : first + each, lane // 4]
    return packed(registers, kind).reshape(2, 32)


def sum_registers(c):
    registers = np.zeros((4, 32), np.float32)
    for i in range(4):
        registers[i] = c[LANE // 4 + 8 * (i // 2), LANE % 4 * 2 + i % 2]
    return registers


def product(kind, a, b, c):
    """Computes a b + c by mma."""
    k, _ = KINDS[kind]
    inputs = np.concatenate([left_registers(a, kind), right_registers(b, kind), sum_registers(c).view(np.uint32)])
    given, out = np.ascontiguousarray(inputs.T), np.zeros((32, 4), np.float32)
    lines = ".reg .b64 %wide; .reg .f32 %c<4>, %f<4>; cvt.u64.u32 %wide, %thread; mad.lo.u64 %at, %wide, 40, %array0;"
    lines += "".join(f"ld.global.b32 %r{i}, [%at + {4 * i}];" for i in range(6))
    lines += "".join(f"ld.global.f32 %c{i}, [%at + {24 + 4 * i}];" for i in range(4))
    lines += f"""
        mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32
            {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%c0, %c1, %c2, %c3}};
        mad.lo.u64 %at, %wide, 16, %array1;
    """
    lines += "".join(f"st.global.f32 [%at + {4 * i}], %f{i};" for i in range(4))
    execute(lines, [given, out], threads=32)
    return out.T


@pytest.mark.parametrize("kind", KINDS)
def test_a_warp(kind):
    k, _ = KINDS[kind]
    a, b, c = matrices((16, k), (k, 8), (16, 8))
    np.testing.assert_array_equal(product(kind, a, b, c), sum_registers(a @ b + c))


def test_a_sum_is_rounded_once():
    """1 and two halves of its last place: a float32 that took one after the other would lose both."""
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.ones((16, 8))
    a[:, :2] = b[:2] = 2.0**-12
    assert (product("bf16", a, b, c) == np.float32(1 + 2.0**-23)).all()


def test_tf32_has_few_digits():
    a, b, c = np.full((16, 8), 1 + 2.0**-10 + 2.0**-11), np.eye(8), np.zeros((16, 8))
    assert (product("tf32", a, b, c) == 1 + 2.0**-10).all()


# Matrices in shared memory, in rows of 128 bytes whose 16-byte parts are mixed: part p of row r is at p ^ (r % 8).

WIDTH, N, K = 64, 16, 16  # elements of a row; columns and depth of the product


def image(rows):
    """A matrix of up to 64 columns as it lies in shared memory: 32-bit words."""
    lying = np.zeros((len(rows), WIDTH))
    for r, row in enumerate(rows):
        for column, value in enumerate(row):
            lying[r, (column // 8 ^ r % 8) * 8 + column % 8] = value
    return packed(lying.reshape(-1, 2), "bf16").ravel()


DESCRIPTOR = (1 << 62) | (64 << 32) | (64 << 16)  # rows of 128 bytes; eight of them are 1,024 bytes, in units of 16


@pytest.mark.parametrize("left_in", ["registers", "shared"])
@pytest.mark.parametrize("across", [False, True])
def test_a_warpgroup(left_in, across):
    """Twice, the second time added: b by columns, or by rows, in shared memory."""
    a, b = matrices((64, K), (K, N))
    shared = np.concatenate([image(a), image(b if across else b.T)])
    padded = np.zeros(-(-len(shared) // 128) * 128, np.uint32)
    padded[: len(shared)] = shared
    left = np.concatenate([left_registers(a[16 * warp : 16 * warp + 16], "bf16").T for warp in range(4)])
    given, out = np.ascontiguousarray(left), np.zeros((128, N // 2), np.float32)
    lines = (
        ".reg .b64 %wide, %left, %right, %to; .reg .f32 %f<8>; cvt.u64.u32 %wide, %thread; mov.u64 %left, global_smem;"
    )
    lines += "mad.lo.u64 %to, %wide, 4, %left; mad.lo.u64 %at, %wide, 4, %array0;"
    for i in range(len(padded) // 128):
        lines += f"ld.global.b32 %r0, [%at + {512 * i}]; st.shared.b32 [%to + {512 * i}], %r0;"
    lines += "mad.lo.u64 %at, %wide, 16, %array1;"
    lines += "".join(f"ld.global.b32 %r{i}, [%at + {4 * i}];" for i in range(4))
    sums = ", ".join(f"%f{i}" for i in range(8))
    of_left, turned = ("{%r0, %r1, %r2, %r3}", "") if left_in == "registers" else ("%left", "0, ")
    one = f"wgmma.mma_async.sync.aligned.m64n{N}k{K}.f32.bf16.bf16 {{{sums}}}, {of_left}, %right,"
    lines += f"""
        shr.u64 %left, %left, 4; add.u64 %right, %left, {64 * 128 // 16};
        or.b64 %left, %left, {DESCRIPTOR}; or.b64 %right, %right, {DESCRIPTOR};
        bar.sync 0;
        wgmma.fence.sync.aligned;
        mov.u32 %r4, 0; setp.ne.u32 %p0, %r4, 0; {one} %p0, 1, 1, {turned}{int(across)};
        setp.eq.u32 %p0, %r4, 0; {one} %p0, 1, 1, {turned}{int(across)};
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned 0;
        mad.lo.u64 %at, %wide, 32, %array2;
    """
    lines += "".join(f"st.global.f32 [%at + {4 * i}], %f{i};" for i in range(8))
    execute(lines, [padded, given, out], shared_bytes=4 * len(padded), target="sm_90a")
    expected = np.zeros((128, 8))
    for warp in range(4):
        for half in range(2):
            part = (2 * a @ b)[16 * warp : 16 * warp + 16, 8 * half : 8 * half + 8]
            expected[32 * warp : 32 * warp + 32, 4 * half : 4 * half + 4] = sum_registers(part).T
    np.testing.assert_array_equal(out, expected)


def test_a_parted_warp_is_a_fault():
    lines = """
        .reg .f32 %f<4>;
        mov.b32 %r0, 0; mov.f32 %f0, 0f00000000;
        setp.lt.u32 %p0, %thread, 7;
        @%p0 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
            {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, {%r0, %r0}, {%f0, %f0, %f0, %f0};
    """
    with pytest.raises(Fault, match="a warp's threads are parted"):
        execute(lines, [np.zeros(4, np.uint32)], threads=32)


def test_another_kind_is_a_fault():
    lines = """
        .reg .f64 %f<4>;
        mov.f64 %f0, 0d0000000000000000;
        mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%f2, %f3}, {%f0}, {%f0}, {%f0, %f0};
    """
    with pytest.raises(Fault, match="instruction not modelled: mma"):
        execute(lines, [np.zeros(4, np.uint32)], threads=32)
