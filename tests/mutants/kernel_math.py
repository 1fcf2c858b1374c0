"""Slips in scalar functions: kernels/_math.py and kernels/_loss_math.py."""

from mutants.slip import Slip

FILE, LOSSES = "kernels/_math.py", "kernels/_loss_math.py"
PTX = "-p without_gpu.ptx.plugin --ptx-arch 90 -m kernels"
SIGMOID = "tests/ops/test_sigmoid.py -m kernels"
GATES = "tests/kernels/test_kernels.py tests/ops/test_ops.py -k '(oracle or extreme) and gate'"
LERP = "tests/kernels/test_kernels.py tests/ops/test_ops.py -k '(oracle or extreme) and lerp'"
SWIGLU = "tests/kernels/test_kernels.py tests/ops/test_ops.py -k '(oracle or extreme) and swiglu'"
BCE = "tests/ops/test_losses.py -k 'matches_float64 and triton and bce'"
FOCAL = "tests/ops/test_losses.py -k 'matches_float64 and triton and focal'"
DETECTION = "tests/ops/test_detection_losses.py -m kernels"
NEW = "tests/ops/test_losses.py -k 'matches_float64 and triton and (quality or varifocal or asymmetric)'"
PRECISE = "tests/ops/test_losses.py -m kernels -k 'small or finite or infinite or mean_holds'"
OUTSIDE = "tests/ops/test_loss_contracts.py -m kernels -k 'outside or unchecked or background'"
CHUNKS = "tests/kernels/test_chunked_losses.py -m kernels"

