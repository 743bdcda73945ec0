# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 Attention mechanisms
#
# Softmax attention compares every token with every earlier one: $T^2$ products. Five ways to pay less, each causal,
# each tested against a naive form of itself, in one small GPT-2 trained from scratch; then what they cost, what a
# constant-size state can hold and learns to hold, and how good Nystrom's approximation is on a pretrained model.
#
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.

# %%
REPOSITORY = ""  # on Colab: the address of your team's copy, such as https://github.com/you/coursework
import glob, os, subprocess, sys

if "google.colab" in sys.modules:
    if REPOSITORY and not glob.glob("/content/*/lib/colab.py"):
        subprocess.run(["git", "clone", "-q", REPOSITORY, "/content/project"])
    if not (found := glob.glob("/content/*/lib/colab.py")):
        sys.exit("Set REPOSITORY, or upload the project's zip and run `!unzip -q NAME.zip`; then run this cell again.")
    os.chdir(f"{os.path.dirname(found[0])}/../notebooks")
    subprocess.run([sys.executable, "-m", "lib", "colab"], cwd="..", check=True)
    sys.path.insert(0, "..")

# %%
import copy, itertools
from functools import cache, partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from lib import hub, models, plots, profile, tasks
from lib.explore import attention, costs, scratch
from lib.explore.attention import ATTENTIONS, Attention
from lib.metrics import mean_interval
from lib.results import Results, by_seed, interval, kept, listed, number, shown

# %% [markdown]
# - The budget: (fast, cpu, full). Text in UTF-8 bytes, lengths in tokens. On a GPU the timings go on to 65,536; on
#   a CPU the quadratic forms take minutes a pass from 16,384 on.
# - `RIVALS` are compared in one table; `softmax` is the same function as its fused form, and Nystrom has its own table
#   with softmax's rows of the same machine beside it.

# %%
lengths = (256, 512, 1_024, 2_048, 4_096, 8_192)
budget = profile.budget(
    seeds=((0, 1), (0, 1), (0, 1, 2, 3, 4)),  # the variants lie close together
    train_bytes=(12_000, 400_000, 1_200_000),
    eval_bytes=(4_000, 30_000, 50_000),  # leading held-out text
    n_layer=(1, 4, 4),
    n_embd=(32, 128, 128),
    lengths=((64, 128, 256), lengths, lengths),  # of the timings
    repeats=(2, 3, 7),  # of each timing
    heads_tokens=(64, 512, 512),  # real queries and keys, for Nystrom's error
    nystrom_seeds=((0, 1), (0, 1), (0, 1, 2, 3, 4)),  # with softmax and two plainer forms beside it
    knob_seeds=((0,), (0,), (0, 1, 2)),  # of its other ridges and chunks
    rate_seeds=((0, 1), (0, 1), tuple(range(10))),  # of softmax against a window
    low_seeds=((0, 1), (0, 1), tuple(range(6))),  # the same at the lower rate
    rate_bytes=(12_000, 60_000, 250_000),  # what each of these is trained on
    control_seeds=((0, 1), (0, 1), (0, 1, 2)),
    long_seeds=((0, 1), (0,), (0, 1, 2)),  # of rows four times as long, of a play
    long_bytes=(12_000, 250_000, 1_000_000),
    leak_bytes=(12_000, 40_000, 40_000),
    pairs=((4, 8), (8, 32), (8, 32, 64)),  # of the recall that is trained
    recall_steps=(5, 100, 250),
    recall_seeds=((0, 1), (0, 1), (0, 1, 2)),
)

# %% [markdown]
# - Names as the figures and the report have them.

# %%
if profile.device().type == "cuda" and profile.name() != "fast":
    budget.lengths += (16_384, 32_768, 65_536)
results = Results("06_attention", seeds=budget.seeds)
NAMES, SOFTMAX = list(ATTENTIONS), "softmax_sdpa"
RIVALS = [name for name in NAMES if name not in ("softmax", "nystrom")]
LABELS = {SOFTMAX: "softmax", "performer": "Performer", "delta": "delta rule", "nystrom": "causal Nyström"}


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(attention=frame["attention"].replace(LABELS))


# %% [markdown]
# ## The principle
#
# Each output is a weighted sum of earlier values, $o_t = \sum_{j \le t} w_{tj} v_j$. With $s_{tj} = q_t \cdot k_j /
# \sqrt{D}$:
#
# | name | weights or state | time in $T$ | state while decoding |
# |--|--|--|--|
# | `softmax`, `softmax_sdpa` | $w_{tj} \propto e^{s_{tj}}$ | $T^2$ | all keys and values |
# | `window` | the same for $t - j < w$ only | $T w$ | $w$ keys and values |
# | `linear` | $w_{tj} \propto \phi(q_t) \cdot \phi(k_j)$, $\phi = \mathrm{elu} + 1$ | $T$ | $\sum \phi(k) v^\top$ |
# | `performer` | the same, $\phi$ random features whose products estimate $e^{s_{tj}}$ | $T$ | the same |
# | `delta` | $S_t = S_{t-1} + \beta_t k_t (v_t - S_{t-1}^\top k_t)^\top,\; o_t = S_t^\top q_t$ | $T$ | $S$ |
# | `nystrom` | softmax over $c$ near tokens, $m \sim \log T$ landmarks | $T (c + m D + m^2)$ | all keys and values |
#
# Nystromformer's landmarks are means over the whole sequence, so its form is for encoders: a token sees later ones.
# The causal form here is our own; its rule is in the docstring below. The systems $K$ of all prefixes are leading
# blocks of one matrix, and so are their Cholesky factors: one factor serves the whole row.
#
# - The change, in code: the linear form (chunks, with running sums between them) and our causal Nystrom, naive.
# - They enter through transformers' AttentionInterface: one name in a config, no copied model file, and the same
#   name works on a pretrained model (`use_attention`). A new variant is one function and one line of the registry.

# %%
plots.source(attention.kernel, attention.nystrom_naive, attention.Attention, attention.use_attention)

# %% [markdown]
# - What one query reads in our causal Nystrom, drawn with chunks of 4 tokens and segments (first, one past the last)
#   that double after two. Blue is read exactly, yellow through its segment's landmark.

# %%
query, segments, length = 26, [(1, 5), (5, 9), (9, 17), (17, 25)], 32
figure, ax = plt.subplots(figsize=(plots.WIDTH, 1.3))
own = segments[-1][1]
for j in range(length):
    far = plots.COLORS[1] if 0 < j < own else plots.COLORS[0]
    style = {"fc": far} if j <= query else {"fc": "white", "hatch": "/////"}
    ax.add_patch(plt.Rectangle((j, 0), 0.85, 1, ec=plots.GREY, lw=0.5, **style))
names = [f"$l_{m} \\to y_{m}$\n$n_{m} = {j - i}$" for m, (i, j) in enumerate(segments, 1)]
spans = [(0, 1), *segments, (own, query + 1), (query + 1, length)]
for (i, j), name in zip(spans, ["first\ntoken", *names, "own\nchunk", "not seen"], strict=True):
    ax.plot([i, j - 0.15], [-0.25, -0.25], color=plots.INK, linestyle="-", linewidth=1)
    ax.text((i + j - 0.15) / 2, -0.45, name, ha="center", va="top", fontsize=8)
    if j <= own:
        arc = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.22", "color": plots.INK, "linewidth": 0.8}
        ax.annotate("", ((i + j - 0.15) / 2, 1.05), (query + 0.4, 1.1), arrowprops=arc)
