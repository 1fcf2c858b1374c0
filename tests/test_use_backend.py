"""A choice of backend: how long it holds, and for which thread, task and context."""

import asyncio
import contextvars
import functools
import threading

import numpy
import pytest
import torch
from support.refusing import refused

import sigtorch
from sigtorch import _backend


def test_an_unknown_backend_changes_nothing(variable):
    def use(name):
        with sigtorch.use_backend(name):
            pytest.fail("entered")

    with sigtorch.use_backend("aten"):
        refused(ValueError, lambda: use("cuda"), "'cuda'", "'triton'")
        refused(ValueError, lambda: use(None), "None")
        refused(ValueError, lambda: use(numpy.zeros(2)), "array([0., 0.])")
        assert _backend.chosen() == "aten"
    variable("tritn")
    refused(ValueError, lambda: sigtorch.sigmoid(torch.randn(2)), "SIGTORCH_BACKEND", "'tritn'")


def test_an_exception_ends_a_choice():
    before = _backend.chosen()
    with pytest.raises(ZeroDivisionError), sigtorch.use_backend("aten"):
        raise ZeroDivisionError
    assert _backend.chosen() == before


def test_the_variable_and_the_context(variable, device):
    x = torch.randn(3, device=device)
    variable("triton")
    assert sigtorch.backend_of(x) == "triton"
    with sigtorch.use_backend("aten"):
        assert sigtorch.backend_of(x) == "aten"
        with sigtorch.use_backend("triton"):
            assert sigtorch.backend_of(x) == "triton"
        assert sigtorch.backend_of(x) == "aten"
    assert sigtorch.backend_of(x) == "triton"
    variable("")
    assert sigtorch.backend_of(torch.randn(3)) == "aten"


@pytest.mark.parametrize("name", ["auto", "triton", "aten"])
def test_a_choice_inside_of_what_is_compiled(name):
    """Compiled code runs PyTorch's operators, whatever the choice; it may be made there, and a wrong one is an error."""

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def compiled(x):
        with sigtorch.use_backend(name):
            return sigtorch.sigmoid_gate(x, x)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    @sigtorch.use_backend(name)
    def decorated(x):
        return sigtorch.sigmoid_gate(x, x)

    x = torch.randn(3)
    for function in (compiled, decorated):
        torch.testing.assert_close(function(x), torch.sigmoid(x) * x)
    assert _backend.chosen() == "auto"


def test_a_choice_is_the_threads_own():
    seen = []
    with sigtorch.use_backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(_backend.chosen()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_a_choice_is_the_tasks_own():
    async def choose(name):
        with sigtorch.use_backend(name):
            await asyncio.sleep(0.01)
            return _backend.chosen()

    async def both():
        return await asyncio.gather(choose("aten"), choose("triton"), choose("auto"))

    assert asyncio.run(both()) == ["aten", "triton", "auto"]


def test_a_wrong_choice_is_refused_where_it_is_made():
    refused(ValueError, lambda: sigtorch.use_backend("tritn"), "'tritn'")
    refused(ValueError, lambda: sigtorch.patched_functions(save="both"), "'both'")


async def coroutine():
    return _backend.chosen()


def generator():
    yield _backend.chosen()


async def asynchronous():
    yield _backend.chosen()


@pytest.mark.parametrize("function", [coroutine, generator, asynchronous, functools.partial(coroutine)])
def test_what_runs_after_the_block_cannot_be_decorated(function):
    refused(TypeError, lambda: sigtorch.use_backend("aten")(function), "use_backend()", "function")
    refused(TypeError, lambda: sigtorch.patched_functions()(function), "patched_functions()", "function")


def test_a_block_is_entered_once():
    block = sigtorch.use_backend("aten")
    with block:
        refused(RuntimeError, block.__enter__, "use_backend()", "entered before")
        assert _backend.chosen() == "aten"
    refused(RuntimeError, block.__enter__, "use_backend()", "entered before")
    assert _backend.chosen() == "auto"
    block = sigtorch.patched_functions()
    with block:
        refused(RuntimeError, block.__enter__, "patched_functions()", "entered before")
        assert len(torch.overrides._get_current_function_mode_stack()) == 1


def test_blocks_may_be_left_in_any_order():
    outer, inner = sigtorch.use_backend("aten"), sigtorch.use_backend("triton")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert _backend.chosen() == "triton"
    inner.__exit__(None, None, None)
    assert _backend.chosen() == "auto"


def test_what_starts_inside_of_a_block_keeps_its_choice():
    """A task, or a context that is copied, is there still when the block has been left."""
    with sigtorch.use_backend("aten"):
        context = contextvars.copy_context()
    assert context.run(_backend.chosen) == "aten"

    async def child(parent_left):
        before = _backend.chosen()
        await parent_left.wait()
        return before, _backend.chosen()

    async def parent():
        left = asyncio.Event()
        with sigtorch.use_backend("aten"):
            task = asyncio.create_task(child(left))
            await asyncio.sleep(0)
        left.set()
        return await task

    assert asyncio.run(parent()) == ("aten", "aten")


def test_two_blocks_that_were_left_are_passed_over():
    blocks = [sigtorch.use_backend(name) for name in ("aten", "triton", "aten")]
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert _backend.chosen() == "auto"


def test_blocks_left_elsewhere_do_not_pile_up():
    async def steps():
        with sigtorch.use_backend("aten"):
            yield

    async def leave():
        for _ in range(3):
            left = steps()
            await anext(left)
            await asyncio.create_task(left.aclose())
        return _backend._innermost.get().outer

    assert asyncio.run(leave()) is None


def test_an_async_generator_left_early_ends_its_choice():
    async def steps():
        with sigtorch.use_backend("aten"):
            yield _backend.chosen()

    async def leave():
        left = steps()
        assert await anext(left) == "aten"
        await asyncio.create_task(left.aclose())  # in a context of its own, as an event loop does at its end
        return _backend.chosen()

    assert asyncio.run(leave()) == "auto"
