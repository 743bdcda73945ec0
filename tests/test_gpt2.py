"""lib/explore/gpt2.py against transformers' GPT-2 and Llama."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lib.explore import gpt2

SMALL = [  # vocabulary, positions, width, blocks, heads
    (50, 16, 8, 1, 1),
    (97, 32, 24, 3, 4),
    (256, 64, 48, 2, 12),
]


def gpt2_of(sizes):
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return gpt2.random_gpt2(
        GPT2Config(**dict(zip(names, sizes, strict=True)), bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    )


def llama(tied=True):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=60, num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=tied, **sizes)
    return LlamaForCausalLM(config).eval()


def ids_for(sizes, rows=3, length=None):
    return torch.randint(sizes[0], (rows, length or sizes[1]), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", SMALL)
@torch.no_grad()
def test_logits_and_attention_equal_transformers(sizes):
    model, ids = gpt2_of(sizes), ids_for(sizes)
    theirs = model(ids, output_attentions=True)
    params = gpt2.parameters_of(model)
    logits = gpt2.forward(params, ids, sizes[4])
    assert logits.shape == (3, sizes[1], sizes[0])
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=0)
    _, maps = gpt2.blocks(params, ids, sizes[4])
    for ours, reference in zip(maps, theirs.attentions, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_equal_transformers_at_full_size():
    model = gpt2.random_gpt2()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    ids = torch.randint(50257, (1, 16), generator=torch.Generator().manual_seed(1))
    logits = gpt2.forward(gpt2.parameters_of(model), ids, 12)
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=0)


def test_random_gpt2_repeats_and_hides_nothing():
    first, again = gpt2_of(SMALL[1]), gpt2_of(SMALL[1])
    for (name, p), q in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.std() > 0.1, name  # no constant bias or norm
    assert first.lm_head.weight is first.transformer.wte.weight


def test_gelu_is_gpt2s_tanh_form_and_not_the_exact_one():
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(gpt2.gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))
    assert (gpt2.gelu(x) - torch.nn.functional.gelu(x)).abs().max() > 1e-4


@torch.no_grad()
def test_no_token_sees_the_future():
    params, ids = gpt2.parameters_of(gpt2_of(SMALL[1])), ids_for(SMALL[1], 1, 20)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    before, after = gpt2.forward(params, ids, 4), gpt2.forward(params, changed, 4)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_too_long_a_sequence_and_a_wrong_architecture_say_so():
    with pytest.raises(ValueError, match=r"17 tokens.*16"):
        gpt2.forward(gpt2.parameters_of(gpt2_of(SMALL[0])), torch.zeros(1, 17, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"not that of a llama"):
        gpt2.parameters_of(llama())


def test_parameter_table_of_gpt2_117m():
    table = gpt2.parameter_table(gpt2.empty_model(gpt2.GPT2_117M)).set_index("component")
    assert table.parameters["total"] == 124_439_808
    assert table.parameters.drop("total").sum() == 124_439_808
    assert table.parameters["token embedding"] == 50257 * 768
    assert table.parameters["position embedding"] == 1024 * 768
    assert table.parameters["MLP"] == 12 * (768 * 3072 + 3072 + 3072 * 768 + 768)
    assert table.parameters["LM head"] == 0  # tied: its numbers are the token embedding's


@pytest.mark.parametrize("make", [lambda: gpt2_of(SMALL[1]), llama, lambda: llama(tied=False)])
def test_parameter_table_sums_and_its_formulas_hold(make):
    model = make()
    table = gpt2.parameter_table(model).set_index("component")
    assert table.parameters["total"] == sum(p.numel() for p in model.parameters())
    parts = table.drop("total")
    assert parts.parameters.sum() == table.parameters["total"]
    assert parts.share.sum() == pytest.approx(1)
    for row in parts[parts.parameters > 0].itertuples():
        assert eval(row.formula.replace("·", "*")) == row.parameters
    assert parts.parameters["LM head"] == (0 if model.config.tie_word_embeddings else 60 * 32)


def test_parameter_table_refuses_what_it_does_not_know():
    model = gpt2_of(SMALL[0])
    model.register_parameter("adapter", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="adapter fits no component"):
        gpt2.parameter_table(model)


# A look inside


@torch.no_grad()
def test_maps_are_the_written_out_ones_and_the_model_keeps_its_attention():
    model, ids = gpt2_of(SMALL[1]), ids_for(SMALL[1], 1, 12)
    model.set_attn_implementation("sdpa")
    maps = gpt2.attention_maps(model, ids)
    _, ours = gpt2.blocks(gpt2.parameters_of(model), ids, 4)
    torch.testing.assert_close(maps, torch.cat(ours), atol=1e-5, rtol=0)
    assert model.config._attn_implementation == "sdpa"


def test_patterns_are_recognised_in_maps_made_for_them():
    T = 6
    previous, first = torch.zeros(T, T), torch.zeros(T, T)
    previous[range(1, T), range(T - 1)] = 1
    previous[0, 0] = first[:, 0] = 1
    uniform = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    table = gpt2.head_patterns(torch.stack([previous, first, torch.eye(T), uniform]).view(2, 2, T, T))
    assert table.previous.tolist()[:3] == [1, 0, 0]
    assert table["first"].tolist()[:3] == [0, 1, 0]
    assert table.itself.tolist()[:3] == [0, 0, 1]
    assert table.spread.tolist() == pytest.approx([0, 0, 0, 1])
    assert table.previous.idxmax() == (0, 0) and table.itself.idxmax() == (1, 0)


@torch.no_grad()
def test_learned_positions_are_compared_by_cosine():
    model = gpt2_of(SMALL[1])
    similarity, what = gpt2.position_similarity(model, 10)
    table = model.transformer.wpe.weight
    assert similarity.shape == (10, 10) and "wpe" in what
    expected = torch.nn.functional.cosine_similarity(table[2], table[7], dim=0)
    torch.testing.assert_close(similarity[2, 7], expected)
    assert gpt2.position_similarity(model, 10**6)[0].shape == (32, 32)


@torch.no_grad()
def test_rope_similarity_is_the_score_of_rotated_ones_and_depends_on_the_distance_alone():
    model = llama()
    similarity, what = gpt2.position_similarity(model, 40)
    ones = torch.ones(1, 1, 40, 8)  # (B, H, T, D)
    cos, sin = model.model.rotary_emb(ones, torch.arange(40)[None])
    q, k = apply_rotary_pos_emb(ones, ones, cos, sin)
    torch.testing.assert_close(similarity, (q @ k.mT)[0, 0] / 8, atol=1e-5, rtol=0)
    assert "RoPE" in what
    assert all(similarity.diagonal(-d).std() < 1e-6 for d in range(30))


@pytest.mark.parametrize("make", [lambda: gpt2_of(SMALL[2]), llama], ids=["gpt2", "llama"])
def test_only_masked_left_padding_leaves_the_logits(make):
    model = make()
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [7], [9, 8, 7]]
    difference = gpt2.padding_ways(model, rows, pad=0).set_index("way").largest_difference
    assert difference["left, mask, positions counted from the mask"] < 1e-4
    assert difference["left, no mask"] > 0.1
    assert difference["right, mask, logits of the last column"] > 0.1
    shifted = difference["left, mask, positions counted from the padding"]
    # RoPE is relative, wpe is not
    assert shifted > 0.1 if model.config.model_type == "gpt2" else shifted < 1e-4
