"""Losses over a product that is never whole: values, gradients, what they cost, and what else may watch."""

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from _measure import peak_extra_bytes
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sigtorch
from sigtorch import linear_binary_cross_entropy, siglip_loss
from sigtorch.ops.chunked_losses import products

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of a loss, and of gradients relative to the largest: half types round once, float32 sums up.
RTOL = {torch.float16: 6e-4, torch.bfloat16: 4e-3, torch.float32: 2e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class Case:
    """A loss of differentiable tensors, which ``tensors(n, d)`` makes in float64; n is what chunks divide."""

    name: str
    tensors: Callable
    ours: Callable  # of the tensors, and chunk_size
    oracle: Callable

    def make(self, n, d=6, dtype=torch.float64, device="cpu"):
        return [t.to(device, dtype).requires_grad_() for t in self.tensors(n, d)]


def siglip_oracle(image, text, scale, bias=0.0):
    """The formula as the paper has it."""
    z = image @ text.T * scale + bias
    sign = 2 * torch.eye(len(z), dtype=z.dtype, device=z.device) - 1
    return -F.logsigmoid(sign * z).sum() / len(z)


def features(n, d):
    return [F.normalize(torch.randn(n, d, dtype=torch.float64), dim=-1) for _ in range(2)]


def number(value, shape=()):
    return torch.full(shape, value, dtype=torch.float64)


CASES = [
    Case("siglip", lambda n, d: [*features(n, d), number(6.0), number(-3.0)], siglip_loss, siglip_oracle),
    Case("siglip-no-bias", lambda n, d: [*features(n, d), number(-2.5, (1,))], siglip_loss, siglip_oracle),
    Case(
        "siglip-far",
        lambda n, d: [*features(n, d), number(90.0, (1,)), number(20.0, (1, 1))],
        siglip_loss,
        siglip_oracle,
    ),
]
SAMPLES = 5


def positives(labels, samples=SAMPLES):
    """About a third of all pairs, but for the label 2 and the sample 1, which have none."""
    sample, label = torch.arange(samples)[:, None], torch.arange(labels)
    return ((sample + 2 * label) % 3 == 0) & (label != 2) & (sample != 1)


def csr(dense):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch speaks of its sparse tensors' state
        return dense.float().to_sparse_csr()


def indices(dense):
    return csr(dense).crow_indices().int(), csr(dense).col_indices().int()


def linear_oracle(input, weight, bias=None, reduction="mean", pos_weight=None):
    z = F.linear(input, weight, bias)
    targets = positives(len(weight)).to(z)
    return F.binary_cross_entropy_with_logits(z, targets, reduction=reduction, pos_weight=pos_weight)


def linear(kind):
    """The loss with targets of a kind, which are made where nothing watches, the first time."""
    made = {}

    def loss(input, weight, bias=None, **options):
        key = len(weight), input.device
        if key not in made:
            made[key] = on(input, kind(positives(len(weight))))
        return linear_binary_cross_entropy(input, weight, bias, made[key], **options)

    return loss


def on(like, targets):
    return tuple(t.to(like.device) for t in targets) if isinstance(targets, tuple) else targets.to(like.device)


def label_weights(labels, like):
    return (1 + torch.arange(labels) % 3).to(like.device, like.dtype)


def weighted(function):
    """Summed, with weights of the positives."""

    def loss(input, weight, bias, **options):
        pos_weight = label_weights(len(weight), weight)
        return function(input, weight, bias, reduction="sum", pos_weight=pos_weight, **options)

    return loss


def layer(n, d):
    return [torch.randn(SAMPLES, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)]


CASES += [
    Case("linear-csr", layer, linear(csr), linear_oracle),
    Case(
        "linear-dense", lambda n, d: [*layer(n, d), torch.randn(n).double()], linear(lambda dense: dense), linear_oracle
    ),
    Case(
        "linear-indices",
        lambda n, d: [*layer(n, d), torch.randn(n).double()],
        weighted(linear(indices)),
        weighted(linear_oracle),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
# PyTorch's transforms and traces know no sparse tensors.
every_traced_case = pytest.mark.parametrize("case", [c for c in CASES if c.name != "linear-csr"], ids=lambda c: c.name)
every_backend = pytest.mark.parametrize("backend", ["auto", "aten", pytest.param("triton", marks=pytest.mark.kernels)])
chunked = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.kernels)])