ax.text(query + 0.42, 0.45, "$q_t$", color="white", fontsize=8, ha="center", va="center")
ax.set(xlim=(-0.8, length), ylim=(-2.2, 4.6))
ax.set_axis_off()
text = "What the query of token $t$ reads: the row's first token and its own chunk exactly (dark); between, ended "
text += "segments as landmarks, a mean key $l$ that counts as $n$ tokens and answers with a value $y$; drawn for "
text += "chunks of 4 tokens and segments that double after two."
results.figure(figure, "06_row", text, scratch=True, seeds=())

# %% [markdown]
# - The weights that each gives one and the same set of random queries and keys (32 tokens; rows are queries, blue
#   positive, red negative): with one-hot values an output is its row of weights. Keys lean towards their neighbours',
#   so that there is something to see; small window and segments.


# %%
@torch.no_grad()
def weights(name: str, length: int = 32, head_dim: int = 16):
    generator = torch.Generator().manual_seed(1)
    k = torch.randn(1, 1, length, head_dim, generator=generator).cumsum(2)
    k = 3 * torch.nn.functional.normalize(k, dim=-1) * head_dim**0.25
    q = k + 0.3 * torch.randn(k.shape, generator=generator)
    small = {key: 8 for key in ("window", "segment") if key in ATTENTIONS[name].options}
    beta = {"beta": torch.full((1, 1, length), 0.9)} if ATTENTIONS[name].gated else {}
    values = torch.eye(length)[None, None]
    return ATTENTIONS[name].form(q, k, values, head_dim**-0.5, **ATTENTIONS[name].options | small | beta)[0, 0].numpy()


figure, axes = plt.subplots(2, 3, figsize=(5.25, 3.9))
for ax, name in zip(axes.flat, NAMES[1:], strict=True):
    matrix = weights(name)
    limit = np.quantile(np.abs(matrix[matrix != 0]), 0.97)  # a few large ones would leave the rest white
    ax.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.plot([-0.5, 31.5], [-0.5, 31.5], color=plots.GREY, linewidth=0.5, linestyle="-")
    ax.set_title(LABELS.get(name, name), fontsize=8.5)
    ax.set_axis_off()

# %% [markdown]
# ## Quality at an equal budget
#
# - One thing changes, the attention. Text, order, seeds, steps, learning rate and all other weights are equal;
#   positions are RoPE in all. Softmax is trained by the fused kernel, `softmax_sdpa` (a test holds outputs and
#   gradients equal). Held-out windows of the trained length slide by half. A caption's training tokens are the mean
#   over runs, rounded: seeds draw other documents and differ by a step.

# %%
texts = scratch.documents("debian", "test", budget.eval_bytes)
shared = {"position": "rope", "train_bytes": budget.train_bytes, "n_layer": budget.n_layer, "n_embd": budget.n_embd}


@cache
def runs() -> list[scratch.Trained]:
    return scratch.train_all([scratch.Recipe(seed=s, attention=a, **shared) for s in budget.seeds for a in RIVALS])


def measure(run: scratch.Trained, held_out: list[str] = texts) -> dict:
    r, length = run.recipe, run.recipe.train_length
    score = scratch.score_stream(run.model, run.encoding, held_out, length, length // 2)
    row = {"attention": r.attention, "position": r.position, "seed": r.seed, "bits_per_byte": score.bits_per_byte}
    return row | {key: run.summary[key] for key in ("tokens", "parameters", "learning_rate", "train_bytes")}


quality = with_earlier = results.table("quality", lambda: [measure(run) for run in runs()])
quality = quality[quality["attention"].isin(RIVALS)]  # older rows hold an earlier causal Nystrom form as well
tokens = int(quality["tokens"].mean().round(-3))

# %% [markdown]
# - Do the landmarks matter, and does the solved value $y_m$? Two controls: the causal Nystrom without landmarks, and
#   with the segment's mean value in place of $y_m$. Up to the first landmark, at the 34th token, all are one function,
#   and up to the second landmark $y_m$ is a mean.


# %%
def plain(q, k, v, scale, segment=32, landmarks=True, **_):
    """(B, H, T, D) to (B, H, T, D): softmax over the row's first token, the query's own chunk up to itself and, where
    there are `landmarks`, the mean key and value of each chunk before it, counted as the chunk's tokens."""
    place, n = torch.arange(q.shape[2], device=q.device), (q.shape[2] - 1) // segment  # n whole chunks
    chunk = (place - 1).clamp(min=0) // segment  # the first token stands before the first chunk
    seen = (place[:, None] >= place) & ((chunk[:, None] == chunk) | (place == 0))
    far = (chunk[:, None] > torch.arange(n, device=q.device)) & landmarks  # (T, n)
    means = [x[:, :, 1 : 1 + n * segment].unflatten(2, (n, segment)).mean(3) for x in (k, v)]
    k, v = (torch.cat(pair, 2) for pair in zip((k, v), means, strict=True))  # (B, H, T + n, D)
    counts = torch.ones(k.shape[2], device=q.device, dtype=q.dtype)
    counts[len(place) :] = segment
    seen = counts.log().where(torch.cat([seen, far], 1), torch.finfo(q.dtype).min)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)


q, k, v = torch.randn(3, 1, 1, 96, 16, generator=torch.Generator().manual_seed(0))
ours = attention.nystrom_naive(q, k, v, 0.25)
for landmarks, known in ((False, 33), (True, 65)):  # tokens that see no landmark, or one, whose y is a mean in both
    apart = (plain(q, k, v, 0.25, landmarks=landmarks) - ours).abs().amax((0, 1, 3))
    print(f"{landmarks=}: apart by {apart[:known].max():.0e} before token {known}, by {apart[known:].max():.2f} after")

# %% [markdown]
# - The causal Nystrom, its controls and softmax, trained on one machine from the same seeds; then other ridges $r$ and
#   chunks $c$: bits per byte, and of how many seeds.

# %%
CONTROLS = {
    "near_only": Attention(plain, options={"segment": 32, "landmarks": False}),
    "mean_values": Attention(plain, options={"segment": 32, "landmarks": True}),
}
KNOBS = {"ridge": (0.1, 2.0), "segment": (16, 64)}
KNOBS = {f"{key} {x}": {key: x} for key, some in KNOBS.items() for x in some}


def runs_with(others, names) -> list[dict]:
    """A row for each (attention, seed) of `names`; `others` are known only meanwhile."""
    for name, other in others.items():
        attention.register(name, other)
    recipes = [scratch.Recipe(seed=seed, attention=name, **shared) for name, seed in names]
    rows = [measure(run) for run in scratch.train_all(recipes)]
    for name in others:
        del ATTENTIONS[name]
    return rows


def changed(name, options) -> Attention:
    entry = ATTENTIONS[name]
    return Attention(entry.form, options=entry.options | options)


