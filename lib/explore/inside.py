"""A look inside a loaded model: attention maps, positions, what padding does to it, and its picture.

For GPT-2 and for Llama-like models such as the stand-in.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lib.explore.gpt2 import parameter_table

PATTERNS = {"previous": "the token before", "itself": "itself", "first": "the first token", "spread": "evenly spread"}


@torch.no_grad()
def attention_maps(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The attention weights of every head: input_ids (1, T) -> (L, H, T, T), rows sum to 1.

    Only the eager implementation hands its weights out; the model's own is restored after.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        maps = model(input_ids, output_attentions=True).attentions  # L of (1, H, T, T)
    finally:
        model.set_attn_implementation(before)
    return torch.stack([weights[0].float().cpu() for weights in maps])


def head_patterns(maps: Tensor) -> pd.DataFrame:
    """Where each head looks, as shares of its attention: layer, head, itself, previous, first, spread.

    maps (L, H, T, T), T >= 3. The first two rows are left out: there `previous` and `first` are the
    same token. spread is the entropy of a row over that of a uniform row (0: one token, 1: all alike).
    The kinds of head are those of Clark et al. 2019, "What Does BERT Look At?", arXiv:1906.04341.
    """
    T = maps.shape[-1]
    if T < 3:
        raise ValueError(f"{T} tokens are too few to tell attention patterns apart: use 3 or more.")
    itself = maps.diagonal(0, -2, -1)[..., 2:].mean(-1)  # (L, H)
    previous = maps.diagonal(-1, -2, -1)[..., 1:].mean(-1)
    first = maps[..., 2:, 0].mean(-1)
    entropy = -torch.special.xlogy(maps, maps).sum(-1)[..., 2:]  # (L, H, T - 2)
    spread = (entropy / torch.arange(3, T + 1).log()).mean(-1)
    columns = {"itself": itself, "previous": previous, "first": first, "spread": spread}
    index = pd.MultiIndex.from_product([range(n) for n in maps.shape[:2]], names=["layer", "head"])
    return pd.DataFrame({k: v.flatten().tolist() for k, v in columns.items()}, index).reset_index()


def pick_heads(patterns: pd.DataFrame) -> pd.DataFrame:
    """The head of each pattern's highest value: pattern, layer, head, value."""
    rows = []
    for pattern in PATTERNS:
        row = patterns.loc[patterns[pattern].idxmax()]
        rows.append({"pattern": pattern, "layer": int(row.layer), "head": int(row["head"]), "value": row[pattern]})
    return pd.DataFrame(rows)


def attention_figure(maps: Tensor, heads: pd.DataFrame, tokens: Sequence[str]) -> Figure:
    """The maps (L, H, T, T) of the four `heads` of `pick_heads`, with a name for each token."""
    names = [t.replace(" ", "␣").replace("\n", "↵").replace("$", r"\$") for t in tokens]
    side = min(4.2, 1.0 + 0.14 * len(names))  # inches
    fig, axes = plt.subplots(2, 2, sharex=True, sharey=True, figsize=(2 * side + 0.8, 2 * side))
    for ax, head in zip(axes.flat, heads.itertuples(), strict=True):
        image = ax.imshow(maps[head.layer, head.head].numpy(), cmap="Blues", vmin=0, vmax=1)
        ax.set_title(f"{PATTERNS[head.pattern]}: block {head.layer}, head {head.head}", fontsize=9)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.tick_params(length=0)
        ax.grid(False)
    fig.supxlabel("attended token", fontsize=9)
    fig.supylabel("attending token", fontsize=9)
    fig.colorbar(image, ax=axes, label="attention weight", shrink=0.6, aspect=30)
    return fig


