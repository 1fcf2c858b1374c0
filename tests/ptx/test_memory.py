"""Loads, stores, copies and atomics, what of them is counted, and which programs run."""

import numpy as np
import pytest
import torch
from support.ptx.running import execute, run
from without_gpu.ptx.device import Device

INDEX = np.arange(256, dtype=np.uint32)
SHARED = "mov.u32 %r0, global_smem; mad.lo.u32 %r1, %thread, {width}, %r0;"


@pytest.mark.parametrize(("vector", "bits"), [(1, 8), (1, 16), (1, 32), (1, 64), (2, 64), (4, 32), (2, 16), (8, 32)])
def test_vectors_are_copied_and_counted(vector, bits):
    width, count = vector * bits // 8, 256
    given = torch.randint(0, 256, (count * width,), dtype=torch.uint8).numpy()
    out = torch.zeros(count * width, dtype=torch.uint8).numpy()  # PyTorch's memory is aligned to 64 bytes
    kind = f"v{vector}.b{bits}" if vector > 1 else f"b{bits}"
    names = [f"%v{i}" for i in range(vector)]
    registers = f"{{{', '.join(names)}}}" if vector > 1 else names[0]
    lines = f"""
        .reg .b{max(bits, 16)} {", ".join(names)};
        mad.wide.u32 %rd0, %index, {width}, %array0;
        mad.wide.u32 %rd1, %index, {width}, %array1;
        ld.global.{kind} {registers}, [%rd0];
        st.global.{kind} [%rd1+0], {registers};
    """
    device = execute(lines, [given, out], ctas=2, assembled=vector < 8)  # v8 is PTX 8.8
    np.testing.assert_array_equal(out, given)
    assert (device.loads, device.stores) == (given.nbytes, out.nbytes)
    assert (device.count["ld"], device.count["st"]) == (6, 2)  # a CTA each; the others are parameters


def test_bytes_are_counted_once_an_instruction_and_cta():
    lines = "ld.global.b32 %r1, [%array0]; ld.global.b32 %r2, [%array0]; st.global.b32 [%array0], %r1;"
    device = execute(lines, [np.zeros(1, np.uint32)], ctas=3)
    assert (device.loads, device.stores) == (2 * 3 * 4, 3 * 4)


def test_signed_loads_extend_the_sign():
    given = np.arange(-128, 128, dtype=np.int8)
    out = np.zeros(256, np.int32)
    lines = """
        cvt.u64.u32 %rd0, %index;
        add.u64 %rd0, %rd0, %array0;
        ld.global.nc.s8 %r0, [%rd0];
        mad.wide.u32 %rd1, %index, 4, %array1;
        st.global.b32 [%rd1], %r0;
    """
    execute(lines, [given, out], ctas=2)
    np.testing.assert_array_equal(out, given)


def test_cache_hints_change_nothing():
    lines = """
        createpolicy.fractional.L2::evict_last.b64 %rd0, 1.0;
        mad.wide.u32 %rd1, %index, 4, %array0;
        ld.global.L1::evict_first.L2::cache_hint.b32 %d, [%rd1], %rd0;
    """
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), INDEX)


def test_addresses_of_any_space():
    lines = "cvta.to.global.u64 %rd0, %array0; mad.wide.u32 %rd0, %index, 4, %rd0; ld.global.b32 %d, [%rd0];"
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), INDEX)


def test_local_memory_is_of_one_thread():
    lines = """
        .local .align 16 .b8 depot[32];
        mov.b64 %rd0, depot;
        st.local.b32 [%rd0+16], %a;
        ld.local.b32 %d, [%rd0+16];
    """
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), INDEX)


def test_constant_tables():
    table = ".global .align 4 .b32 table[4] = {7, 11, 13};"
    lines = "mov.b64 %rd0, table; and.b32 %r0, %a, 3; mad.wide.u32 %rd0, %r0, 4, %rd0; ld.global.b32 %d, [%rd0];"
    given = run(lines, [INDEX], np.uint32, prelude=table)
    np.testing.assert_array_equal(given, np.array([7, 11, 13, 0])[INDEX % 4])


def test_inner_names_are_their_own():
    """Inline assembly declares registers in braces, under any names."""
    lines = "mov.u32 %d, 1; { .reg .b32 %d; mov.u32 %d, 5; { .reg .b32 t<3>; add.u32 t2, %d, %a; mov.u32 %r0, t2; } }"
    np.testing.assert_array_equal(run(lines + "add.u32 %d, %d, %r0;", [INDEX], np.uint32), INDEX + 6)


def test_parts_of_registers():
    lines = "mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0};"
    np.testing.assert_array_equal(run(lines, [INDEX * 65537 + 9], np.uint32), (INDEX * 65537 + 9) << 16 | INDEX)


