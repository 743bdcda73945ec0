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
# # 05 Position encodings
#
# Attention by itself does not know the order of tokens. Six ways to tell it, in the same small GPT-2 trained from
# scratch at one length and evaluated at up to eight times that length. No pretrained model takes part.

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
import inspect

from IPython.display import Code, display

from lib import plots, profile, results, tasks
from lib.explore import positions, scratch
from lib.metrics import mean_interval
from lib.explore.positions import POSITIONS
from lib.explore.scratch import Recipe

started, budget = results.start(), profile.current().scratch
length = budget.position_length

# %% [markdown]
# ## The principle
#
# With queries $q_i$, keys $k_j$ and head size $D$, attention scores are $s_{ij} = q_i \cdot k_j / \sqrt{D}$. What
# each variant changes:
#
# | name | change | parameters | past the trained length |
# |--|--|--|--|
# | `learned` | $x_i \leftarrow x_i + P_i$, one trained row per position (GPT-2) | table | rows without training |
# | `sinusoidal` | $x_i \leftarrow x_i + \sigma\,(\sin, \cos)(i\,\omega_m)$ | 0 | values never seen |
# | `none` | nothing; the causal mask alone | 0 | more tokens than ever seen |
# | `rope` | $s_{ij} = (R_i q_i) \cdot (R_j k_j) / \sqrt{D}$, so a function of $i - j$ | 0 | angles never seen |
# | `alibi` | $s_{ij} - m_h (i - j)$, slope $m_h$ fixed per head | 0 | the far past fades |
# | `t5` | $s_{ij} + b_h(\text{bucket}(i - j))$ | 32 per head | shares the last bucket |
#
# - `wpe` is gone in the last four: a test checks that it has no parameters and that position ids change nothing.

# %% [markdown]
# - The change itself: GPT-2's `wpe` is replaced by a module, which attention also asks to rotate or to bias.

# %%
display(Code(inspect.getsource(positions.Rope), language="python"))
display(Code(inspect.getsource(positions.Alibi), language="python"))

# %% [markdown]
# - Where a variant enters: queries and keys on their way into attention (`lib/explore/attention.py`). The distance is
#   counted inside the row, so left padding and a KV cache need no care.

# %%
display(Code(inspect.getsource(positions.use_position), language="python"))

# %% [markdown]
# ## What the codes look like
#
# - What a query at position 63 adds to its score with each earlier key: 0 for all without a code; ALiBi's lines,
#   one per head; RoPE's score of a fixed query with itself; sinusoidal vectors compared with each other.

# %%
shapes = positions.shapes(positions=64, n_head=4, head_dim=32)
figure = plots.lines(
    shapes, "distance", "value", "line", panel="what", logx=False, ylabel="see the panel", sharey=False
)
provenance = results.provenance(None, budget.seeds)
text = "What four position codes do to a score, by the distance between query and key. Computed, not trained."
path = plots.save_figure(figure, "05_codes", text)

# %% [markdown]
# ## Is it what it says?
#
# - Largest change of a logit when a text stands 7 tokens further right, behind padding, with untouched position
#   ids. Relative codes: 0 up to rounding. Absolute ones: not 0. The full set is `tests/test_positions.py`.

# %%
shift = positions.shift_test(list(POSITIONS))
shift

# %% [markdown]
# ## The experiment
#
# - One thing changes, the position code. Same text, order, seeds, steps and weights elsewhere; attention is softmax,
#   the encoding a BPE with 1,024 entries. GPT-2's table has rows for every evaluated length, so that it can be
#   asked; the rows past the trained length never got a gradient.

# %%
recipes = [
    Recipe(
        seed=seed,
        position=name,
        train_length=length,
        rows=8,
        n_positions=8 * length,
        train_bytes=budget.position_bytes,
        n_layer=budget.n_layer,
        n_embd=budget.n_embd,
    )
    for seed in budget.seeds
    for name in POSITIONS
]
runs = scratch.train_all(recipes)
one = runs[0].summary
print(f"{len(runs)} runs: {one['steps']} steps, {one['tokens']:,} tokens, {one['train_length']} in a row.")

# %% [markdown]
# - Evaluated at 1, 2, 4 and 8 times the trained length, in two ways that tell different stories. `blocks`: the text
#   is cut into blocks without overlap, and a longer block means fewer tokens with little context. `sliding`: the
#   window moves by a quarter, so at every length nearly all tokens have a long context.

