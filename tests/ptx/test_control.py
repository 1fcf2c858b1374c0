"""Branches, barriers, and what the threads of a warp do together."""

import numpy as np
import pytest
from support.ptx.running import execute, run

NUMBERS = np.random.default_rng(0).integers(0, 2**32, 256, dtype=np.uint32)
INDEX = np.arange(256, dtype=np.uint32)
LANE = INDEX % 32


def test_threads_part_and_meet():
    lines = """
        setp.lt.u32 %p0, %a, 10;
        @%p0 bra $small;
        mul.lo.u32 %d, %a, 3;
        bra.uni $end;
    $small:
        add.u32 %d, %a, 100;
    $end:
        add.u32 %d, %d, 1;
    """
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), np.where(INDEX < 10, INDEX + 101, 3 * INDEX + 1))


def test_each_thread_turns_a_loop_as_often_as_it_needs():
    lines = """
        mov.u32 %d, 0;
        mov.u32 %r0, %a;
    $next:
        setp.eq.u32 %p0, %r0, 0;
        @%p0 bra $end;
        add.u32 %d, %d, %r0;
        sub.u32 %r0, %r0, 1;
        bra $next;
    $end:
    """
    np.testing.assert_array_equal(run(lines, [LANE], np.uint32), LANE * (LANE + 1) // 2)


@pytest.mark.parametrize("leave", ["ret", "exit"])
def test_threads_leave_early(leave):
    lines = f"setp.ge.u32 %p0, %a, 7; @%p0 {leave}; mov.u32 %d, 5;"
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), np.where(INDEX < 7, 5, 0))


def test_what_no_thread_does_leaves_all_ones():
    lines = "setp.gt.u32 %p0, %a, 1000; @%p0 mov.u32 %d, 5;"
    assert (run(lines, [INDEX], np.uint32) == 0xFFFFFFFF).all()


def test_undefined_registers_are_all_ones():
    """LLVM leaves registers undefined where any value does."""
    assert (run("add.u32 %d, %r9, 1;", [INDEX], np.uint32) == 0).all()
    lines = "mov.u32 %d, 3;\n// implicit-def: %d\n// implicit-def: %r8\nadd.u32 %d, %d, %r8;"
    assert (run(lines, [INDEX], np.uint32) == 2).all()


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 0, 128;", "barrier.sync.aligned 0;"])
@pytest.mark.parametrize("late", [0, 1, 64, 127])
def test_a_barrier_waits_for_all(barrier, late):
    """Threads from ``late`` on take the longer way, write last, and are read by the others."""
    lines = f"""
        setp.lt.u32 %p0, %thread, {late};
        mov.u32 %r0, global_smem;
        mad.lo.u32 %r1, %thread, 4, %r0;
        @%p0 bra $early;
        mul.lo.u32 %r2, %a, 2;
        st.shared.b32 [%r1], %r2;
        bra $together;
    $early:
        st.shared.b32 [%r1], %a;
    $together:
        {barrier}
        sub.u32 %r3, 127, %thread;
        mad.lo.u32 %r1, %r3, 4, %r0;
        ld.shared.b32 %d, [%r1];
    """
    written = np.where(late > INDEX % 128, INDEX, 2 * INDEX)
    np.testing.assert_array_equal(
        run(lines, [INDEX], np.uint32, shared_bytes=512), written.reshape(2, 128)[:, ::-1].ravel()
    )


def test_a_barrier_comes_before_what_lies_further_down():
    """Threads part, and those at the lowest address run first: they would read before the others write."""
    lines = """
        mov.u32 %r0, global_smem;
        mad.lo.u32 %r1, %thread, 4, %r0;
        setp.lt.u32 %p0, %thread, 64;
        @!%p0 bra $late;
        st.shared.b32 [%r1], %a;
    $together:
        bar.sync 0;
        xor.b32 %r2, %r1, 508;
        ld.shared.b32 %d, [%r2];
        bra $end;
    $late:
        st.shared.b32 [%r1], %a;
        bra $together;
    $end:
    """
    given = run(lines, [INDEX], np.uint32, shared_bytes=512)
    np.testing.assert_array_equal(given, INDEX.reshape(2, 128)[:, ::-1].ravel())


