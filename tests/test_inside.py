"""lib/inside.py: attention maps, head patterns, position similarity, the picture."""

import matplotlib.pyplot as plt
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lib import gpt2, inside


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=3, n_head=4,
                        initializer_range=0.4, bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def llama():
    config = LlamaConfig(vocab_size=60, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64)  # fmt: skip
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
