"""Linear attention with learned feature maps and a softmax window, for pretrained models: the forms, how they enter
a model, and the recurrent step.

The near `window` tokens keep softmax's weights, all earlier ones get phi(q) . phi(k) (LoLCATs: Zhang et al. 2024,
arXiv:2410.10254, equation 6; phi: Hedgehog, Zhang et al. 2024, arXiv:2402.04347). A layer without feature maps
computes softmax attention, so a model can be converted layer by layer under one attention name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lib.explore.attention import (
    Attention,
    _causal,
    _chunks,
    _moved,
    _padding,
    attention_modules,
    kernel,
    softmax,
    softmax_sdpa,
    window_naive,
)
from lib.explore.attention import window as windowed

NAME = "hybrid"
FORMS = {  # what a converted layer computes: how many near tokens keep softmax, and whether it sees further
    "linear": {"window": 0, "far": True},
    "linear+window": {"window": 32, "far": True},
    "window": {"window": 32, "far": False},  # a control: no linear part, nothing to learn
}


class FeatureMaps(nn.Module):
    """phi(x) = [softmax(x W), softmax(-x W)] per head, one W for queries and one for keys; features F = 2 D.

    query (H, D, D) and key (H_kv, D, D) start at the identity times D^-1/4, so that x W . y W starts as the score
    x . y / sqrt(D). near (H,): log of how much more a near token's softmax weight counts than a far one's product.
    """

    def __init__(self, n_head: int, n_kv: int, head_dim: int) -> None:
        super().__init__()
        start = torch.eye(head_dim) * head_dim**-0.25
        self.query = nn.Parameter(start.repeat(n_head, 1, 1))
        self.key = nn.Parameter(start.repeat(n_kv, 1, 1))
        self.near = nn.Parameter(torch.zeros(n_head))

    def of_query(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, F)."""
        return _features(q, self.query)

    def of_key(self, k: Tensor) -> Tensor:
        """(B, H_kv, T, D), or with heads repeated for grouped-query attention -> (B, same, T, F)."""
        return _features(k, self.key.repeat_interleave(k.shape[1] // len(self.key), 0))


def _features(x: Tensor, weight: Tensor) -> Tensor:
    x = x @ weight.to(x.dtype)
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)


def hybrid_naive(q, k, v, scale, maps=None, window=32, far=True, **_) -> Tensor:
    """Weights w_tj = e^near exp(s_tj - max s_t) for the last `window` tokens and phi(q_t) . phi(k_j) for earlier
    ones, divided by their sum; with the (T, T) weights in memory. q, k, v (B, H, T, D) -> (B, H, T, D).
    """
    if maps is None:
        return softmax(q, k, v, scale)
    if not far:
        return window_naive(q, k, v, scale, window=window)
    seen = _causal(q, k)
    distant = seen.tril(-window)
    weights = maps.of_query(q) @ maps.of_key(k).mT * distant  # (B, H, T, T)
    if window:
        weights = weights + _near(q @ k.mT * scale, seen & ~distant, maps)
    return weights @ v / weights.sum(-1, keepdim=True)


def _near(scores: Tensor, mask: Tensor, maps: FeatureMaps) -> Tensor:
    """e^near exp(s - max s) where `mask`, else 0. scores (B, H, ..., T_q, T_k)."""
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights * maps.near.exp().to(scores.dtype).view(-1, *[1] * (scores.ndim - 2))


def hybrid(q, k, v, scale, maps=None, window=32, far=True, **_) -> Tensor:
    """`hybrid_naive` in O(T): blocks of `window` queries see their own block and the one before it, the far tokens
    of which go through the feature maps; what lies further back is one running sum of phi(k)^T v.
    """
    if maps is None:
        return softmax_sdpa(q, k, v, scale)
    if not far:
        return windowed(q, k, v, scale, window=window)
    length = q.shape[2]
    feature_q, feature_k = maps.of_query(q), maps.of_key(k)
    if not window:
        return kernel(feature_q, feature_k, v, scale, phi=lambda x, **_: x)
    w = min(window, length)
    v = F.pad(v, (0, 1), value=1.0)  # a column of ones carries the denominator
    q, k, v, feature_q, feature_k = (_chunks(x, w) for x in (q, k, v, feature_q, feature_k))
    states = (feature_k.mT @ v).cumsum(2)  # (B, H, N, F, D + 1), sums up to each block
    states = F.pad(states, (0, 0, 0, 0, 2, 0))[:, :, :-2]  # up to the block before the last one
    k, v, feature_k = (torch.cat([_before(x), x], dim=3) for x in (k, v, feature_k))
    i = torch.arange(w, device=q.device)[:, None] + w
    j = torch.arange(2 * w, device=q.device)
    first = torch.arange(q.shape[2], device=q.device)[:, None, None] == 0
    near = (j <= i) & (j > i - w) & ~(first & (j < w))  # (N, w, 2w): nothing stands before block 0
    weights = _near(q @ k.mT * scale, near, maps) + feature_q @ feature_k.mT * (j <= i - w)
    out = (feature_q @ states + weights @ v).flatten(2, 3)[:, :, :length]
    return out[..., :-1] / out[..., -1:]


def _before(blocks: Tensor) -> Tensor:
    """Each block's predecessor, zeros before the first. (B, H, N, w, D) -> the same."""
    return F.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :, :-1]


