"""What the tests of lib.explore's models share: small models with weights that matter, rows, padding, a KV cache."""

import torch
from small_llama import small_llama

from lib.explore.attention import attention_modules

SMALL_RUN = {"train_length": 32, "train_bytes": 6_000, "vocab_size": 300, "n_layer": 1, "n_embd": 32}  # of a Recipe


def sharpened(model):
    """Larger weights: GPT-2's initial ones give attention close to a plain mean, and positions hardly count."""
    with torch.no_grad():
        position = getattr(getattr(model, "transformer", None), "wpe", torch.nn.Module())
        for module in [*attention_modules(model), position]:
            for parameter in module.parameters():
                parameter.mul_(8)
    return model


def llama():
    return sharpened(small_llama(97))


def row(length, seed=0):
    """(length,) token ids below 97; 0 is padding."""
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed))


def padded(rows, width, side="left"):
    """input_ids, attention_mask and position_ids as `generate` passes them."""
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, tokens in enumerate(rows):
        at = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[i, at], mask[i, at] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def logits_in_pieces(model, inputs, pieces, cache=None):
    """The logits of `padded` inputs, read `pieces` tokens at a time through a KV cache, by default one that grows."""
    start, logits = 0, []
    for n in pieces:
        part = {key: x[:, start : start + n] for key, x in inputs.items()}
        part["attention_mask"] = inputs["attention_mask"][:, : start + n]
        output = model(**part, past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, start + n
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def close(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b, atol=tolerance * max(float(b.detach().abs().max()), 1.0), rtol=0)
