"""Position encodings of a small GPT-2, in one registry.

A variant stands where GPT-2 has `wpe`: called with `position_ids` it gives what is added to the token
embeddings, or 0. Variants that act inside attention also `rotate` queries and keys or `bias` scores;
lib.explore.attention calls both. Those depend on the distance between two tokens alone, so left padding and a
KV cache need no care: keys are counted from the row's first column, queries are the last ones.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lib.explore.attention import ATTENTIONS, attention_modules, check_fit
from lib.models import small_gpt2

ROPE_BASE = 10_000.0  # Su et al. 2021: the slowest pair turns once in 2 pi 10,000 tokens
T5_BUCKETS, T5_MAX_DISTANCE = 32, 128  # Raffel et al. 2020, appendix: as in all T5 checkpoints


class Position(nn.Module):
    """No position code: nothing is added anywhere (Haviv et al. 2022, 2203.16634, "NoPos").

    A causal model can still count: the first token sees one token, the second two.
    """

    name = "none"
    biases_scores = False
    inside_attention = False  # then only lib.explore.attention's variants can be used with it

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, position_ids: Tensor) -> Tensor:
        """position_ids (B, T) -> what is added to the embeddings, (B, T, n_embd) or a single 0.

        Raises ValueError where attention would leave the code out.
        """
        used = self.config._attn_implementation
        if self.inside_attention and used not in ATTENTIONS:
            raise ValueError(
                f"position {self.name!r} works inside attention, and {used!r} would leave it out: choose an "
                f"attention of {', '.join(ATTENTIONS)}."
            )
        return torch.zeros((), device=position_ids.device)

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, H, T_q, D), k (B, H, T_k, D) -> the same shapes."""
        return q, k


class Learned(Position):
    """A trained vector per position, GPT-2's own (Radford et al. 2018)."""

    name = "learned"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.n_positions, config.n_embd))
        nn.init.normal_(self.weight, std=config.initializer_range)

    def forward(self, position_ids: Tensor) -> Tensor:
        """(B, T, n_embd). Raises ValueError past the table's end."""
        longest, rows = int(position_ids.max()) + 1, len(self.weight)
        if longest > rows:
            raise ValueError(
                f"A sequence of {longest} tokens is longer than the learned table of {rows} positions: cut it, "
                "or choose a position that needs no table (sinusoidal, rope, alibi, t5, none)."
            )
        return self.weight[position_ids]


class Sinusoidal(Position):
    """sin and cos of the position at n_embd / 2 wavelengths (Vaswani et al. 2017, 1706.03762, section 3.5).

    Scaled to the size at which GPT-2 initialises `wte` and `wpe`: at full size (each sine up to 1, embeddings
    of 0.02) the first layer norm would leave 1 part in 35 for the token.
    """

    name = "sinusoidal"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        if config.n_embd % 2:
            raise ValueError(f"Sinusoidal positions need an even n_embd, not {config.n_embd}.")
        self.n_embd = config.n_embd
        self.size = config.initializer_range * math.sqrt(2)  # a sine's root mean square is 1 / sqrt(2)

    def forward(self, position_ids: Tensor) -> Tensor:
        angles = position_ids[..., None] * _frequencies(self.n_embd, position_ids.device)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2) * self.size


class Rope(Position):
    """Queries and keys turned by an angle proportional to their position (Su et al. 2021, 2104.09864).

    Each pair (x_i, x_i+D/2) turns in its plane, so lengths stay and q.k depends on the distance alone. The
    pairing is that of GPT-NeoX and Llama; the paper pairs neighbours, which is the same up to the order.
    """

    name = "rope"
    inside_attention = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        head_dim = config.n_embd // config.n_head
        if head_dim % 2:
            raise ValueError(
                f"RoPE turns pairs of coordinates and cannot take a head size of {head_dim} (n_embd "
                f"{config.n_embd} / n_head {config.n_head}): choose them so that it is even."
            )

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        n_q, n_k = q.shape[2], k.shape[2]
        angles = torch.arange(n_k, device=k.device)[:, None] * _frequencies(k.shape[-1], k.device)
        return _turn(q, angles[n_k - n_q :]), _turn(k, angles)


class Alibi(Position):
    """Scores fall linearly with the distance, with a fixed slope per head (Press et al. 2022, 2108.12409)."""

    name = "alibi"
    biases_scores = inside_attention = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        slopes = torch.tensor(alibi_slopes(config.n_head))
        self.register_buffer("slopes", slopes, persistent=False)

    def bias(self, n_q: int, n_k: int) -> Tensor:
        """(H, T_q, T_k), added to the scaled scores; the queries are the last n_q positions."""
        return -self.slopes[:, None, None] * _distance(n_q, n_k, self.slopes.device)


class T5Bias(Position):
    """A trained bias per head and bucket of distances, shared by the layers (Raffel et al. 2020, 1910.10683).

    Distances below 16 have a bucket each; up to 128 they widen logarithmically; all beyond share the last.
    """

    name = "t5"
    biases_scores = inside_attention = True

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(T5_BUCKETS, config.n_head))
        nn.init.normal_(self.weight, std=config.initializer_range)

    def bias(self, n_q: int, n_k: int) -> Tensor:
        """(H, T_q, T_k), added to the scaled scores; the queries are the last n_q positions."""
        buckets = t5_bucket(_distance(n_q, n_k, self.weight.device))
        return self.weight[buckets].permute(2, 0, 1)