def expected_of(case, tensors, incoming=1.0):
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    value = case.oracle(*exact)
    wanted = [t for t in exact if t.requires_grad]
    return value.detach(), torch.autograd.grad(value * incoming, wanted) if wanted else ()


def close(actual, expected, dtype=None):
    """To the rounding of the actual dtype and of float32 sums, relative to the largest of a tensor."""
    rtol = RTOL[dtype or actual.dtype]
    assert_close(actual.double(), expected, rtol=rtol, atol=rtol * max(expected.abs().max().item(), 1e-3))


def check(case, tensors, backend="auto", incoming=1.0, **options):
    value, grads = expected_of(case, tensors, incoming)
    with sigtorch.use_backend(backend):
        actual = case.ours(*tensors, **options)
        wanted = [t for t in tensors if t.requires_grad]
        found = torch.autograd.grad(actual * incoming, wanted) if wanted else ()
    close(actual.detach(), value)
    for mine, theirs, given in zip(found, grads, wanted):
        assert (mine.shape, mine.dtype, mine.device) == (given.shape, given.dtype, given.device)
        close(mine, theirs, max(mine.dtype, tensors[0].dtype, key=lambda d: RTOL[d]))
    return actual, found


SIZES = [(1, None), (1, 1), (5, 2), (7, 7), (8, 3), (37, 16), (6, 100), (300, None)]
RUNS = [(backend, *size) for backend in ("auto", "aten") for size in SIZES]
RUNS += [pytest.param("triton", *size, marks=pytest.mark.kernels) for size in ((1, 1), (8, 3), (37, 16))]


@pytest.mark.parametrize(("backend", "n", "chunk_size"), RUNS)
@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_every_gradient(case, dtype, n, chunk_size, backend, device):
    check(case, case.make(n, 6, dtype, device), backend, incoming=1.75, chunk_size=chunk_size)


@every_case
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_numbers_may_be_wider_than_features(case, dtype):
    tensors = case.make(7)
    check(case, [t.detach().to(dtype if i < 2 else torch.float64).requires_grad_() for i, t in enumerate(tensors)])


def masks(case):
    return itertools.product((False, True), repeat=len(case.tensors(2, 3)))


@chunked
@every_case
def test_frozen_tensors(case, backend, device):
    for wanted in masks(case):
        tensors = [t.detach().requires_grad_(w) for t, w in zip(case.make(9, 4, torch.float64, device), wanted)]
        check(case, tensors, backend, chunk_size=4)


@pytest.fixture
def counted(monkeypatch):
    """How many matrix products there were since the last question."""
    count = [0]
    for name in ("product", "add_product"):
        original = getattr(products, name)

        def counting(*args, original=original):
            count[0] += 1
            return original(*args)

        monkeypatch.setattr(products, name, counting)

    def since():
        seen, count[0] = count[0], 0
        return seen

    return since


@every_case
def test_products(case, counted):
    """One a chunk for the loss, one more for each side that wants a gradient, and none in a first backward."""
    tensors = case.make(9, 4)
    with torch.no_grad():
        case.ours(*tensors, chunk_size=3)
    assert counted() == 3
    case.ours(*[t.detach() for t in tensors], chunk_size=3)
    assert counted() == 3
    for wanted in masks(case):
        tensors = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted)]
        loss = case.ours(*tensors, chunk_size=3)
        scale_alone = case.name.startswith("siglip") and wanted[:3] == (False, False, True)
        assert counted() == 3 * (1 + sum(wanted[:2]) + scale_alone), wanted
        if any(wanted):
            loss.backward()
    assert counted() == 0


