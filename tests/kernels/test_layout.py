"""What kernels reach, and what is copied for them."""

import torch

from sigtorch.kernels._layout import reached


def test_a_copy_is_as_small_as_what_is_copied(device):
    """Its axes lie in the output's order, so that it need not be expanded to them."""
    x = torch.empty(2, 3, 4, 6, device=device, memory_format=torch.channels_last)
    weight = torch.randn(3, 4, 6, device=device)
    same, copied = reached((x, weight), (x,))
    assert same is x
    assert copied.shape == weight.shape
    assert copied.stride() == x.stride()[1:]
    torch.testing.assert_close(copied, weight, rtol=0, atol=0)
