"""lib/explore/inside.py: attention maps, head patterns, position similarity, the picture."""

import matplotlib.pyplot as plt
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lib.explore import gpt2, inside
from lib.models import small_gpt2, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60,
        n_positions=32,
        n_embd=24,
        n_layer=3,
        n_head=4,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_maps_are_the_written_out_ones_and_the_model_keeps_its_attention(model):
    before = model.config._attn_implementation
    ids = torch.randint(60, (1, 12), generator=torch.Generator().manual_seed(1))
    maps = inside.attention_maps(model, ids)
    _, ours = gpt2.blocks(gpt2.parameters_of(model), ids, 4)
    torch.testing.assert_close(maps, torch.cat(ours), atol=1e-5, rtol=0)
    assert before != "eager" and model.config._attn_implementation == before


def test_patterns_are_recognised_in_maps_made_for_them():
    T = 6
    previous, first = torch.zeros(T, T), torch.zeros(T, T)
    previous[range(1, T), range(T - 1)] = 1
    previous[0, 0] = first[:, 0] = 1
    uniform = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    maps = torch.stack([previous, first, torch.eye(T), uniform]).view(2, 2, T, T)
    table = inside.head_patterns(maps)
    assert table.previous.tolist()[:3] == [1, 0, 0]
    assert table["first"].tolist()[:3] == [0, 1, 0]
    assert table.itself.tolist()[:3] == [0, 0, 1]
    assert table.spread.tolist() == pytest.approx([0, 0, 0, 1])
    picked = inside.pick_heads(table).set_index("pattern")
    where = {p: (picked.layer[p], picked["head"][p]) for p in picked.index}
    assert where == {"previous": (0, 0), "first": (0, 1), "itself": (1, 0), "spread": (1, 1)}


def test_two_tokens_have_no_pattern():
    with pytest.raises(ValueError, match="2 tokens are too few"):
        inside.head_patterns(torch.full((1, 1, 2, 2), 0.5))


@torch.no_grad()
def test_learned_positions_are_compared_by_cosine(model):
    similarity, what = inside.position_similarity(model, 10)
    table = model.transformer.wpe.weight
    assert similarity.shape == (10, 10) and "wpe" in what
    expected = torch.nn.functional.cosine_similarity(table[2], table[7], dim=0)
    torch.testing.assert_close(similarity[2, 7], expected)
    assert inside.position_similarity(model, 10**6)[0].shape == (32, 32)


@torch.no_grad()
def test_rope_similarity_is_the_score_of_rotated_ones(llama):
    similarity, what = inside.position_similarity(llama, 40)
    ones = torch.ones(1, 1, 40, 8)  # (B, H, T, D)
    cos, sin = llama.model.rotary_emb(ones, torch.arange(40)[None])
    q, k = apply_rotary_pos_emb(ones, ones, cos, sin)
    torch.testing.assert_close(similarity, (q @ k.mT)[0, 0] / 8, atol=1e-5, rtol=0)
    assert "RoPE" in what


def test_only_rope_depends_on_the_distance_alone(model, llama):
    spread = lambda m: inside.by_distance(inside.position_similarity(m, 30)[0]).eval(  # noqa: E731
        "highest - lowest"
    )
    assert spread(llama).max() < 1e-6
    assert spread(model)[1:].min() > 0.1


def test_picture_names_sizes_and_counts_and_refuses_a_llama(llama):
    figure = inside.structure_figure(gpt2.GPT2_117M)
    text = "\n".join(t.get_text() for t in figure.axes[0].texts)
    for number in ("50,257 × 768", "12 heads of width 64", "768 → 3,072", "× 12 blocks"):
        assert number in text
    assert 39_383_808 + 85_054_464 + 2 * 768 == 124_439_808  # tables, blocks, final norm
    assert "39,383,808" in text and "85,054,464" in text
    plt.close(figure)
    with pytest.raises(ValueError, match="not of a llama"):
        inside.structure_figure(llama.config)


PROMPTS = ["a b c d e f g h", "b", "c d e"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(["a b c d e f g h"], 257)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_only_masked_left_padding_leaves_the_logits(kind, tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=4, **sizes))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, **sizes)
        )
    table = inside.padding_ways(model.eval(), tokenizer, PROMPTS).set_index("way")
    difference = table.largest_difference
    assert difference["left, mask, positions counted from the mask"] < 1e-4
    assert table.same_token["left, mask, positions counted from the mask"] == 3
    assert difference["left, no mask"] > 0.1
    assert difference["right, mask, logits of the last column"] > 0.1
    shifted = difference["left, mask, positions counted from the padding"]
    assert shifted > 0.1 if kind == "gpt2" else shifted < 1e-4  # RoPE is relative, wpe is not


def test_a_padded_batch_continues_as_each_prompt_alone(tokenizer):
    model = small_gpt2(len(tokenizer), initializer_range=0.3, seed=3)
    table = inside.batch_or_alone(model, tokenizer, PROMPTS, 8)
    assert table.tokens.tolist() == [15, 1, 5] and table.padding.tolist() == [0, 14, 10]
    assert table.same.all() and table.text.nunique() == 3


def test_batch_or_alone_notices_a_difference(tokenizer, monkeypatch):
    model = small_gpt2(len(tokenizer), initializer_range=0.3, seed=3)
    padded = inside._padded
    monkeypatch.setattr(inside, "_padded", lambda *a: (padded(*a)[0], torch.ones_like(padded(*a)[1])))
    assert not inside.batch_or_alone(model, tokenizer, PROMPTS, 8).same.all()


def test_attention_figure_has_a_panel_per_head(model):
    maps = inside.attention_maps(model, torch.arange(5)[None])
    heads = inside.pick_heads(inside.head_patterns(maps))
    figure = inside.attention_figure(maps, heads, ["a", " b", "\n", "$", "x"])
    panels = [ax for ax in figure.axes if ax.get_title() or ax.get_title(loc="left")]
    assert len(panels) == 4
    assert [t.get_text() for t in panels[2].get_xticklabels()] == ["a", "␣b", "↵", r"\$", "x"]
    shown = panels[1].images[0].get_array()
    assert torch.equal(torch.tensor(shown.data), maps[heads.layer[1], heads["head"][1]])
    plt.close(figure)
