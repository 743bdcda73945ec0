"""lib.explore.positions: every registered position is tested here by being registered."""

import math
from contextlib import nullcontext

import pytest
import torch
from small_models import close, logits_in_pieces, padded, row, sharpened
from transformers import GPT2Config
from transformers.models.t5.modeling_t5 import T5Attention

from lib.explore.attention import ATTENTIONS, use_attention
from lib.explore.positions import POSITIONS, Position, rope, t5_bucket, use_position
from lib.explore.scratch import build
from lib.models import small_gpt2

ABSOLUTE = tuple(n for n, code in POSITIONS.items() if code.add)  # the others act on distances, or not at all
CPU = torch.device("cpu")
each = pytest.mark.parametrize("name", POSITIONS)


def position(name, **fields):
    return Position(name, GPT2Config(**{"vocab_size": 97, "n_embd": 32, "n_head": 2, "n_positions": 64, **fields}))


def gpt2(name, attention="softmax_sdpa"):
    model = build(97, name, attention, n_positions=64, n_layer=2, n_head=2, n_embd=32)
    return sharpened(use_attention(model, attention, **({"window": 8} if attention == "window" else {})))


def spread_along_diagonals(scores):
    """The largest relative spread of (T, T) scores at one distance; 0: they depend on the distance alone."""
    below = [scores.diagonal(-d) for d in range(len(scores) - 1)]
    scale = max(float(d.abs().max()) for d in below)
    return max(float(d.max() - d.min()) for d in below) / scale


@pytest.mark.parametrize("name", [n for n, code in POSITIONS.items() if code.rotate])
def test_ropes_scores_depend_on_the_distance_alone(name):
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 40, 16)
    turned, keys = position(name).rotate(q, k)
    scores = (turned @ keys.mT)[0, 0]
    assert spread_along_diagonals(scores) < 1e-5
    assert scores[-1].std() > 0.1  # and do depend on it
    last, same = position(name).rotate(q[:, :, -2:], k)  # behind a KV cache
    assert torch.equal(last, turned[:, :, -2:]) and torch.equal(same, keys)


def test_a_broken_rope_fails_the_shift_test():
    """torch.roll on the input embeddings, as a public solution of the assignment has it."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(16, generator=generator).expand(40, 16)
    to_q, to_k = torch.randn(2, 16, 16, generator=generator)
    frequencies = 10_000.0 ** (-torch.arange(16) // 2 * 2 / 16)
    angles = torch.arange(40)[:, None] * frequencies
    turned = embedding * angles.cos() + embedding.roll(1, -1) * angles.sin()
    assert spread_along_diagonals((turned @ to_q) @ (turned @ to_k).mT) > 0.1
    assert spread_along_diagonals(turned @ turned.mT) > 0.1


@pytest.mark.parametrize("name", [n for n, code in POSITIONS.items() if code.bias])
def test_biases_depend_on_the_distance_alone(name):
    code = position(name)
    bias = code.bias(50, 50, CPU)
    assert bias.shape == (2, 50, 50) and torch.equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    assert bias[0, -1].std() > 0 and not torch.equal(bias[0], bias[1])
    assert torch.equal(code.bias(7, 50, CPU), bias[:, -7:])  # behind a KV cache


@each
@pytest.mark.parametrize("attention", ["softmax", "softmax_sdpa", "window", "linear"])
@torch.no_grad()
def test_only_absolute_positions_notice_uncorrected_left_padding(name, attention):
    if POSITIONS[name].bias and not ATTENTIONS[attention].takes_bias:
        return  # refused: test_attention
    model, tokens = gpt2(name, attention), row(25)
    alone = model(tokens[None]).logits[0]
    ids = torch.cat([torch.zeros(11, dtype=torch.long), tokens])[None]
    mask = (ids > 0).long()
    behind = model(ids, attention_mask=mask).logits[0, 11:]
    if name in ABSOLUTE:
        assert (behind - alone).abs().max() > 1e-2 * alone.abs().max()
        behind = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[0, 11:]
    close(behind, alone)


@each
@pytest.mark.parametrize("attention", ["softmax", "softmax_sdpa", "window"])
@torch.no_grad()
def test_left_padding_and_kv_cache_change_nothing(name, attention):
    model = gpt2(name, attention)
    rows = [row(26, 1), row(15, 2)]
    for tokens, got in zip(rows, logits_in_pieces(model, padded(rows, 26), (16, 6, 1, 1, 1, 1)), strict=True):
        close(got[-len(tokens) :], model(tokens[None]).logits[0])


def test_rope_turns_a_pair_by_its_position():
    t = torch.arange(5.0)[:, None]
    turned = rope(torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 1, 5, 4), torch.arange(5))[0, 0]  # two pairs
    slow = t / 100  # 10,000^(-2/4)
    torch.testing.assert_close(turned, torch.cat([t.cos(), -slow.sin(), t.sin(), slow.cos()], 1))


def test_alibis_slopes_are_the_papers():
    eight = [2**-i for i in range(1, 9)]
    for slopes in (eight, [2 ** (-i / 2) for i in range(1, 17)], [*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]):
        bias = position("alibi", n_embd=4 * len(slopes), n_head=len(slopes)).bias(4, 4, CPU)
        torch.testing.assert_close(bias[:, 3, :4], torch.tensor([[-3 * m, -2 * m, -m, 0] for m in slopes]))


def test_t5_buckets_are_transformers():
    distance = torch.arange(-3, 3_000)
    assert torch.equal(t5_bucket(distance), T5Attention._relative_position_bucket(-distance, bidirectional=False))
    assert t5_bucket(torch.tensor([0, 15, 16, 127, 128])).tolist() == [0, 15, 16, 31, 31]


def test_sinusoids_are_the_papers_at_gpt2s_size():
    rows = position("sinusoidal", n_embd=6)(torch.arange(50)[None])[0]
    angles = torch.arange(50)[:, None] / 10_000 ** (torch.arange(0, 6, 2) / 6)
    expected = 0.02 * math.sqrt(2) * torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)  # 0.02: initializer_range, as wte and wpe


@torch.no_grad()
def test_learned_is_gpt2s_own_table():
    own = small_gpt2(97, n_embd=32, n_positions=32)
    ours = use_position(small_gpt2(97, n_embd=32, n_positions=32, seed=1), "learned")
    ours.load_state_dict(own.state_dict())  # the same names and shapes
    close(ours(row(32)[None]).logits, own(row(32)[None]).logits)


def test_bad_input_and_an_attention_that_would_leave_the_code_out_are_named():
    for name, n_head, n_embd, message in (
        ("rope", 4, 12, r"head size \(n_embd / n_head\) of 3"),
        ("sinusoidal", 3, 15, "even n_embd, not 15"),
        ("xpos", 2, 32, r"'xpos': choose one of learned, .*rope, alibi, t5"),
    ):
        with pytest.raises(ValueError, match=message):
            build(97, name, n_layer=1, n_head=n_head, n_embd=n_embd)(row(5)[None])
    for name in ("rope", "alibi", "t5"):
        model = build(97, name, n_layer=1, n_embd=16, n_positions=16)
        model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match=f"'sdpa' leaves position '{name}' out"):
            model(row(8)[None])


@each
def test_only_the_learned_table_ends(name):
    ends = pytest.raises(ValueError, match="65 tokens are more than the learned table's 64")
    with ends if name == "learned" else nullcontext():
        assert gpt2(name)(row(65)[None]).logits.isfinite().all()
