"""lib/explore/gpt2.py against transformers' GPT-2 and Llama."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from lib.explore import gpt2

SMALL = [  # vocabulary, positions, width, blocks, heads
    (50, 16, 8, 1, 1),
    (97, 32, 24, 3, 4),
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
    assert min(p.std().item() for p in model.parameters()) > 0.04  # no constant bias or norm hides a mistake
    ids = torch.randint(50257, (1, 16), generator=torch.Generator().manual_seed(1))
    logits = gpt2.forward(gpt2.parameters_of(model), ids, 12)
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=0)


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
