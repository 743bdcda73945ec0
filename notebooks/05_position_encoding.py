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
# # 05 Position encodings
#
# Attention by itself does not know the order of tokens. Six ways to tell it, in the same small GPT-2 trained from
# scratch at one length and evaluated at up to eight times that length. No pretrained model takes part.
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
from dataclasses import replace
from functools import cache

import pandas as pd
import torch
from IPython.display import display
from transformers import GPT2Config

from lib import plots, profile, tasks
from lib.explore import positions, scratch
from lib.explore.positions import POSITIONS, Position
from lib.models import small_gpt2
from lib.results import Results, by_seed, interval, listed, number, shown

# %% [markdown]
# - The budget: (fast, cpu, full). Text in UTF-8 bytes, lengths in tokens.

# %%
budget = profile.budget(
    seeds=((0, 1), (0, 1), (0, 1, 2)),
    train_length=(32, 128, 128),  # evaluated at up to 8 times as many
    train_bytes=(12_000, 400_000, 1_000_000),
    eval_bytes=(4_000, 30_000, 50_000),  # leading held-out text
    n_layer=(1, 4, 4),
    n_embd=(32, 128, 128),
    rates=((1e-3,), (), (2e-3, 1e-3)),  # tried beside the recipe's, at the trained length
)
results = Results("05_position_encoding", seeds=budget.seeds)
length = budget.train_length

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
# - The last four add nothing to the embeddings.
# - The change itself. A code is one function and one line of the registry, which says where it acts: `add` to the
#   embeddings, `rotate` queries and keys, `bias` the scores.
# - Where it enters: a module in `wpe`'s place, which attention also asks to rotate or to bias
#   (`lib/explore/attention.py`). The distance is counted inside the row, so left padding and a KV cache need no care.

# %%
display(plots.source(positions.rope, positions.alibi, positions.Position))
places = ("add", "rotate", "bias")
pd.DataFrame(
    {name: {at: f.__name__ if (f := getattr(code, at)) else "" for at in places} for name, code in POSITIONS.items()}
)

# %% [markdown]
# ## What the codes look like
#
# - What a code makes of the distance between query and key. `alibi`: what is added to the score, a line per head;
#   `rope`: the score of q = k = (1, ..., 1); `sinusoidal`: the cosine of two vectors; `t5`: the bucket, whose learned
#   value is added.


# %%
def codes(length: int = 64, n_head: int = 4, head_dim: int = 32) -> list[dict]:
    """What the untrained codes make of the distance between query and key."""
    config = GPT2Config(n_head=n_head, n_embd=n_head * head_dim)
    places, ones = torch.arange(length), torch.ones(1, 1, length, head_dim)
    turned = positions.rope(ones, places)[0, 0]
    vectors = Position("sinusoidal", config)(places[None])[0]
    bias = Position("alibi", config).bias(1, length, ones.device)[:, 0].flip(1)
    far = torch.arange(2 * positions.T5_MAX_DISTANCE)
    lines = [("alibi", "added to the score", f"head {h + 1}", bias[h]) for h in range(n_head)]
    lines += [("rope", "score of q = k = (1, ..., 1)", "", (turned[-1:] @ turned.T)[0].flip(0) / head_dim)]
    lines += [("sinusoidal", "cosine of the vectors", "", torch.cosine_similarity(vectors[-1:], vectors).flip(0))]
    lines += [("t5", "bucket", "", positions.t5_bucket(far))]
    return [
        {"code": code, "line": line, "distance": d, "value": float(v), "what": f"{code}: {what}"}
        for code, what, line, values in lines
        for d, v in enumerate(values)
    ]


shapes = results.table("codes", codes)
look = {"logx": False, "ylabel": "see above", "sharey": False, "panel": "code"}
figure = plots.lines(shapes, "distance", "value", "line", **look)

# %% [markdown]
# ## Is it what it says?
#
# - Largest change of a logit when a text stands 7 tokens further right, behind padding, with untouched position
#   ids. Relative codes: 0 up to rounding. Absolute ones: not 0. The full set is `tests/test_positions.py`.


