"""The report of a run: every product that was computed, what becomes of it, and that the run leaves no trace."""

import functools
import random

import numpy
import pytest
import torch
import torch.nn.functional as F
from support.patching import MLP, Silu, forward_as, spy
from torch import nn

import sigtorch
from sigtorch.plugin import report as reasons


class Body(nn.Module):
    """Has a forward of its own, and two layers."""

    def __init__(self, act=None):
        super().__init__()
        self.w1, self.w3, self.act = nn.Linear(6, 6), nn.Linear(6, 6), act or nn.Sigmoid()


def report_on(body, *args, act=None):
    model = type("Model", (Body,), {"forward": body})(act)
    return sigtorch.patch(model).report(*(args or (torch.randn(4, 6),)))


def row_at(report, place):
    (row,) = [r for r in report.products if r.place == place]
    return row


def squeeze(self, x):
    return x * self.act(self.w1(x).mean(1, keepdim=True))


def gated(self, x):
    return F.silu(self.w1(x)) * self.w3(x)


def cell(self, x):
    z = torch.sigmoid(self.w1(x))
    return (1 - z) * torch.tanh(self.w3(x)) + z * x


def closed_first(self, x):
    z = torch.sigmoid(self.w1(x))
    return x * z + self.w3(x) * (1.0 - z)


def by_lerp(self, x):
    return torch.lerp(self.w3(x), x, self.w1(x).sigmoid())


def interpolated_by_addcmul(self, x):
    z = torch.sigmoid(self.w1(x))
    return torch.addcmul((1 - z) * x, z, self.w3(x))


def added(self, x):
    return torch.addcmul(x, self.act(self.w1(x)), self.w3(x))


def reshaped(self, x):
    gate = torch.sigmoid(self.w1(x)).reshape(2, 2, 6).transpose(0, 1)
    return (gate.reshape(2, 12).reshape(4, 6) * x,)


def in_place(self, x):
    h = self.w3(x)
    h.mul_(torch.sigmoid(self.w1(x)))
    return h


def cast(self, x):
    return F.silu(self.w1(x).double()).to(x.dtype) * self.w3(x)


def halves(self, x):
    return F.glu(x)


def sigmoid_in_place(self, x):
    return self.w1(x).sigmoid_() * x


# The kind, and the line of the product after that of its name.
KINDS = {
    squeeze: ("sigmoid_gate", 1), gated: ("swiglu", 1), cell: ("sigmoid_lerp", 2), closed_first: ("sigmoid_lerp", 2),
    by_lerp: ("sigmoid_lerp", 1), interpolated_by_addcmul: ("sigmoid_lerp", 2), added: ("sigmoid_gate", 1),
    reshaped: ("sigmoid_gate", 2), in_place: ("sigmoid_gate", 2), cast: ("swiglu", 1), halves: ("glu", 1),
    sigmoid_in_place: ("sigmoid_gate", 1),
}  # fmt: skip


@pytest.mark.parametrize("body", KINDS, ids=lambda body: body.__name__)
def test_each_kind_of_product_has_one_row(body):
    kind, line = KINDS[body]
    report = report_on(body)
    (row,) = report.products
    assert (row.kind, row.count, row.shared) == (kind, 1, False)
    assert row.place == f"test_report.py:{body.__code__.co_firstlineno + line}"
    assert row.file == __file__
    assert report.total == 1
    assert bool(row.why) != row.fused
    assert not report.alone


def test_what_a_rewritten_method_fuses():
    for body, gate in ((squeeze, (4, 1)), (gated, (4, 6))):
        report = report_on(body)
        (row,) = report.products
        assert row.fused
        assert {o.name: o.shape for o in row.operands}["gate"] == gate
        assert (report.fused, report.total, report.on_cuda) == (1, 1, False)


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def decorated(self, x):
    h = self.w3(x)
    return h * torch.sigmoid(x)


def test_lines_of_a_decorated_method():
    patch = sigtorch.patch(type("Model", (Body,), {"forward": decorated})())
    report = patch.report(torch.randn(4, 6))
    line = decorated.__wrapped__.__wrapped__.__code__.co_firstlineno + 4
    assert [(r.place, r.fused) for r in report.products] == [(f"test_report.py:{line}", True)]
    patch.undo()
    (row,) = patch.report(torch.randn(4, 6)).products
    assert (row.place, row.why) == (f"test_report.py:{line}", reasons.NOT_RUNNING_REASON)


def used_twice(self, x):
    s = torch.sigmoid(self.w1(x))
    return s * x + s.sum() * self.w3(x)


def test_a_sigmoid_that_other_code_takes_too():
    (row,) = report_on(used_twice).products
    assert row.shared
    assert not row.fused
    report = report_on(used_twice)
    assert (report.fused, report.total) == (0, 0)
    assert str(report).endswith("fused 0 of 0 products, and 1 share their sigmoid or silu with other code")


