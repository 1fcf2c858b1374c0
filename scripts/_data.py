"""Choose the samples that a step learns from: a function of seed and step alone, the same in every process."""

from functools import lru_cache

import numpy
import torch
from _distributed import rank, size
from torch import Tensor


def drawn(seed: int, step: int, batch: int, samples: int) -> Tensor:
    """The numbers of a step's samples, each drawn from all of them."""
    return torch.from_numpy(numpy.random.default_rng((seed, step)).integers(samples, size=batch))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, samples: int) -> Tensor:
    return torch.from_numpy(numpy.random.default_rng((seed, epoch)).permutation(samples))


def shuffled(seed: int, step: int, batch: int, samples: int) -> Tensor:
    """The numbers of a step's samples, where each epoch takes every one once, in an order of its own.

    Batches are full: one that an epoch's end leaves short goes on with the next epoch.
    """
    places = torch.arange((step - 1) * batch, step * batch)
    epochs = range(int(places[0]) // samples, int(places[-1]) // samples + 1)
    return torch.cat([_order(seed, epoch, samples)[places[places // samples == epoch] % samples] for epoch in epochs])


def share(batch: Tensor, accumulate: int, parallel: str = "ddp") -> list[Tensor]:
    """The samples that this process takes of a batch, in as many parts as gradients are accumulated over.

    Processes that share labels take all samples each.
    """
    if parallel == "labels":
        return list(batch.view(accumulate, -1))
    return list(batch.view(accumulate, size(), -1)[:, rank()])


def move_to(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU fetches it without making the host wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def first_numbers(numbers: Tensor, count: int = 8) -> str:
    """The first of them, as text."""
    more = f", ... ({len(numbers)} in all)" if len(numbers) > count else ""
    return ", ".join(str(number) for number in numbers[:count].tolist()) + more