# %%
def nystrom_runs() -> list[dict]:
    others = {name: changed("nystrom", options) for name, options in KNOBS.items()}
    names = [(name, seed) for seed in budget.nystrom_seeds for name in (SOFTMAX, "nystrom", *CONTROLS)]
    names += [(name, seed) for seed in budget.knob_seeds for name in others]
    return runs_with(CONTROLS | others, names)


nystrom_quality = results.table("nystrom_quality", nystrom_runs)
nystrom_quality.groupby("attention", sort=False)["bits_per_byte"].agg(["mean", "count"]).round(3)

# %% [markdown]
# - Of its own chunk a query reads some 16 tokens, on average, the window always 64. So windows of 16 and of 32 tokens,
#   run later, beside softmax again: what is left of the window's lead at as many exact tokens?

# %%
SMALL = {f"window {size}": {"window": size} for size in (16, 32)}
names = [(name, seed) for seed in budget.nystrom_seeds for name in (SOFTMAX, *SMALL)]
others = {name: changed("window", options) for name, options in SMALL.items()}
small_windows = results.table("small_windows", lambda: runs_with(others, names), optional=True)
if len(small_windows):
    print(small_windows.pivot_table("bits_per_byte", "attention", "seed").round(3))

# %% [markdown]
# - The other mechanisms. (`quality`, measured before, still has rows of an earlier Nystrom; they are left out.)
# - Where in a row of 256 tokens the difference arises: bits per token by how many tokens were seen, the same text in
#   every step. A line that goes on falling uses the longer context; one that rises is disturbed by it.

# %%
look = {"titles": {None: "debian"}, "xlabel": "bits per byte (lower is better)"}
figure = plots.dots(labelled(quality), "bits_per_byte", "attention", **look)
by_position = results.table("loss_by_position", lambda: scratch.loss_by_position(runs(), texts, 256))
by_position = by_position[by_position["attention"].isin(RIVALS)]
look = {"logx": False, "xlabel": "tokens seen before", "ylabel": "bits per token"}
figure = plots.lines(labelled(by_position), "seen", "bits_per_token", "attention", **look)

# %% [markdown]
# ## Is a window ahead of softmax, and of what does it hang?
#
# - Ten seeds at a fifth of the tokens, six of them at a lower learning rate too: a lead that is there at one rate alone
#   is a matter of the optimiser. The control has a window as long as the row: the same function as softmax, computed in
#   other blocks, so that only the order of additions differs; what it is apart from softmax after training is noise.


# %%
HIGH, LOW = 4e-3, 2e-3


def rate_runs() -> list[dict]:
    attention.register("row_window", Attention(attention.window, options={"window": 256}))
    at = {HIGH: budget.rate_seeds, LOW: budget.low_seeds}
    both = [(a, s, rate) for rate, seeds in at.items() for s in seeds for a in (SOFTMAX, "window")]
    both += [("row_window", s, HIGH) for s in budget.control_seeds]
    given = shared | {"train_bytes": budget.rate_bytes}
    recipes = [scratch.Recipe(seed=s, attention=a, learning_rate=rate, **given) for a, s, rate in both]
    rows = [measure(run) for run in scratch.train_all(recipes)]
    del ATTENTIONS["row_window"]
    return rows


rates = results.table("window_or_softmax", rate_runs)
tokens_rates = int(rates["tokens"].mean().round(-3))
lead = {}
for rate, part in rates.groupby("learning_rate"):
    wide = by_seed(part, "attention")
    lead |= {(name, rate): (wide[name] - wide[SOFTMAX]).dropna() for name in wide.columns.drop(SOFTMAX)}
for (name, rate), gap in lead.items():
    print(f"{name} minus softmax at {rate}: {interval(gap, sign=True)}, {len(gap)} seeds")

# %% [markdown]
# - The same two mechanisms' first 32 tokens of a row, where a window of 64 and softmax are one function: a difference
#   there can't come from the context.
# - GPT-2's learned positions instead of RoPE: at this budget the position table is still being learned. One seed.

# %%
first = by_position[by_position["seen"] == by_position["seen"].min()]
first = by_seed(first, "attention", "bits_per_token")
first = first["window"] - first[SOFTMAX]
print("window minus softmax, first tokens of a row, bits per token:", interval(first, sign=True))
recipes = [scratch.Recipe(seed=0, attention=a, **shared | {"position": "learned"}) for a in (SOFTMAX, "linear")]
learned = results.table("learned_positions", lambda: [measure(run) for run in scratch.train_all(recipes)])
learned.round(3)

# %% [markdown]
# ## A text that goes on
#
# - A description ends before its context is long; in a play a speaker or a matter comes back after a page. So the same
#   models once more, on tiny Shakespeare (Karpathy 2015) in pieces of 20,000 characters, the last tenth held out. A
#   step is one row of 1,024 tokens, as many tokens as before; a window still holds 64.


# %%
def play() -> tasks.Task:
    text = (hub.outside("shakespeare") / "input.txt").read_text("utf-8")
    pieces = [text[i : i + 20_000] for i in range(0, len(text), 20_000)]
    rows = [{"prompt": "", "target": t, "references": [t], "group": str(i), "id": str(i)} for i, t in enumerate(pieces)]
    cut = len(rows) * 9 // 10
    return tasks.Task({"train": rows[:cut], "test": rows[cut:]}, "shakespeare", hub.OUTSIDE["shakespeare"]["input.txt"])


tasks.TASKS["shakespeare"] = play
LONG = shared | {"corpus": "shakespeare", "train_length": 1_024, "rows": 1, "train_bytes": budget.long_bytes}


@cache
def long_runs() -> list[scratch.Trained]:
    names = [(name, seed) for seed in budget.long_seeds for name in (*RIVALS, "nystrom")]
    return scratch.train_all([scratch.Recipe(seed=seed, attention=name, **LONG) for name, seed in names])


# %% [markdown]
# - Bits per byte, and bits per token by how many tokens were seen: what does each make of a context beyond the window?


# %%
def long_rows(of) -> list[dict] | pd.DataFrame:
    held_out = hub.reached(scratch.documents, "shakespeare", "test", budget.eval_bytes)
    return of(long_runs(), held_out) if held_out else []


long = results.table("long_rows", lambda: long_rows(lambda runs, t: [measure(run, t) for run in runs]), optional=True)
along = partial(scratch.loss_by_position, length=LONG["train_length"])
long_by_position = results.table("long_by_position", lambda: long_rows(along), optional=True)
if len(long):
    figure = plots.lines(labelled(long_by_position), "seen", "bits_per_token", "attention", **look)
    on_long = {"tokens": int(long["tokens"].mean().round(-3)), "scratch": True, "seeds": budget.long_seeds}

# %% [markdown]
# ## Does any see the future?
#
# - Change all tokens after t: outputs up to t must stay. On briefly trained models, whole rows, rows with padding on
#   the left and on the right, around the edges of chunks, windows and segments. 0 up to rounding is what causal means.


# %%
@cache
def brief(name: str):
    given = shared | {"train_bytes": budget.leak_bytes}
    return scratch.train(scratch.Recipe(seed=0, attention=name, **given)).model


