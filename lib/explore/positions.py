"""Position codes of a small GPT-2, in one registry.

A code is one function, and one line of POSITIONS says where it acts: what it adds to the token embeddings in `wpe`'s
place, how it turns queries and keys, or what it adds to the scores. Codes that act inside attention depend on the
distance between two tokens alone, so left padding and a KV cache need no care: keys are counted from the row's first
column, queries are the last ones."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lib.explore.attention import ATTENTIONS, attention_modules

ROPE_BASE = 10_000.0  # Su et al. 2021: the slowest pair of D turns once in 2 pi 10,000^(1 - 2 / D) tokens
T5_BUCKETS, T5_MAX_DISTANCE = 32, 128  # Raffel et al. 2020, section 2.1: as in all T5 checkpoints


def learned(position_ids: Tensor, weight: Tensor, config: GPT2Config) -> Tensor:
    """A trained vector per position, GPT-2's own (Radford et al. 2018). Raises ValueError past the table's end."""
    longest, rows = int(position_ids.max()) + 1, len(weight)
    if longest > rows:
        raise ValueError(f"{longest} tokens are more than the learned table's {rows} positions: cut the text.")
    return weight[position_ids]


def sinusoidal(position_ids: Tensor, weight: None, config: GPT2Config) -> Tensor:
    """sin and cos of the position at n_embd / 2 wavelengths (Vaswani et al. 2017, 1706.03762, section 3.5). Scaled to
    the size at which GPT-2 initialises `wte` and `wpe`: at full size (each sine up to 1, embeddings of 0.02) the first
    layer norm would leave 1 part in 35 for the token."""
    if config.n_embd % 2:
        raise ValueError(f"Sinusoidal positions need an even n_embd, not {config.n_embd}.")
    angles = position_ids[..., None] * _frequencies(config.n_embd, position_ids.device)
    size = config.initializer_range * math.sqrt(2)  # a sine's root mean square is 1 / sqrt(2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2) * size


def rope(x: Tensor, positions: Tensor) -> Tensor:
    """Queries or keys x (B, H, T, D) turned by an angle proportional to their position (Su et al. 2021, 2104.09864).
    Each pair (x_i, x_i+D/2) turns in its plane, so lengths stay and q.k depends on the distance alone. The pairing is
    that of GPT-NeoX and transformers' Llama; the paper pairs neighbours, which is the same up to the order."""
    if x.shape[-1] % 2:
        raise ValueError(f"RoPE turns pairs of coordinates, not a head size (n_embd / n_head) of {x.shape[-1]}.")
    angles = positions[:, None] * _frequencies(x.shape[-1], x.device)  # (T, D / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def alibi(distance: Tensor, weight: None, config: GPT2Config) -> Tensor:
    """Scores fall linearly with the distance, with a fixed slope per head (Press et al. 2022, 2108.12409): 2^(-8 i / n)
    for i = 1 .. n if the heads n are a power of two; else those of the power below, and every second one of the power
    above until there are n, as in the paper's code."""
    n = config.n_head
    power = 2 ** math.floor(math.log2(n))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * power + 1, 2)][: n - power]
    return -torch.tensor(slopes, device=distance.device)[:, None, None] * distance


def t5(distance: Tensor, weight: Tensor, config: GPT2Config) -> Tensor:
    """A trained bias per bucket of distances and head, shared by the layers (Raffel et al. 2020, 1910.10683)."""
    return weight[t5_bucket(distance)].permute(2, 0, 1)


def t5_bucket(distance: Tensor) -> Tensor:
    """Distances (query - key; below 0 as 0) to buckets 0 .. 31: those below 16 have one each, up to 128 they widen
    logarithmically, all beyond share the last."""
    distance = distance.clamp(min=0)
    exact = T5_BUCKETS // 2
    ratio = torch.log(distance.clamp(min=1) / exact) / math.log(T5_MAX_DISTANCE / exact)
    wide = exact + (ratio * (T5_BUCKETS - exact)).long().clamp(max=T5_BUCKETS - exact - 1)
    return torch.where(distance < exact, distance, wide)