# %%
@torch.no_grad()
def shifted(name: str, by: int = 7, length: int = 40) -> dict:
    model = positions.use_position(small_gpt2(97, n_positions=length + by), name)
    ids = torch.randint(97, (1, length), generator=torch.Generator().manual_seed(0))
    mask, logits = torch.nn.functional.pad(torch.ones_like(ids), (by, 0)), model(ids).logits
    places = torch.arange(length + by)[None]
    ids = torch.nn.functional.pad(ids, (by, 0))
    moved = model(ids, attention_mask=mask, position_ids=places).logits[:, by:]
    return {"position": name, "max_difference": float((moved - logits).abs().max()), "scale": float(logits.abs().max())}


shift = results.table("shift", lambda: [shifted(name) for name in POSITIONS])
shift

# %% [markdown]
# ## The experiment
#
# - One thing changes, the position code. Same text, order, seeds, steps and weights elsewhere; attention is softmax,
#   the encoding a BPE with 1,024 entries. GPT-2's table has rows for every evaluated length, so that it can be
#   asked; the rows past the trained length never got a gradient.


# %%
def recipe(seed: int, name: str) -> scratch.Recipe:
    lengths = {"train_length": length, "rows": 8, "n_positions": 8 * length}
    shape = {"n_layer": budget.n_layer, "n_embd": budget.n_embd}
    return scratch.Recipe(seed=seed, position=name, train_bytes=budget.train_bytes, **lengths, **shape)


@cache
def runs() -> list[scratch.Trained]:
    return scratch.train_all([recipe(seed, name) for seed in budget.seeds for name in POSITIONS])


# %% [markdown]
# - Evaluated at 1, 2, 4 and 8 times the trained length, in two ways that tell different stories. `blocks`: the text
#   is cut into blocks without overlap, and a longer block means fewer tokens with little context. `sliding`: the
#   window moves by a quarter, so at every length nearly all tokens have a long context.

# %%
texts = scratch.documents("debian", "test", budget.eval_bytes)