def test_a_barrier_does_not_wait_for_those_that_left():
    lines = "setp.ge.u32 %p0, %thread, 64; @%p0 ret; bar.warp.sync -1; bar.sync 0; mov.u32 %d, 1;"
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), INDEX % 128 < 64)


def test_memory_is_in_order():
    lines = "membar.gl; fence.acq_rel.gpu; griddepcontrol.wait; mov.u32 %d, %a;"
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), INDEX)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode, offset, width):
    """Limits of segments of ``width`` lanes: the last that may be asked is the first of a segment for up, and its last else."""
    clamp = (32 - width << 8) | (0 if mode == "up" else 31)
    lines = f"""
        shfl.sync.{mode}.b32 %d|%p0, %a, {offset}, {clamp}, -1;
        selp.b32 %r0, 1, 0, %p0;
        xor.b32 %d, %d, %r0;
    """
    lane = LANE.astype(int)
    first = lane // width * width
    source = {"up": lane - offset, "down": lane + offset, "bfly": lane ^ offset, "idx": first + offset % width}[mode]
    inside = source >= first if mode == "up" else source < first + width
    wanted = NUMBERS[INDEX - LANE + np.where(inside, source, lane)] ^ inside
    np.testing.assert_array_equal(run(lines, [NUMBERS], np.uint32), wanted)


REDUCTIONS = {
    "add.u32": np.add,
    "add.s32": np.add,
    "min.u32": np.minimum,
    "max.s32": np.maximum,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
}


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_warp_reduces_integers(kind):
    given = run(f"redux.sync.{kind} %d, %a, -1;", [NUMBERS], np.uint32)
    numbers = NUMBERS.view(np.int32) if "s32" in kind else NUMBERS
    wanted = np.repeat(REDUCTIONS[kind].reduce(numbers.reshape(-1, 32), 1), 32)
    np.testing.assert_array_equal(given, wanted.astype(numbers.dtype).view(np.uint32))


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("min", lambda a: np.fmin.reduce(a, 1)),
        ("max", lambda a: np.fmax.reduce(a, 1)),
        ("max.NaN", lambda a: np.maximum.reduce(a, 1)),
        ("min.abs", lambda a: np.fmin.reduce(np.abs(a), 1)),
    ],
)
def test_a_warp_reduces_floats(kind, function):
    numbers = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    numbers[5] = np.nan
    given = run(f"redux.sync.{kind}.f32 %d, %a, -1;", [numbers.view(np.uint32)], np.float32)
    np.testing.assert_array_equal(given, np.repeat(function(numbers.reshape(-1, 32)), 32))


@pytest.mark.parametrize("bound", [0, 5, 300])
@pytest.mark.parametrize("kind", ["all", "any", "uni", "ballot"])
def test_a_warp_votes(kind, bound):
    if kind == "ballot":
        lines = f"setp.lt.u32 %p0, %a, {bound}; vote.sync.ballot.b32 %d, %p0, -1;"
    else:
        lines = f"setp.lt.u32 %p0, %a, {bound}; vote.sync.{kind}.pred %p1, %p0, -1; selp.b32 %d, 1, 0, %p1;"
    votes = (bound > INDEX).reshape(-1, 32)
    wanted = {
        "all": votes.all(1),
        "any": votes.any(1),
        "uni": votes.all(1) | ~votes.any(1),
        "ballot": np.packbits(votes, axis=1, bitorder="little").view(np.uint32)[:, 0],
    }[kind]
    np.testing.assert_array_equal(run(lines, [INDEX], np.uint32), np.repeat(wanted, 32))


def test_special_registers():
    """The grid is 2 CTAs of 128 threads."""
    out = np.zeros((6, 256), np.uint32)
    lines = "mad.wide.u32 %at, %index, 4, %array0;\n"
    names = ["%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x", "%laneid", "%tid.y"]
    for i, name in enumerate(names):
        lines += f"mov.u32 %r0, {name}; st.global.b32 [%at+{1024 * i}], %r0;\n"
    execute(lines, [out], ctas=2)
    wanted = [INDEX % 128, 0 * INDEX + 128, INDEX // 128, 0 * INDEX + 2, LANE, 0 * INDEX]
    np.testing.assert_array_equal(out, wanted)