def hybrid_step(state, q, k, v, scale, maps=None, window=32, far=True, **_):
    """One token. q (B, H, 1, D), k and v (B, H_kv, 1, D) -> output (B, H, 1, D), state.

    state: keys and values (B, H_kv, n, D) that softmax still needs (all of them without maps), and the sum
    (B, H_kv, F, D + 1) of all that left the window; None at the start. What it holds is per key head.
    """
    keys, values, far_sum = state or (k[:, :, :0], v[:, :, :0], None)
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    if maps is None:
        out = F.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True)
        return out, (keys, values, None)
    leaving = max(keys.shape[2] - window, 0)
    old_k, old_v = keys[:, :, :leaving], values[:, :, :leaving]
    keys, values = keys[:, :, leaving:], values[:, :, leaving:]
    if not far:
        out = F.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True)
        return out, (keys, values, None)
    update = maps.of_key(old_k).mT @ F.pad(old_v, (0, 1), value=1.0)
    far_sum = update if far_sum is None else far_sum + update
    groups = q.shape[1] // k.shape[1]
    feature_q = maps.of_query(q)[:, :, 0].unflatten(1, (-1, groups))  # (B, H_kv, G, F)
    out = (feature_q @ far_sum).flatten(1, 2)[:, :, None]  # (B, H, 1, D + 1)
    if window:
        seen, shown = (x.repeat_interleave(groups, 1) for x in (keys, values))
        scores = q @ seen.mT * scale
        weights = _near(scores, torch.ones_like(scores, dtype=torch.bool), maps)
        out = out + weights @ F.pad(shown, (0, 1), value=1.0)
    return out[..., :-1] / out[..., -1:], (keys, values, far_sum)


# --- in a model

ENTRY = Attention(hybrid, hybrid_naive, hybrid_step, options=FORMS["linear+window"])


def _options(module: nn.Module) -> dict:
    maps = getattr(module, "feature_maps", None)
    return getattr(module, "attention_options", {}) | {"maps": maps}


def _repeated(query: Tensor, *pair: Tensor) -> list[Tensor]:
    """Keys and values once per query head (grouped-query attention shares them)."""
    return [x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in pair]


def attend(module, query, key, value, attention_mask=None, scaling=None, position_ids=None, **_):
    """For transformers' AttentionInterface: query (B, H, T, D), key and value (B, H_kv, T, D), padding mask
    (B, T) or None -> (B, T, H, D). Raises ValueError for packed rows.
    """
    first = module.layer_idx == 0 and attention_mask is None and position_ids is not None
    if first and bool((position_ids.diff() != 1).any()):
        raise ValueError("A converted model takes one document or stream a row, not packed documents.")
    key, value = _repeated(query, key, value)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = _moved(ENTRY, module, None, query, key, value, attention_mask, scale, _options(module))
    return out.transpose(1, 2), None


def attend_matching(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Softmax attention that also leaves module.matching_error: mean |hybrid - softmax|^2 / mean |softmax|^2 of the
    layer's outputs. All layers see the unconverted model's inputs, so that one pass trains all of them.
    """
    key, value = _repeated(query, key, value)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.float() for x in (query, key, value))
        wanted = softmax_sdpa(q, k, v, scale)
        found = hybrid(q, k, v, scale, **_options(module))
        module.matching_error = (found - wanted).square().mean() / wanted.square().mean()
    return wanted.to(query.dtype).transpose(1, 2), None


def attend_step(module, query, key, value, attention_mask=None, scaling=None, **_):
    """One token of a recurrent run: the state is module.recurrent_state, None at the start."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.float() for x in (query, key, value))
        state = getattr(module, "recurrent_state", None)
        out, module.recurrent_state = hybrid_step(state, q, k, v, scale, **_options(module))
    return out.to(query.dtype).transpose(1, 2), None


for _name, _function in {NAME: attend, f"{NAME}_matching": attend_matching, f"{NAME}_step": attend_step}.items():
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _padding)


@contextmanager
def converted(
    model: PreTrainedModel, maps: Mapping[int, FeatureMaps], form: str, run: str = NAME
) -> Iterator[PreTrainedModel]:
    """Inside, the layers in `maps` run `form` (a name in FORMS), the others softmax; then all softmax again.

    `run`: "hybrid", "hybrid_matching" or "hybrid_step". Raises ValueError for an unknown form or layer.
    """
    if form not in FORMS:
        raise ValueError(f"No form is called {form!r}: choose of {', '.join(FORMS)}.")
    modules = {m.layer_idx: m for m in attention_modules(model)}
    if unknown := set(maps) - set(modules):
        raise ValueError(f"Layer {min(unknown)} does not exist: the model has {len(modules)} layers.")
    before = model.config._attn_implementation
    for layer, module in modules.items():
        module.feature_maps = maps.get(layer)
        module.attention_options = dict(FORMS[form])
    model.set_attn_implementation(run)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
        for module in modules.values():
            for name in ("feature_maps", "attention_options", "recurrent_state", "matching_error"):
                if hasattr(module, name):
                    delattr(module, name)


def new_maps(model: PreTrainedModel) -> dict[int, FeatureMaps]:
    """Fresh feature maps for every layer."""
    config = model.config
    n_head = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_head
    modules = attention_modules(model)
    return {m.layer_idx: FeatureMaps(n_head, n_kv, m.head_dim).to(model.device) for m in modules}
