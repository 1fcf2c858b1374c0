"""Products of matrices by a warp and by four, against NumPy."""

import numpy as np
import pytest
from support.ptx.running import bits_of, execute
from without_gpu.ptx.fault import Fault

RANDOM = np.random.default_rng(0)
LANE = np.arange(32)
KINDS = {"bf16": (16, 2), "f16": (16, 2), "tf32": (8, 1)}  # columns of the left matrix, and elements of a register


def matrices(kind, *shapes):
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


def _load(name, width, array, at):
    return f"mad.lo.u64 %at, %thread64, {width}, %array{array}; ld.global.b32 %{name}, [%at + {at}];"


@pytest.mark.parametrize("kind", KINDS)
def test_a_warp(kind):
    k, _ = KINDS[kind]
    a, b, c = matrices(kind, (16, k), (k, 8), (16, 8))
    inputs = np.concatenate([left_registers(a, kind), right_registers(b, kind), sum_registers(c).view(np.uint32)])
    given, out = np.ascontiguousarray(inputs.T), np.zeros((32, 4), np.float32)
    lines = ".reg .b64 %thread64; .reg .f32 %f<4>; cvt.u64.u32 %thread64, %thread;"
    lines += "".join(_load(f"r{i}", 40, 0, 4 * i) for i in range(10))
    lines += f"""
        mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32
            {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};
        mad.lo.u64 %at, %thread64, 16, %array1;
    """.replace("%r6, %r7, %r8, %r9", "%g0, %g1, %g2, %g3")
    lines = lines.replace("mma.sync", ".reg .f32 %g<4>;" + "".join(f"mov.b32 %g{i}, %r{6 + i};" for i in range(4)) + "mma.sync")
    lines += "".join(f"st.global.f32 [%at + {4 * i}], %f{i};" for i in range(4))
    execute(lines, [given, out], threads=32)
    np.testing.assert_array_equal(out.T, sum_registers(a @ b + c))


def test_a_sum_is_rounded_once():
    """1 and two halves of its last place: a float32 that took one after the other would lose both."""
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.ones((16, 8))
    a[:, :2], b[:2] = 2.0**-12, 2.0**-12
    inputs = np.concatenate([left_registers(a, "bf16"), right_registers(b, "bf16"), sum_registers(c).view(np.uint32)])
    assert inputs.shape == (10, 32)
    assert np.float32(1 + 2.0**-23) != 1


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
