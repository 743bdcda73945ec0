"""lib/explore/gpt2.py against transformers' GPT-2."""

import pytest
import torch
from small_llama import small_llama
from transformers import GPT2Config

from lib.explore import gpt2


def small():
    sizes = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4}
    return gpt2.random_gpt2(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, attn_implementation="eager"))


@torch.no_grad()
def test_logits_and_attention_equal_transformers():
    model, ids = small(), torch.randint(97, (3, 32), generator=torch.Generator().manual_seed(1))
    theirs, params = model(ids, output_attentions=True), gpt2.parameters_of(model)
    torch.testing.assert_close(gpt2.forward(params, ids, 4), theirs.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(gpt2.blocks(params, ids, 4)[1], theirs.attentions, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_equal_transformers_at_full_size():
    model = gpt2.random_gpt2()
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    assert min(p.std().item() for p in model.parameters()) > 0.04  # no constant bias or norm hides a mistake
    ids = torch.randint(50257, (1, 16), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gpt2.forward(gpt2.parameters_of(model), ids, 12), model(ids).logits, atol=1e-4, rtol=0)


def test_too_long_a_sequence_and_wrong_architectures_say_so():
    with pytest.raises(ValueError, match=r"33 tokens.*32"):
        gpt2.forward(gpt2.parameters_of(small()), torch.zeros(1, 33, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"not that of a llama"):
        gpt2.parameters_of(small_llama(60))
