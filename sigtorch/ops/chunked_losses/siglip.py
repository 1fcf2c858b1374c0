"""The sigmoid loss of SigLIP: every image is paired with every text, and the positive pairs are on the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.nn.functional as F

from sigtorch import _checks
from sigtorch.ops.chunked_losses import checks, operators, ring
from sigtorch.ops.chunked_losses.function import (
    Compute,
    Result,
    breaks_graphs,
    loss_and_gradients,
    loss_of,
    needs_of,
)
from sigtorch.ops.chunked_losses.products import Needs, Operands, Work, steps, tile_of, unrounded, work_for

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def _in_group(*args: Any, group: ProcessGroup | None = None, **kwargs: Any) -> bool:
    return group is not None


@breaks_graphs(_in_group)
def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float | None = None,
    *,
    chunk_size: int | None = None,
    group: ProcessGroup | None = None,
) -> torch.Tensor:
    r"""Computes the sigmoid loss of n pairs of an image and a text, in memory that grows with n, not n².

    .. math:: \ell = -\frac{1}{n} \sum_i \sum_j \log \sigma\bigl(y_{ij} (s\, u_i \cdot v_j + b)\bigr)

    with y = 1 where i = j, and -1 elsewhere. Logits are computed for a chunk of images at a time. Gradients are computed
    with the loss: three matrix products in forward, as many as eager code needs in all, and none in backward. Features
    that need no gradient cost no product; if nothing needs one, there is one product. Loss and gradients are summed in
    float32 or wider.

    Exported, traced or transformed code, tensor subclasses such as DTensor, and the backend ``"aten"`` get a formula in
    PyTorch's operators, which holds all n² logits. For ``torch.compile`` the loss is one operator; a group breaks the graph.
    With ``retain_graph=True`` backward returns copies of the gradients.

    Args:
        image_features: u, shape (n, d), floating, and normalized if the model needs that.
        text_features: v, of the same shape and device.
        logit_scale: s, a number or a tensor of one element: the factor itself, not its logarithm.
        logit_bias: b, a number or a tensor of one element.
        chunk_size: images in a chunk; by default as many as suit the device.
        group: a process group of ``torch.distributed``, such as ``torch.distributed.group.WORLD``. Each process gives the
            same number n of pairs, and gets the loss of its images with the texts of all processes, divided by n. Texts
            pass round a ring, in memory of a few blocks. After DDP has averaged them, all gradients equal those of one
            process with all pairs. Every process must call the loss and backward equally often, with the same incoming
            gradient.

    Returns:
        A scalar of the features' dtype; under autocast float32 for half types. It can be differentiated once in every
        tensor given.

    Raises:
        TypeError: an argument that is no tensor or number, or is not floating; DTensors beside plain tensors.
        ValueError: features that are not (n, d) and of the same shape, n = 0, a scale or bias of several elements, a chunk
            size below 1, several devices; processes that give different shapes or dtypes, or get different gradients.
        RuntimeError: differentiated twice; a group with tensor subclasses, or in transformed code.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.

    Example:
        >>> image, text = torch.eye(3), torch.eye(3)
        >>> sigtorch.siglip_loss(image, text, logit_scale=10.0, logit_bias=-5.0)
        tensor(0.0201)
    """
    where = "siglip_loss()"
    checks.check_floating(where, image_features=image_features, text_features=text_features)
    logit_scale = checks.check_scalar(where, image_features, "logit_scale", logit_scale)
    if logit_bias is not None:
        logit_bias = checks.check_scalar(where, image_features, "logit_bias", logit_bias)
    chunk_size = checks.check_chunk_size(where, chunk_size)
    checks.check_group(where, group)
    wanted = ring.Wanted()
    if group is not None:
        wanted = ring.agree(where, group, image_features, text_features, (logit_scale, logit_bias))
    checks.check_features(where, image_features, text_features)
    n = image_features.shape[0]
    numbers = [t for t in (logit_scale, logit_bias) if isinstance(t, torch.Tensor)]
    work = work_for(
        "siglip_loss", image_features, text_features, numbers,
        divisor=n, group=group, any_wants_cols_grad=wanted.of_cols, any_needs_grad=wanted.of_any,
    )  # fmt: skip
    if work.runner == "aten":
        if group is not None:
            raise checks.error_group(where)
        try:
            return _formula(work, image_features, text_features, logit_scale, logit_bias)
        except RuntimeError:
            both = {"image_features": image_features, "text_features": text_features}
            checks.check_dtensors(where, **both, logit_scale=logit_scale, logit_bias=logit_bias)
            raise
    # A CUDA graph, which compiled code may be recorded in, copies nothing from the CPU.
    device = image_features.device if work.runner == "compiled" else torch.device("cpu")
    scale, bias = (
        t if t is None or isinstance(t, torch.Tensor) else _exact(t, device) for t in (logit_scale, logit_bias)
    )
    operands = Operands(image_features, text_features, scale, bias)
    settings = work.dtype, work.narrow, chunk_size
    if work.runner == "compiled":
        return OPERATOR(*operands, *settings, [*needs_of(operands)])[0]  # type: ignore[no-any-return]
    compute: Compute = partial(_by_operator, settings)
    if work.runner != "operator":
        compute = partial(_in_chunks, work, chunk_size)
    return loss_of(work.op, group, compute, operands)


def _exact(number: float, device: torch.device) -> torch.Tensor:
    """Returns a tensor of float64, independent of the default dtype and device."""
    return torch.full((), number, dtype=torch.float64, device=device)


def _in_chunks(work: Work, chunk_size: int | None, needs: Needs, operands: Operands) -> Result:
    work = replace(work, positives=steps(work.runner).on_diagonal())
    return loss_and_gradients(work, tile_of(work, operands.rows, operands.cols, chunk_size), needs, operands)


def _by_operator(settings: tuple[Any, ...], needs: Needs, operands: Operands) -> Result:
    return operators.call_observed(OPERATOR, (*operands, *settings), needs)


def _run(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None,
    dtype: torch.dtype, product_dtype: torch.dtype, chunk_size: int | None, needs: Sequence[bool],
) -> Result:  # fmt: skip
    """Computes the operator."""
    where = "torch.ops.sigtorch.siglip_loss"
    checks.check_floating(where, image_features=image, text_features=text)
    checks.check_features(where, image, text)
    for name, number in (("logit_scale", scale), ("logit_bias", bias)):
        if number is not None:
            checks.check_scalar(where, image, name, number)
    checks.check_chunk_size(where, chunk_size)
    work = Work(
        "siglip_loss", divisor=image.shape[0], dtype=dtype, narrow=product_dtype,
        runner=operators.runner(image, text, scale, bias),
    )  # fmt: skip
    operands = Operands(image, text, *(t if t is None else t.to(image.device) for t in (scale, bias)))
    return _in_chunks(work, chunk_size, Needs(*needs), operands)


OPERATOR = operators.define(
    "siglip_loss", "Tensor image_features, Tensor text_features, Tensor logit_scale, Tensor? logit_bias",
    ("image_features", "text_features", "logit_scale", "logit_bias"), _run, waits=False,
)  # fmt: skip


def _formula(work: Work, image: torch.Tensor, text: torch.Tensor, scale: Any, bias: Any) -> torch.Tensor:
    """Computes the loss in differentiable operators, which round the factors of the product as chunks do."""
    with unrounded(image):
        image, text = (t.to(work.narrow).to(work.wide) for t in (image, text))
        scale, bias = (t.reshape(()) if isinstance(t, torch.Tensor) else t for t in (scale, bias))
        z = (image @ text.t()).view(
            work.divisor, work.divisor
        ) * scale  # an error for another number of pairs, in a trace too
        z = z if bias is None else z + bias
        pairs = torch.ones_like(z, dtype=torch.bool).tril().triu()  # the diagonal: eye() would not be a DTensor
        return (F.softplus(torch.where(pairs, -z, z), threshold=50).sum() / work.divisor).to(work.dtype)


class SigLIPLoss(ring.HasGroup, torch.nn.Module):
    """Computes :func:`sigtorch.siglip_loss`; forward has the arguments of open_clip's ``SigLipLoss``.

    Args:
        chunk_size: images in a chunk; by default as many as suit the device.
        group: a process group whose texts are the negatives of each other's images.

    Raises:
        TypeError, ValueError: a chunk size that is no whole number, or below 1; a group that is no process group.

    Example:
        >>> loss = sigtorch.nn.SigLIPLoss()
        >>> loss(torch.eye(3), torch.eye(3), 10.0, -5.0)
        tensor(0.0201)
        >>> loss(torch.eye(3), torch.eye(3), 10.0, -5.0, output_dict=True)
        {'contrastive_loss': tensor(0.0201)}
    """

    def __init__(self, *, chunk_size: int | None = None, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.chunk_size = checks.check_chunk_size("SigLIPLoss()", chunk_size)
        checks.check_group("SigLIPLoss()", group)
        self.group = group

    @overload
    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | float | None = None,
        output_dict: Literal[False] = False,
    ) -> torch.Tensor: ...

    @overload
    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | float | None = None,
        *,
        output_dict: Literal[True],
    ) -> dict[str, torch.Tensor]: ...

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | float | None = None,
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Returns the loss, or {"contrastive_loss": loss} if output_dict is True."""
        loss = siglip_loss(
            image_features, text_features, logit_scale, logit_bias, chunk_size=self.chunk_size, group=self.group
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return _checks.shown(chunk_size=self.chunk_size, group=self.group)
