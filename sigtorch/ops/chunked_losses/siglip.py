"""SigLIP's loss: every image with every text, and the pairs that belong together on the diagonal."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

from sigtorch.ops.chunked_losses import checks, ring
from sigtorch.ops.chunked_losses.function import loss_of, uncompiled
from sigtorch.ops.chunked_losses.products import Work, tile_of, unrounded, work_for


@uncompiled
def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float | None = None,
    *,
    chunk_size: int | None = None,
    group: Any = None,
) -> torch.Tensor:
    r"""Computes the sigmoid loss of images and texts that belong together in pairs, in memory that grows with n, not n².

    .. math:: \ell = -\frac{1}{n} \sum_i \sum_j \log \sigma\bigl(y_{ij} (s\, u_i \cdot v_j + b)\bigr)

    with y 1 where i = j and -1 elsewhere. Logits are formed a chunk of images at a time. Gradients are computed with the
    loss: three matrix products in forward, as many as eager code needs in all, and none in backward. A side that wants no
    gradient costs no product; without any, there is one. Loss and gradients are summed in float32 or wider.

    Exported, traced or transformed code, tensor subclasses such as DTensor, and the backend ``"aten"`` get a formula in
    PyTorch's operators, which holds all n² logits. ``torch.compile`` does not look into the loss: the graph breaks there.
    With ``retain_graph=True`` backward hands out copies of the gradients.

    Args:
        image_features: u of shape (n, d), floating; normalized, if the model says so, by the caller.
        text_features: v of the same shape and device.
        logit_scale: s, a number or a tensor of one element: what multiplies the similarities, not its logarithm.
        logit_bias: b, likewise, or None for none.
        chunk_size: images in a chunk; what suits the device, where it is None.
        group: a process group of ``torch.distributed``, as ``torch.distributed.group.WORLD``: each process gives as many
            pairs of its own and gets the loss of its images with all processes' texts, divided by its own n. Texts pass
            round a ring in memory of a few blocks. After DDP has averaged them, all gradients are those of one process
            with all pairs. Every process has to call this, and backward as often, with the same incoming gradient.

    Returns:
        A scalar of the features' dtype; under autocast float32 for half types. Differentiable once in every tensor given.

    Raises:
        TypeError: what is no tensor or number, or not floating; DTensors beside plain tensors.
        ValueError: shapes that are not (n, d) and the same, n = 0, a scale or bias of several elements, a chunk size
            below 1, several devices, processes that give different shapes or dtypes, or get different gradients.
        RuntimeError: differentiated twice; a group with what is no plain tensor, compiled or transformed.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
    """
    where = "siglip_loss()"
    checks.floating(where, image_features=image_features, text_features=text_features)
    logit_scale = checks.scalar(where, image_features, "logit_scale", logit_scale)
    if logit_bias is not None:
        logit_bias = checks.scalar(where, image_features, "logit_bias", logit_bias)
    chunk_size = checks.chunk_size(where, chunk_size)
    group = checks.group(where, group)
    wanted = group is not None and ring.agreed(where, group, image_features, text_features)
    checks.features(where, image_features, text_features)
    n = image_features.shape[0]
    numbers = [t for t in (logit_scale, logit_bias) if isinstance(t, torch.Tensor)]
    work = work_for(
        "siglip_loss", image_features, text_features, numbers,
        find=_Diagonal(image_features.device), divisor=n, group=group, wanted=wanted,
    )  # fmt: skip
    if work.step == "aten":
        if group is not None:
            raise checks.no_group(where)
        try:
            return _formula(work, image_features, text_features, logit_scale, logit_bias)
        except RuntimeError:
            both = {"image_features": image_features, "text_features": text_features}
            checks.distributed(where, **both, logit_scale=logit_scale, logit_bias=logit_bias)
            raise
    given = (t if t is None or isinstance(t, torch.Tensor) else _exact(t) for t in (logit_scale, logit_bias))
    tile = tile_of(work, image_features, text_features, chunk_size)
    return loss_of(work, tile, image_features, text_features, *given)


def _exact(number: float) -> torch.Tensor:
    """Whatever the default dtype and device are."""
    return torch.tensor(number, dtype=torch.float64, device="cpu")


class _Diagonal:
    """The positives of a chunk: each row with its own column."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, top: int, bottom: int, left: int, right: int) -> torch.Tensor | None:
        first, last, width = max(top, left), min(bottom, right), right - left
        if first >= last:
            return None
        corner = (first - top) * width + first - left
        return torch.arange(corner, corner + (last - first) * (width + 1), width + 1, device=self.device)


def _formula(work: Work, image: torch.Tensor, text: torch.Tensor, scale: Any, bias: Any) -> torch.Tensor:
    """Plain and differentiable, with the same rounding of what is multiplied."""
    with unrounded(image):
        image, text = (t.to(work.narrow).to(work.wide) for t in (image, text))
        scale, bias = (t.reshape(()) if isinstance(t, torch.Tensor) else t for t in (scale, bias))
        z = (image @ text.t()).view(work.divisor, work.divisor) * scale  # which a trace would take of any shape
        z = z if bias is None else z + bias
        pairs = torch.ones_like(z, dtype=torch.bool).tril().triu()  # the diagonal, of DTensors too
        return (F.softplus(torch.where(pairs, -z, z), threshold=50).sum() / work.divisor).to(work.dtype)


class SigLIPLoss(torch.nn.Module):
    """:func:`sigtorch.siglip_loss` as a module, whose forward takes what open_clip's ``SigLipLoss`` takes.

    Args:
        chunk_size: images in a chunk; what suits the device, where it is None.
        group: a process group whose texts are the negatives of each other's images.

    Raises:
        TypeError, ValueError: a chunk size that is no whole number, or below 1; a group that is none.
    """

    def __init__(self, *, chunk_size: int | None = None, group: Any = None) -> None:
        super().__init__()
        self.chunk_size = checks.chunk_size("SigLIPLoss()", chunk_size)
        self.group = checks.group("SigLIPLoss()", group)

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | float | None = None,
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The loss, or {"contrastive_loss": loss} where a dictionary is asked for."""
        loss = siglip_loss(
            image_features, text_features, logit_scale, logit_bias, chunk_size=self.chunk_size, group=self.group
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def __deepcopy__(self, memo: dict[int, Any]) -> SigLIPLoss:
        """With the same group, of which there is no copy."""
        memo[id(self.group)] = self.group
        copied = type(self).__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def extra_repr(self) -> str:
        return f"chunk_size={self.chunk_size}"
