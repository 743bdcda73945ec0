"""lib.explore.positions: every registered position is tested here by being registered."""

import copy
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_model, save_model
from transformers import GPT2Config
from transformers.models.t5.modeling_t5 import T5Attention

from lib.explore import positions
from lib.explore.attention import ATTENTIONS, attention_modules, use_attention
from lib.explore.positions import POSITIONS, Alibi, Rope, Sinusoidal, T5Bias, alibi_slopes, t5_bucket, use_position
from lib.explore.scratch import build
from lib.models import small_gpt2

ABSOLUTE = ("learned", "sinusoidal")  # added to the embeddings; the others act on distances, or not at all

each = pytest.mark.parametrize("name", POSITIONS)


def config(**fields):
    return GPT2Config(**{"vocab_size": 97, "n_embd": 32, "n_head": 2, "n_positions": 64, **fields})


def sharpened(model):
    """Larger weights: with GPT-2's initial ones attention is close to a plain mean and positions hardly count."""
    with torch.no_grad():
        for module in attention_modules(model):
            for parameter in module.parameters():
                parameter.mul_(8)
        for parameter in model.transformer.wpe.parameters():
            parameter.mul_(8)
    return model


def gpt2(position, attention="softmax_sdpa", **options):
    sizes = {"n_positions": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return sharpened(build(97, position, attention, **sizes, **options))


def row(length, seed=0):
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5 * max(float(b.abs().max()), 1.0), rtol=0)


def test_six_positions():
    assert list(POSITIONS) == ["learned", "sinusoidal", "none", "rope", "alibi", "t5"]
    assert all(cls.name == name for name, cls in POSITIONS.items())


# --- the shift test: what two tokens are to each other depends on their distance alone


def spread_along_diagonals(scores):
    """The largest relative spread of (T, T) scores at one distance; 0: they depend on the distance alone."""
    below = [scores.diagonal(-d) for d in range(len(scores) - 1)]
    scale = max(float(d.abs().max()) for d in below)
    return max(float(d.max() - d.min()) for d in below) / scale


def test_ropes_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    q, k = Rope(config()).rotate(q.expand(1, 1, 40, 16), k.expand(1, 1, 40, 16))
    scores = (q @ k.mT)[0, 0]
    assert spread_along_diagonals(scores) < 1e-5
    assert scores[-1].std() > 0.1  # and do depend on it


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
    assert turned.norm(dim=-1).std() > 0.01 * turned.norm(dim=-1).mean()


@pytest.mark.parametrize("cls", [Alibi, T5Bias])
def test_biases_depend_on_the_distance_alone(cls):
    position = cls(config())
    bias = position.bias(50, 50)
    assert bias.shape == (2, 50, 50)
    assert torch.equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    assert bias[0, -1].std() > 0
    assert not torch.equal(bias[0], bias[1])
    assert torch.equal(position.bias(7, 50), bias[:, -7:])  # behind a KV cache


def test_rope_behind_a_cache_turns_the_last_queries():
    q, k = torch.randn(2, 1, 2, 9, 8)
    whole, keys = Rope(config()).rotate(q, k)
    last, same = Rope(config()).rotate(q[:, :, -2:], k)
    assert torch.equal(last, whole[:, :, -2:]) and torch.equal(same, keys)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, attention)
        for name, position in POSITIONS.items()
        for attention in ("softmax", "softmax_sdpa", "window", "linear")
        if ATTENTIONS[attention].takes_bias or not position.biases_scores
    ],
)
@torch.no_grad()
def test_only_absolute_positions_notice_uncorrected_left_padding(name, attention):
    model, tokens = (gpt2(name, attention, **({"window": 8} if attention == "window" else {})), row(25))
    alone = model(tokens[None]).logits[0]
    ids = torch.cat([torch.zeros(11, dtype=torch.long), tokens])[None]
    mask = (ids > 0).long()
    behind = model(ids, attention_mask=mask).logits[0, 11:]
    if name in ABSOLUTE:
        assert (behind - alone).abs().max() > 1e-2 * alone.abs().max()
        corrected = (mask.cumsum(1) - 1).clamp(min=0)
        behind = model(ids, attention_mask=mask, position_ids=corrected).logits[0, 11:]
    close(behind, alone)


@each
@torch.no_grad()
def test_position_ids_act_through_wpe_alone(name):
    model, ids = gpt2(name), row(20)[None]
    shifted = model(ids, position_ids=torch.arange(7, 27)[None]).logits
    assert torch.equal(shifted, model(ids).logits) == (name not in ABSOLUTE)


