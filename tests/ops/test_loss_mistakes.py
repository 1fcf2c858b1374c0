"""Error messages of the losses: one line each that quotes what was seen."""

import contextlib
import math
import warnings

import numpy
import pytest
import torch
from support.loss_cases import LOSSES, WITH_OPTIONS
from torch.autograd.forward_ad import dual_level
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sigtorch import asymmetric_loss, quality_focal_loss, varifocal_loss
from sigtorch.nn import AsymmetricLoss, BCEWithLogitsLoss, QualityFocalLoss, SigmoidFocalLoss, VarifocalLoss


class Duck:
    """An object that overrides torch functions."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return func


X = torch.zeros(3, 4)
F8 = X.to(torch.float8_e4m3fn)
ROW = torch.zeros(3, dtype=torch.int64)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch means to remove them
    QUANTIZED = torch.quantize_per_tensor(torch.tensor(0.5), 0.1, 0, torch.quint8)
# What is no number, though some of it has a __float__ or an __index__.
NO_NUMBERS = [
    (torch.rand(2), ValueError, r"a number or a 0-d tensor, got shape \(2,\)"),
    (torch.rand(1), ValueError, r"a number or a 0-d tensor, got shape \(1,\)"),
    (numpy.zeros((2, 3)), ValueError, r"a number or a 0-d tensor, got shape \(2, 3\)"),
    (torch.tensor(0.5).to_sparse(), TypeError, "a number or a dense tensor, got torch.sparse_coo"),
    (QUANTIZED, TypeError, "a real number, got torch.quint8"),
    (torch.tensor(1j), TypeError, "a real number, got torch.complex64"),
    (numpy.complex64(1j), TypeError, "a real number, got complex64"),
    (numpy.array("a"), TypeError, "a real number, got <U1"),
    (1j, TypeError, "a number, got complex"),
    ([1.0], TypeError, "a number, got list"),
    ("1", TypeError, "a number, got str"),
    (torch.tensor(0.5, device="meta"), ValueError, "on cpu, .* on meta"),
]
NO_INDICES = [
    (torch.arange(2), TypeError, r"a whole number, got tensor\(\[0, 1\]\)"),
    (torch.zeros(9, 3), TypeError, r"a whole number, got tensor\(\[\[0"),
    (numpy.arange(2), TypeError, r"a whole number, got array\(\[0, 1\]\)"),
    (torch.tensor(1.0), TypeError, r"a whole number, got tensor\(1.\)"),
    (torch.tensor(1, device="meta"), TypeError, "a whole number, got tensor"),
    (None, TypeError, "a whole number, got NoneType"),
    (2**63, ValueError, "must fit into 64 bits, got 9223372036854775808"),
    (-(2**70), ValueError, "must fit into 64 bits, got -118"),
]
WITHOUT_OPTIONS = [f for f in LOSSES if f not in WITH_OPTIONS]
SETTINGS = [
    *((asymmetric_loss, name) for name in ("gamma_neg", "gamma_pos", "clip")),
    (quality_focal_loss, "beta"),
    *((varifocal_loss, name) for name in ("alpha", "gamma")),
]
NO_SETTINGS = [
    *((v, e, s) for v, e, s in NO_NUMBERS if not isinstance(v, torch.Tensor)),
    (torch.tensor(0.5), TypeError, r"must be a Python number, got Tensor; give [a-z_]+\.item\(\)"),
    (-0.5, ValueError, "at least 0.*, got -0.5"),
    (math.nan, ValueError, "at least 0.*, got nan"),
    (math.inf, ValueError, "got inf"),
    (10**400, ValueError, "got 10000"),
]
NUMBERS = [(LOSSES[0], "label_smoothing"), *((LOSSES[1], name) for name in ("alpha", "gamma", "normalizer"))]
BAD = [
    *((f, (X, X), {name: v}, e, s) for f, name in NUMBERS for v, e, s in NO_NUMBERS),
    *((f, (X, ROW), {"background_index": v}, e, s) for f in WITH_OPTIONS for v, e, s in NO_INDICES),
    *((f, (X, ROW), {"ignore_index": v}, e, s) for f in WITH_OPTIONS for v, e, s in NO_INDICES if v is not None),
    *(
        (f, (X, t), {"dim": v}, e, s)
        for f in WITH_OPTIONS
        for t in (X, ROW)
        for v, e, s in NO_INDICES
        if e is TypeError
    ),
    *((f, (X, X), {"dim": d}, ValueError, f"dim={d} is not one of input") for f in WITH_OPTIONS for d in (2, -3)),
    (
        LOSSES[0],
        (X[0, 0], X[0, 0]),
        {"dim": 1},
        ValueError,
        r"dim=1 is not one of input, whose shape is \(\)",
    ),
    (
        LOSSES[0],
        (X, ROW),
        {"dim": 0},
        ValueError,
        r"\(3, 4\) must lack its dim=0, got target of shape \(3,\)",
    ),
    (LOSSES[1], (X[:1], torch.zeros(4).long()), {"dim": 0}, ValueError, "two classes or more"),
    *(
        (
            f,
            (X, ROW),
            {"ignore_index": -1},
            ValueError,
            "must differ, got -1 for both; .* give another background_index",
        )
        for f in WITH_OPTIONS
    ),
    (LOSSES[1], (X, ROW), {"ignore_index": 7, "background_index": 7}, ValueError, "must differ, got 7 for both"),
    (LOSSES[0], (X, (X + 255).byte()), {}, ValueError, "give target > 0 for a mask, or ignore_index=255"),
    (
        LOSSES[0],
        (X, (X + 254).byte()),
        {"ignore_index": 255},
        ValueError,
        "holds 254, expected 0 and 1; .* for a mask$",
    ),
    (
        LOSSES[1],
        (X, torch.arange(12).view(3, 4).byte()),
        {"ignore_index": 11},
        ValueError,
        "holds 10, expected 0 and 1",
    ),
    (LOSSES[0], (X, ROW + 5), {"ignore_index": 6}, ValueError, "holds class 5, .* for no class, or ignore_index=6"),
    (LOSSES[1], (X, X), {"pos_weight": X[:2]}, ValueError, r"pos_weight of shape \(2, 4\) does not broadcast"),
    (LOSSES[1], (X, X), {"pos_weight": 2.0}, TypeError, "pos_weight must be a Tensor, got float"),
    (LOSSES[1], (X, X), {"pos_weight": X.to("meta")}, ValueError, "pos_weight on meta"),
    (LOSSES[1], (X, X), {"pos_weight": X.to(torch.complex64)}, TypeError, "pos_weight must be real"),
    (BCEWithLogitsLoss, (), {"ignore_index": 1.5}, TypeError, "ignore_index must be a whole number, got float"),
    (BCEWithLogitsLoss, (), {"dim": "1"}, TypeError, "dim must be a whole number, got str"),
    (SigmoidFocalLoss, (), {"ignore_index": 2**63}, ValueError, "ignore_index must fit into 64 bits"),
    (SigmoidFocalLoss, (), {"dim": None}, TypeError, "dim must be a whole number, got NoneType"),
    (SigmoidFocalLoss, (), {"pos_weight": 3}, TypeError, "pos_weight must be a Tensor, got int"),
    (LOSSES[1], (X, X), {"gamma": 10**400}, ValueError, "gamma must be finite and at least 0, got 10"),
    (LOSSES[0], (X, X), {"reduction": X}, ValueError, "unknown reduction=tensor"),
    (LOSSES[0], (X, X), {"reduction": X.numpy()}, ValueError, "unknown reduction=array"),
    (LOSSES[0], (X[0, 0], X[0, 0].to("meta")), {}, ValueError, "several devices: input on cpu, target on meta"),
    (LOSSES[1], (X[0, 0], X[0, 0]), {"normalizer": torch.ones((), device="meta")}, ValueError, "normalizer on meta"),
    (SigmoidFocalLoss, (torch.rand(2),), {}, ValueError, r"alpha must be a number or a 0-d tensor, got shape \(2,\)"),
    (LOSSES[0], (X, X), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (LOSSES[0], (X, X, None, None, None, None), {}, ValueError, "unknown reduction=None"),
    (LOSSES[0], (X, X, None, "sum"), {}, ValueError, "size_average='sum' and reduce=None are not supported"),
    (LOSSES[0], (X, X), {"size_average": True}, ValueError, "size_average=True"),
    (LOSSES[0], (X, X), {"reduce": False}, ValueError, "reduce=False"),
    (LOSSES[0], (X, X), {"label_smoothing": 1.5}, ValueError, "got 1.5"),
    (LOSSES[0], (X, X), {"label_smoothing": math.nan}, ValueError, "got nan"),
    (LOSSES[0], (X, X), {"label_smoothing": "a"}, TypeError, "label_smoothing must be a number, got str"),
    (LOSSES[0], (Duck(), X), {}, TypeError, "input must be a Tensor, got Duck"),
    (LOSSES[0], (X, X.to("meta")), {}, ValueError, "several devices: input on cpu, target on meta"),
    (LOSSES[0], (X.to("meta"), X), {}, ValueError, "several devices: input on meta, target on cpu"),
    (LOSSES[0], (X, X), {"pos_weight": X.to("meta")}, ValueError, "pos_weight on meta"),
    (LOSSES[1], (X, X), {"alpha": None}, TypeError, "alpha must be a number, got NoneType"),
    (LOSSES[1], (X, X), {"background_index": 1.0}, TypeError, "background_index must be a whole number, got float"),
    (LOSSES[1], (X, X), {"normalizer": 10**400}, ValueError, "normalizer must be positive and finite, got 10"),
    (LOSSES[0], (X, X[0]), {}, ValueError, r"\(3, 4\), got \(4,\)"),
    (LOSSES[0], (X, X), {"weight": X[:2]}, ValueError, r"weight of shape \(2, 4\) does not broadcast to \(3, 4\)"),
    (LOSSES[0], (X, X), {"pos_weight": X[None]}, ValueError, r"pos_weight of shape \(1, 3, 4\)"),
    (LOSSES[0], (X.long(), X), {}, TypeError, "input must be floating point of 16 bits or more, got torch.int64"),
    *(
        (LOSSES[0], given, options, TypeError, "of 16 bits or more, .*got torch.float8_e4m3fn")
        for given, options in (
            ((F8, X), {}),
            ((F8, ROW), {}),
            ((X, F8), {}),
            ((X, F8), {"ignore_index": 1}),
            ((X, X), {"weight": F8}),
            ((X, X), {"pos_weight": F8}),
        )
    ),
    (LOSSES[1], (F8, X), {}, TypeError, "of 16 bits or more, got torch.float8_e4m3fn"),
    (LOSSES[1], (X, F8), {"ignore_index": 1}, TypeError, "of 16 bits or more, .*got torch.float8_e4m3fn"),
    (LOSSES[0], (X, X.int()), {}, TypeError, "got torch.int32"),
    (LOSSES[0], (X, X.to(torch.complex64)), {}, TypeError, "got torch.complex64"),
    (LOSSES[0], (X, 1.0), {}, TypeError, "target must be a Tensor, got float"),
    (LOSSES[0], (X, X, 2.0), {}, TypeError, "weight must be a Tensor, got float"),
    (LOSSES[0], (X, X), {"weight": X.to(torch.complex64)}, TypeError, "weight must be real, got torch.complex64"),
    (LOSSES[0], (X, ROW[:2]), {}, ValueError, r"got target of shape \(2,\)"),
    (LOSSES[0], (X, X.long()), {}, ValueError, r"got target of shape \(3, 4\); .* give target.to\(input.dtype\)"),
    (
        LOSSES[0],
        (X[:, :1], ROW),
        {},
        ValueError,
        r"two classes or more, got input of shape \(3, 1\); .*target.unsqueeze",
    ),
    (LOSSES[0], (X[:, None], X.long()), {"dim": 1}, ValueError, r"give target.unsqueeze\(1\).to\(input.dtype\)"),
    (LOSSES[1], (X[:, :1], ROW), {}, ValueError, r"two classes or more, got inputs of shape \(3, 1\)"),
    (LOSSES[1], (X[:, :0], ROW), {}, ValueError, r"two classes or more, got inputs of shape \(3, 0\)"),
    (LOSSES[1], (X[0, :1], ROW[0]), {}, ValueError, r"two classes or more, got inputs of shape \(1,\)"),
    (LOSSES[0], (X, (X + 255).byte()), {}, ValueError, "target of torch.uint8 holds 255, .* give target > 0"),
    (LOSSES[1], (X, (X + 2).byte()), {}, ValueError, "targets of torch.uint8 holds 2, expected 0 and 1"),
    (
        LOSSES[0],
        (X, ROW + 5),
        {},
        ValueError,
        "holds class 5, expected 0 to 3, or 4 or background_index=-1 for no class",
    ),
    (LOSSES[0], (X, ROW - 2), {}, ValueError, "holds class -2"),
    (LOSSES[1], (X, ROW - 1), {"background_index": 0}, ValueError, "holds class -1"),
    (LOSSES[1], (X, X), {"reduction": "batchmean"}, ValueError, "unknown reduction='batchmean'"),
    (LOSSES[1], (X, X), {"gamma": -1}, ValueError, "gamma must be finite and at least 0, got -1"),
    (LOSSES[1], (X, X), {"alpha": 1.1}, ValueError, "got 1.1"),
    (LOSSES[1], (X, X), {"alpha": -0.5}, ValueError, "got -0.5"),
    (LOSSES[1], (X, X), {"normalizer": 0}, ValueError, "normalizer must be positive and finite, got 0"),
    (LOSSES[1], (X, X), {"normalizer": math.nan}, ValueError, "normalizer must be positive and finite, got nan"),
    (
        LOSSES[1],
        (X, X),
        {"normalizer": torch.tensor(-1.0)},
        ValueError,
        "normalizer must be positive and finite, got -1.0",
    ),
    (LOSSES[1], (X, X), {"normalizer": 3, "reduction": "mean"}, ValueError, "normalizer=3 cannot divide"),
    (BCEWithLogitsLoss, (), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (BCEWithLogitsLoss, (), {"size_average": True}, ValueError, "size_average=True"),
    (BCEWithLogitsLoss, (), {"label_smoothing": -1}, ValueError, "got -1"),
    (BCEWithLogitsLoss, (2.0,), {}, TypeError, "weight must be a Tensor, got float"),
    (SigmoidFocalLoss, (), {"gamma": -1}, ValueError, "got -1"),
    *((f, (X, X), {name: v}, e, s) for f, name in SETTINGS for v, e, s in NO_SETTINGS),
    *((f, (X, X[0]), {}, ValueError, r"\(3, 4\), got \(4,\)") for f in WITHOUT_OPTIONS),
    *((f, (X, (X + 2).byte()), {}, ValueError, "holds 2, expected 0 and 1") for f in WITHOUT_OPTIONS),
    *(
        (f, (X, ROW + 5), {}, ValueError, "holds class 5, expected 0 to 3, or 4 or -1 for no class$")
        for f in WITHOUT_OPTIONS
    ),
    *(
        (f, (X, (X * 0).byte() + 7), {}, ValueError, "holds 7, expected 0 and 1; give target > 0 for a mask$")
        for f in WITHOUT_OPTIONS
    ),
    *((f, (X, X), {"reduction": "avg"}, ValueError, "unknown reduction='avg'") for f in WITHOUT_OPTIONS),
    (asymmetric_loss, (X, X), {"clip": 1}, ValueError, "clip must be at least 0 and below 1, got 1"),
    (quality_focal_loss, (X, X), {"beta": numpy.float32(-2)}, ValueError, "beta must be finite and at least 0"),
    (asymmetric_loss, (X, X), {"clip": 1e-39}, ValueError, "clip must be 0 or at least 1.18e-38, got 1e-39"),
    (AsymmetricLoss, (), {"clip": 1e-300}, ValueError, "clip must be 0 or at least 1.18e-38, got 1e-300"),
    (AsymmetricLoss, (), {"clip": 1.5}, ValueError, "clip must be at least 0 and below 1, got 1.5"),
    (AsymmetricLoss, (), {"gamma_neg": -1}, ValueError, "gamma_neg must be finite and at least 0, got -1"),
    (AsymmetricLoss, (), {"gamma_pos": None}, TypeError, "gamma_pos must be a number, got NoneType"),
    (AsymmetricLoss, (), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (VarifocalLoss, (), {"alpha": -1}, ValueError, "alpha must be finite and at least 0, got -1"),
    (VarifocalLoss, (), {"gamma": "2"}, TypeError, "gamma must be a number, got str"),
    (VarifocalLoss, (), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (QualityFocalLoss, (), {"beta": -1}, ValueError, "beta must be finite and at least 0, got -1"),
    (QualityFocalLoss, (), {"reduction": "avg"}, ValueError, "unknown reduction='avg'"),
    (SigmoidFocalLoss, (), {"weight": 1}, TypeError, "weight must be a Tensor, got int"),
]


@pytest.mark.parametrize(("call", "args", "given", "error", "said"), BAD)
def test_bad_input_is_said_in_a_line(call, args, given, error, said):
    with pytest.raises(error, match=said) as raised:
        call(*args, **given)
    assert "\n" not in str(raised.value)
    assert f"{call.__name__}(): " in str(raised.value)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_targets_are_looked_at_whoever_watches(loss):
    """A counter of operations, forward-mode AD of something else, and inference mode, in which a target was made."""
    x = torch.zeros(2, 4, requires_grad=True)
    with torch.inference_mode():
        mask, index = torch.tensor([0, 255, 1, 0], dtype=torch.uint8).expand(2, 4).clone(), torch.tensor([1, 9])
    for watching in (contextlib.nullcontext, lambda: FlopCounterMode(display=False), BaseTorchFunctionMode, dual_level):
        for target, said in ((mask, "holds 255"), (index, "holds class 9")):
            with watching(), pytest.raises(ValueError, match=said):
                loss(x, target)
    with pytest.raises(ValueError, match="holds 255"):
        torch.vmap(lambda x: loss(x, mask[0]))(x)
