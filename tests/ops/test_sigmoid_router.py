"""The router as a module: its gate, the balance of loads, and the routers of transformers that it agrees with."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.device import DEVICE
from support.grouping import group_of
from support.router_cases import oracle

import sigtorch

HIDDEN, EXPERTS = 12, 16
GATES = {
    "deepseek_v3": "DeepseekV3TopkRouter",
    "glm4_moe": "Glm4MoeTopkRouter",
    "kimi_linear": "KimiLinearTopkRouter",
}


def router(**options):
    torch.manual_seed(0)
    made = sigtorch.nn.SigmoidRouter(
        HIDDEN, EXPERTS, 4, num_groups=4, topk_groups=2, scale=2.5, device=DEVICE, **options
    )
    torch.nn.init.uniform_(made.e_score_correction_bias, -0.2, 0.2)
    return made


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("name", GATES)
def test_agrees_with_transformers(name, backend):
    """Loads the gate's state, and routes as it does; its order is not sorted."""
    pytest.importorskip("transformers")
    modeling = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    config = importlib.import_module("types").SimpleNamespace(
        num_experts_per_tok=4, num_local_experts=EXPERTS, hidden_size=HIDDEN, routed_scaling_factor=2.5, n_group=4,
        topk_group=2, norm_topk_prob=True,
    )  # fmt: skip
    theirs, ours = getattr(modeling, GATES[name])(config).to(DEVICE), router()
    missing = theirs.load_state_dict(ours.state_dict())
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    x = torch.randn(2, 5, HIDDEN, device=DEVICE)
    _, expected, order = theirs(x)
    with sigtorch.use_backend(backend):
        weights, indices = ours(x)
        weights.square().sum().backward()
    expected.square().sum().backward()
    assert weights.shape == indices.shape == (2, 5, 4)
    dense, exact = (
        torch.zeros(10, EXPERTS, device=DEVICE).scatter(1, i.view(10, 4), w.view(10, 4))
        for w, i in ((weights, indices), (expected, order))
    )
    torch.testing.assert_close(dense, exact, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)


def test_logits_are_computed_in_float32():
    made, x = router(), torch.randn(5, HIDDEN, device=DEVICE)
    expected, order = oracle(F.linear(x.double(), made.weight.double()), 4, made.e_score_correction_bias.double(),
                             num_groups=4, topk_groups=2, scale=2.5)  # fmt: skip
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        weights, indices = made(x)
    assert torch.equal(indices, order)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-5)
    half = made.bfloat16()(x.bfloat16())
    assert half[0].dtype == torch.float32


def test_its_state_and_its_repr():
    made = router()
    assert {name: t.dtype for name, t in made.state_dict().items()} == {
        "weight": torch.float32, "e_score_correction_bias": torch.float32,
    }  # fmt: skip
    assert [name for name, _ in made.named_parameters()] == ["weight"]
    assert "hidden=12, num_experts=16, k=4, num_groups=4, topk_groups=2, normalize=True, scale=2.5" in repr(made)
    fresh = sigtorch.nn.SigmoidRouter(HIDDEN, EXPERTS, 2)
    assert fresh.weight.abs().max() <= HIDDEN**-0.5
    assert not fresh.e_score_correction_bias.any()
    with torch.device("meta"):
        assert sigtorch.nn.SigmoidRouter(HIDDEN, EXPERTS, 2).weight.is_meta


def test_the_bias_moves_towards_an_even_load():
    made = sigtorch.nn.SigmoidRouter(HIDDEN, 4, 2)
    made.update_bias(torch.tensor([[0, 1], [0, 2], [0, 1], [0, 3]]), rate=0.125)  # the mean load is 2
    assert made.e_score_correction_bias.tolist() == [-0.125, 0.0, 0.125, 0.125]
    made.update_bias(torch.empty(0, 2, dtype=torch.int32))
    assert made.e_score_correction_bias.tolist() == [-0.125, 0.0, 0.125, 0.125]
    made.update_bias(torch.tensor([[3, 2]]))
    torch.testing.assert_close(made.e_score_correction_bias, torch.tensor([-0.124, 0.001, 0.124, 0.124]))