# %%
texts = scratch.held_out("debian", budget.eval_bytes)
table = scratch.extrapolation(runs, texts)
keys = ["protocol", "eval_length", "position"]
summary = table.groupby(keys, sort=False)["bits_per_byte"].mean().unstack("position")
summary.round(3)

# %% [markdown]
# - Mean of the seeds, band from the lowest to the highest seed. The line that leaves the panel says how far it goes.

# %%
trained = table[(table["eval_length"] == length) & (table["protocol"] == "blocks")]
top = trained["bits_per_byte"].max() + 0.35
figure = plots.lines(
    table,
    "eval_length",
    "bits_per_byte",
    "position",
    panel="protocol",
    top=top,
    xlabel="evaluated length (tokens)",
    ylabel="bits per byte (lower is better)",
)
text = f"Small GPT-2s trained from scratch on debian at {length} tokens, evaluated at up to {8 * length}."
path = plots.save_figure(figure, "05_extrapolation", plots.caption(text, provenance, one["tokens"]))

# %% [markdown]
# ## Where in the block the loss is made
#
# - Bits per token by how many tokens were seen, at eight times the trained length, the same text in every step. A
#   code that extrapolates goes on down or stays; one that does not jumps after the trained length, the first step.

# %%
by_position = scratch.loss_by_position(runs, texts, 8 * length)
limit = by_position.loc[by_position["seen"] < length, "bits_per_token"].max() + 1
figure = plots.lines(
    by_position,
    "seen",
    "bits_per_token",
    "position",
    logx=False,
    top=limit,
    xlabel="tokens seen before",
    ylabel="bits per token",
)
text = f"Loss by position in blocks of {8 * length} tokens, trained at {length}."
path = plots.save_figure(figure, "05_loss_by_position", plots.caption(text, provenance, one["tokens"]))

# %%
tables = {"positions": table, "loss_by_position": by_position, "shift": shift, "codes": shapes}
data = {"debian": tasks.load_task("debian").sha256}
path = results.save("05_position_encoding", tables, seeds=budget.seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# - At the trained length, mean over seeds with its 95 % t interval, and what eight times the length costs.

# %%
for name in POSITIONS:
    own = table[table["position"] == name].set_index(["protocol", "eval_length", "seed"])["bits_per_byte"]
    mean, low, high = mean_interval(own["blocks", length])
    far = {p: own[p, 8 * length].mean() - own[p, length].mean() for p in ("blocks", "sliding")}
    print(
        f"{name:10} {mean:.3f} [{low:.3f}, {high:.3f}]; at 8x: blocks {far['blocks']:+.3f}, "
        f"sliding {far['sliding']:+.3f}"
    )

# %%
gain = (summary.loc["blocks"].iloc[0] - summary.loc["blocks"].iloc[-1])["alibi"]
slide = (summary.loc["sliding"].iloc[0] - summary.loc["sliding"].iloc[-1])["alibi"]
broken = summary.loc["blocks"].iloc[-1]["learned"] > summary.loc["blocks"].iloc[0]["learned"]
print(f"Learned positions {'break' if broken else 'do not break'} past the trained length.")
print(f"ALiBi's gain from 8x: {gain:+.3f} bits per byte in blocks, {slide:+.3f} sliding.")

# %% [markdown]
# - A gain that shrinks with a sliding window came from the short contexts at the start of each block,
#   not from reading further back (Press et al. 2022 find the same, appendix B).
# - The loss by position shows it directly: what has no gain beyond the trained length makes no use of
#   the longer context, however flat it stays.
#
# ## What it does not show
#
# - Small models, little text, one language: the order at the trained length may change with scale. In particular a
#   learned table needs more steps than a code that is built in.
# - Descriptions are short, so that little can be gained from a long context here; what can be lost is visible.
# - Nothing that was done to repair RoPE afterwards (position interpolation, other bases) is tried.
#
# ## Sources
#
# - Learned: Radford et al. 2018. Sinusoidal: Vaswani et al. 2017, arXiv:1706.03762. None: Haviv et al. 2022,
#   arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466. RoPE: Su et al. 2021, arXiv:2104.09864. ALiBi: Press et
#   al. 2022, arXiv:2108.12409. T5: Raffel et al. 2020, arXiv:1910.10683.
