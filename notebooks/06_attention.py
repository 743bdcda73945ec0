# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 Attention mechanisms
#
# Softmax attention compares every token with every earlier one: $T^2$ products. Five ways to pay less, each causal,
# each tested against a naive form of itself, in one small GPT-2 trained from scratch; then what they cost, what a
# constant-size state can hold, and how good Nystrom's approximation is on a pretrained model's queries and keys.

# %% [markdown]
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.

# %%
REPOSITORY = ""  # on Colab: the address of your team's copy, such as https://github.com/you/coursework
import os, subprocess, sys

if "google.colab" in sys.modules:
    if not os.path.exists("/content/project"):
        subprocess.run(["git", "clone", "-q", REPOSITORY, "/content/project"], check=True)
    subprocess.run([sys.executable, "-m", "lib", "colab"], cwd="/content/project", check=True)
    os.chdir("/content/project/notebooks")
    sys.path.insert(0, "..")

# %%
import copy
import inspect

import pandas as pd
import torch
from IPython.display import Code, display

from lib import hub, models, plots, profile, results, tasks
from lib.explore import attention, costs, scratch
from lib.explore.attention import ATTENTIONS
from lib.metrics import mean_interval
from lib.explore.scratch import Recipe

started, budget = results.start(), profile.current().scratch
NAMES, SEEDS = list(ATTENTIONS), budget.attention_seeds

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
# | `nystrom` | softmax in a segment of $c$, $F A^{-1} B$ before | $T c + T^2 / c + (T / c)^4$ | all keys and values |
#
# Nystromformer's landmarks are means over the whole sequence, so its form is for encoders: a token sees later ones.
# The causal form here is our own; its rule is in the docstring below.

# %% [markdown]
# - The change, in code: the linear form (chunks, with running sums between them) and our causal Nystrom, naive.

# %%
display(Code(inspect.getsource(attention.kernel), language="python"))
display(Code(inspect.getsource(attention.nystrom_naive), language="python"))

# %% [markdown]
# - They enter through transformers' AttentionInterface: one name in a config, no copied model file, and the same
#   name works on a pretrained model (`use_attention`).

# %%
display(Code(inspect.getsource(attention.use_attention), language="python"))

# %% [markdown]
# - The weights that each gives one and the same set of random queries and keys (32 tokens; rows are queries, blue
#   positive, red negative). Small window and segments, to see them.

# %%
pictures = costs.weights(NAMES[1:], length=32, window=8, segment=8)
figure = plots.matrices(pictures, columns=3)
text = "Attention weights of each variant for the same random queries (rows) and keys (columns), 32 tokens."
path = plots.save_figure(figure, "06_weights", text)

# %% [markdown]
# ## Quality at an equal budget
#
# - One thing changes, the attention. Text, order, seeds, steps, learning rate and all other weights are equal;
#   positions are RoPE in all. `softmax` is trained as `softmax_sdpa`, the same function by the fused kernel (a test
#   holds outputs and gradients equal).

# %%
shared = {"train_bytes": budget.attention_bytes, "n_layer": budget.n_layer, "n_embd": budget.n_embd}
recipes = [Recipe(seed=seed, attention=name, position="rope", **shared) for seed in SEEDS for name in NAMES[1:]]
runs = scratch.train_all(recipes)
one = runs[0].summary
print(f"{len(runs)} runs: {one['steps']} steps, {one['tokens']:,} tokens, {one['train_length']} in a row.")

# %%
texts = scratch.held_out("debian", budget.eval_bytes)
quality = scratch.quality(runs, texts)
figure = plots.dots(quality, "bits_per_byte", "attention", xlabel="bits per byte (lower is better)")
provenance = results.provenance(None, SEEDS)
text = "Small GPT-2s trained from scratch on debian, one attention each. Dots: seeds; bar: 95 % t interval."
path = plots.save_figure(figure, "06_quality", plots.caption(text, provenance, one["tokens"]))

# %% [markdown]
# - Where in a row of 256 tokens the difference arises: bits per token by how many tokens were seen, the same text in
#   every step. A line that goes on falling uses the longer context; one that rises is disturbed by it.

# %%
by_position = scratch.loss_by_position(runs, texts, one["train_length"])
figure = plots.lines(
    by_position, "seen", "bits_per_token", "attention", logx=False, xlabel="tokens seen before", ylabel="bits per token"
)
text = "Loss by position inside a row."
path = plots.save_figure(figure, "06_loss_by_position", plots.caption(text, provenance, one["tokens"]))

