"""lib/explore/gpt2.py against transformers' GPT-2 and Llama."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from lib.explore import gpt2

SMALL = [  # vocabulary, positions, width, blocks, heads
    (50, 16, 8, 1, 1),
    (97, 32, 24, 3, 4),
    (256, 64, 48, 2, 12),
]


def gpt2_of(sizes):
    vocab, positions, width, n_layer, n_head = sizes
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=positions,
        n_embd=width,
        n_layer=n_layer,
        n_head=n_head,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return gpt2.random_gpt2(config)


def llama(tied=True):
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("sizes", SMALL)
@torch.no_grad()
def test_logits_and_attention_equal_transformers(sizes):
    model = gpt2_of(sizes)
    ids = torch.randint(sizes[0], (3, sizes[1]), generator=torch.Generator().manual_seed(1))
    theirs = model(ids, output_attentions=True)
    params = gpt2.parameters_of(model)
    logits = gpt2.forward(params, ids, sizes[4])
    assert logits.shape == (3, sizes[1], sizes[0])
    torch.testing.assert_close(logits, theirs.logits, atol=1e-4, rtol=0)
    _, maps = gpt2.blocks(params, ids, sizes[4])
    assert len(maps) == sizes[3]
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


@torch.no_grad()
def test_gelu_is_gpt2s_tanh_form_and_not_the_exact_one():
    x = torch.linspace(-6, 6, 1001)
    torch.testing.assert_close(gpt2.gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))
    assert (gpt2.gelu(x) - torch.nn.functional.gelu(x)).abs().max() > 1e-4


@torch.no_grad()
def test_no_token_sees_the_future():
    model = gpt2_of(SMALL[1])
    params = gpt2.parameters_of(model)
    ids = torch.randint(97, (1, 20), generator=torch.Generator().manual_seed(2))
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 97
    before, after = gpt2.forward(params, ids, 4), gpt2.forward(params, changed, 4)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_too_long_a_sequence_and_a_wrong_architecture_say_so():
    model = gpt2_of(SMALL[0])
    with pytest.raises(ValueError, match=r"17 tokens.*16"):
        gpt2.forward(gpt2.parameters_of(model), torch.zeros(1, 17, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"of a llama.*random_gpt2"):
        gpt2.parameters_of(llama())


def test_parameter_table_of_gpt2_117m():
    table = gpt2.parameter_table(gpt2.GPT2_117M).set_index("component")
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
    tied = model.config.tie_word_embeddings
    assert parts.parameters["LM head"] == (0 if tied else 60 * 16)


def test_parameter_table_refuses_what_it_does_not_know():
    model = gpt2_of(SMALL[0])
    model.register_parameter("adapter", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="adapter fits no component"):
        gpt2.parameter_table(model)


def test_differences_between_gpt2_and_a_llama():
    base = SimpleNamespace(name="small llama", model=llama())
    table = gpt2.differences(base).set_index("feature")
    ours, theirs = table["GPT-2 117M"], table["loaded: small llama"]
    assert (ours["norm"], theirs["norm"]) == ("LayerNorm", "RMSNorm")
    assert "wpe" in ours["position"] and theirs["position"].startswith("rotary")
    assert (ours["key-value heads"], theirs["key-value heads"]) == ("12", "2")
    assert (ours["biases in linear layers"], theirs["biases in linear layers"]) == ("yes", "no")
    assert (ours["MLP"], theirs["MLP"]) == ("768 → 3072 → 768", "16 → 40 → 16, gated")
    assert theirs["parameters"] == f"{sum(p.numel() for p in base.model.parameters()):,}"
    assert not table.differs["LM head"] and table.differs["norm"]


def test_gpt2_does_not_differ_from_itself():
    base = SimpleNamespace(name="gpt2", model=SimpleNamespace(config=GPT2Config()))
    assert not gpt2.differences(base).differs.any()