@each
@torch.no_grad()
def test_word_order_counts(name):
    """In two layers a causal model sees the order without any position; in one it cannot."""
    ids = row(20)[None]
    swapped = ids.clone()
    swapped[0, [3, 12]] = ids[0, [12, 3]]
    model = gpt2(name)
    assert (model(ids).logits - model(swapped).logits)[0, -1].abs().max() > 1e-3
    model.transformer.h = model.transformer.h[:1]
    change = (model(ids).logits - model(swapped).logits)[0, -1].abs().max()
    assert (change > 1e-3) == (name != "none")


# --- padding and cache


@each
@pytest.mark.parametrize("attention", ["softmax", "softmax_sdpa", "window"])
@torch.no_grad()
def test_left_padding_and_kv_cache_change_nothing(name, attention):
    model = gpt2(name, attention, **({"window": 8} if attention == "window" else {}))
    rows = [row(26, 1), row(15, 2)]
    ids = torch.stack([torch.nn.functional.pad(r, (26 - len(r), 0)) for r in rows])
    mask = (ids > 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, start, pieces = None, 0, []
    for n in (16, 6, 1, 1, 1, 1):
        now = slice(start, start + n)
        output = model(
            ids[:, now],
            attention_mask=mask[:, : start + n],
            position_ids=positions[:, now],
            past_key_values=cache,
            use_cache=True,
        )
        cache, start = output.past_key_values, start + n
        pieces.append(output.logits)
    for tokens, got in zip(rows, torch.cat(pieces, dim=1), strict=True):
        close(got[-len(tokens) :], model(tokens[None]).logits[0])


# --- each one by its formula


def test_rope_turns_a_pair_by_its_position():
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 5, 2)
    turned, _ = Rope(config(n_embd=2, n_head=1)).rotate(x, x)
    for t in range(5):
        torch.testing.assert_close(turned[0, 0, t], torch.tensor([math.cos(t), math.sin(t)]))
    x = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(1, 1, 5, 4)  # the second pair: 10,000^(-2/4)
    turned, _ = Rope(config(n_embd=4, n_head=1)).rotate(x, x)
    expected = torch.tensor([0.0, math.cos(0.04), 0.0, math.sin(0.04)])
    torch.testing.assert_close(turned[0, 0, 4], expected)


