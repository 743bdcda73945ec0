import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(vocab_size, **config):
    """Grouped queries and RoPE, as in the stand-in."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "bos_token_id": None}
    torch.manual_seed(5)
    config = LlamaConfig(vocab_size=vocab_size, num_attention_heads=4, num_key_value_heads=2, **sizes, **config)
    return LlamaForCausalLM(config).eval()