# %% [markdown]
# - The same with GPT-2's learned positions, one seed: at this budget the position table is still being learned and
#   decides more than the attention does. Kept as a negative result, and the reason for RoPE above.

# %%
learned = [Recipe(seed=0, attention=name, **shared) for name in ("softmax_sdpa", "linear")]
control = scratch.quality(scratch.train_all(learned), texts)
control.round(3)

# %% [markdown]
# ## Does any see the future?
#
# - Change all tokens after t: outputs up to t must stay. On the trained models, whole rows, rows with padding on
#   the left and on the right, around the edges of chunks, windows and segments. 0 is what causal means.

# %%
first = {r.recipe.attention: r.model for r in runs if r.recipe.seed == SEEDS[0]}
eager = attention.use_attention(copy.deepcopy(first["softmax_sdpa"]), "softmax")
tested = {"softmax": eager, **first}
leaks = pd.DataFrame([{"attention": n, "max_difference": costs.leak(m, 150)} for n, m in tested.items()])
leaks

# %% [markdown]
# - The test must be able to fail: the paper's Nystrom, and softmax without its mask, in the same model.

# %%
controls = costs.leaking(first["softmax_sdpa"], 150)
controls

# %% [markdown]
# ## What a state can hold
#
# - No training: random keys are written with random values, then asked for. `overwrite` writes every key twice and
#   wants the newer value. Softmax keeps everything and finds it, but has no way to prefer the newer; the
#   delta rule erases before it writes, until more keys are stored than a head has dimensions (64).

# %%
recall = costs.recall(["softmax", "linear", "performer", "delta"], (4, 8, 16, 32, 64, 128), SEEDS)
figure = plots.lines(
    recall, "pairs", "accuracy", "attention", panel="task", xlabel="pairs written", ylabel="share retrieved"
)
text = f"Associative recall in one head of {costs.HEAD_DIM} dimensions, random keys and values."
path = plots.save_figure(figure, "06_recall", plots.caption(text, provenance))

# %% [markdown]
# ## Time and memory against length
#
# - One attention operation, 4 heads of 64, batch 1, float32; the variants take turns, medians. On a log-log
#   plot a slope of 2 is quadratic, 1 is linear. Peak memory is what the pass adds.

# %%
lengths = costs.lengths(budget.scaling_lengths)
scaling = costs.scaling(NAMES, lengths, budget.repeats)
figure = plots.lines(
    scaling, "length", "milliseconds", "attention", panel="pass", logy=True, xlabel="tokens", ylabel="milliseconds"
)
text = f"Time of one attention operation, medians of {budget.repeats}, on {provenance['device']}."
path = plots.save_figure(figure, "06_scaling", text)

# %%
figure = plots.lines(
    scaling[scaling["peak_megabytes"] > 1],
    "length",
    "peak_megabytes",
    "attention",
    panel="pass",
    logy=True,
    xlabel="tokens",
    ylabel="peak megabytes",
)
text = f"Peak memory of one attention operation above its inputs, on {provenance['device']}."
path = plots.save_figure(figure, "06_memory", text)

# %% [markdown]
# - Fitted exponents over the three longest lengths, and from which length on each is faster than softmax, against
#   the naive form and against the fused kernel.

# %%
fitted = costs.summary(scaling)
fitted.round(2)

# %% [markdown]
# ## Decoding
#
# - One more token after a context: the recurrent form has a state of fixed size, a KV cache grows.

# %%
names = ["softmax_sdpa", "window", "linear", "performer", "delta"]
decoding = costs.decoding(names, (*lengths, 8 * lengths[-1]))
figure = plots.lines(
    decoding, "context", "milliseconds", "attention", logy=True, xlabel="tokens before", ylabel="milliseconds per token"
)
text = f"One token of one attention operation after a context, on {provenance['device']}."
path = plots.save_figure(figure, "06_decoding", text)
decoding.pivot(index="context", columns="attention", values="state_kilobytes").round(0)

# %% [markdown]
# ## Nystrom on a pretrained model
#
# - Real queries, keys and values of every layer, one text. `paper`: the encoder's form against softmax without a
#   mask. `causal`: ours against causal softmax. `near_only`: ours without its approximated part.

# %%
base, errors = None, pd.DataFrame()
try:
    base = models.load_base()
except hub.Unavailable as reason:
    print(f"Skipped: {reason}")