def test_rope_keeps_lengths_and_leaves_position_0():
    q, k = torch.randn(2, 2, 3, 60, 16, generator=torch.Generator().manual_seed(0))
    for before, after in zip((q, k), Rope(config()).rotate(q, k), strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
        assert torch.equal(after[:, :, 0], before[:, :, 0])
        assert (after[:, :, 1:] - before[:, :, 1:]).abs().amax(-1).min() > 1e-3


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2**-i for i in range(1, 9)]
    assert alibi_slopes(16) == [2 ** (-i / 2) for i in range(1, 17)]
    assert alibi_slopes(12) == [2**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert alibi_slopes(1) == [2**-8]
    bias = Alibi(config(n_embd=64, n_head=8)).bias(4, 4)
    assert bias[0, 3, :4].tolist() == [-1.5, -1.0, -0.5, 0.0]
    assert bias[7, 3, 0] == -3 / 256


def test_t5_buckets_are_transformers():
    distance = torch.arange(-3, 3_000)
    expected = T5Attention._relative_position_bucket(-distance, bidirectional=False)
    assert torch.equal(t5_bucket(distance), expected)
    assert t5_bucket(torch.tensor([0, 15, 16, 127, 128])).tolist() == [0, 15, 16, 31, 31]


def test_t5s_bias_is_its_tables_row():
    position = T5Bias(config())
    bias = position.bias(40, 40)
    assert torch.equal(bias[:, 39, 39], position.weight[0])
    assert torch.equal(bias[:, 39, 34], position.weight[5])
    assert position.weight.shape == (32, 2)


@pytest.mark.parametrize("attention", [n for n, e in ATTENTIONS.items() if e.takes_bias])
def test_t5s_table_learns(attention):
    model = gpt2("t5", attention)
    model(row(20)[None]).logits.square().sum().backward()
    learned = model.transformer.wpe.weight.grad.abs().sum(1) > 0  # (32,) buckets
    assert learned.tolist() == [True] * 18 + [False] * 14  # a distance of 19 lies in bucket 17


def test_sinusoids_are_the_papers_at_gpt2s_size():
    position = Sinusoidal(config(n_embd=6))
    rows = position(torch.arange(50)[None])[0]
    assert rows.shape == (50, 6)
    for t in (0, 1, 17):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            expected = 0.02 * math.sqrt(2) * torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(rows[t, 2 * i : 2 * i + 2], expected, atol=1e-6, rtol=0)
    size = rows.square().mean(1).sqrt()
    torch.testing.assert_close(size, torch.full((50,), 0.02))  # initializer_range, as wte and wpe


@torch.no_grad()
def test_learned_is_gpt2s_own_table():
    own = small_gpt2(97, n_embd=32, n_positions=32)
    ours = use_position(small_gpt2(97, n_embd=32, n_positions=32, seed=1), "learned")
    std = float(ours.transformer.wpe.weight.std())
    assert std == pytest.approx(0.02, rel=0.1)
    ours.load_state_dict(own.state_dict())  # the same names and shapes
    ids = row(32)[None]
    close(ours(ids).logits, own(ids).logits)


@each
def test_parameters_of_each_position(name):
    parameters = {key: p.shape for key, p in gpt2(name).transformer.wpe.named_parameters()}
    assert parameters == {"learned": {"weight": (64, 32)}, "t5": {"weight": (32, 2)}}.get(name, {})


# --- in a model


def test_models_with_another_attention_change_it_and_ours_stay():
    model, ids = small_gpt2(97, n_embd=32), row(20)[None]
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        without = sharpened(use_position(copy.deepcopy(model), "none"))(ids).logits
        with_rope = sharpened(use_position(model, "rope"))(ids).logits
    assert model.config._attn_implementation == "softmax_sdpa"
    assert (with_rope - without).abs().max() > 1e-3
    linear = use_attention(small_gpt2(97, n_embd=32), "linear")
    assert use_position(linear, "rope").config._attn_implementation == "linear"


@each
@torch.no_grad()
def test_copies_and_saved_weights_keep_the_position(name, tmp_path):
    model, ids = gpt2(name), row(20)[None]
    expected = model(ids).logits
    clone = copy.deepcopy(model)
    for module in attention_modules(clone):
        assert module.__dict__["position"] is clone.transformer.wpe is not model.transformer.wpe
    assert [key for key in model.state_dict() if "position" in key] == []
    save_model(model, str(tmp_path / "model.safetensors"))
    loaded = build(97, name, n_positions=64, n_layer=2, n_head=2, n_embd=32, seed=1)
    assert not torch.equal(loaded(ids).logits, expected)
    load_model(loaded, tmp_path / "model.safetensors")
    for other in (clone, loaded):
        assert torch.equal(other(ids).logits, expected)
    for parameter in clone.transformer.wpe.parameters():
        parameter.normal_()
        assert not torch.equal(clone(ids).logits, expected)  # the copy's layers read the copy's table
    assert torch.equal(model(ids).logits, expected)


# --- bad input


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'xpos': choose of learned, .*rope, alibi, t5"):
        use_position(small_gpt2(97), "xpos")


def test_rope_needs_pairs():
    with pytest.raises(ValueError, match=r"head size of 3 \(n_embd 12 / n_head 4\)"):
        build(97, "rope", n_layer=1, n_head=4, n_embd=12)


def test_sinusoids_need_an_even_width():
    with pytest.raises(ValueError, match="even n_embd, not 15"):
        build(97, "sinusoidal", n_layer=1, n_head=3, n_embd=15)


@each
def test_only_the_learned_table_ends(name):
    run = partial(gpt2(name), row(65)[None])
    if name == "learned":
        with pytest.raises(ValueError, match="65 tokens is longer than the learned table of 64"):
            run()
    else:
        assert run().logits.isfinite().all()


@pytest.mark.parametrize("name", [n for n, p in POSITIONS.items() if p.biases_scores])
def test_a_bias_is_not_set_where_there_are_no_scores(name):
    model = use_attention(small_gpt2(97), "linear")
    with pytest.raises(ValueError, match=f"'{name}' adds .*'linear' does not have"):
        use_position(model, name)


@pytest.mark.parametrize("name", ["rope", "alibi", "t5"])
def test_an_attention_that_would_leave_the_code_out_is_refused(name):
    model = build(97, name, n_layer=1, n_embd=16, n_positions=16)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=f"{name}.*'sdpa' would leave it out"):
        model(torch.arange(8)[None])


def test_the_notebooks_tables_of_codes_and_shifts():
    shapes = positions.shapes(positions=16, n_head=4, head_dim=8)
    alibi = shapes[(shapes["code"] == "alibi") & (shapes["line"] == "head 1")]
    assert alibi["value"].tolist() == pytest.approx([-0.25 * d for d in range(16)])
    rope = shapes[shapes["code"] == "rope"]["value"].tolist()
    frequencies = [10_000 ** (-i / 8) for i in range(0, 8, 2)]
    assert rope[3] == pytest.approx(sum(math.cos(3 * f) for f in frequencies) / 4, abs=1e-5)
    shift = positions.shift_test(list(positions.POSITIONS)).set_index("position")["max_difference"]
    assert (shift[["none", "rope", "alibi", "t5"]] < 1e-5).all()
    assert (shift[["learned", "sinusoidal"]] > 1e-3).all()