def one_by_one(self, x):
    y = torch.sigmoid(x) * 2 + F.silu(x).relu()
    y = y + (1 - self.act(x)) * x
    return F.binary_cross_entropy_with_logits(y, x) + torch.sigmoid(x) * x.sum().item()


def test_what_stands_alone():
    report = report_on(one_by_one)
    assert not report.products
    first = one_by_one.__code__.co_firstlineno
    found = sorted((r.kind, int(r.place.split(":")[1]) - first, r.fused) for r in report.alone)
    assert found == [
        ("binary_cross_entropy_with_logits", 3, False), ("sigmoid", 1, False), ("sigmoid", 2, True), ("sigmoid", 3, False),
        ("silu", 1, False),
    ]  # fmt: skip
    assert [bool(r.why) for r in report.alone] == [not r.fused for r in report.alone]


def overwritten(self, x):
    s = torch.sigmoid(self.w1(x))
    s.add_(1)
    part = self.w3(x)
    part[:, :3].sigmoid_()
    return s * x + part[:, 3:].repeat(1, 2) * x


def test_memory_that_something_else_was_written_to_is_no_sigmoid():
    report = report_on(overwritten)
    assert not report.products
    assert [r.kind for r in report.alone] == ["sigmoid"] * 2


def function(x, gate):
    return x * torch.sigmoid(gate)


def in_a_function(self, x):
    return [function][0](x, self.w1(x))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)


def in_an_autograd_function(self, x):
    return Swish.apply(x)


def table(self, x):
    return {"silu": F.silu}["silu"](self.w1(x)) * self.w3(x)


def in_two_precisions(self, x):
    return x.double() * torch.sigmoid(self.w1(x))


REASONS = {
    in_a_function: reasons.FUNCTION_REASON,
    in_an_autograd_function: reasons.AUTOGRAD_REASON,
    table: reasons.FORM_REASON,
    in_place: reasons.IN_PLACE_REASON,
    in_two_precisions: "no kernel takes its dtypes",
}


@pytest.mark.parametrize("body", REASONS, ids=lambda body: body.__name__)
def test_each_reason(body):
    (row,) = report_on(body).products
    assert not row.fused
    assert row.why == REASONS[body]


def test_a_hook_that_was_added_since():
    model = MLP(Silu())
    patch = sigtorch.patch(model)
    x = torch.randn(4, 6)
    assert patch.report(x).fused == 1
    model.act.register_forward_hook(lambda *_: None)
    (row,) = patch.report(x).products
    assert (row.fused, row.why) == (False, reasons.OTHER_CODE_REASON)


def test_the_reason_that_the_patch_gave():
    model = MLP(nn.SiLU(inplace=True))
    patch = sigtorch.patch(model)
    (row,) = patch.report(torch.randn(4, 6)).products
    assert f"{row.place}: {row.why}" == patch.left[""]


def test_after_undo_the_original_runs():
    patch = sigtorch.patch(MLP())
    patch.undo()
    (row,) = patch.report(torch.randn(4, 6)).products
    assert (row.fused, row.why) == (False, reasons.NOT_RUNNING_REASON)


def test_a_chosen_backend():
    patch = sigtorch.patch(MLP())
    with sigtorch.use_backend("aten"):
        (row,) = patch.report(torch.randn(4, 6)).products
    assert not row.fused
    assert row.why


def test_autocast():
    patch = sigtorch.patch(MLP())
    with torch.autocast("cpu", torch.bfloat16):
        (row,) = patch.report(torch.randn(4, 6)).products
    assert row.fused
    assert {o.dtype for o in row.operands} == {torch.bfloat16}


class Ours(nn.Module):
    def forward(self, x):
        y = sigtorch.sigmoid_lerp(x, x, x) + sigtorch.swiglu(torch.cat([x, x], 1)) + sigtorch.glu(torch.cat([x, x], 1))
        return sigtorch.binary_cross_entropy_with_logits(y, x) + sigtorch.sigmoid_focal_loss(y, x.sigmoid())


def test_sigtorchs_own_functions():
    report = sigtorch.patch(Ours()).report(torch.randn(4, 6))
    assert [(r.kind, r.fused) for r in report.products] == [("sigmoid_lerp", True), ("swiglu", True), ("glu", True)]
    assert sorted((r.kind, r.fused) for r in report.alone) == [
        ("binary_cross_entropy_with_logits", True), ("sigmoid", False), ("sigmoid_focal_loss", True)
    ]  # fmt: skip


def test_modules_without_code_of_their_own_are_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Sequential(nn.Sigmoid(), nn.GRU(4, 4)))
    report = sigtorch.patch(model).report(torch.randn(4, 6))
    assert [(r.place, r.file, r.fused) for r in report.products] == [("1 (GLU)", "", True)]
    assert [(r.place, r.why) for r in report.alone if r.place == "2.0 (Sigmoid)"] == [("2.0 (Sigmoid)", "")]
    assert {r.why for r in report.alone if r.place == "2.1 (GRU)"} == {reasons.PYTORCH_REASON}