@every_case
def test_memory_grows_with_n(case):
    def peak(n):
        tensors = case.make(n, 8, torch.float32)
        return peak_extra_bytes(
            lambda: torch.autograd.grad(case.ours(*tensors, chunk_size=64), tensors), tensors[0].device
        )

    assert peak(2048) < 2.2 * peak(1024)
    assert peak(1024) < 1024**2


@chunked
@every_case
def test_each_backward_gives_fresh_tensors(case, backend, device):
    tensors = case.make(7, 4, torch.float64, device)
    value, expected = expected_of(case, tensors)
    with sigtorch.use_backend(backend):
        loss = case.ours(*tensors, chunk_size=3)
    seen = []
    for _ in range(3):
        grads = torch.autograd.grad(loss, tensors, retain_graph=True)
        assert_close(grads, expected)
        seen += grads
        for g in grads:
            g.fill_(7.0)
    assert len({t.data_ptr() for t in seen}) == len(seen)
    assert_close(loss.detach(), value)


@every_case
def test_what_changed_before_a_backward_is_noticed(case):
    tensors = case.make(5, 4)
    loss = case.ours(*tensors)
    with torch.no_grad():
        tensors[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@chunked
@every_case
def test_differentiating_twice_is_refused_in_one_line(case, backend, device):
    tensors = case.make(5, 4, torch.float64, device)
    with sigtorch.use_backend(backend):
        loss = case.ours(*tensors)
    grads = torch.autograd.grad(loss, tensors, create_graph=True)
    assert_close([g.detach() for g in grads], list(expected_of(case, tensors)[1]))
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again; sigtorch.use_backend") as refused:
        grads[0].sum().backward()
    assert "\n" not in str(refused.value)
    loss = case.ours(*tensors)
    (grad,) = torch.autograd.grad(loss, tensors[0], create_graph=True)
    grad.data.zero_()  # nobody's but the caller's
    with sigtorch.use_backend("aten"):
        assert torch.autograd.gradgradcheck(case.ours, tensors, fast_mode=True)


@every_backend
@every_case
def test_gradcheck(case, backend, device):
    """Of kernels, which are slow where they are interpreted, along one direction."""
    fast = {"fast_mode": True} if backend == "triton" else {"check_batched_grad": True}
    with sigtorch.use_backend(backend):
        assert torch.autograd.gradcheck(
            functools.partial(case.ours, chunk_size=2), case.make(5, 3, device=device), **fast
        )


@every_backend
@every_case
@pytest.mark.parametrize("half", DTYPES[:2], ids=str)
def test_autocast(case, half, backend, device):
    """What is multiplied is rounded, sums are not, and the result is no half."""
    tensors = case.make(9, 6, torch.float32, device)
    rounded = [t.detach().to(half).double() if i < 2 else t.detach().double() for i, t in enumerate(tensors)]
    rounded = [t.requires_grad_() for t in rounded]
    value, grads = expected_of(case, rounded)
    with torch.autocast(torch.device(device).type, dtype=half), sigtorch.use_backend(backend):
        loss = case.ours(*tensors, chunk_size=4)
        assert loss.dtype == torch.float32
        assert case.ours(*[t.to(half) for t in tensors]).dtype == torch.float32
        assert case.ours(*[t.double() for t in tensors]).dtype == torch.float64
    close(loss.detach(), value)
    again = torch.autograd.grad(loss, tensors, retain_graph=True)
    for mine, theirs, other in zip(again, grads, torch.autograd.grad(loss, tensors)):
        assert mine.dtype == torch.float32
        close(mine, theirs, torch.float32 if backend == "auto" and mine.device.type == "cpu" else half)
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_loss_scale_reaches_small_gradients(dtype):
    """A float16 gradient of 1e-8 is kept for the scale that it waits for."""
    case = CASES[0]
    tensors = case.make(64, 6, dtype)
    check(case, tensors, incoming=2.0**-3)
    with torch.no_grad():
        tensors[3].fill_(-20.0)
    leaves = [t.detach().float().requires_grad_() for t in tensors]
    _, grads = expected_of(case, leaves, 2.0**12)
    found = torch.autograd.grad(case.ours(*tensors).float() * 2.0**12, tensors)
    close(found[1], grads[1])


# Others that watch.


def gradients_or_error(loss, tensors):
    try:
        return torch.autograd.grad(loss, tensors)
    except RuntimeError as error:
        return error


@every_case
def test_checkpoints(case):
    settings = {
        "auto": lambda: sigtorch.use_backend("auto"),
        "aten": lambda: sigtorch.use_backend("aten"),
        "mode": lambda: FlopCounterMode(display=False),
    }
    for (forth, before), (back, after) in itertools.product(settings.items(), repeat=2):
        tensors = case.make(5, 4)
        with before():
            loss = checkpoint(lambda *given: case.ours(*[t * 1 for t in given]), *tensors, use_reentrant=False)
        with after():
            found = gradients_or_error(loss, tensors)
        if isinstance(found, Exception):
            assert forth != back, found
            assert "recomput" in str(found).lower(), found
        else:
            assert_close(found, expected_of(case, tensors)[1])


@every_case
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo hides it, but not from "error"
def test_compiled_code_breaks_its_graph(case, counted):
    """And computes the loss in chunks, as eager code does."""
    torch._dynamo.reset()
    tensors = case.make(6, 4, torch.float32)
    compiled = torch.compile(lambda *given: case.ours(*[t * 2 for t in given], chunk_size=3) * 2, backend="aot_eager")
    loss = compiled(*tensors)
    value, grads = expected_of(replace(case, oracle=lambda *given: case.oracle(*[t * 2 for t in given]) * 2), tensors)
    close(loss.detach(), value)
    for mine, theirs in zip(torch.autograd.grad(loss, tensors), grads):
        close(mine, theirs)
    assert counted() == 6


@every_traced_case
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exports_and_traces(case):
    class Model(torch.nn.Module):
        def forward(self, *given):
            return case.ours(*given)

    tensors = [t.detach() for t in case.make(6, 4, torch.float32)]
    expected = case.oracle(*[t.double() for t in tensors])
    close(case.ours(*tensors), expected)
    for strict in (False, True):
        close(torch.export.export(Model(), tuple(tensors), strict=strict).module()(*tensors), expected)
    close(make_fx(lambda *given: case.ours(*given))(*tensors)(*tensors), expected)


@every_traced_case
def test_transforms(case):
    tensors = [t.detach() for t in case.make(4, 3)]
    value, expected = expected_of(case, case_with_grad(tensors))
    assert_close(case.ours(*tensors), value)
    assert_close(torch.func.grad(case.ours, tuple(range(len(tensors))))(*tensors), expected)
    several = [torch.stack([t, t * 0.5]) for t in tensors]
    batched = torch.vmap(case.ours)(*several)
    assert_close(batched, torch.stack([value, case.oracle(*[t * 0.5 for t in tensors])]))
    tangent = torch.randn_like(tensors[0])
    with dual_level():
        jvp = unpack_dual(case.ours(make_dual(tensors[0], tangent), *tensors[1:])).tangent
    assert_close(jvp, (expected[0] * tangent).sum())
    hessian = torch.func.hessian(lambda x: case.ours(x, *tensors[1:]))(tensors[0])
    assert_close(hessian, torch.func.hessian(lambda x: case.oracle(x, *tensors[1:]))(tensors[0]))


def case_with_grad(tensors):
    return [t.detach().requires_grad_() for t in tensors]


@every_case
def test_modes_and_subclasses(case):
    class Named(torch.Tensor):
        pass

    tensors = case.make(5, 4)
    value, grads = expected_of(case, tensors)
    with FlopCounterMode(display=False) as flops:
        loss = case.ours(*tensors)
    assert flops.get_total_flops() > 0
    assert_close(loss, value)
    loss = case.ours(tensors[0].as_subclass(Named), *tensors[1:])
    assert isinstance(loss, Named)
    assert_close(torch.autograd.grad(loss, tensors), grads)
    meta = case.ours(*[t.detach().to("meta") for t in tensors])
    assert (meta.device.type, meta.shape) == ("meta", ())


@every_case
def test_inference_mode(case):
    with torch.inference_mode():
        tensors = case.make(5, 4)
        assert_close(case.ours(*tensors), case.oracle(*tensors))


# SigLIP as others have it.


class OpenClip(torch.nn.Module):
    """The loss of one process as open_clip computes it."""

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        logits = logit_scale * image_features @ text_features.T
        if logit_bias is not None:
            logits = logits + logit_bias
        n = len(image_features)
        labels = 2 * torch.eye(n, dtype=image_features.dtype) - torch.ones(n, n, dtype=image_features.dtype)
        loss = -F.logsigmoid(labels * logits).sum() / n
        return {"contrastive_loss": loss} if output_dict else loss


@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_open_clips(bias):
    given = CASES[0].make(7, 5, torch.float32)[: 4 if bias else 3]
    names = ("image_features", "text_features", "logit_scale", "logit_bias")
    ours, theirs = sigtorch.nn.SigLIPLoss(chunk_size=3), OpenClip()
    assert_close(ours(*given), theirs(*given))
    named = dict(zip(names, given, strict=False))
    assert ours(**named, output_dict=True).keys() == {"contrastive_loss"}
    for module in (ours, theirs):
        module(**named, output_dict=True)["contrastive_loss"].backward()
    assert "chunk_size=3" in repr(ours)
    assert not ours.state_dict()
    assert_close(siglip_loss(*given[:2], 6.0, -3.0), siglip_loss(*given[:2], torch.tensor(6.0), torch.tensor(-3.0)))


def test_equals_transformers():
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(text_config=text, vision_config=image | {"image_size": 16, "patch_size": 8})
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.3)
        model.logit_bias.fill_(-2.0)
    out = model(input_ids=torch.randint(64, (5, 8)), pixel_values=torch.randn(5, 3, 16, 16), return_loss=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(out.loss, weights, retain_graph=True, allow_unused=True)
    ours = siglip_loss(out.image_embeds, out.text_embeds, model.logit_scale.exp(), model.logit_bias, chunk_size=2)
    assert_close(ours, out.loss)
    for mine, other in zip(torch.autograd.grad(ours, weights, allow_unused=True), theirs):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert_close(mine, other, rtol=1e-4, atol=1e-6)


# A linear layer's.


def test_module_is_a_linear_layer():
    module = sigtorch.nn.LinearBCE(4, 9, chunk_size=2, reduction="sum", pos_weight=torch.tensor(2.0))
    assert isinstance(module, torch.nn.Linear)
    x, targets = torch.randn(5, 4), positives(9)
    assert_close(module(x), F.linear(x, module.weight, module.bias))
    expected = linear_oracle(x, module.weight, module.bias, "sum", torch.tensor(2.0))
    for given in (targets, csr(targets), indices(targets)):
        assert_close(module(x, given), expected)
    assert "in_features=4, out_features=9, bias=True, chunk_size=2, reduction='sum'" in repr(module)
    assert list(module.state_dict()) == ["weight", "bias", "pos_weight"]
    assert sigtorch.nn.LinearBCE(4, 9, bias=False).bias is None


def test_a_pos_weight_may_want_a_gradient():
    tensors = [*CASES[-1].make(9, 4), torch.rand(9, dtype=torch.float64, requires_grad=True)]
    call = lambda x, w, b, p: linear_binary_cross_entropy(x, w, b, positives(9), pos_weight=p)  # noqa: E731
    assert torch.autograd.gradcheck(call, tensors)
    assert_close(call(*tensors), linear_oracle(*tensors[:3], pos_weight=tensors[3].detach()))


def test_the_weights_gradient_is_held_once():
    """And handed out: a leaf takes it without a copy."""
    x, weight = torch.randn(4, 16), torch.randn(20_000, 16, requires_grad=True)
    targets = positives(20_000, 4)

    def step():
        weight.grad = None
        linear_binary_cross_entropy(x, weight, None, targets, chunk_size=100).backward()

    step()
    weight.grad = None
    assert peak_extra_bytes(step, x.device) < 1.1 * weight.numel() * 4


def test_many_samples_come_in_chunks_too(monkeypatch):
    monkeypatch.setitem(products.CHUNK_ELEMENTS, "cpu", 12)
    monkeypatch.setitem(products.CHUNK_ROWS, "cpu", 4)
    for case in CASES:
        check(case, case.make(11), chunk_size=None)
        check(case, case.make(11), chunk_size=5)


# Mistakes.

X = torch.ones(4, 3)
SIGLIP_MISTAKES = [
    (
        (X, X[:3], 1.0),
        ValueError,
        "features must have one shape (n, d), got image_features (4, 3), text_features (3, 3)",
    ),
    ((X[0], X[0], 1.0), ValueError, "features must have one shape (n, d), got image_features (3,), text_features (3,)"),
    ((X, X[:, :2], 1.0), ValueError, "got image_features (4, 3), text_features (4, 2)"),
    ((X[:0], X[:0], 1.0), ValueError, "there are no pairs, got features of shape (0, 3)"),
    (([1.0], X, 1.0), TypeError, "image_features must be a Tensor, got list"),
    ((X, X.long(), 1.0), TypeError, "text_features must be floating point, got torch.int64"),
    ((X, X.cfloat(), 1.0), TypeError, "text_features must be floating point, got torch.complex64"),
    ((X, X.to("meta"), 1.0), ValueError, "tensors on several devices: image_features on cpu, text_features on meta"),
    ((X, X, X[0]), ValueError, "logit_scale must be a scalar, got shape (3,)"),
    ((X, X, 1.0, X), ValueError, "logit_bias must be a scalar, got shape (4, 3)"),
    ((X, X, None), TypeError, "logit_scale must be a number, got NoneType"),
    ((X, X, 1.0, "1"), TypeError, "logit_bias must be a number, got str"),
    ((X, X, torch.tensor(1)), TypeError, "logit_scale must be floating point, got torch.int64"),
    ((X, X, torch.ones(1, device="meta")), ValueError, "several devices: image_features on cpu, logit_scale on meta"),
    ((X, X, 1.0, None, 0), ValueError, "chunk_size must be at least 1, got 0"),
    ((X, X, 1.0, None, 2.5), TypeError, "chunk_size must be a whole number, got float"),
]


@pytest.mark.parametrize(("given", "kind", "said"), SIGLIP_MISTAKES)
def test_siglip_mistakes(given, kind, said):
    given, options = given[:4], {"chunk_size": given[4]} if len(given) > 4 else {}
    with pytest.raises(kind) as error:
        siglip_loss(*given, **options)
    assert str(error.value).startswith("siglip_loss(): ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


W = torch.ones(6, 3)
HITS = torch.zeros(4, 6, dtype=torch.bool)
ROWS, COLUMNS = torch.tensor([0, 1, 1, 3, 3]), torch.tensor([5, 0, 2])
LINEAR_MISTAKES = [
    (([1.0], W, None, HITS), {}, TypeError, "input must be a Tensor, got list"),
    ((X, W.int(), None, HITS), {}, TypeError, "weight must be floating point, got torch.int32"),
    (
        (X, W[:, :2], None, HITS),
        {},
        ValueError,
        "input must have shape (N, D) and weight (L, D), got input (4, 3), weight",
    ),
    ((X[0], W, None, HITS), {}, ValueError, "got input (3,), weight (6, 3)"),
    ((X[:0], W, None, HITS[:0]), {}, ValueError, "there are no samples or no labels, got input (0, 3), weight (6, 3)"),
    (
        (X, W[:0], None, HITS[:, :0]),
        {},
        ValueError,
        "there are no samples or no labels, got input (4, 3), weight (0, 3)",
    ),
    ((X, W, X, HITS), {}, ValueError, "bias must have shape (6,), got (4, 3)"),
    ((X, W, None, HITS[:3]), {}, ValueError, "targets must have shape (4, 6), got (3, 6)"),
    ((X, W, None, csr(HITS[:3])), {}, ValueError, "targets must have shape (4, 6), got (3, 6)"),
    ((X, W, None, csr(HITS.float() + 2)), {}, ValueError, "targets must hold ones alone, got 2"),
    ((X, W, None, HITS.float()), {}, TypeError, "got torch.strided of torch.float32"),
    ((X, W, None, [ROWS]), {}, TypeError, "a tuple of its indices, got list"),
    (
        (X, W, None, (ROWS, COLUMNS.float())),
        {},
        TypeError,
        "col_indices must be one row of int32 or int64, got torch.float32",
    ),
    ((X, W, None, (ROWS[1:], COLUMNS)), {}, ValueError, "crow_indices must have 5 entries, got 4"),
    ((X, W, None, (ROWS + 1, COLUMNS)), {}, ValueError, "must rise from 0 to the 3 col_indices, got 1 to 4"),
    ((X, W, None, (ROWS, COLUMNS[:2])), {}, ValueError, "must rise from 0 to the 2 col_indices, got 0 to 3"),
    ((X, W, None, (ROWS[[0, 3, 1, 3, 4]], COLUMNS)), {}, ValueError, "with a smallest step of -2"),
    ((X, W, None, (ROWS, COLUMNS + 1)), {}, ValueError, "targets name label 6, expected 0 to 5"),
    ((X, W, None, (ROWS, COLUMNS - 1)), {}, ValueError, "targets name label -1, expected 0 to 5"),
    ((X, W, None, (ROWS, torch.tensor([5, 2, 2]))), {}, ValueError, "sample 2 names label 2 twice"),
    ((X, W, None, HITS.to("meta")), {}, ValueError, "several devices: input on cpu, targets on meta"),
    ((X, W, None, HITS), {"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ((X, W, None, HITS), {"reduction": "none"}, ValueError, "unknown reduction='none', expected one of 'mean', 'sum'"),
    ((X, W, None, HITS), {"pos_weight": X}, ValueError, "pos_weight of shape (4, 3) does not broadcast to (6,)"),
    ((X, W, None, HITS), {"pos_weight": 2.0}, TypeError, "pos_weight must be a Tensor, got float"),
]


@pytest.mark.parametrize("backend", ["auto", "aten"])
@pytest.mark.parametrize(("given", "options", "kind", "said"), LINEAR_MISTAKES)
def test_linear_mistakes(given, options, kind, said, backend):
    with pytest.raises(kind) as error, sigtorch.use_backend(backend):
        linear_binary_cross_entropy(*given, **options)
    assert str(error.value).startswith("linear_binary_cross_entropy(): ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_group_is_a_group():
    for call in (lambda: siglip_loss(X, X, 1.0, group=3), lambda: sigtorch.nn.SigLIPLoss(group="world")):
        with pytest.raises(TypeError, match="group must be a ProcessGroup that this process is in, got"):
            call()
    with pytest.raises(ValueError, match=r"SigLIPLoss\(\): chunk_size must be at least 1, got -1"):
        sigtorch.nn.SigLIPLoss(chunk_size=-1)
