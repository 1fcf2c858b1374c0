"""Clamped SwiGLUs, as transformers and other code write them: what runs, and that nothing else changes."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.patching import agree, run, spy
from torch import nn

import sigtorch
from sigtorch.ops import gates

CONFIG = SimpleNamespace(
    hidden_size=6, intermediate_size=8, moe_intermediate_size=8, dense_intermediate_size=8, num_local_experts=3,
    num_experts=3, num_experts_per_tok=2, swiglu_alpha=1.702, swiglu_limit=0.75, hidden_act="silu", mlp_bias=False,
    _experts_implementation="eager",
)  # fmt: skip
MODELS = {
    "gpt_oss": ["GptOssExperts"],
    "deepseek_v4": ["DeepseekV4MLP", "DeepseekV4Experts"],
    "glm5_next": ["Glm5NextTextMLP", "Glm5NextTextExperts", "Glm5NextVisionMLP", "Glm5NextVisionPatchMerger"],
    "minimax_m3_vl": ["MiniMaxM3VLDenseMLP", "MiniMaxM3VLExperts"],
    "hy_v4": ["HYV4Experts"],
    "openai_privacy_filter": ["OpenAIPrivacyFilterExperts"],
}
CLASSES = [(model, name) for model, names in MODELS.items() for name in names]


def build(model, name):
    """The module, and its arguments."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    cls = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
    module = cls(6, 8, "silu", CONFIG.swiglu_limit) if name.endswith("Merger") else cls(CONFIG)
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.linspace(-2, 2, 24).reshape(4, 6)
    if not name.endswith("Experts"):
        return module, (x,)
    return module, (x, torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]]), torch.rand(4, 2))


def step(module, args):
    module.zero_grad()
    out = module(*args)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("model", "name"), CLASSES)
def test_models_of_transformers(model, name, monkeypatch):
    module, args = build(model, name)
    before = step(module, args)
    patch = sigtorch.patch(module)
    assert not patch.left
    assert "sigtorch.swiglu" in str(patch)
    agree(before, step(module, args), exactly=True)
    report = patch.report(*args)
    assert report.fused == report.total > 0
    assert {p.kind for p in report.products} == {"swiglu"}
    assert not report.alone
    calls = spy(monkeypatch)
    agree(before, step(module, args))
    assert set(calls) == {"swiglu"}
    patch.undo()
    agree(before, step(module, args), exactly=True)