def leaks() -> list[dict]:
    models_of = {name: brief(SOFTMAX if name == "softmax" else name) for name in NAMES}
    models_of["softmax"] = attention.use_attention(copy.deepcopy(models_of["softmax"]), "softmax")
    return [{"attention": name, "max_difference": costs.leak(model, 150)} for name, model in models_of.items()]


leak = results.table("leak", leaks)
leak

# %% [markdown]
# - The test must be able to fail: the paper's Nystrom, and softmax without its mask, in the same model.


# %%
def nystromformer(q, k, v, scale, landmarks: int):
    """softmax(q l_k^T) pinv(softmax(l_q l_k^T)) softmax(l_q k^T) v, l_q and l_k the means of `landmarks` equal segments
    (Xiong et al. 2021, equation 13; the paper iterates towards the pseudo-inverse, and has a convolution beside)."""
    segment = q.shape[2] // landmarks
    marks_q, marks_k = (x[:, :, : landmarks * segment].unflatten(2, (landmarks, segment)).mean(3) for x in (q, k))
    f, a, b = ((x @ y.mT * scale).softmax(-1) for x, y in ((q, marks_k), (marks_q, marks_k), (marks_q, k)))
    return f @ (torch.linalg.pinv(a) @ (b @ v))


def leaking() -> list[dict]:
    forms = {
        "nystromformer": lambda q, k, v, scale, **_: nystromformer(q, k, v, scale, landmarks=8),
        "softmax without a mask": lambda q, k, v, scale, **_: (q @ k.mT * scale).softmax(-1) @ v,
    }
    model, rows = copy.deepcopy(brief(SOFTMAX)), []
    for name, form in forms.items():
        attention.register("leaking", Attention(form))
        model.set_attn_implementation("leaking")
        rows.append({"attention": name, "max_difference": costs.leak(model, 150)})
    del ATTENTIONS["leaking"]
    return rows


controls = results.table("leak_controls", leaking)
controls

# %% [markdown]
# ## What a state can hold
#
# - No training: random keys are written with random values, then asked for; an answer is right if the value with the
#   largest product with the output is the one written. `overwrite` writes every key twice and wants the newer value
#   (after Schlag et al. 2021, section 6.1).


# %%
@torch.no_grad()
def accuracy(name: str, pairs: int, writes: int, seed: int, heads: int = 16) -> float:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, heads, pairs, costs.HEAD_DIM, generator=generator)
    values = torch.randn(1, heads, writes * pairs, costs.HEAD_DIM, generator=generator)
    asked = torch.zeros_like(keys)  # a question writes nothing: its own key and value are 0
    q, k = (torch.cat([keys.repeat(1, 1, writes, 1), last], dim=2) for last in (keys, asked))
    given = dict(ATTENTIONS[name].options)
    if ATTENTIONS[name].gated:
        given["beta"] = torch.ones(1, heads, k.shape[2])
        given["beta"][:, :, -pairs:] = 0.0
    out = ATTENTIONS[name].form(q, k, torch.cat([values, asked], dim=2), costs.HEAD_DIM**-0.5, **given)
    found = (out[:, :, -pairs:] @ values.mT).argmax(-1)  # (1, heads, pairs)
    return float((found == torch.arange((writes - 1) * pairs, writes * pairs)).float().mean())


# %% [markdown]
# - Softmax keeps everything and finds it; of two values under one key it gives the mean, since both scores are equal:
#   without positions it has no way to prefer the newer. The delta rule erases before it writes, until more keys are
#   stored than a head has dimensions (64).

# %%
recall = results.table(
    "recall",
    lambda: [
        {"attention": name, "task": task, "pairs": n, "seed": seed, "accuracy": accuracy(name, n, writes, seed)}
        for name in ("softmax", "linear", "performer", "delta")
        for task, writes in (("recall", 1), ("overwrite", 2))
        for n in (4, 8, 16, 32, 64, 128)
        for seed in budget.seeds
    ],
)
task_names = {"recall": "every key written once", "overwrite": "twice: the newer is right"}
look = {"panel": "task", "xlabel": "pairs written", "ylabel": "share retrieved"}
figure = plots.lines(labelled(recall.replace({"task": task_names})), "pairs", "accuracy", "attention", **look)
text = f"What one head of {costs.HEAD_DIM} dimensions gives back of random keys and values, untrained. Line: mean over "
text += "seeds; band: their range."
results.figure(figure, "06_recall", text, scratch=True)

# %% [markdown]
# ## What a state learns to hold
#
# - Multi-query associative recall, trained end to end: a row writes `pairs` keys with their values, then asks for each
#   key once, in another order (Arora et al. 2023, arXiv:2312.04927). Key and value enter at one position, as the sum
#   of their vectors, so that one layer suffices (as in Schlag et al. 2021, section 6.1): what is compared is the state,
#   not the finding of a token's neighbour. A question holds `BLANK` in place of the value.

# %%
KEYS = 256
VALUES = 64
BLANK = KEYS + VALUES