ATOMICS = {
    "add": lambda old, value: old + value,
    "min": min,
    "max": max,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "xor": lambda old, value: old ^ value,
    "exch": lambda old, value: value,
    "inc": lambda old, value: 0 if old >= value else old + 1,
    "dec": lambda old, value: value if old == 0 or old > value else old - 1,
}


def in_turn(operation, cells, values, mask=0xFFFFFFFF):
    """Values that 256 threads, of which every seventh meets at a cell, leave there and are given."""
    cells, before = list(map(int, cells)), []
    for thread, value in enumerate(values):
        before.append(cells[thread % 7])
        cells[thread % 7] = operation(before[-1], int(value)) & mask
    return cells, before


FORMS = [
    *((kind, ty) for kind in ("add", "min", "max") for ty in ("u32", "u64")),
    *((kind, ty) for kind in ("and", "or", "xor", "exch") for ty in ("b32", "b64")),
    ("inc", "u32"),
    ("dec", "u32"),
]


@pytest.mark.parametrize(("kind", "ty"), FORMS)
def test_atomics_go_one_after_the_other(kind, ty):
    dtype = np.uint64 if "64" in ty else np.uint32
    values = np.random.default_rng(0).integers(0, 9, 256).astype(dtype)
    cells = np.arange(3, 10, dtype=dtype)
    wanted = in_turn(ATOMICS[kind], cells, values)
    width, out = cells.itemsize, np.zeros(256, dtype)
    lines = f"""
        .reg .b{8 * width} %v, %old;
        mad.wide.u32 %rd1, %index, {width}, %array0;
        ld.global.b{8 * width} %v, [%rd1];
        rem.u32 %r0, %index, 7;
        mad.wide.u32 %rd0, %r0, {width}, %array1;
        atom.global.{kind}.{ty} %old, [%rd0], %v;
        mad.wide.u32 %rd1, %index, {width}, %array2;
        st.global.b{8 * width} [%rd1], %old;
    """
    device = execute(lines, [values, cells, out], ctas=2)
    np.testing.assert_array_equal(cells, wanted[0])
    np.testing.assert_array_equal(out, wanted[1])
    assert device.loads == values.nbytes + 256 * width
    assert device.stores == out.nbytes + 256 * width


def test_atomics_on_shared_memory():
    """Nothing of them is traffic."""
    lines = """
        mov.u32 %r0, global_smem;
        st.shared.b32 [%r0], 0;
        bar.sync 0;
        atom.shared.add.u32 %d, [%r0], %a;
    """
    given = run(lines, [INDEX], np.uint32, shared_bytes=16)
    before = np.cumsum(INDEX.reshape(2, 128), 1, dtype=np.uint32) - INDEX.reshape(2, 128)
    np.testing.assert_array_equal(given, before.ravel())


def test_compare_and_swap():
    cells, out = np.arange(7, dtype=np.uint32), np.zeros(256, np.uint32)
    lines = """
        rem.u32 %r0, %index, 7;
        mad.wide.u32 %rd0, %r0, 4, %array0;
        atom.global.acq_rel.gpu.cas.b32 %r1, [%rd0], %r0, 100;
        mad.wide.u32 %rd1, %index, 4, %array1;
        st.global.b32 [%rd1], %r1;
    """
    execute(lines, [cells, out], ctas=2)
    assert (cells == 100).all()
    np.testing.assert_array_equal(out, np.where(INDEX < 7, INDEX, 100))


@pytest.mark.parametrize(("ty", "dtype"), [("f32", np.float32), ("f64", np.float64), ("noftz.f16x2", np.float16)])
def test_floats_are_added_in_order(ty, dtype):
    values = np.random.default_rng(0).standard_normal(512 if "x2" in ty else 256).astype(dtype)
    cell = np.zeros(2 if "x2" in ty else 1, dtype)
    width = cell.nbytes
    lines = f"""
        .reg .b{8 * width} %v;
        mad.wide.u32 %rd1, %index, {width}, %array0;
        ld.global.b{8 * width} %v, [%rd1];
        red.global.add.{ty} [%array1], %v;
    """
    device = execute(lines, [values, cell], ctas=2)
    wanted = np.zeros_like(cell)
    for row in values.reshape(-1, len(cell)):
        wanted += row
    np.testing.assert_array_equal(cell, wanted)
    assert (device.loads, device.stores) == (values.nbytes, 256 * width)


def test_vectors_are_added():
    cell = np.zeros(2, np.float32)
    execute("mov.f32 %r0, 0f3F800000; red.global.add.v2.f32 [%array0], {%r0, %r0};", [cell])
    assert cell.tolist() == [128, 128]