class Model(nn.Module):
    """Its forward is set by a test."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 10)
        self.both = nn.Linear(6, 20)
        self.act, self.limit, self.alpha, self.kept = nn.SiLU(), 0.5, 1.5, []


def inline(self, x):
    gate = self.w1(x).clamp(max=self.limit)
    up = self.w3(x).clamp(min=-self.limit, max=self.limit)
    return self.w2(up * self.act(gate))


def of_a_product(self, x):
    gate = self.w1(x * torch.sigmoid(x)).clamp(max=self.limit)
    up = self.w3(x).clamp(min=-self.limit, max=self.limit)
    return self.w2(up * self.act(gate))


def interleaved(self, x):
    both = self.both(x)
    gate, up = both[..., 0::2], both[..., 1::2]
    gate = gate.clamp(max=self.limit)
    up = up.clamp(min=-self.limit, max=self.limit)
    hidden = (1 + up) * self.act(gate)
    return self.w2(hidden)


def constants(self, x):
    a, b = self.both(x), None
    b, c = a.chunk(2, -1)
    b = b.clamp(max=0.5, min=None)
    c = c.clamp(min=-0.5, max=0.5)
    d = torch.sigmoid(1.5 * b) * b
    return self.w2(d * c)


def read_later(self, x):
    gate, up = self.w1(x), self.w3(x)
    gate = gate.clamp(max=self.limit)
    up = up.clamp(min=-self.limit, max=self.limit)
    out = self.w2(self.act(gate) * up)
    return out + gate.sum()


def other_limits(self, x):
    gate, up = self.w1(x), self.w3(x)
    gate = gate.clamp(max=self.limit)
    up = up.clamp(min=-0.25, max=self.limit)
    return self.w2(self.act(gate) * up)


def both_sides(self, x):
    gate, up = self.w1(x), self.w3(x)
    gate = gate.clamp(min=-0.25, max=self.limit)
    up = up.clamp(min=-self.limit, max=self.limit)
    return self.w2(self.act(gate) * up)


def code_between(self, x):
    gate, up = self.w1(x), self.w3(x)
    gate = gate.clamp(max=self.limit)
    self.kept.append(gate)
    up = up.clamp(min=-self.limit, max=self.limit)
    return self.w2(self.act(gate) * up)


def other_gate(self, x):
    gate, up = self.w1(x), self.w3(x)
    gate = gate.clamp(max=self.limit)
    up = up.clamp(min=-self.limit, max=self.limit)
    glu = gate * torch.sigmoid(up * self.alpha)
    return self.w2((up + 1) * glu)


def changed(self, x):
    both = self.both(x)
    gate, up = both.chunk(2, -1)
    gate = gate.clamp(max=self.limit)
    up = up.clamp(min=-self.limit, max=self.limit)
    out = self.act(gate) * up
    both.zero_()
    return self.w2(out)


def in_a_loop(self, x):
    gate = up = None
    for _ in range(2):
        gate = self.w1(x) if gate is None else gate + self.w1(x)
        up = self.w3(x)
        gate = gate.clamp(max=self.limit)
        up = up.clamp(min=-self.limit, max=self.limit)
        x = self.w2(self.act(gate) * up)
    return x


def model_of(forward):
    torch.manual_seed(1)
    return type("Other", (Model,), {"forward": forward})()


@pytest.fixture
def numbers(monkeypatch):
    """The options with which swiglu is called."""
    seen, original = [], gates.swiglu
    spy(monkeypatch)

    def swiglu(*tensors, **options):
        seen.append(options)
        return original(*tensors, **options)

    monkeypatch.setattr(gates, "swiglu", swiglu)
    return seen


FUSED = {
    inline: {"alpha": 1.0, "limit": 0.5, "offset": 0.0, "interleaved": False},
    interleaved: {"alpha": 1.0, "limit": 0.5, "offset": 1.0, "interleaved": True},
    constants: {"alpha": 1.5, "limit": 0.5, "offset": 0.0, "interleaved": False},
}


@pytest.mark.parametrize("forward", FUSED, ids=lambda f: f.__name__)
def test_other_ways_to_write_it(forward, numbers):
    model = model_of(forward)
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert numbers == [FUSED[forward]]


def test_a_product_within_its_source():
    """Both are fused, and each has its own name."""
    model = model_of(of_a_product)
    before = run(model)
    with sigtorch.patch(model) as patch, sigtorch.use_backend("triton"):
        agree(before, run(model))
    assert [str(patch).count(f"sigtorch.{name} at") for name in ("sigmoid_gate", "swiglu")] == [1, 1]


LEFT = (read_later, other_limits, both_sides, code_between, other_gate, in_a_loop)


@pytest.mark.parametrize("forward", LEFT, ids=lambda f: f.__name__)
def test_what_it_is_not(forward, numbers):
    """These clamp by PyTorch."""
    model = model_of(forward)
    before = run(model)
    sigtorch.patch(model)
    agree(before, run(model))
    assert not any("limit" in options for options in numbers)


def test_a_tensor_that_changes_later(numbers):
    """Backward would read it."""
    model, x = model_of(changed), torch.randn(4, 6)
    sigtorch.patch(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), changed(model, x))
    assert not any("limit" in options for options in numbers)


@pytest.mark.parametrize("limit", [torch.tensor(0.5), -0.5, float("nan"), None], ids=str)
def test_a_limit_that_is_no_number_of_ours(limit, numbers):
    """It is asked for at each call."""
    model = model_of(interleaved)
    sigtorch.patch(model)
    run(model)
    assert len(numbers) == 1
    model.limit = limit
    try:
        expected = interleaved(model, torch.ones(2, 6))
    except (TypeError, RuntimeError) as error:
        with pytest.raises(type(error)):
            model(torch.ones(2, 6))
    else:
        torch.testing.assert_close(model(torch.ones(2, 6)), expected, equal_nan=True)
    assert [options["limit"] for options in numbers if "limit" in options] == [0.5]


def test_an_activation_that_is_replaced(numbers):
    model = model_of(interleaved)
    sigtorch.patch(model)
    model.act = nn.GELU()
    x = torch.ones(2, 6)
    gate, up = model.both(x)[..., ::2].clamp(max=0.5), model.both(x)[..., 1::2].clamp(-0.5, 0.5)
    torch.testing.assert_close(model(x), model.w2((1 + up) * F.gelu(gate)))
    assert numbers == []