def test_loads_become_even():
    torch.manual_seed(0)
    made, x = sigtorch.nn.SigmoidRouter(HIDDEN, EXPERTS, 4), torch.randn(256, HIDDEN) + 1
    for _ in range(600):
        _, indices = made(x)
        made.update_bias(indices)
    load = indices.flatten().bincount(minlength=EXPERTS) / (256 * 4 / EXPERTS)
    assert load.min() > 0.8
    assert load.max() < 1.2


def _updated(rank):
    made = sigtorch.nn.SigmoidRouter(2, 3, 1)
    made.update_bias(torch.tensor([[0], [0]]) if rank == 0 else torch.tensor([[1], [1], [2], [2]]), 1.0)
    alone = made.e_score_correction_bias.clone()
    made.reset_parameters()
    made.update_bias(
        torch.tensor([[0], [0]]) if rank == 0 else torch.tensor([[1], [1], [1], [2]]), 1.0, dist.group.WORLD
    )
    return alone.tolist(), made.e_score_correction_bias.tolist()


def test_loads_are_added_up_over_a_group():
    first, second = group_of(_updated, 2)
    assert first == ([-1.0, 1.0, 1.0], [0.0, -1.0, 1.0])
    assert second == ([1.0, -1.0, -1.0], [0.0, -1.0, 1.0])


@pytest.mark.parametrize(
    ("spoil", "indices", "message"),
    [
        (lambda r: r, torch.zeros(2, 2), "indices must be int64 or int32, got torch.float32"),
        (lambda r: r, [[0, 1]], "indices must be a Tensor, got list"),
        (lambda r: r.bfloat16(), torch.zeros(2, 2, dtype=torch.int64), "keep it in float32"),
        (lambda r: r, torch.full((2, 2), 16), "index 16 is out of bounds"),
    ],
)
def test_a_mistake_changes_no_bias(spoil, indices, message):
    made = spoil(sigtorch.nn.SigmoidRouter(HIDDEN, EXPERTS, 4))
    with pytest.raises((TypeError, IndexError, RuntimeError), match=message) as seen:
        made.update_bias(indices)
    assert "\n" not in str(seen.value)
    assert not made.e_score_correction_bias.any()


def test_a_mistake_is_named_when_it_is_made():
    with pytest.raises(ValueError, match=r"^SigmoidRouter\(\): k=17 must be from 1 to 16"):
        sigtorch.nn.SigmoidRouter(HIDDEN, EXPERTS, 17)


PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
BLOCKS = dict(re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE.read_text(), re.DOTALL))
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DEEPSEEK = {
    "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
LLAMA4 = {
    "num_local_experts": 8, "num_experts_per_tok": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48,
    "head_dim": 16,
}  # fmt: skip
MODELS = {
    "DeepSeek-V3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK),
    "Llama 4": ("Llama4TextConfig", "Llama4ForCausalLM", LLAMA4),
}


EXAMPLES = ["Choose and weight", "Gate", "Keep no product", "Balance the loads"]


def test_every_recipe_is_run():
    assert list(BLOCKS) == [*EXAMPLES, *MODELS]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    exec(BLOCKS[name], {"torch": torch, "sigtorch": sigtorch})


@pytest.mark.parametrize("name", MODELS)
def test_recipes(name, monkeypatch):
    """The same loss and gradients as before, by our function in every layer."""
    transformers = pytest.importorskip("transformers")
    config, kind, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**SIZES, **sizes})).train()
    tokens = torch.arange(24).reshape(2, 12) % 64

    def step():
        out = model(input_ids=tokens, labels=tokens)
        grads = torch.autograd.grad(out.loss, [*model.parameters()], allow_unused=True)
        return [out.loss.detach(), out.logits.detach(), *(g for g in grads if g is not None)]

    expected, calls, ours = step(), [], sigtorch.sigmoid_topk
    monkeypatch.setattr(sigtorch, "sigmoid_topk", lambda *a, **k: calls.append(a) or ours(*a, **k))
    scope = {"torch": torch, "sigtorch": sigtorch, "model": model}
    exec(BLOCKS[name], scope)
    found = step()
    assert len(calls) == 2
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    if name == "DeepSeek-V3":
        gate = next(m for m in model.modules() if type(m) is scope["Gate"])
        _, _, indices = gate(torch.randn(6, 32))
        gate.update_bias(indices)
        assert gate.e_score_correction_bias.any()
        assert model(input_ids=tokens, output_router_logits=True).router_logits