def associations(pairs: int, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Key and value ids (rows, 2 pairs), and the answers (rows, pairs) to the second half, which asks for the first."""
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(VALUES, (rows, pairs), generator=generator)
    order = torch.rand(rows, pairs, generator=generator).argsort(1)
    blank = torch.full_like(values, BLANK)
    ids = torch.cat([keys, keys.gather(1, order)], 1), torch.cat([KEYS + values, blank], 1)
    return *ids, values.gather(1, order)


# %% [markdown]
# - One layer, width 64, 2 heads, no positions; the window holds 16 tokens, as many numbers as the delta rule's state.
#   Each is trained on fresh rows and asked on 64 others; chance is 1 of 64.


# %%
def trained_recall(name: str, pairs: int, seed: int) -> dict:
    shape = {"n_positions": 2 * pairs, "n_layer": 1, "n_head": 2, "n_embd": 64}
    model = scratch.build(BLANK + 1, "none", name, seed, **shape).to(profile.device())
    attention.use_attention(model, name, **({"window": 16} if name == "window" else {})).train()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=budget.recall_steps, pct_start=0.1)

    def logits_and_answers(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values, answers = (x.to(profile.device()) for x in associations(pairs, rows, generator))
        embed = model.transformer.wte
        logits = model(inputs_embeds=embed(keys) + embed(values), use_cache=False).logits
        return logits[:, pairs:, KEYS:BLANK], answers

    generator = torch.Generator().manual_seed(seed)
    for _ in range(budget.recall_steps):
        logits, answers = logits_and_answers(16, generator)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    with torch.no_grad():
        logits, answers = logits_and_answers(64, torch.Generator().manual_seed(10_000 + seed))
    return {"accuracy": float((logits.argmax(-1) == answers).float().mean())}


# %% [markdown]
# - The state after a row, of both heads of 32: keys and values of all tokens (Nystrom's landmarks ask all of them), of
#   a window's, or the recurrent form's numbers, in float32. A finished run is kept.


# %%
def state_kilobytes(name: str, tokens: int) -> float:
    entry, head = ATTENTIONS[name], torch.zeros(1, 2, 1, 32)
    if not entry.step:
        return 2 * 64 * 4 * (min(tokens, 16) if name == "window" else tokens) / 1_000
    given = {"beta": torch.zeros(1, 2, 1)} if entry.gated else {}
    return 4 * entry.step(None, head, head, head, 1.0, **entry.options, **given)[1].numel() / 1_000


def recall_rows() -> list[dict]:
    rows = []
    for seed, pairs, name in itertools.product(budget.recall_seeds, budget.pairs, [SOFTMAX, *RIVALS[1:], "nystrom"]):
        path = profile.output_root() / "data" / "runs" / f"recall-{name}-{pairs}-{seed}"
        got = kept(path, (budget.recall_steps,), lambda n=name, p=pairs, s=seed: trained_recall(n, p, s))
        row = {"attention": name, "pairs": pairs, "seed": seed, **got}
        rows.append(row | {"state_kilobytes": state_kilobytes(name, 2 * pairs)})
    return rows


learned_recall = results.table("trained_recall", recall_rows)
learned_recall.pivot_table("accuracy", ["attention", "state_kilobytes"], "pairs", sort=False).round(2)

# %% [markdown]
# ## Time and memory against length
#
# - One attention operation, 4 heads of 64, batch 1, float32; the variants take turns, medians. On a log-log
#   plot a slope of 2 is quadratic, 1 is linear. Peak memory, forward and backward, is what the pass adds; below a
#   megabyte nothing can be told from noise.

# %%
scaling = results.table("scaling", lambda: costs.scaling(NAMES, budget.lengths, budget.repeats))
made = results.provenance()
device = made.get("tables_made", {}).get("scaling", made)["device"]
look = {"logy": True, "xlabel": "tokens"}
trained = scaling[scaling["pass"] == costs.PASSES[1]]
scaled = labelled(trained.replace({"attention": {"softmax": "softmax, not fused", "softmax_sdpa": "softmax, fused"}}))
figure = plots.lines(scaled, "length", "milliseconds", "attention", ylabel="milliseconds", height=2.3, **look)
text = "How time grows; between these axes slope 1 is linear, 2 quadratic. One operation, forward and backward, "
text += f"medians of {budget.repeats} by turns, on {device}."
results.figure(figure, "06_scaling", text, scratch=True, seeds=())
measurable = scaled[scaled["peak_megabytes"] > 1]
if len(measurable):
    figure = plots.lines(measurable, "length", "peak_megabytes", "attention", ylabel="peak megabytes", **look)

# %% [markdown]
# - Fitted exponents of time: over the three longest lengths, where the fixed costs of short rows are past, and over
#   all; of memory over those of the three longest with more than a megabyte (nan: fewer than two).
# - From which length on each is faster than softmax (both passes), against the naive form and against the fused kernel
#   (nan: not within the lengths measured).


# %%
def exponent(df: pd.DataFrame, value: str, longest: int = 3) -> float:
    """The slope of log `value` against log length over the longest: 2 is quadratic, 1 linear, nan of one."""
    logs = np.log(df.sort_values("length").tail(longest)[["length", value]])
    return float(np.polyfit(logs["length"], logs[value], 1)[0]) if len(logs) > 1 else float("nan")


def fits() -> list[dict]:
    rows = []
    for name, own in scaling.groupby("attention", sort=False):
        row = {"attention": name}
        for kind in costs.PASSES:
            passes = own[own["pass"] == kind]
            row[f"time_exponent_{kind}"] = exponent(passes, "milliseconds")
            row[f"time_exponent_all_lengths_{kind}"] = exponent(passes, "milliseconds", len(passes))
            row[f"memory_exponent_{kind}"] = exponent(passes[passes["peak_megabytes"] > 1], "peak_megabytes")
        for against in ("softmax", SOFTMAX):
            row[f"faster_than_{against}_from"] = costs.crossover(scaling, name, against)
        rows.append(row)
    return rows


fitted = results.table("fitted", fits)
fitted.round(2)

# %% [markdown]
# ## Decoding
#
# - One more token after a context, one attention operation: the recurrent form has a state of fixed size, a KV cache
#   grows by concatenation, as transformers' does, and a window keeps its last tokens.
# - `held` is what is kept between tokens: a state from a first step, or the keys and values of the context.


# %%
@torch.no_grad()
def decoding_row(name: str, context: int, tokens: int = 20) -> dict:
    entry, scale = ATTENTIONS[name], costs.HEAD_DIM**-0.5
    (q, k, v), given = costs.inputs(name, 1)
    if entry.step:
        _, state = entry.step(None, q, k, v, scale, **given)
        held = [state]
    else:
        kept = min(context, entry.options.get("window", context + 1) - 1)  # and the new one
        held = costs.inputs(name, kept)[0][1:]

    def one_token():
        if entry.step:
            return entry.step(held[0], q, k, v, scale, **given)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(held, (k, v), strict=True))
        return attention.softmax_sdpa(q, keys, values, scale)

    one_token()  # warms up
    milliseconds = 1_000 * pd.Series([costs.seconds(one_token) for _ in range(tokens)]).median()
    row = {"attention": name, "form": "recurrent" if entry.step else "kv_cache", "context": context}
    return row | {"milliseconds": milliseconds, "state_kilobytes": sum(x.numel() * 4 for x in held) / 1_000}


# %% [markdown]
# - Milliseconds per token in the figure, kilobytes held in the table: both stay constant, or grow with the context.

# %%
names = [SOFTMAX, "window", "linear", "performer", "delta"]
contexts = (*budget.lengths, 8 * budget.lengths[-1])
decoding = results.table("decoding", lambda: [decoding_row(name, context) for context in contexts for name in names])
look = {"logy": True, "xlabel": "tokens before", "ylabel": "milliseconds per token"}
figure = plots.lines(labelled(decoding), "context", "milliseconds", "attention", **look)
decoding.pivot(index="context", columns="attention", values="state_kilobytes").round(0)

# %% [markdown]
# ## Nystrom on a pretrained model
#
# - Real queries, keys and values of every layer, one text. The queries of its second half have their own half exact
#   (and the first token); the first half stands behind m landmarks: means of m equal segments, or the centres of
#   k-means over its keys, both known before any of the queries.


# %%
def kmeans(keys: torch.Tensor, centres: torch.Tensor, rounds: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's rounds from `centres` (H, M, D) over keys (H, T, D): centres, and the keys of each (H, M), at least 1."""
    for _ in range(rounds):
        nearest = torch.cdist(keys, centres).argmin(-1)
        member = torch.nn.functional.one_hot(nearest, centres.shape[1]).to(keys)  # (H, T, M)
        sizes = member.sum(1)
        centres = torch.where(sizes[..., None] > 0, member.mT @ keys / sizes.clamp(min=1)[..., None], centres)
    return centres, sizes.clamp(min=1)


def landmark_values(marks, sizes, k, v, scale, ridge):
    """`attention.nystrom_naive`'s w^-1 K^-1 diag(K w) B v for landmarks (H, M, D) of `sizes` (H, M)."""
    p = marks - marks[:, :1]
    w = torch.log(sizes) + scale / 2 * p.square().sum(-1)
    w = (w - w.amax(-1, keepdim=True)).exp()[..., None]
    system = (-scale / 2 * torch.cdist(p, p).square()).exp() + ridge * torch.eye(p.shape[1]).to(k)
    return torch.linalg.solve(system, (system @ w) * ((p @ k.mT * scale).softmax(-1) @ v)) / w


# %% [markdown]
# - One layer's second half of queries: the scores of the first token and of the own half, and what stands behind them.


# %%
def halves(q, k, v, scale):
    """q scale (H, T/2, D), near scores (H, T/2, 1 + T/2), their values, keys and values of the first half."""
    half = q.shape[2] // 2
    parts = ([1, half - 1, q.shape[2] - half], 1)
    (first_k, far_k, near_k), (first_v, far_v, near_v) = (x[0].float().split(*parts) for x in (k, v))
    q = q[0, :, half:].float() * scale
    late = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    near = torch.cat([q @ first_k.mT, (q @ near_k.mT).masked_fill(late, -torch.inf)], -1)
    return q, near, torch.cat([first_v, near_v], 1), far_k, far_v


# %% [markdown]
# - What explains the error: no form with m landmarks has weights of a rank above m. `rank` takes the best there is, the
#   first m singular values of the exact far weights; `near` leaves the first half out. Errors are of the whole output.


# %%
def nystrom_errors(q, k, v, scale, counts) -> list[dict]:
    """form, landmarks (of `counts`), error: |approximation - softmax attention| / |softmax attention| of a layer."""
    q, near, values, far_k, far_v = halves(q, k, v, scale)
    weights = torch.cat([near, q @ far_k.mT], -1).softmax(-1)
    exact = weights @ torch.cat([values, far_v], 1)
    u, sigma, vh = torch.linalg.svd(weights[..., near.shape[-1] :], full_matrices=False)
    rows = []
    for m in counts:
        lost = (u[..., m:] * sigma[..., None, m:]) @ (vh[..., m:, :] @ far_v)
        outputs = {"near": near.softmax(-1) @ values, "rank": exact - lost}
        parts = far_k.tensor_split(m, 1)
        means = torch.stack([part.mean(1) for part in parts], 1)
        sizes = torch.tensor([part.shape[1] for part in parts]).to(means).expand(means.shape[:2])
        for kind, (marks, n) in {"means": (means, sizes), "kmeans": kmeans(far_k, means)}.items():
            both = torch.cat([near, q @ marks.mT + n.log()[:, None]], -1).softmax(-1)
            solved = landmark_values(marks, n, far_k, far_v, scale, ridge=0.5)
            outputs[kind] = both @ torch.cat([values, solved], 1)
        size = exact.norm()
        rows += [{"form": f, "landmarks": m, "error": float((x - exact).norm() / size)} for f, x in outputs.items()]
    return rows


# %% [markdown]
# - The heads are read by an attention of our own that notes what it is given and answers as softmax; with it in place
#   the model's logits must stay.


# %%
@torch.no_grad()
def real_heads(model, ids) -> list[tuple]:
    """Per layer the q, k, v and scale that the model's attention is given, position code included."""
    heads, own, before = [], model(ids).logits, model.config._attn_implementation

    def record(q, k, v, scale, **_):
        heads.append((q, k, v, scale))
        return attention.softmax_sdpa(q, k, v, scale)

    attention.register("recording", Attention(record, takes_mask=True))
    model.set_attn_implementation("recording")
    torch.testing.assert_close(model(ids).logits, own, atol=1e-3 * float(own.abs().max()), rtol=0)  # is still itself
    model.set_attn_implementation(before)
    del ATTENTIONS["recording"]
    return heads


# %% [markdown]
# - The error against the number of landmarks: 1 means an output no nearer to the model's own than 0 would be.


# %%
def nystrom_rows() -> list[dict]:
    if (base := hub.reached(models.load_base)) is None:
        return []
    results.use(base)
    ids = torch.tensor([base.tokenizer("\n\n".join(texts)).input_ids[: budget.heads_tokens]])
    counts = [m for m in (4, 8, 16, 32, 64, 128) if m <= budget.heads_tokens // 4]
    return [
        {"layer": layer, **row}
        for layer, heads in enumerate(real_heads(base.model, ids.to(base.model.device)))
        for row in nystrom_errors(*heads, counts)
    ]


FORMS = {"near": "no far part", "rank": "best of rank m", "means": "segment means", "kmeans": "k-means"}
errors = results.table("nystrom_error", nystrom_rows)
mean_error = errors.groupby(["form", "landmarks"])["error"].mean().unstack("form") if len(errors) else pd.DataFrame()
mean_error.round(2)

# %% [markdown]
# ## What we saw

# %%
wide, paired = by_seed(quality, "attention"), by_seed(nystrom_quality, "attention")
against = {name: wide[name] - wide[SOFTMAX] for name in wide.columns.drop(SOFTMAX)}
against["nystrom"] = paired["nystrom"] - paired[SOFTMAX]
above = {name: paired[name] - paired["nystrom"] for name in (*CONTROLS, *KNOBS) if name in paired}
for name, gap in above.items():
    print(f"{name:11} to causal Nystrom {interval(gap, sign=True)} bits per byte, by seed")
for name, gap in against.items():
    print(f"{name:10} to softmax {interval(gap, sign=True)} bits per byte, by seed")
times = decoding.pivot(index="context", columns="attention", values="milliseconds")[names]
slower = times.iloc[-1] / times.iloc[0]
slower = ", ".join(f"{LABELS.get(name, name)} {ratio:.1f}" for name, ratio in slower.items())
print(f"Decoding, {times.index[-1]:,} against {times.index[0]:,} tokens before, times as long: {slower}")

# %% [markdown]
# How to read it:
#
# - Quality and recall tell two stories. The window, first in bits per byte, recalls nothing beyond itself, and Nystrom
#   little; linear, Performer and the delta rule, last in bits per byte, recall a third or more of the most pairs.
# - Nystrom's landmarks earn their place: trained without them it predicts worse, and with a segment's mean value
#   instead of the solved one too. A cheaper window does better still, even one of 16 tokens, so this text asks little
#   of what is far.
# - A window or landmarks beside full softmax in the table are no proof that they are as good where something has to be
#   found far back: in the trained recall a window is at chance as soon as the pairs outgrow it, and Nystrom nearly so.
# - Nystrom on a pretrained model is a negative result, and with a quarter to half as many landmarks as keys single
#   layers blow up; we guess because w then differs too much between them. The best weights of the same rank would do,
#   so the rank is not what is missing: it is the landmarks, that is, keys which stand for others.
#
# ## What it does not show
#
# - A small model, little text, one learning rate, tuned for softmax, but for softmax and window: variants that want
#   another one lose by it.
# - RoPE turns queries and keys before a feature map. For softmax that is a relative code; through elu it is not.
# - Timings are of PyTorch code on this machine. Fused kernels (flash-linear-attention) move every crossover, and a
#   GPU moves them again; the exponents stay.
# - The trained recall stops after a fixed number of steps: a mechanism that learns more slowly counts as worse.
# - The longer rows decide nothing: after one pass over a megabyte, at the short rows' rate, no model has learned to use
#   more than some two hundred tokens, whatever its attention lets it see.
# - Performer's features are drawn once; the paper redraws them during training.

# %% [markdown]
# ## For the report
#
# - Between which of the measured lengths a mechanism gets faster than fused softmax and stays so; another machine
#   puts it elsewhere, which carries no finer word.

# %%
taken = scaling.query("`pass` == 'forward+backward'").pivot(index="length", columns="attention", values="milliseconds")


def crossing(name: str) -> str:
    late = np.flatnonzero(taken[name] >= taken[SOFTMAX])
    if not len(late):
        return f"from {taken.index[0]:,} on"
    pair = taken.index[late[-1] : late[-1] + 2]
    return " and ".join(f"{n:,}" for n in pair) if len(pair) > 1 else f"not up to {pair[0]:,}"


# %% [markdown]
# - The table of section 6.3: quality, and how time grows. Nystrom's gap is to softmax on its own machine and seeds.

# %%
longest, fit, rows = scaling["length"].max(), fitted.set_index("attention"), []
power = fit["time_exponent_forward+backward"]
for name in [*wide, "nystrom"]:
    gap = interval(against[name], sign=True) if name in against else ""
    bits = interval((wide if name in wide else paired)[name])
    cells = [LABELS.get(name, name), bits, gap, number(power[name], 2)]
    rows.append([*cells, crossing(name) if name in against else ""])
rows.insert(-1, ["softmax, run beside causal Nyström", interval(paired[SOFTMAX]), "", "", ""])
for name, label in (("mean_values", "the same with mean values"), ("near_only", "the same without landmarks")):
    rows.append([label, interval(paired[name]), interval(paired[name] - paired[SOFTMAX], sign=True), "", ""])
start = sorted(scaling["length"].unique())[-3:][0]
text = f"What each mechanism costs in quality and gains in time: held-out bits per byte after {tokens:,} training "
text += f"tokens (mean, 95 % t interval, seeds 0–{max(budget.seeds)}; causal Nyström and its controls on another day, "
text += "against the softmax of that run), and the exponent with which the time of one operation, forward and "
text += f"backward, grows from {start:,} to {longest:,} tokens."
header = ["attention", "bits per byte", "minus softmax, by seed", "time exponent", "gets faster than softmax between"]
results.markdown("quality", header, rows, text, scratch=True, seeds=())

# %% [markdown]
# - The set-up, so that the report's line of hyperparameters is this notebook's.
# - Values of its sentences, and a claim per sentence that hangs on them. Quality first: who is ahead of softmax, who
#   behind, and whether causal Nystrom is level with it.

# %%
recipe, options = scratch.Recipe(seed=0, **shared), {k: v for e in ATTENTIONS.values() for k, v in e.options.items()}
setup = {"layers": recipe.n_layer, "width": recipe.n_embd, "heads": recipe.n_head}
setup |= {"vocabulary": f"{recipe.vocab_size:,}", "row": recipe.train_length, "rows": recipe.rows}
setup |= {"rate": recipe.learning_rate, "tokens": f"{tokens:,}"}
setup |= {key: options[key] for key in ("window", "features", "segment", "doubling", "ridge")}
setup |= {"timed_heads": costs.HEADS, "timed_width": costs.HEAD_DIM}
for key, value in setup.items():
    results.value(f"setup.{key}", value)

told = shown(against)  # corrected for the number of mechanisms compared
for side, name in ((-1, "ahead"), (1, "behind")):
    results.value(name, listed([LABELS.get(a, a) for a in told if told[a] == side]))
results.value("gap.nystrom", interval(against["nystrom"], sign=True))
results.claim("causal Nystrom is not shown to differ from softmax", told["nystrom"] == 0)
MARK = 0.01  # bits per byte: asked of this form against the one before it, here told against softmax too
high = mean_interval(against["nystrom"])[2]
results.value("nystrom.mark", MARK)
results.claim("causal Nystrom is at most the mark behind softmax", high < MARK)
sides = shown({name: above[name] for name in CONTROLS})
for name, what in (("near_only", "landmarks"), ("mean_values", "solved values")):
    results.value(f"nystrom.{name}", interval(above[name], sign=True))
    results.claim(f"{what} help", sides[name] > 0)
for key in ("ridge", "segment"):
    others = {name.split()[1]: gap.mean() for name, gap in above.items() if name.startswith(key)}
    results.value(f"nystrom.{key}.others", listed([f"{number(x, 3, sign=True)} at {at}" for at, x in others.items()]))

# %% [markdown]
# - Causal Nystrom against windows of 64 tokens and fewer: each minus its own day's softmax first, then by seed; Holm
#   over the windows.

# %%
small = by_seed(small_windows, "attention") if len(small_windows) else pd.DataFrame()
windows = {f"window {setup['window']}": against["window"]} | {n: small[n] - small[SOFTMAX] for n in SMALL if n in small}
windows = {name: against["nystrom"] - gap for name, gap in windows.items()}
for (name, gap), side in zip(windows.items(), shown(windows).values(), strict=True):
    results.value(f"nystrom.minus.{name.split()[1]}", interval(gap, sign=True))
    results.claim(f"causal Nystrom is behind the {name}", side > 0)
    results.claim(f"causal Nystrom is ahead of the {name}", side < 0)

# %% [markdown]
# - The longer rows: each against softmax (Holm over all), and bits per token along a row: who gains from what stands
#   further back than a row's first quarter?

# %%
results.value("long.row", f"{LONG['train_length']:,}")
for apart in ("none is told apart from softmax", "Nystrom is below the window", "none gains from more context"):
    results.claim(f"{apart} on long rows", False)  # until they are measured
results.block("long", results.not_yet)
if len(long):
    on_play = by_seed(long, "attention")
    behind = {name: on_play[name] - on_play[SOFTMAX] for name in on_play.columns.drop(SOFTMAX)}
    sides, rows = shown(behind), []
    seen = long_by_position.groupby(["attention", "seen"], sort=False)["bits_per_token"].mean().unstack()
    for name in on_play:
        gap = interval(behind[name], sign=True) if name in behind else ""
        along = [number(seen.loc[name].iloc[eighth], 2) for eighth in (0, 1, -1)]
        rows.append([LABELS.get(name, name), interval(on_play[name]), gap, *along])
    results.claim("none is told apart from softmax on long rows", not any(sides.values()))
    results.claim("Nystrom is below the window on long rows", shown(on_play["nystrom"] - on_play["window"]) < 0)
    later = (seen.iloc[:, 1] - seen.iloc[:, -1]).max()  # bits per token
    results.claim("none gains from more context on long rows", later < 0.01)
    text = "Rows of 1,024 tokens of tiny Shakespeare: held-out bits per byte, mean and 95 % t interval, and bits per "
    text += "token in the first, the second and the last eighth of a row."
    header = ["attention", "bits per byte", "minus softmax, by seed", "first", "second", "last"]
    results.markdown("long", header, rows, text, **on_long)

# %% [markdown]
# - The margin was set for an earlier form, whose rows are kept: the form of today against it.

# %%
earlier = with_earlier.loc[with_earlier["attention"] == "nystrom"].set_index("seed")["bits_per_byte"]
changed = (paired["nystrom"] - earlier).dropna()
results.claim("the mark against the earlier form is met", len(changed) > 1 and mean_interval(changed)[2] < MARK)
# The window at two rates, over all seeds, corrected over the two; and the first tokens of a row.
# Along a row: the lead in all of it, and what softmax gains beyond the window. Then the learned positions.
shown_lead = shown({rate: lead["window", rate] for rate in (HIGH, LOW)})
results.value("window.first", interval(first, sign=True))
results.claim("the window is ahead at the higher rate", shown_lead[HIGH] < 0)
results.claim("the window is ahead at the lower rate", shown_lead[LOW] < 0)
results.claim("the window is ahead where both see the same", shown(first) < 0)

whole_row = by_position.pivot_table("bits_per_token", "seed", "attention")
results.value("window.row", interval(whole_row["window"] - whole_row[SOFTMAX], sign=True))
softmax = by_position[by_position["attention"] == SOFTMAX].groupby("seen")["bits_per_token"].mean()
results.value("softmax.beyond", number(softmax[softmax.index > 64].iloc[0]))
results.value("softmax.end", number(softmax.iloc[-1]))
results.claim("softmax gains nothing beyond the window", softmax.iloc[-1] >= softmax[softmax.index > 64].iloc[0])
for name, part in learned.groupby("attention")["bits_per_byte"]:
    results.value(f"learned.{name}", number(part.mean()))

# %% [markdown]
# - For the appendix: these runs; then overwriting.

# %%
rows = []
for (name, rate), gap in lead.items():
    part = rates[(rates["learning_rate"] == rate) & rates["seed"].isin(gap.index)].groupby("attention")["bits_per_byte"]
    label = "window of the whole row" if name == "row_window" else LABELS.get(name, name)
    bits = [number(part.mean()[n]) for n in (name, SOFTMAX)]
    rows.append([label, number(1_000 * rate, 0), len(gap), *bits, interval(gap, sign=True)])
text = f"A window beside softmax from the same seeds: held-out bits per byte after {tokens_rates:,} training tokens, "
text += "differences paired by seed, 95 % t interval."
header = ["attention", "rate x 1,000", "seeds", "bits per byte", "softmax", "minus softmax"]
results.markdown("rates", header, rows, text, scratch=True, seeds=())
pairs = recall["pairs"].max() // 4
results.value("overwrite.pairs", pairs)
newer = by_seed(recall[(recall["pairs"] == pairs) & (recall["task"] == "overwrite")], "attention", "accuracy")
for name in ("softmax", "delta"):
    results.value(f"overwrite.{name}.percent", f"{newer[name].mean():.0%}")
results.claim("delta overwrites more than softmax", shown(newer["delta"] - newer["softmax"]) > 0)

# %% [markdown]
# - The trained recall: a table for the appendix, and the order at the most pairs.

# %%
most, rows = learned_recall["pairs"].max(), []
for name, part in learned_recall.groupby("attention", sort=False):
    shares = [interval(own["accuracy"], 2, top=1) for _, own in part.groupby("pairs")]
    kilobytes = part.groupby("pairs")["state_kilobytes"].mean().map("{:.1f}".format)
    rows.append([LABELS.get(name, name), *shares, ", ".join(kilobytes.unique())])
text = f"Associative recall after {budget.recall_steps} training steps of 16 rows: share of keys answered rightly, "
text += "mean and 95 % interval; the state by the number of pairs where it grows with them."
header = ["attention", *(f"{n} pairs" for n in sorted(learned_recall["pairs"].unique())), "state in kB"]
results.markdown("trained_recall", header, rows, text, scratch=True, seeds=budget.recall_seeds)
end = by_seed(learned_recall[learned_recall["pairs"] == most], "attention", "accuracy")
results.value("trained.pairs", most)
for name in end:
    results.value(f"trained.{name}.percent", f"{end[name].mean():.0%}")
above = {name: end[name] - end["window"] for name in end if name != "window"}
ordered = shown({**above, "delta to linear": end["delta"] - end["linear"]})
results.claim("the window is at chance on trained recall", end["window"].max() < 3 / VALUES)
ahead = min(ordered[name] for name in (SOFTMAX, "linear", "delta")) > 0
results.claim("softmax, linear and delta are ahead of the window", ahead)
alone = end[SOFTMAX].min() > 0.95 and end.drop(columns=SOFTMAX).max().max() < 0.9
results.claim("only softmax recalls all pairs", alone)

# %% [markdown]
# - Cost: how time grows with length, and time and memory at the longest.

# %%
results.value("longest", f"{longest:,}")
results.value("nystrom.crossing", crossing("nystrom"))
at_longest = scaling[scaling["length"] == longest].set_index(["pass", "attention"])
both = at_longest["milliseconds"][costs.PASSES[1]]
for name in (SOFTMAX, "nystrom"):
    results.value(f"memory.{name}", number(at_longest["peak_megabytes"]["forward+backward", name], 0))
results.value("nystrom.times_faster", number(both[SOFTMAX] / both["nystrom"], 1))
results.claim("causal Nystrom grows more slowly than T^1.5", power["nystrom"] <= 1.5)
times = scaling[scaling["pass"] == costs.PASSES[1]].pivot(index="length", columns="attention", values="milliseconds")
results.claim("the window is faster than causal Nystrom", (times["window"] < times["nystrom"]).all())
start = fit.loc["nystrom", f"faster_than_{SOFTMAX}_from"]
results.claim("causal Nystrom is faster than softmax by 4,096 tokens", start <= 4_096)

# %% [markdown]
# - Causality: the largest leak of all mechanisms, and what the controls leak.

# %%
results.value("leak", f"{leak['max_difference'].max():.0e}" if leak["max_difference"].any() else 0)
results.value("leak.nystromformer", number(controls.set_index("attention")["max_difference"]["nystromformer"], 1))
results.claim("no attention sees the future", leak["max_difference"].max() < 1e-3)
results.claim("the leak test finds both controls", controls["max_difference"].min() > 0.1)
# Nystrom on a pretrained model. Above a relative error of 0.1 the rest of a model has not seen the like.
USABLE = 0.1
results.value("nystrom.usable", USABLE)
usable = len(errors) and mean_error[["means", "kmeans"]].min().min() <= USABLE
enough = [m for m, error in mean_error["rank"].items() if error <= USABLE] if len(errors) else []
results.value("nystrom.rank.enough", min(enough, default="none"))
results.claim("weights of a low rank would do", bool(enough))
rows = [[m, *(number(x, 2) for x in line)] for m, line in mean_error.reindex(columns=list(FORMS)).iterrows()]
text = "Relative error of attention on a pretrained model's queries and keys, mean over layers: without the first "
text += f"half of {budget.heads_tokens} tokens, with the best weights of rank m, and with m landmarks."
results.markdown("nystrom_error", ["m", *FORMS.values()], rows, text, seeds=())
results.claim("Nystrom's error is too large at every number of landmarks", len(errors) and not usable)
results.save(data={"debian": tasks.load_task("debian").sha256})

# %% [markdown]
# ## Sources
#
# - Softmax: Vaswani et al. 2017, arXiv:1706.03762; fused: Dao et al. 2022, arXiv:2205.14135. Window: Child et al. 2019,
#   arXiv:1904.10509. Linear: Katharopoulos et al. 2020, arXiv:2006.16236. Performer: Choromanski et al. 2021,
#   arXiv:2009.14794. Delta rule: Schlag et al. 2021, arXiv:2102.11174; chunked: Yang et al. 2024,
#   arXiv:2406.06484. Nystromformer: Xiong et al. 2021, arXiv:2102.03902.
