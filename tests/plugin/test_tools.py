"""Tools applied to models before and after a patch: traces, exports, quantisation, sharding, adapters, hooks."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from support.patching import MLP, agree, run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sigtorch


class Gated(nn.Module):
    """A model of two MLPs and a gate."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.gate = MLP(), MLP(), nn.Linear(6, 6)

    def forward(self, x):
        return self.first(x) + self.second(x) * torch.sigmoid(self.gate(x))


FUSED = ["swiglu", "swiglu", "sigmoid_gate"]


def test_traced_by_fx(calls):
    model, x = MLP(), torch.randn(4, 6)
    expected = model(x)
    with sigtorch.patch(model):
        traced = torch.fx.symbolic_trace(model)
    assert [n.name for n in traced.graph.nodes] == ["hidden", "w1", "act", "w3", "mul", "w2", "output"]
    torch.testing.assert_close(traced(x), expected, rtol=0, atol=0)
    assert not calls


@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, lambda m: torch.jit.trace(m, torch.randn(4, 6))])
def test_a_traced_model_is_left(trace):
    traced = trace(MLP())
    patch = sigtorch.patch(traced)
    assert patch.left[""] == "it is traced already: patch the model before tracing"
    assert not patch.swapped


def test_exported_with_dynamic_shapes(calls):
    model, x = MLP(), torch.randn(4, 6)
    with sigtorch.patch(model):
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    y = torch.randn(9, 6)
    torch.testing.assert_close(exported.module()(y), model(y))
    assert not calls


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_traced_by_jit(backend, device):
    model, x = Gated().eval().to(device), torch.randn(4, 6, device=device)
    expected = model(x)
    with sigtorch.patch(model), sigtorch.use_backend(backend):
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected)


def test_compiled_whole():
    model, x = Gated(), torch.randn(4, 6)
    expected = run(model, x)
    with sigtorch.patch(model):
        agree(expected, run(torch.compile(model, fullgraph=True, backend="aot_eager"), x))


def test_quantised(calls):
    model, x = Gated().eval(), torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates its quantisation
        expected = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})(x)
        sigtorch.patch(model)
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    torch.testing.assert_close(quantised(x), expected)
    assert calls == FUSED


def test_state_of_a_patched_model_loads_anywhere():
    model, plain = Gated(), Gated()
    sigtorch.patch(model)
    plain.load_state_dict(model.state_dict())
    agree(run(plain), run(model), exactly=True)


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("first", ["patch", "shard"])
def test_sharded(first, group, calls):
    model, x = Gated(), torch.randn(4, 6)
    expected = run(model, x)
    classes, mesh = [type(m) for m in model.modules()], init_device_mesh("cpu", (1,))

    def shard():
        for module in (model.first, model.second, model):
            fully_shard(module, mesh=mesh)

    if first == "shard":
        shard()
        classes = [type(m) for m in model.modules()]
    patch = sigtorch.patch(model)
    assert len(patch.swapped) == 3
    if first == "patch":
        shard()
    found = run(model, x)
    agree(expected, [found[0], *(g.full_tensor() for g in found[1:])])
    assert calls == FUSED
    if first == "shard":
        patch.undo()
        assert [type(m) for m in model.modules()] == classes
    else:
        with pytest.raises(RuntimeError, match="changed their class or forward since"):
            patch.undo()


@pytest.mark.parametrize("first", ["patch", "hook"])
def test_accelerates_hooks(first, calls):
    hooks = pytest.importorskip("accelerate.hooks")

    class Doubles(hooks.ModelHook):
        def post_forward(self, module, output):
            return output * 2

    model, x = MLP(), torch.randn(4, 6)
    expected = model(x) * 2
    if first == "hook":
        hooks.add_hook_to_module(model, Doubles())
    patch = sigtorch.patch(model)
    if first == "patch":
        hooks.add_hook_to_module(model, Doubles())
    torch.testing.assert_close(model(x), expected)
    assert calls == (["swiglu"] if first == "patch" else [])
    if first == "hook":
        assert patch.left[""].endswith(": forward was replaced on the instance")
        return
    with pytest.raises(RuntimeError, match="changed their class or forward since"):
        patch.undo()
    hooks.remove_hook_from_module(model)
    del model.forward
    patch.undo()
    assert type(model) is MLP


@pytest.mark.parametrize("first", ["patch", "adapt"])
def test_adapters(first, calls):
    peft = pytest.importorskip("peft")
    model, x = Gated(), torch.randn(4, 6)
    expected = model(x)
    config = peft.LoraConfig(r=2, target_modules=["w1", "w3", "gate"])
    if first == "patch":
        sigtorch.patch(model)
    model = peft.get_peft_model(model, config)
    if first == "adapt":
        sigtorch.patch(model)
    out = model(x)
    torch.testing.assert_close(out, expected)
    assert calls == FUSED
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