def _frequencies(size: int, device) -> Tensor:
    """(size / 2,) angles per position, from 1 down to almost 1 / ROPE_BASE."""
    return ROPE_BASE ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


class Code(NamedTuple):
    """Where a position code acts. Without any, a causal model can still count, since the first token sees one token and
    the second two (Haviv et al. 2022, 2203.16634, "NoPos")."""

    add: Callable | None = None  # (position_ids (B, T), weight, config) -> (B, T, n_embd), added to the embeddings
    rotate: Callable | None = None  # (x (B, H, T, D), positions (T,)) -> the same shape, for queries and keys
    bias: Callable | None = None  # (distance (T_q, T_k), weight, config) -> (H, T_q, T_k), added to the scaled scores
    table: Callable | None = None  # config -> the shape of the trained `weight`


POSITIONS = {
    "learned": Code(add=learned, table=lambda config: (config.n_positions, config.n_embd)),
    "sinusoidal": Code(add=sinusoidal),
    "none": Code(),
    "rope": Code(rotate=rope),
    "alibi": Code(bias=alibi),
    "t5": Code(bias=t5, table=lambda config: (T5_BUCKETS, config.n_head)),
}


class Position(nn.Module):
    """A code in `wpe`'s place; lib.explore.attention asks it to rotate queries and keys and to bias scores."""

    def __init__(self, name: str, config: GPT2Config) -> None:
        super().__init__()
        self.name, self.code, self.config, self.weight = name, POSITIONS[name], config, None
        if self.code.table:
            self.weight = nn.Parameter(torch.empty(self.code.table(config)))
            nn.init.normal_(self.weight, std=config.initializer_range)

    def forward(self, position_ids: Tensor) -> Tensor:
        """position_ids (B, T) -> what is added to the embeddings, (B, T, n_embd) or a single 0. Raises ValueError where
        the model's attention would leave the code out."""
        used = self.config._attn_implementation
        if (self.code.rotate or self.code.bias) and used not in ATTENTIONS:
            known = ", ".join(ATTENTIONS)
            raise ValueError(f"{used!r} leaves position {self.name!r} out: choose an attention of {known}.")
        if self.code.add:
            return self.code.add(position_ids, self.weight, self.config)
        return torch.zeros((), device=position_ids.device)

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, H, T_q, D), k (B, H, T_k, D) -> the same shapes; the queries are the last T_q positions."""
        if not self.code.rotate:
            return q, k
        positions = torch.arange(k.shape[2], device=k.device)
        return self.code.rotate(q, positions[k.shape[2] - q.shape[2] :]), self.code.rotate(k, positions)

    def bias(self, n_q: int, n_k: int, device: torch.device) -> Tensor:
        """(H, T_q, T_k), what a code with a bias adds to the scaled scores."""
        keys = torch.arange(n_k, device=device)
        return self.code.bias(keys[n_k - n_q :, None] - keys, self.weight, self.config)


def use_position(model: GPT2LMHeadModel, name: str) -> GPT2LMHeadModel:
    """Give a GPT-2 the position code `name` instead of its own, with fresh parameters; returns it. Raises ValueError
    for an unknown name. An attention that is not one of lib.explore.attention's would not read the code: it becomes
    `softmax_sdpa`. One without scores refuses a code that adds to them when the model runs."""
    if name not in POSITIONS:
        raise ValueError(f"No position is called {name!r}: choose one of {', '.join(POSITIONS)}.")
    if model.config._attn_implementation not in ATTENTIONS:
        model.set_attn_implementation("softmax_sdpa")
    model.transformer.wpe = Position(name, model.config).to(model.device)
    for module in attention_modules(model):
        # a reference and no submodule: shared parameters are saved once, with `wpe`
        module.__dict__["position"] = model.transformer.wpe
    return model