def _padded(rows: Sequence[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask (B, T), padded on `side`."""
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    pair = zip(fill, rows, strict=True) if side == "left" else zip(rows, fill, strict=True)
    ids = torch.tensor([first + second for first, second in pair])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    columns = torch.arange(width)
    mask = columns >= width - lengths if side == "left" else columns < lengths
    return ids, mask.long()


@torch.no_grad()
def padding_ways(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> pd.DataFrame:
    """The last logits of each prompt in one padded batch against those of the prompt alone.

    One row per way of padding: way, largest_difference (of a logit), same_token (prompts whose most
    probable next token stays the same), prompts. In the number format of the model's weights.
    """
    rows = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]
    device = model.device
    alone = torch.cat([model(torch.tensor([r], device=device)).logits[:, -1] for r in rows])  # (B, V)
    left, mask = _padded(rows, tokenizer.pad_token_id, "left")
    right, right_mask = _padded(rows, tokenizer.pad_token_id, "right")
    from_mask = (mask.cumsum(-1) - 1).clamp(min=0)  # 0 for the padding and for the first real token
    columns = torch.arange(left.shape[1]).expand_as(left)
    ways = {
        "left, mask, positions counted from the mask": (left, mask, from_mask),
        "left, mask, positions counted from the padding": (left, mask, columns),
        "left, no mask": (left, torch.ones_like(mask), columns),
        "right, mask, logits of the last column": (right, right_mask, columns),
    }
    table = []
    for way, (ids, seen, positions) in ways.items():
        given = {"input_ids": ids, "attention_mask": seen, "position_ids": positions}
        logits = model(**{k: v.to(device) for k, v in given.items()}).logits[:, -1]  # (B, V)
        same = (logits.argmax(-1) == alone.argmax(-1)).sum().item()
        difference = (logits - alone).abs().max().item()
        table.append({"way": way, "largest_difference": difference, "same_token": same, "prompts": len(rows)})
    return pd.DataFrame(table)


def batch_or_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> pd.DataFrame:
    """Greedy continuations in one left-padded batch and one by one: prompt, tokens, padding, text, same.

    In the number format of the weights: under bfloat16 autocast a near tie may fall either way.
    """
    rows = [tokenizer(p, add_special_tokens=False).input_ids for p in prompts]

    def continued(rows: list[list[int]]) -> list[str]:
        ids, mask = (x.to(model.device) for x in _padded(rows, tokenizer.pad_token_id, "left"))
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)

    together, alone = continued(rows), [continued([row])[0] for row in rows]
    width = max(map(len, rows))
    return pd.DataFrame(
        {
            "prompt": list(prompts),
            "tokens": [len(row) for row in rows],
            "padding": [width - len(row) for row in rows],
            "text": together,
            "same": [a == b for a, b in zip(together, alone, strict=True)],
        }
    )


@torch.no_grad()
def position_similarity(model: PreTrainedModel, length: int) -> tuple[Tensor, str]:
    """How alike two positions are to the model: (T, T) in -1 .. 1, T at most `length`, and of what.

    A learned table: the cosine of its rows m and n. RoPE (Su et al. 2021, arXiv:2104.09864), which
    turns pair i of a query at m and a key at n by m θ_i and n θ_i: the score of two vectors of ones
    over the score at equal positions, mean_i cos((m - n) θ_i). Raises ValueError for anything else.
    """
    length = min(length, model.config.max_position_embeddings)
    table = next((p for name, p in model.named_parameters() if name.endswith("wpe.weight")), None)
    if table is not None:
        rows = torch.nn.functional.normalize(table[:length].float().cpu(), dim=-1)  # (T, C)
        return rows @ rows.T, "cosine similarity of the rows of wpe"
    rotary = next((m for m in model.modules() if hasattr(m, "inv_freq")), None)
    if rotary is None:
        raise ValueError(f"{model.config.model_type}: neither a position table nor RoPE found.")
    # float64: at position 1,000 float32 has only four digits of the angle's fraction left
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rotary.inv_freq.double().cpu()
    cos, sin = angles.cos(), angles.sin()  # (T, D / 2)
    return ((cos @ cos.T + sin @ sin.T) / cos.shape[1]).float(), "RoPE's relative score"


def by_distance(similarity: Tensor) -> pd.DataFrame:
    """A (T, T) matrix along its diagonals: distance, mean, lowest, highest.

    A relative position code has lowest = highest: the value depends on the distance alone.
    """
    rows = []
    for distance in range(len(similarity) // 2):  # further out a diagonal is short
        line = similarity.diagonal(-distance)
        rows.append(
            {
                "distance": distance,
                "mean": line.mean().item(),
                "lowest": line.min().item(),
                "highest": line.max().item(),
            }
        )
    return pd.DataFrame(rows)


def structure_figure(config: PretrainedConfig) -> Figure:
    """GPT-2 as a picture, from the token ids at the bottom to the logits, with sizes and counts.

    `config` is a GPT2Config; other architectures have other boxes. Raises ValueError for them.
    """
    if config.model_type != "gpt2":
        raise ValueError(f"The picture is of GPT-2, not of a {config.model_type} model.")
    C, V, H, inner = (config.n_embd, config.vocab_size, config.n_head, config.n_inner or 4 * config.n_embd)
    counts = parameter_table(config).set_index("component").parameters
    tables = counts["token embedding"] + counts["position embedding"]
    grey, blue, orange, green = "#e8e8e8", "#cfe2f3", "#fce5cd", "#d9ead3"
    boxes = [  # height of the centre, text, colour
        (0.0, "token ids\n(B, T)", "white"),
        (
            1.2,
            f"token table wte + position table wpe\n"
            f"{V:,} × {C}   and   {config.n_positions:,} × {C}   ({tables:,} numbers)",
            blue,
        ),
        (2.9, "layer norm ln_1", grey),
        (3.8, f"causal self-attention, {H} heads of width {C // H}\nc_attn {C} → 3 · {C},   c_proj {C} → {C}", orange),
        (5.5, "layer norm ln_2", grey),
        (6.4, f"MLP, GELU in the middle\nc_fc {C} → {inner:,},   c_proj {inner:,} → {C}", green),
        (8.3, "layer norm ln_f", grey),
        (9.3, f"LM head: the token table again, transposed\n{C} → {V:,}, no further numbers", blue),
        (10.4, "logits\n(B, T, V)", "white"),
    ]
    figure, axes = plt.subplots(figsize=(7.5, 8))
    axes.add_patch(FancyBboxPatch((-3.9, 2.25), 8.9, 5.4, boxstyle="round,pad=0.05", fc="0.97", ec="0.6", ls="--"))
    axes.annotate("", (0, 10.1), (0, 0.3), arrowprops={"arrowstyle": "->", "lw": 1.5}, zorder=1)
    for y, text, colour in boxes:
        axes.text(
            0,
            y,
            text,
            ha="center",
            va="center",
            fontsize=9,
            zorder=3,
            bbox={"boxstyle": "round,pad=0.4", "fc": colour, "ec": "0.3"},
        )
    return _residuals(figure, axes, config, counts)


def _residuals(figure: Figure, axes, config: PretrainedConfig, counts: pd.Series) -> Figure:
    for leave, join in ((2.4, 4.65), (4.95, 7.25)):  # around attention and around the MLP
        axes.plot([0, 4.3, 4.3, 0.15], [leave, leave, join, join], color="0.3", ls="-", lw=1.5, zorder=1)
        axes.text(
            0,
            join,
            "+",
            ha="center",
            va="center",
            zorder=4,
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "0.3"},
        )
    inside = counts.filter(regex="attention|MLP|blocks").sum()
    axes.text(5.2, 4.95, f"× {config.n_layer} blocks\n{inside:,}\nnumbers", va="center", fontsize=9)
    axes.text(0.15, 1.95, f"(B, T, {config.n_embd})", fontsize=8, va="center")
    axes.set(xlim=(-4.2, 7), ylim=(-0.5, 10.9))
    axes.axis("off")
    return figure
