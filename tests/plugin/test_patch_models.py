"""Plugging into models that no one here wrote: transformers' own, small and random."""

import copy
import pickle

import pytest
import torch
from patching import agree, spy

import sigtorch


@pytest.fixture
def calls(monkeypatch):
    return spy(monkeypatch)


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
NEXT = {
    "layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "linear_num_value_heads": 2,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MODELS = {"Llama": {}, "Qwen3": {}, "Mistral": {}, "Qwen3Next": NEXT, "FalconH1": FALCON}


def build(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).train()


def step(model):
    """Loss, logits, gradients, and the parameters after a step of the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(24).reshape(2, 12) % 64
    out = model(input_ids=tokens, labels=tokens)
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    optimizer.zero_grad()
    return [out.loss.detach(), out.logits.detach(), *gradients, *(p.detach().clone() for p in model.parameters())]


def eager(model):
    """What transformers would warn of and run slowly is not what is tested."""
    state = copy.deepcopy(model.state_dict())
    result = step(model)
    model.load_state_dict(state)
    return result


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "Qwen3Next"])
def test_real_models(name, calls):
    model = build(name)
    layers = [n for n, m in model.named_modules() if type(m).__name__ == f"{name}MLP"]
    before = eager(model)
    patch = sigtorch.patch(model)
    assert list(patch.swapped) == layers
    assert len(layers) == 2
    after = eager(model)
    assert calls.count("swiglu") == 2
    agree(before, after)
    again = pickle.loads(pickle.dumps(model))
    agree(after, eager(again), exactly=True)
    patch.undo()
    agree(before, eager(model), exactly=True)


def test_real_model_compiles():
    model = build("Llama")
    before = eager(model)
    with sigtorch.patch(model):
        model.compile(backend="aot_eager")
        agree(before, eager(model))


def test_qwen3_next_says_what_is_left():
    left = sigtorch.patch(build("Qwen3Next")).left
    (attention,) = (note for name, note in left.items() if name.endswith("self_attn"))
    assert attention.startswith("inline at modeling_qwen3_next.py:")
    assert attention.endswith("by hand: attn_output = sigtorch.sigmoid_gate(attn_output, gate)")
    experts = [note for name, note in left.items() if name.endswith("mlp.experts")]
    assert len(experts) == 2
    for note in experts:
        assert note.startswith("packed experts\ninline at ")
        assert "by hand: current_hidden_states = sigtorch.swiglu(gate, up)" in note


def test_falcon_h1_is_left_alone():
    model = build("FalconH1")
    classes = [type(m) for m in model.modules()]
    patch = sigtorch.patch(model)
    assert not patch.swapped
    assert [type(m) for m in model.modules()] == classes
    notes = [note for name, note in patch.left.items() if name.endswith("feed_forward")]
    assert len(notes) == 2
    assert all(
        note.startswith("not exactly down(silu(gate) * up), but up_proj, gate_proj, mul, silu") for note in notes
    )


def test_real_model_under_patched_functions(calls):
    model = build("Qwen3Next")
    before = eager(model)
    with sigtorch.patched_functions():
        agree(before, eager(model))
    assert "sigmoid" in calls
    agree(before, eager(model), exactly=True)
