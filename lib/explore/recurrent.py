"""What decoding costs at long context: a whole model with its KV cache, and with converted layers."""

import statistics
import time
from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lib import profile
from lib.explore.attention import attention_modules
from lib.explore.hybrid import NAME, converted, new_maps

DECODED = (("linear+window", 0.0), ("linear+window", 0.5), ("linear+window", 1.0), ("linear", 1.0), ("window", 1.0))


def decoding_table(base, contexts: Sequence[int]) -> pd.DataFrame:
    """`decoding` of what is worth comparing: the KV cache, half and all of the layers converted, the other forms."""
    parts = [decoding(base, form, share, contexts) for form, share in tqdm(DECODED, desc="decoding")]
    return pd.concat(parts, ignore_index=True)


def with_decoding(conversion: pd.DataFrame, decoded: pd.DataFrame) -> pd.DataFrame:
    """`conversion` with context, milliseconds and state_kilobytes of its form and share at the longest context; nan
    for shares whose decoding was not timed.
    """
    longest = decoded[decoded["context"] == decoded["context"].max()]
    softmax = longest[longest["share"] == 0].drop(columns="form")
    rest = conversion[conversion["share"] > 0].merge(longest, "left", ["form", "share"])
    return pd.concat([conversion[conversion["share"] == 0].merge(softmax, "left", "share"), rest], ignore_index=True)


@torch.no_grad()
def decoding(base, form: str, share: float, contexts: Sequence[int], tokens: int = 12) -> pd.DataFrame:
    """One more token after `context` earlier ones, the whole model: form, share, context, milliseconds per token
    (median of `tokens`), state_kilobytes (keys, values and sums of all layers, float32).

    The context is filled with random keys and values, since time and size do not depend on what they are. Past the
    model's positions the last position serves: quality is not measured here. Share 0 is the KV cache.
    """
    model, found = base.model, []
    maps = {i: m for i, m in new_maps(model).items() if i < round(share * len(attention_modules(model)))}
    with converted(model, maps, form, f"{NAME}_step"), profile.autocast():
        for context in contexts:
            for module in attention_modules(model):
                module.recurrent_state = _filled(module, context, model)
            position = torch.tensor([[min(context, base.context - 1)]], device=model.device)
            token, taken = torch.zeros_like(position), []
            for _ in range(tokens + 2):  # the first two warm up
                began = time.perf_counter()
                model(token, position_ids=position, use_cache=False)
                if profile.device().type == "cuda":
                    torch.cuda.synchronize()
                taken.append(1_000 * (time.perf_counter() - began))
            states = [x for m in attention_modules(model) for x in m.recurrent_state if x is not None]
            found.append(
                {
                    "form": form if share else "softmax",
                    "share": share,
                    "context": context,
                    "milliseconds": statistics.median(taken[2:]),
                    "state_kilobytes": sum(x.numel() * 4 for x in states) / 1_000,
                }
            )
    return pd.DataFrame(found)


def _filled(module, context: int, model: PreTrainedModel) -> tuple:
    """A recurrent state after `context` tokens with random keys and values."""
    config = model.config
    n_kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    options, kept = module.attention_options, context
    if module.feature_maps is not None:
        kept = min(context, options["window"])
    keys, values = torch.randn(2, 1, n_kv, kept, module.head_dim, device=model.device)
    far = None
    if module.feature_maps is not None and options["far"]:
        far = torch.rand(1, n_kv, 2 * module.head_dim, module.head_dim + 1, device=model.device)
    return keys, values, far
