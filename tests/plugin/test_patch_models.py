"""``patch`` on small random models of transformers."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from support.patching import agree, spy

import sigtorch

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
NEXT = {
    "layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "linear_num_value_heads": 2,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MIXED = {"num_local_experts": 4, "num_experts_per_tok": 2}
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MODELS = {"Llama": {}, "Qwen3": {}, "Mistral": {}, "Mixtral": MIXED, "Qwen3Next": NEXT, "FalconH1": FALCON}


def build(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    return getattr(transformers, f"{name}ForCausalLM")(config).train()


def step(model):
    """Returns loss, logits, gradients, and the parameters after a step of the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(24).reshape(2, 12) % 64
    out = model(input_ids=tokens, labels=tokens)
    out.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    optimizer.zero_grad()
    return [out.loss.detach(), out.logits.detach(), *gradients, *(p.detach().clone() for p in model.parameters())]


def eager(model):
    """Takes a step, and restores the model's parameters."""
    state = copy.deepcopy(model.state_dict())
    result = step(model)
    model.load_state_dict(state)
    return result


# For each model: the calls of sigtorch in a step, and the number of swapped modules by class.
EXPECTED = {
    "Llama": ({"swiglu": 2}, {"LlamaMLP": 2}),
    "Qwen3": ({"swiglu": 2}, {"Qwen3MLP": 2}),
    "Mistral": ({"swiglu": 2}, {"MistralMLP": 2}),
    "Mixtral": ({"swiglu": 2}, {"MixtralExperts": 2}),
    "FalconH1": ({"swiglu": 4}, {"FalconH1MLP": 2, "FalconH1Mixer": 2}),
    "Qwen3Next": (
        {"swiglu": 5, "sigmoid_gate": 3},
        {
            "Qwen3NextAttention": 1,
            "Qwen3NextExperts": 2,
            "Qwen3NextMLP": 2,
            "Qwen3NextSparseMoeBlock": 2,
            "Qwen3NextRMSNormGated": 1,
        },
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_models(name, monkeypatch):
    model = build(name)
    before, (expected_calls, swapped) = eager(model), EXPECTED[name]
    patch = sigtorch.patch(model)
    class_names = {n: type(m).__name__ for n, m in model.named_modules()}
    assert Counter(class_names[n] for n in patch.swapped) == swapped
    assert not patch.left
    agree(before, eager(model), exactly=True)
    calls = spy(monkeypatch)
    agree(before, eager(model))
    assert Counter(calls) == expected_calls
    again = pickle.loads(pickle.dumps(model))
    agree(before, eager(again))
    assert Counter(calls) == {function: 2 * n for function, n in expected_calls.items()}
    patch.undo()
    agree(before, eager(model), exactly=True)


def test_gradient_checkpointing(calls):
    model = build("Llama")
    before = eager(model)
    with sigtorch.patch(model):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        agree(before, eager(model))
    assert calls == ["swiglu"] * 4


def test_real_model_compiles():
    model = build("Llama")
    before = eager(model)
    with sigtorch.patch(model):
        model.compile(backend="aot_eager")
        agree(before, eager(model))


def test_real_model_under_patched_functions(calls):
    model = build("Qwen3Next")
    before = eager(model)
    with sigtorch.patched_functions():
        agree(before, eager(model))
    assert "sigmoid" in calls
    agree(before, eager(model), exactly=True)
