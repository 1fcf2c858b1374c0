"""Layouts that kernels follow, and copies of what they cannot."""

import pytest
import torch
from support.cases import every_other

from sigtorch.kernels import _math, _plan
from sigtorch.kernels._layout import TRANSPOSED, WARPS, Unreachable, axes_of, layout_of, with_copies
from sigtorch.kernels._map import _map_call
from sigtorch.kernels._reduce import _map_and_sum_call


def test_a_copy_is_as_small_as_what_is_copied(device):
    """Its axes have the output's order, so that it need not be expanded."""
    x = torch.empty(2, 3, 4, 6, device=device, memory_format=torch.channels_last)
    weight = torch.randn(3, 4, 6, device=device)
    same, copied = with_copies((x, weight), (x,))
    assert same is x
    assert copied.shape == weight.shape
    assert copied.stride() == x.stride()[1:]
    torch.testing.assert_close(copied, weight, rtol=0, atol=0)


def test_unreachable_inputs_have_no_layout(device):
    x = torch.empty(2, 3, 4, device=device)
    with pytest.raises(Unreachable):
        layout_of((every_other(x),), (x,))
    first_last, second_last = (x.transpose(i, 2).contiguous().transpose(i, 2) for i in (0, 1))
    for one in (first_last, second_last):
        assert TRANSPOSED in layout_of((one,), (x,)).kinds
    with pytest.raises(Unreachable):  # rows would be two axes
        layout_of((first_last, second_last), (x,))


def test_a_fourth_axis_is_one_of_batches(device):
    x = torch.empty(2, 3, 5, 4, device=device)
    layout = layout_of((x, x[:, :1, :, :1]), (x,))
    assert (layout.batches, layout.rows, layout.cols) == (2 * 3, 5, 4)
    assert layout.batch_sizes == (3,)


def test_axes_are_found_once_per_plan(device, plans, monkeypatch):
    """Finding them takes longer than all else that makes a plan."""
    found = []
    monkeypatch.setattr(
        "sigtorch.kernels._layout.axes_of", lambda *args, **kw: found.append(args) or axes_of(*args, **kw)
    )
    x = torch.empty(4, 32, device=device)
    _plan.plan(_map_call, _math.sigmoid_gate, tuple(x.chunk(2, -1)), (torch.empty(4, 16, device=device),), (None, 4))
    assert len(found) == 1


def test_a_short_row_is_summed_by_one_program(device):
    """Its parts would take a launch more to add up."""
    for columns in (17, 64):
        x, gate = torch.empty(8, columns, device=device), torch.empty(8, 1, device=device)
        call = _map_and_sum_call(_math.dsigmoid_gate, (x, x, gate), (x,), (0, 1), gate.shape, gate.dtype, WARPS)
        assert call.partials == 1
