"""Mistakes that a type checker rejects, each line after the first block. Never run."""
# mypy: warn-return-any, warn-unused-ignores, disallow-untyped-calls

import torch

import sigtorch

x = torch.zeros(2)

sigtorch.sigmoid(x, save="both")
sigtorch.nn.Sigmoid(save="inputs")
sigtorch.patch(torch.nn.Identity(), save="x")
sigtorch.patched_functions(save="s")
sigtorch.binary_cross_entropy_with_logits(x, x, reduction="avg")
sigtorch.binary_cross_entropy_with_logits(x, x, None, "sum")
sigtorch.nn.BCEWithLogitsLoss(reduction="batchmean")
sigtorch.sigmoid_focal_loss(x, x, 0.25, 2.0, "average")
sigtorch.nn.SigmoidFocalLoss(reduction="Sum")
sigtorch.linear_binary_cross_entropy(x, x, x, reduction="none")
sigtorch.nn.LinearBCE(2, 2, reduction="none")
sigtorch.use_backend("cuda")
sigtorch.nn.SwiGLU(2)
sigtorch.nn.SigmoidGate(x)
