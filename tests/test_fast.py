"""What makes a step faster leaves its numbers: every fast path against the plain one, in output and gradient."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import NewGELUActivation

from lib import fast
from lib.models import small_gpt2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 8, 64])  # at a time: one by one, with a rest, all at once
def test_summed_cross_entropy_is_torchs_in_value_and_gradient(dtype, rows, monkeypatch):
    monkeypatch.setattr(fast, "CPU_NUMBERS", rows * 101)
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(37, 101, generator=generator) - 100).to(dtype)  # GPT-2's lie near -100
    targets = torch.randint(101, (37,), generator=generator)
    scale = torch.tensor(1 / 7)  # the mean over tokens comes after the sum
    found = []
    for loss in (fast.summed_cross_entropy, lambda x, y: F.cross_entropy(x.float(), y, reduction="sum")):
        leaf = logits.clone().requires_grad_()
        total = loss(leaf * 1.0, targets) * scale
        total.backward()
        assert leaf.grad.dtype == dtype
        found.append((total.detach(), leaf.grad.float()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    # one unit in the last place: float32 rounds differently before the number is rounded to `dtype`
    torch.testing.assert_close(found[0][1], found[1][1], rtol=4 * torch.finfo(dtype).eps, atol=1e-7)


def test_fused_activations_give_the_same_function_and_names():
    model = small_gpt2(97, n_layer=2)
    assert fast.Dropout in {type(m) for m in fast.fuse_dropout(copy.deepcopy(model)).modules()}
    fused = fast.fuse_activations(copy.deepcopy(model))
    kinds = {type(m) for m in fused.modules()}
    assert NewGELUActivation not in kinds and any(isinstance(m, NewGELUActivation) for m in model.modules())
    assert list(fused.state_dict()) == list(model.state_dict())
    ids = torch.arange(60).remainder(97)[None]
    outputs = []
    for m in (model, fused):
        loss = m(ids, labels=ids).loss
        loss.backward()
        outputs.append((loss.detach(), m.transformer.h[0].mlp.c_fc.weight.grad))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_dropout_drops_its_share_keeps_the_mean_and_its_gradient_is_the_mask():
    x = torch.ones(300, 1_001, requires_grad=True)
    torch.manual_seed(0)
    y = fast.dropout(x, 0.1)
    assert fast.Dropout(0.5).eval()(x) is x, "nothing in evaluation"
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()), "the gradient of a kept one is its scale, of a dropped one 0"
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)  # 4 standard errors
    assert y.mean().item() == pytest.approx(1, abs=0.003)
    pairs = (y[:, :-1] == 0) & (y[:, 1:] == 0)
    assert pairs.float().mean().item() == pytest.approx(0.01, abs=0.001), "neighbours are independent"


@pytest.mark.parametrize(("dtype", "p"), [(torch.bfloat16, 0.0), (torch.float32, 1e-7)])
@pytest.mark.parametrize("grouped", [False, True])
def test_attention_of_a_training_is_sdpas_in_output_and_gradients(dtype, p, grouped):
    torch.manual_seed(0)
    heads = 2 if grouped else 4
    inputs = [torch.randn(1, h, 37, 16) for h in (4, heads, heads)]
    found = []
    sdpa = functools.partial(F.scaled_dot_product_attention, is_causal=True, scale=0.3, enable_gqa=grouped)
    for kind, form in ((dtype, lambda q, k, v: fast.causal_attention(q, k, v, 0.3, p, grouped)), (torch.float64, sdpa)):
        q, k, v = (x.to(kind, copy=True).requires_grad_() for x in inputs)
        out = form(q, k, v)
        out.square().sum().backward()
        found.append([x.double() for x in (out, q.grad, k.grad, v.grad)])
    tolerance = 0.06 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


def test_attention_with_dropout_is_sdpas_on_average():
    torch.manual_seed(0)
    q = torch.randn(1, 4, 19, 16)
    k, v = torch.randn(2, 1, 2, 19, 16)  # grouped: two heads of keys for four of queries
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    many = torch.stack([fast.causal_attention(q, k, v, None, 0.3, True) for _ in range(3_000)])
    torch.testing.assert_close(many.mean(0), exact, atol=0.06, rtol=0)
    assert many.std(0)[:, :, 0].max() > 0.1, "nothing was dropped"


def test_the_output_layer_computes_in_float32_whatever_makes_the_product(monkeypatch):
    before, (x, w) = torch.get_float32_matmul_precision(), (torch.randn(n, 512) for n in (200, 3_000))
    with fast.matmul_precision(fast.onednn_precision()):
        product = x @ w.T
    assert torch.get_float32_matmul_precision() == before
    assert (product - x.double() @ w.double().T).abs().max() < 1e-3
    rounded = {torch.float32: torch.bfloat16}
    inside = lambda a, b: torch.matmul(*(x.to(rounded.get(x.dtype, x.dtype)) for x in (a, b))).to(a.dtype)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "__matmul__", inside)
    assert fast.onednn_precision.__wrapped__() == "highest"  # a machine that would round; behind the cache