SLIPS = [
    Slip(
        FILE,
        "        rest = fma(x, -LOG2_E_LOW, rest)\n",
        "",
        SIGMOID,
        "the low half of log2(e) left out of an exponential",
    ),
    Slip(
        FILE, "fma(rest, LN_2, 1.0)", "(1.0 + rest)", SIGMOID, "what an exponent leaves over, in bits instead of nats"
    ),
    Slip(
        FILE,
        "        x = tl.clamp(x, -FAR, FAR, propagate_nan=tl.PropagateNan.ALL)\n",
        "",
        SIGMOID,
        "infinity minus infinity in a precise exponential",
    ),
    Slip(
        FILE,
        "    e = exp_neg(tl.abs(x), PRECISE)\n    r = reciprocal(1.0 + e)\n    return grad * (e * r * r)",
        "    e = exp_neg(x, PRECISE)\n    r = reciprocal(1.0 + e)\n    return grad * (e * r * r)",
        SIGMOID,
        "infinity times 0 where x is far below 0, without the absolute value",
    ),
    Slip(FILE, "return s, tl.minimum(e, 3.4e38) * s", "return s, e * s", GATES, "infinity times 0 in 1 - s"),
    Slip(
        FILE,
        "return grad_s * up * fma(gate, rest, 1.0), grad_s * gate",
        "return grad_s * up * fma(gate, rest, 1.0), grad * gate",
        SWIGLU,
        "up's gradient is the gate, not its silu",
    ),
    Slip(
        FILE,
        "return tl.where(x < 0, far, near), tl.where(x < 0, near, far)",
        "return tl.where(x < 0, far, near), far",
        LERP,
        "1 - s of negative gates",
    ),
    Slip(
        FILE,
        "return tl.log(u) + (e - (u - 1.0)) / u",
        "return tl.log(u)",
        "tests/kernels/test_chunked_losses.py -m kernels -k every_element",
        "float64's log1p without its correction",
    ),
    Slip(
        LOSSES,
        "return tl.exp(gamma * tl.log(tl.maximum(tl.abs(q), 1e-300)))",
        "return tl.exp(gamma * tl.log(tl.abs(q)))",
        PRECISE,
        "0 to the power of 0 in float64",
    ),
    Slip(
        LOSSES,
        "return exp2(high) * exp2(low) if PRECISE else exp2(high + low)",
        "return exp2(high + low)",
        PRECISE,
        "one exponential where float32 needs two",
        "within the 1e-5 that is promised of a focal loss: the second keeps most of float32's digits",
    ),
    Slip(
        LOSSES,
        "    elif keep != 1.0:\n        t, negative = _smoothed(t, keep), _smoothed(negative, keep)",
        "    elif keep != 1.0:\n        t, negative = _smoothed(t, keep), negative",
        BCE,
        "negatives are not smoothed",
    ),
    Slip(LOSSES, "fma(negative, e, -positive))\n", "fma(negative, e, positive))\n", BCE, "a sign of a BCE's gradient"),
    Slip(
        LOSSES, "        return near, far, near + far", "        return near, far, 1.0", FOCAL, "a share that is not 1"
    ),
    Slip(
        LOSSES,
        "ratio = tl.where(far == 0, r, e * r) * reciprocal(tl.where(far == 0, near, sum_))",
        "ratio = e * r * reciprocal(sum_)",
        PRECISE,
        "0 / 0 in a focal gradient far out",
    ),
    Slip(
        LOSSES,
        "return (1.0 / divisor) * weight * slope, weight * loss",
        "return (1.0 / divisor) * slope, weight * loss",
        BCE,
        "a gradient beside its loss without the weight",
    ),
    Slip(
        LOSSES,
        "tl.where(d == 0, tl.where(beta == 0, 1.0, 0.0), _power(d, beta, PRECISE))",
        "_power(d, beta, PRECISE)",
        DETECTION,
        "a loss where a target is met",
    ),
    Slip(
        LOSSES,
        "fma(beta * _ratio(s * rest, d), cross_entropy, d)",
        "fma(beta * _ratio(s * rest, tl.abs(d)), cross_entropy, d)",
        NEW,
        "the slope of a distance without its sign",
    ),
    Slip(
        LOSSES,
        "tl.abs(whole) < SMALL",
        "tl.abs(whole) < 0.0",
        PRECISE,
        "0 / 0 in the slope of a power",
    ),
    Slip(
        LOSSES,
        "scale = tl.where(t > 0, t, alpha)",
        "scale = tl.where(t > 0, 1.0, alpha)",
        NEW,
        "a positive weighted by 1, not by its quality",
    ),
    Slip(
        LOSSES,
        "power = _power(tl.where(t > 0, 1.0, s), gamma, PRECISE)",
        "power = _power(s, gamma, PRECISE)",
        NEW,
        "positives weighted as negatives are",
    ),
    Slip(LOSSES, "rise = tl.where(s > clip, slope, 0.0)", "rise = slope", DETECTION, "a slope below clip"),
    Slip(
        LOSSES,
        "gamma = fma(gamma_pos, t, gamma_neg * away)",
        "gamma = fma(gamma_neg, t, gamma_pos * away)",
        NEW,
        "one exponent for the other",
    ),
    Slip(
        LOSSES,
        "ratio = _ratio(fma(away, rise, -t * slope), q)",
        "ratio = _ratio(fma(away, rise, t * slope), q)",
        NEW,
        "a positive's factor that grows with its logit",
    ),
    Slip(
        FILE,
        "tl.where(m > 0.5, -LN_2 * tl.log2(rest), _twice_atanh(m * reciprocal(2.0 - m)))",
        "_twice_atanh(m * reciprocal(2.0 - m))",
        DETECTION,
        "a series beyond where it holds",
    ),
    Slip(
        FILE,
        "mov.b32 $0, low; mov.b32 $1, high;",
        "mov.b32 $0, high; mov.b32 $1, low;",
        f"{PTX} tests/kernels/test_kernels.py -k 'oracle and lerp and bfloat16'",
        "neighbours in bfloat16 swapped",
    ),
    Slip(
        FILE,
        "        if x.dtype == tl.float64:\n            return 1.0 / x\n",
        "        if x.dtype == tl.float64:\n            return 1.0 / x.to(tl.float32)\n",
        f"{PTX} tests/kernels/test_kernels.py -k 'oracle and lerp and float64'",
        "an inverse of float64 in float32",
    ),
    Slip(
        FILE,
        "    if PRECISE:\n        s, rest = _sigmoid_and_complement(gate, PRECISE)",
        "    if not PRECISE:\n        s, rest = _sigmoid_and_complement(gate, PRECISE)",
        "tests/kernels/test_kernels.py -k swiglus_gradient",
        "float32 takes the way of halves",
    ),
]