@pytest.mark.parametrize(("size", "read"), [(16, 16), (16, 0), (8, 8), (4, 4)])
def test_copies_from_global_to_shared_memory(size, read):
    """Bytes that are not read are zeros."""
    given = np.random.default_rng(0).integers(1, 256, 256 * size, dtype=np.uint8)
    out = np.zeros(256, np.uint32)
    lines = f"""
        {SHARED.format(width=size)}
        mad.wide.u32 %rd0, %index, {size}, %array0;
        mov.u32 %r2, {read};
        cp.async.{"cg" if size == 16 else "ca"}.shared.global [%r1], [%rd0], {size}, %r2;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ld.shared.b32 %r3, [%r1+{size - 4}];
        mad.wide.u32 %rd0, %index, 4, %array1;
        st.global.b32 [%rd0], %r3;
    """
    device = execute(lines, [given, out], ctas=2, shared_bytes=128 * size)
    last = given.view(np.uint32).reshape(256, -1)[:, -1]
    np.testing.assert_array_equal(out, last if read else 0 * last)
    assert device.loads == 256 * read


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_matrices(matrices, trans):
    """Each warp's 16-byte rows, one a lane, are 8x8 matrices of halves; lane t is given row t / 4, columns t % 4 * 2."""
    rows = np.random.default_rng(0).integers(0, 2**16, (256, 8), dtype=np.uint16)
    names = ", ".join(f"%r{4 + i}" for i in range(matrices))
    lines = f"""
        {SHARED.format(width=16)}
        mad.wide.u32 %rd0, %index, 16, %array0;
        ld.global.v2.b64 {{%rd2, %rd3}}, [%rd0];
        st.shared.v2.b64 [%r1], {{%rd2, %rd3}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{matrices}{trans}.shared.b16 {{{names}}}, [%r1];
        mad.wide.u32 %rd0, %index, 4, %array1;
        st.global.b32 [%rd0], %r{3 + matrices};
    """
    out = np.zeros(256, np.uint32)
    execute(lines, [rows, out], ctas=2, shared_bytes=2048)
    last = rows.reshape(8, 4, 8, 8)[:, matrices - 1]
    last = last.swapaxes(1, 2) if trans else last
    np.testing.assert_array_equal(out, np.ascontiguousarray(last).view(np.uint32).ravel())


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_is_the_opposite_of_ldmatrix(trans):
    lines = f"""
        {SHARED.format(width=16)}
        st.shared.b64 [%r1], 0;
        st.shared.b64 [%r1+8], 0;
        stmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 [%r1], {{%a, %b}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x2{trans}.shared.b16 {{%r2, %r3}}, [%r1];
        sub.u32 %r2, %r2, %a;
        sub.u32 %r3, %r3, %b;
        or.b32 %d, %r2, %r3;
    """
    assert not run(lines, [INDEX * 40503, INDEX * 30103], np.uint32, shared_bytes=2048).any()


def test_chosen_programs_run():
    out = np.zeros(4 * 128, np.uint32)
    device = Device()
    device.programs = [(1, 0, 0), (-1, 0, 0), (1, 0, 0)]
    execute("mad.wide.u32 %rd0, %index, 4, %array0; st.global.b32 [%rd0], 1;", [out], ctas=4, device=device)
    assert out.reshape(4, 128).all(1).tolist() == [False, True, False, True]
    assert device.count["st"] == 2


def test_registered_tensors_are_reached_by_their_address():
    hidden = torch.tensor([5, 6])
    table, device = np.array([hidden.data_ptr()]), Device()
    lines = "ld.global.b64 %rd0, [%array0]; ld.global.b64 %rd1, [%rd0+8]; st.global.b64 [%array0], %rd1;"
    device.register(hidden)
    execute(lines, [table], device=device, threads=32)
    assert table.tolist() == [6]


@pytest.mark.parametrize("programs", [1, 40, 1000])
def test_many_programs_run_in_groups(programs):
    """16,384 threads at a time."""
    out = np.zeros(programs * 1024, np.uint32)
    lines = "mad.wide.u32 %rd0, %index, 4, %array0; st.global.b32 [%rd0], %index;"
    execute(lines, [out], ctas=programs, threads=1024)
    np.testing.assert_array_equal(out, np.arange(len(out)))


def test_programs_that_communicate_run_alone():
    """Each adds to what the one before left, in the grid's order."""
    cell, out = np.ones(1, np.uint32), np.zeros(8, np.uint32)
    lines = """
        setp.ne.u32 %p0, %thread, 0;
        @%p0 ret;
        ld.volatile.global.b32 %r0, [%array0];
        atom.global.add.u32 %r1, [%array0], %r0;
        mov.u32 %r2, %ctaid.x;
        mad.wide.u32 %rd0, %r2, 4, %array1;
        st.global.b32 [%rd0], %r1;
    """
    execute(lines, [cell, out], ctas=8)
    assert out.tolist() == [2**i for i in range(8)]
