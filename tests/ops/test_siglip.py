"""SigLIP's loss as others have it, and every mistake with it."""

from decimal import Decimal
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from support.chunked_cases import SIGLIP, every_backend, siglip_oracle
from torch.testing import assert_close

import sigtorch
from sigtorch import siglip_loss


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
    given = SIGLIP.make(7, 5, torch.float32)[: 4 if bias else 3]
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


@every_backend
@pytest.mark.parametrize("numbers", [(0.1, -0.3), (Fraction(1, 10), Decimal("-0.3")), (2**70, None)], ids=str)
def test_a_number_is_what_it_is(numbers, backend, device):
    """Not rounded to the default dtype, nor on the default device."""
    image, text = torch.randn(2, 7, 4, dtype=torch.float64, device=device)
    expected = siglip_oracle(image, text, *(float(t) for t in numbers if t is not None))
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"), sigtorch.use_backend(backend):
            loss = siglip_loss(image, text, *numbers)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(loss, expected, rtol=1e-14, atol=0)


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


X = torch.ones(4, 3)
F8 = X.to(torch.float8_e4m3fn)
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
    ((X, X.long(), 1.0), TypeError, "text_features must be floating point of 16 bits or more, got torch.int64"),
    ((X, X.cfloat(), 1.0), TypeError, "text_features must be floating point of 16 bits or more, got torch.complex64"),
    ((X, X.to("meta"), 1.0), ValueError, "tensors on several devices: image_features on cpu, text_features on meta"),
    ((X, X, X[0]), ValueError, "logit_scale must be a scalar, got shape (3,)"),
    ((X, X, 1.0, X), ValueError, "logit_bias must be a scalar, got shape (4, 3)"),
    ((X, X, None), TypeError, "logit_scale must be a number, got NoneType"),
    ((X, X, 1.0, "1"), TypeError, "logit_bias must be a number, got str"),
    ((X, X, 10**400), ValueError, "logit_scale must fit into a float, got 1000"),
    ((X, X, 1.0, -(10**400)), ValueError, "logit_bias must fit into a float, got -1000"),
    ((F8, F8, 1.0), TypeError, "image_features must be floating point of 16 bits or more, got torch.float8_e4m3fn"),
    ((X, X, torch.tensor(1)), TypeError, "logit_scale must be floating point of 16 bits or more, got torch.int64"),
    ((X, X, torch.ones(1, device="meta")), ValueError, "several devices: image_features on cpu, logit_scale on meta"),
    ((X, X, 1.0, None, 0), ValueError, "chunk_size must be at least 1, got 0"),
    ((X, X, 1.0, None, True), TypeError, "chunk_size must be a whole number, got bool"),
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


def test_a_group_is_a_group():
    for call in (lambda: siglip_loss(X, X, 1.0, group=3), lambda: sigtorch.nn.SigLIPLoss(group="world")):
        with pytest.raises(TypeError, match="group must be a ProcessGroup that this process is in, got"):
            call()
    with pytest.raises(ValueError, match=r"SigLIPLoss\(\): chunk_size must be at least 1, got -1"):
        sigtorch.nn.SigLIPLoss(chunk_size=-1)