def extrapolation() -> list[dict]:
    rows = []
    for run in runs():
        for eval_length in (length, 2 * length, 4 * length, 8 * length):
            for protocol, stride in (("blocks", eval_length), ("sliding", max(eval_length // 4, 1))):
                score = scratch.score_stream(run.model, run.encoding, texts, eval_length, stride)
                row = {"position": run.recipe.position, "train_length": length, "eval_length": eval_length}
                row |= {"protocol": protocol, "seed": run.recipe.seed}
                rows.append(row | {"bits_per_byte": score.bits_per_byte})
    return rows


table = results.table("positions", extrapolation)
keys = ["protocol", "eval_length", "position"]
table.groupby(keys, sort=False)["bits_per_byte"].mean().unstack("position").round(3)

# %% [markdown]
# - Mean of the seeds, band from the lowest to the highest seed.

# %%
trained = table[(table["eval_length"] == length) & (table["protocol"] == "blocks")]
look = {"xlabel": "evaluated length (tokens)", "ylabel": "bits per byte (lower is better)", "height": 2.6}
top = trained["bits_per_byte"].max() + 0.35
NAMES = {"learned": "learned", "sinusoidal": "sinusoidal", "none": "none", "rope": "RoPE", "alibi": "ALiBi", "t5": "T5"}
WAYS = {"blocks": "in blocks", "sliding": "with a sliding window"}
drawn = table.assign(position=table["position"].map(NAMES), protocol=table["protocol"].map(WAYS))
figure = plots.lines(drawn, "eval_length", "bits_per_byte", "position", panel="protocol", top=top, **look)
text = f"ALiBi alone stays nearly level when the text gets longer than in training ({length} tokens). Lines are means, "
text += f"bands the range of the seeds; {budget.train_bytes:,} bytes of text per run."
results.figure(figure, "05_extrapolation", text, scratch=True)

# %% [markdown]
# ## Where in the block the loss is made
#
# - Bits per token by how many tokens were seen, at eight times the trained length, the same text in every step. A
#   code that extrapolates goes on down or stays; one that does not jumps after the trained length, the first step.

# %%
by_position = results.table("loss_by_position", lambda: scratch.loss_by_position(runs(), texts, 8 * length))
look = {"logx": False, "xlabel": "tokens seen before", "ylabel": "bits per token"}
top = by_position.loc[by_position["seen"] < length, "bits_per_token"].max() + 1
figure = plots.lines(by_position, "seen", "bits_per_token", "position", top=top, **look)

# %% [markdown]
# ## Is it the code, or its rate?
#
# - One rate for all may suit one code better. Four of them again at lower rates, at the trained length.

# %%
CODES = ("learned", "sinusoidal", "rope", "alibi")


def at_rates() -> list[dict]:
    recipes = [replace(recipe(s, c), learning_rate=x) for x in budget.rates for c in CODES for s in budget.seeds]
    return [
        {"position": run.recipe.position, "learning_rate": run.recipe.learning_rate, "seed": run.recipe.seed}
        | {"bits_per_byte": scratch.score_stream(run.model, run.encoding, texts, length, length).bits_per_byte}
        for run in scratch.train_all(recipes)
    ]


rates = results.table("rates", lambda: at_rates() if budget.rates else [], optional=True)
if len(rates):
    usual = trained[trained["position"].isin(CODES)].assign(learning_rate=recipe(0, "rope").learning_rate)
    rates = pd.concat([usual[list(rates)], rates])
    by_rate = rates.pivot(index="seed", columns=["position", "learning_rate"], values="bits_per_byte")
    display(by_rate.mean().unstack("learning_rate").round(3))

# %% [markdown]
# ## What we saw
#
# - At the trained length, mean over seeds with its 95 % t interval, and what eight times the length costs.

# %%
at = {key: by_seed(part, "position") for key, part in table.groupby(["eval_length", "protocol"])}
short = at[length, "blocks"]
change = {protocol: at[8 * length, protocol] - at[length, protocol] for protocol in ("blocks", "sliding")}
longer = {f"8 times as long, {protocol}": gap.apply(interval, sign=True) for protocol, gap in change.items()}
pd.DataFrame({f"at {length}": short.apply(interval)} | longer)

# %% [markdown]
# - A gain that shrinks with a sliding window came from the short contexts at the start of each block,
#   not from reading further back (Press et al. 2022 infer the same, appendix B).
# - At one rate for all, the learned table's seeds lie too far apart to say who is ahead; with each code at its best
#   rate RoPE and ALiBi are.
# - The loss by position shows it directly: what has no gain beyond the trained length makes no use of
#   the longer context, however flat it stays.
#
# ## What it does not show
#
# - Small models, little text, one language: the order at the trained length may change with scale. In particular a
#   learned table needs more steps than a code that is built in.
# - Descriptions are short, so that little can be gained from a long context here; what can be lost is visible.
# - T5's bias gets worse here, while Press et al. find that it extrapolates further than sinusoidal and rotary
#   positions. We guess: all distances from 113 on share the last bucket. Rows of 128 tokens hold few such pairs, so it
#   never learned what it does to hundreds of keys at once; with their rows, of 512 tokens and more, it did. No run
#   varies the two.
# - Nothing that was done to repair RoPE afterwards (position interpolation, other bases) is tried.

# %% [markdown]
# ## For the report
#
# - The table of section 6.2's appendix. Each protocol has its own start.

# %%
far = 8 * length
rows = []
for p in short:
    cells = [interval(at[n, way][p]) for way in ("blocks", "sliding") for n in (length, far)]
    rows.append([NAMES[p], *cells, "" if p == "learned" else interval(short[p] - short["learned"], sign=True)])
header = ["position", *(f"{way}, {n:,}" for way in ("blocks", "sliding") for n in (length, far))]
text = f"Held-out bits per byte after training at {length} tokens; behind each mean its 95 % t interval over seeds, not"
text += " corrected for the five differences."
results.markdown("table", [*header, f"blocks, {length:,}, minus learned"], rows, text, scratch=True)

# %% [markdown]
# - The values and claims behind its sentences: first which codes a shift changes.

# %%
moved = shift.set_index("position")["max_difference"]
relative = moved[moved < 1e-4]
absolute = moved.drop(relative.index)
results.value("shift.relative.most", f"{relative.max():.0e}")
results.value("shift.absolute.least", number(absolute.min(), 2))
results.claim("all codes but learned and sinusoidal are relative", {*absolute.index} == {"learned", "sinusoidal"})
# Then the order at the trained length: the best, who is level with it, and whether one is ahead of learned positions.
# Each is a family of five comparisons, and what is picked from it is corrected for that (Holm).
order = list(short.mean().sort_values().index)
best = order[0]
results.value("best", NAMES[best])
results.value("second", NAMES[order[1]])
results.value("best.bits", interval(short[best]))
to_best = shown({p: short[p] - short[best] for p in order[1:]})
results.value("level", listed([NAMES[p] for p in order[1:] if not to_best[p]]))
to_learned = shown({p: short[p] - short["learned"] for p in order if p != "learned"})
results.claim("nobody is shown ahead of the learned table", min(to_learned.values()) >= 0)
r = recipe(budget.seeds[0], "rope")
setup = f"{r.n_layer} layers, {r.n_embd} wide, {r.n_head} heads; BPE of {r.vocab_size:,} pieces; rows of {length} "
setup += f"tokens, {r.rows} in a step; AdamW, cosine from {r.learning_rate:g}; {r.train_bytes:,} bytes of text, seeds"
results.value("setup", f"{setup} {listed(budget.seeds)}")

# %% [markdown]
# - Each code at the best of its rates, by the same text: none is chosen on other text, so the best is flattered a bit.

# %%
results.claim("at their best rates RoPE and ALiBi are ahead of the learned table", False)
results.block("rates", results.not_yet)
if len(rates):
    means = by_rate.mean().unstack("learning_rate")[sorted(rates["learning_rate"].unique(), reverse=True)]
    at_best = {code: by_rate[code][means.loc[code].idxmin()] for code in CODES}
    ahead = shown({code: at_best[code] - at_best["learned"] for code in CODES[1:]})
    both_ahead = max(ahead["rope"], ahead["alibi"]) < 0
    results.claim("at their best rates RoPE and ALiBi are ahead of the learned table", both_ahead)
    cells = [[NAMES[c], *(interval(by_rate[c][rate]) for rate in means), f"{means.loc[c].idxmin():g}"] for c in CODES]
    text = f"Bits per byte at the trained length, {length} tokens, by learning rate; mean, 95 % t interval."
    results.markdown("rates", ["code", *(f"{rate:g}" for rate in means), "best"], cells, text, scratch=True)

# %% [markdown]
# - At eight times that length: the code that changes least, who gets worse or better, and ALiBi in both protocols.

# %%
slide = change["sliding"]
flat = slide.mean().abs().idxmin()
results.value("length", f"{length:,}")
results.value("far", f"{far:,}")
results.value("flat", NAMES[flat])
told = shown(slide)
results.value("worse", listed([NAMES[p] for p in slide if told[p] > 0]))
results.claim("no code is better further out", min(told.values()) >= 0)
results.value("t5.sliding", interval(slide["t5"], sign=True))
others = slide.drop(columns="alibi")
results.claim("ALiBi alone stays level", slide["alibi"].mean() < 0.01 and all(told[p] > 0 for p in others))
results.value("alibi.sliding", interval(slide["alibi"], sign=True))
results.claim("ALiBi gains in blocks", shown(change["blocks"])["alibi"] < 0)
results.claim("ALiBi does not gain with a sliding window", told["alibi"] >= 0)
results.save(data={"debian": tasks.load_task("debian").sha256})

# %% [markdown]
# ## Sources
#
# - Learned: Radford et al. 2018. Sinusoidal: Vaswani et al. 2017, arXiv:1706.03762. None: Haviv et al. 2022,
#   arXiv:2203.16634; Kazemnejad et al. 2023, arXiv:2305.19466. RoPE: Su et al. 2021, arXiv:2104.09864. ALiBi: Press et
#   al. 2022, arXiv:2108.12409. T5: Raffel et al. 2020, arXiv:1910.10683.