def alibi_slopes(n_head: int) -> list[float]:
    """2^(-8 i / n) for i = 1 .. n if n is a power of two; else those of the power below, and every
    second one of the power above until there are n, as the paper's code does for 12 heads.
    """
    power = 2 ** math.floor(math.log2(n_head))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    extra = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return slopes + extra[: n_head - power]


def t5_bucket(distance: Tensor) -> Tensor:
    """Causal distances (query - key, 0 where negative) to bucket numbers 0 .. 31, as in T5's decoder."""
    distance = distance.clamp(min=0)
    exact = T5_BUCKETS // 2
    ratio = torch.log(distance.clamp(min=1) / exact) / math.log(T5_MAX_DISTANCE / exact)
    wide = exact + (ratio * (T5_BUCKETS - exact)).long().clamp(max=T5_BUCKETS - exact - 1)
    return torch.where(distance < exact, distance, wide)


def _frequencies(size: int, device) -> Tensor:
    """(size / 2,) angles per position, from 1 down to almost 1 / ROPE_BASE."""
    return ROPE_BASE ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """x (B, H, T, D) with its pairs (x_i, x_i+D/2) turned by angles (T, D / 2)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _distance(n_q: int, n_k: int, device) -> Tensor:
    """(T_q, T_k): how many tokens the key stands before the query."""
    keys = torch.arange(n_k, device=device)
    return keys[n_k - n_q :, None] - keys


POSITIONS = {p.name: p for p in (Learned, Sinusoidal, Position, Rope, Alibi, T5Bias)}


def use_position(model: GPT2LMHeadModel, name: str) -> GPT2LMHeadModel:
    """Give a GPT-2 the position encoding `name` instead of its own, with fresh parameters; returns it.

    Raises ValueError for an unknown name (listing the known ones), a head size that RoPE cannot take, or
    an attention without scores for a position that adds to them.
    An attention that is not one of lib.explore.attention's would not read `position`: it becomes `softmax_sdpa`.
    """
    if name not in POSITIONS:
        raise ValueError(f"No position is called {name!r}: choose of {', '.join(POSITIONS)}.")
    if model.config._attn_implementation not in ATTENTIONS:
        model.set_attn_implementation("softmax_sdpa")
    position = POSITIONS[name](model.config).to(model.device)
    check_fit(model.config._attn_implementation, position)
    model.transformer.wpe = position
    for module in attention_modules(model):
        # a reference and no submodule: shared parameters are saved once, with `wpe`
        module.__dict__["position"] = position
    return model


# --- what notebook 05 shows of them


def shapes(positions: int, n_head: int, head_dim: int) -> pd.DataFrame:
    """What the untrained codes make of the distance between query and key: code, what, line, distance, value.

    ALiBi: the bias per head. RoPE: the score of a vector of ones with itself, over its length. Sinusoidal: the
    cosine of the two positions' vectors. T5: the bucket's number, up to twice the largest distance.
    """
    config = GPT2Config(n_head=n_head, n_embd=n_head * head_dim)
    distance = torch.arange(positions)
    ones = torch.ones(1, 1, positions, head_dim)
    q, k = Rope(config).rotate(ones, ones)
    vectors = Sinusoidal(config)(distance[None])[0]
    cosine = torch.cosine_similarity(vectors[-1:], vectors).flip(0)
    bias = Alibi(config).bias(1, positions)[:, 0].flip(1)
    what = {
        "alibi": "added to the score",
        "rope": "score of q = k = (1, ..., 1)",
        "sinusoidal": "cosine of the vectors",
        "t5": "bucket",
    }
    lines = [("alibi", f"head {h + 1}", bias[h]) for h in range(n_head)]
    lines += [("rope", "", (q[0, 0, -1:] @ k[0, 0].T)[0].flip(0) / head_dim)]
    lines += [("sinusoidal", "", cosine)]
    rows = [
        {"code": code, "line": line, "distance": int(d), "value": float(v)}
        for code, line, values in lines
        for d, v in zip(distance, values, strict=True)
    ]
    far = torch.arange(2 * T5_MAX_DISTANCE)
    rows += [
        {"code": "t5", "line": "", "distance": int(d), "value": float(b)}
        for d, b in zip(far, t5_bucket(far), strict=True)
    ]
    return pd.DataFrame(rows).assign(what=lambda df: df["code"] + ": " + df["code"].map(what))


@torch.no_grad()
def shift_test(names: Sequence[str], shift: int = 7, length: int = 40) -> pd.DataFrame:
    """Largest change of a logit when a row moves `shift` tokens to the right behind padding while position_ids keep
    counting columns: position, max_difference (0 for a relative code), scale (the largest logit).
    """
    rows = []
    for name in names:
        model = small_gpt2(97, n_positions=length + shift)
        use_position(model, name)
        ids = torch.randint(97, (1, length), generator=torch.Generator().manual_seed(0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (shift, 0))
        columns = torch.arange(length + shift)[None]
        moved = model(torch.nn.functional.pad(ids, (shift, 0)), attention_mask=mask, position_ids=columns)
        logits = model(ids).logits
        difference = float((moved.logits[:, shift:] - logits).abs().max())
        rows.append({"position": name, "max_difference": difference, "scale": float(logits.abs().max())})
    return pd.DataFrame(rows)
