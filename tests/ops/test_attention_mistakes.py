"""Mistakes in calls of sigmoid attention: each raises one line that quotes what was seen. The module, too."""

import pytest
import torch
from support.refusing import refused

from sigtorch import sigmoid_attention, sigmoid_attention_varlen
from sigtorch.nn import SigmoidAttention

Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 6, 8)
SEEN = torch.ones(5, 6, dtype=torch.bool)
X, CU = torch.zeros(5, 4, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
DENSE = [
    ((1, K, K), {}, TypeError, "query must be a Tensor, got int"),
    ((Q.to_sparse(), K, K), {}, TypeError, "query must be a dense tensor, got torch.sparse_coo"),
    ((Q.int(), K, K), {}, TypeError, "query must be floating point of 16 bits or more, got torch.int32"),
    ((Q.half(), K, K), {}, TypeError, "one dtype, got query torch.float16, key torch.float32"),
    ((Q, K.to("meta"), K), {}, ValueError, "several devices: query on cpu, key on meta"),
    ((Q[0, 0], K, K), {}, ValueError, "query must have shape (..., heads, n, d), got (5, 8)"),
    ((Q[..., :7], K, K), {}, ValueError, "one head dimension, got 7 in query (2, 4, 5, 7) and 8 in key"),
    ((Q, K[:, :2], K[:, :2]), {}, ValueError, "4 heads of query and 2 of key need enable_gqa=True"),
    ((Q, K[:, :3], K[:, :3]), {"enable_gqa": True}, ValueError, "heads of key, 3, must divide those of query, 4"),
    ((Q, K[:, :0], K[:, :0]), {"enable_gqa": True}, ValueError, "heads of key, 0, must divide those of query, 4"),
    ((Q, K, K[:, :2]), {}, ValueError, "key and value must have as many heads, got 4 and 2"),
    ((Q, K, K[:, :, :5]), {}, ValueError, "a row for each key, got key (2, 4, 6, 8) and value (2, 4, 5, 8)"),
    ((Q, K[[0, 0, 0]], K), {}, ValueError, "must broadcast, got query (2, 4, 5, 8), key (3, 4, 6, 8)"),
    ((Q, K, K, SEEN), {"is_causal": True}, ValueError, "give attn_mask or is_causal=True, not both"),
    ((Q, K, K, SEEN.int()), {}, TypeError, "attn_mask must be bool or floating point, got torch.int32"),
    ((Q, K, K, SEEN.mT), {}, ValueError, "attn_mask must broadcast to (2, 4, 5, 6), got (6, 5)"),
    ((Q, K, K, SEEN.expand(1, 2, 4, 5, 6)), {}, ValueError, "to (2, 4, 5, 6), got (1, 2, 4, 5, 6)"),
    ((Q, K, K, SEEN.to("meta")), {}, ValueError, "query on cpu, attn_mask on meta"),
    ((Q, K, K), {"bias": "1"}, TypeError, "bias must be a number, got str"),
    ((Q, K, K), {"bias": torch.zeros(3)}, ValueError, "of shape (4,), one number a head, got shape (3,)"),
    ((Q, K, K), {"bias": torch.tensor(1)}, TypeError, "bias must be floating point"),
    ((Q, K, K), {"bias": torch.zeros(4, device="meta")}, ValueError, "query on cpu, bias on meta"),
    ((Q, K, K), {"alibi_slopes": torch.zeros(2, 4)}, ValueError, "alibi_slopes must have shape (4,), one number a head"),
    ((Q, K, K), {"scale": None, "alibi_slopes": 1.0}, TypeError, "alibi_slopes must be a Tensor, got float"),
    ((Q, K, K), {"scale": [1]}, TypeError, "scale must be a number, got list"),
]  # fmt: skip
PACKED = [
    ({"q": X[:, :3]}, ValueError, "heads of key, 4, must divide those of query, 3"),
    ({"q": X[None]}, ValueError, "q must have shape (total, heads, d), got (1, 5, 4, 8)"),
    ({"v": X[:3]}, ValueError, "a row for each key, got key (5, 4, 8) and value (3, 4, 8)"),
    ({"cu_seqlens_q": CU.long()}, TypeError, "cu_seqlens_q must be int32, got torch.int64"),
    ({"cu_seqlens_q": [0, 5]}, TypeError, "cu_seqlens_q must be a Tensor, got list"),
    ({"cu_seqlens_k": CU[:0]}, ValueError, "cu_seqlens_k must have shape (sequences + 1,), got (0,)"),
    ({"cu_seqlens_k": CU[None]}, ValueError, "cu_seqlens_k must have shape (sequences + 1,), got (1, 3)"),
    ({"cu_seqlens_k": CU[[0, 2]], "max_seqlen_k": 5}, ValueError, "of as many sequences, got (3,) and (2,)"),
    ({"cu_seqlens_q": CU[[0, 2, 1]]}, ValueError, "cu_seqlens_q must rise from 0 to 5, the rows, by at most 3"),
    ({"cu_seqlens_q": CU[[0, 2, 1, 2]], "cu_seqlens_k": CU[[0, 1, 1, 2]], "max_seqlen_q": 5}, ValueError, "got [0, 5, 2, 5]"),
    ({"cu_seqlens_k": CU + 1}, ValueError, "cu_seqlens_k must rise from 0 to 5, the rows, by at most 3"),
    ({"cu_seqlens_k": CU[[0, 1, 1]]}, ValueError, "longest sequence, got [0, 2, 2]"),
    ({"cu_seqlens_q": CU.repeat(4)}, ValueError, "of as many sequences, got (12,) and (3,)"),
    ({"max_seqlen_q": 2}, ValueError, "by at most 2, the longest sequence, got [0, 2, 5]"),
    ({"max_seqlen_q": 2.5}, TypeError, "max_seqlen_q must be a whole number, got float"),
    ({"softmax_scale": "1"}, TypeError, "softmax_scale must be a number, got str"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "options", "kind", "quoted"), DENSE, ids=[str(i) for i in range(len(DENSE))])
def test_mistakes(args, options, kind, quoted):
    refused(kind, lambda: sigmoid_attention(*args, **options), "sigmoid_attention(): ", quoted)


@pytest.mark.parametrize(("changed", "kind", "quoted"), PACKED, ids=[str(i) for i in range(len(PACKED))])
def test_mistakes_of_packed_sequences(changed, kind, quoted):
    right = {
        "q": X, "k": X, "v": X, "cu_seqlens_q": CU, "cu_seqlens_k": CU, "max_seqlen_q": 3, "max_seqlen_k": 3,
    }  # fmt: skip
    sigmoid_attention_varlen(**right)
    refused(kind, lambda: sigmoid_attention_varlen(**{**right, **changed}), "sigmoid_attention_varlen(): ", quoted)


def test_the_module():
    made = SigmoidAttention(12, 6, num_kv_heads=2, is_causal=True, gate=True)
    x = torch.randn(3, 5, 12)
    query, key, value = made.in_proj(x).split([12, 4, 4], -1)
    out = []
    for head in range(6):
        q = query[..., 2 * head : 2 * head + 2]
        k, v = (t[..., 2 * (head // 3) : 2 * (head // 3) + 2] for t in (key, value))
        weights = torch.sigmoid(q @ k.mT / 2**0.5 - torch.tensor(5.0).log()).tril()
        out.append(weights @ v)
    expected = made.out_proj(torch.cat(out, -1) * torch.sigmoid(made.gate_proj(x)))
    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(made(x[0]), expected[0])
    assert repr(made).startswith(
        "SigmoidAttention(\n  embed_dim=12, num_heads=6, num_kv_heads=2, bias=True, is_causal=True"
    )
    plain = SigmoidAttention(12, 3, bias=False, dtype=torch.float64)
    assert [*dict(plain.named_parameters())] == ["in_proj.weight", "out_proj.weight"]
    assert (
        plain(x.double(), torch.rand(5, 5) > 0.5, attn_bias=torch.zeros(3), alibi_slopes=torch.ones(3)).shape == x.shape
    )


def test_mistakes_of_the_module():
    refused(ValueError, lambda: SigmoidAttention(12, 5), "SigmoidAttention(): num_heads=5 must divide embed_dim=12")
    refused(ValueError, lambda: SigmoidAttention(12, 0), "num_heads=0 must divide embed_dim=12")
    refused(ValueError, lambda: SigmoidAttention(12, 4, num_kv_heads=3), "num_kv_heads=3 must divide num_heads=4")
    refused(TypeError, lambda: SigmoidAttention(12, 2.5), "num_heads must be a whole number, got float")


def test_learned_numbers_that_get_no_gradient():
    q, scale = torch.zeros(1, 2, 3, 4), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=r"scale gets no gradient, but requires one; multiply query by it instead"):
        sigmoid_attention(q, q, q, scale=scale)


def test_a_block_of_one_vector():
    with pytest.raises(ValueError, match=r"x must have shape \(..., n, 8\), got \(8,\)"):
        SigmoidAttention(8, 2)(torch.zeros(8))


def test_autocast_takes_what_it_casts():
    """Autocast gives queries and keys another dtype on a GPU, if rms_norm made them."""
    q, k = torch.randn(2, 1, 2, 5, 4)
    v = torch.randn(1, 2, 5, 4).bfloat16()
    with pytest.raises(TypeError, match="one dtype"):
        sigmoid_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        found = sigmoid_attention(q, k, v)
        expected = sigmoid_attention(q.bfloat16(), k.bfloat16(), v)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="one dtype"):
        sigmoid_attention(q.double(), k, v)