if base:
    ids = torch.tensor([base.tokenizer("\n\n".join(texts)).input_ids[: budget.heads_tokens]])
    heads = costs.real_heads(base.model, ids.to(base.model.device))
    marks = [m for m in (4, 8, 16, 32, 64, 128) if m <= budget.heads_tokens // 4]
    errors = costs.nystrom_error(heads, marks)

# %%
if base:
    shown = errors.rename(columns={"layer": "seed"})  # the band is over layers here
    figure = plots.lines(shown, "landmarks", "error", "form", logy=True, ylabel="relative error of the output")
    text = f"Nystrom's error on {budget.heads_tokens} tokens of debian text; line: mean over layers, band: all layers."
    source = results.provenance(base)
    plots.save_figure(figure, "06_nystrom_error", plots.caption(text, source))

# %%
tables = {
    "quality": quality,
    "loss_by_position": by_position,
    "learned_positions": control,
    "leak": leaks,
    "leak_controls": controls,
    "recall": recall,
    "scaling": scaling,
    "fitted": fitted,
    "decoding": decoding,
    "nystrom_error": errors,
}
data = {"debian": tasks.load_task("debian").sha256}
path = results.save("06_attention", tables, base=base, seeds=SEEDS, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# - Stated from this run's numbers, with the conditions computed.

# %%
wide = quality.pivot(index="seed", columns="attention", values="bits_per_byte")[NAMES[1:]]
for name in wide:
    mean, low, high = mean_interval(wide[name] - wide["softmax_sdpa"])
    sure = "" if name == "softmax_sdpa" else f"; to softmax {mean:+.3f} [{low:+.3f}, {high:+.3f}], by seed"
    print(f"{name:13} {wide[name].mean():.3f} bits per byte{sure}")
wanted = ["softmax_sdpa", "delta", "linear"]
order = wide.mean()[wanted].sort_values().index.tolist()
print(f"Order: {' < '.join(order)}; known from larger runs: {' < '.join(wanted)}.")

# %%
for row in fitted.itertuples():
    start = row.faster_than_softmax_sdpa_from
    when = f"faster than the fused softmax from {start:,.0f} tokens" if start == start else ""
    print(f"{row.attention:13} time grows as T^{row[3]:.2f} (both passes)", when)
at = recall[(recall["pairs"] == 64) & (recall["task"] == "recall")].groupby("attention")["accuracy"]
print("64 pairs, share retrieved:", at.mean().round(2).to_dict())
grow = decoding.pivot(index="context", columns="attention", values="milliseconds")
ratio = grow.iloc[-1] / grow.iloc[0]
print(f"Decoding, {grow.index[-1]:,} against {grow.index[0]:,} tokens before:", ratio.round(1).to_dict())
if base:
    best = errors.groupby(["form", "landmarks"])["error"].mean().unstack("form")
    print("Nystrom's error, mean over layers:", best.round(2).to_dict("index"))

# %% [markdown]
# How to read it:
#
# - Quality and recall tell one story. What a variant loses in bits per byte it loses where an exact earlier token
#   is wanted: a window keeps the near ones exactly, the delta rule corrects what it stores, a plain sum of
#   $\phi(k) v^\top$ blurs everything together.
# - Text this short rewards the near context. A window or segments beside full softmax in the table are no proof that
#   they are as good where something has to be found a thousand tokens back.
# - Nystrom on a pretrained model is a negative result: finer landmarks leave less to the exact part, and the
#   inverse of landmarks that are alike amplifies what is left. Where the error is near or above 1, the output
#   has little to do with the model's own; a converted model would have to be trained again.
#
# ## What it does not show
#
# - A small model, little text, one learning rate, tuned for softmax: variants that want another one lose by it.
# - RoPE turns queries and keys before a feature map. For softmax that is a relative code; through elu it is not.
# - Timings are of PyTorch code on this machine. Fused kernels (flash-linear-attention) move every crossover, and a
#   GPU moves them again; the exponents stay.
# - Performer's features are drawn once; the paper redraws them during training.
#
# ## Sources
#
# - Softmax: Vaswani et al. 2017, arXiv:1706.03762; fused: Dao et al. 2022, arXiv:2205.14135. Window: Child et al. 2019,
#   arXiv:1904.10509. Linear: Katharopoulos et al. 2020, arXiv:2006.16236. Performer: Choromanski et al. 2021,
#   arXiv:2009.14794. Delta rule: Schlag et al. 2021, arXiv:2102.11174; chunked: Yang et al. 2024,
#   arXiv:2406.06484. Nystromformer: Xiong et al. 2021, arXiv:2102.03902.