def test_functions_are_diverted_as_outside_of_a_report():
    patch = sigtorch.patch(type("Model", (Body,), {"forward": halves})())
    with sigtorch.patched_functions():
        (row,) = patch.report(torch.randn(4, 6)).products
    assert row.fused


def test_a_report_says_what_runs_without_it(monkeypatch):
    """Its decisions are those of a run on a device with kernels."""
    from plugin.test_rewrite import FUSED

    for body in FUSED:
        model, x = forward_as(body), torch.linspace(-2, 2, 24).reshape(4, 6)
        patch = sigtorch.patch(model)
        report = patch.report(x)
        with monkeypatch.context() as patched:
            calls = spy(patched)
            with torch.no_grad():
                model(x)
        assert report.fused == len(calls), body.__name__


class Everything(nn.Module):
    """Changes all that a module can hold."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.w = nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6)
        self.register_buffer("steps", torch.zeros(3)[:1].expand(2))
        self.register_buffer("last", None)
        self.fails = False

    def forward(self, x):
        h = self.drop(self.norm(self.w(x))) * random.random() * numpy.random.rand()
        x.add_(torch.rand(4, 6))
        self.steps[:1].add_(1)
        self.last = h
        self.w.bias.add_(1)
        self.norm.running_var = self.norm.running_var * 2
        with torch.enable_grad():
            (self.w.weight.sum() * 2).backward()
        if self.fails:
            raise KeyError("in the end")
        return h * torch.sigmoid(x)


def bits(t):
    return None if t is None else [*t.detach().numpy().tobytes()]


def state_of(model, x):
    tensors = [*model.parameters(), *model._buffers.values(), *model.norm._buffers.values(), x]
    grads = [p.grad for p in model.parameters()]
    ids = [id(t) for t in (*tensors, *grads)]
    values = [bits(t) for t in (*tensors, *grads)]
    drawn = (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist())
    return ids, values, drawn, model.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_report_leaves_no_trace(training, fails):
    model, x = Everything().train(training), torch.randn(4, 6)
    model.norm.running_mean[0] = float("nan")
    for p in (model.w.weight, model.norm.weight):
        p.grad = torch.ones_like(p)
    patch = sigtorch.patch(model)
    before = state_of(model, x)
    model.fails = fails
    if fails:
        with pytest.raises(KeyError, match="in the end"):
            patch.report(x)
    else:
        assert patch.report(x).total == 1
    after = state_of(model, x)
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert torch.equal(before[2][0], after[2][0])
    assert before[2][1:] == after[2][1:]
    assert before[3] == after[3]
    assert torch._C._len_torch_dispatch_stack() == 0


def test_the_mode_of_the_model_holds():
    class Modes(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x) if self.training and not torch.is_grad_enabled() else x

    model = Modes()
    patch = sigtorch.patch(model)
    assert patch.report(torch.ones(2, 2)).total == 1
    model.eval()
    assert patch.report(torch.ones(2, 2)).total == 0


def test_a_lazy_model_is_refused():
    patch = sigtorch.patch(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(ValueError, match="has no shape yet") as raised:
        patch.report(torch.ones(2, 2))
    assert "'0.weight'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_table():
    model = nn.ModuleList([MLP(), MLP()])
    model.forward = lambda x: torch.sigmoid(model[1](model[0](x)))
    line = MLP.forward.__code__.co_firstlineno + 1
    here = model.forward.__code__.co_firstlineno
    lines = [" ".join(line.split()) for line in str(sigtorch.patch(model).report(torch.ones(4, 6))).splitlines()]
    assert lines == [
        "sigtorch.report: what would run on a CUDA device",
        f"fused 2 x swiglu patching.py:{line} gate (4, 10), up (4, 10), float32",
        f"alone 1 x sigmoid test_report.py:{here} input (4, 6), float32",
        reasons.ALONE_REASONS["sigmoid"],
        "fused 2 of 2 products",
    ]


def test_the_model_is_not_followed_beyond_its_run():
    """Nothing of the run is kept: no tensor lives on."""
    seen = []

    class Kept(nn.Module):
        def forward(self, x):
            out = x * torch.sigmoid(x)
            seen.append(torch.multiprocessing.reductions.StorageWeakRef(out.untyped_storage()))
            return out

    report = sigtorch.patch(Kept()).report(torch.ones(2, 2))
    assert report.total == 1
    assert all(memory.expired() for memory in seen)


@pytest.mark.parametrize("partial", [False, True])
def test_an_object_that_is_no_module(partial):
    class Processor:
        def __call__(self, x):
            return F.silu(x) * x

    model = nn.Identity()
    model.forward = functools.partial(Processor()) if partial else Processor()
    (row,) = sigtorch.patch(model).report(torch.ones(2, 2)).products
    assert row.why == reasons.FUNCTION_REASON
