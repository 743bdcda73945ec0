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
# # 02 Fine-tune
#
# One function, `lib.train.finetune`, teaches the base model a task by three methods. This notebook shows the
# data it learns from, the loss it minimises, the curves, and what each method costs. Whether the result is
# any good is the question of notebook 03.
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
import functools, json, math, re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import zstandard
from IPython.display import display
from scipy import optimize, stats
from transformers import TrainerCallback

from lib import hub, metrics, packing, plots, profile, tasks, train
from lib import texts as measures
from lib.generate import DECODING, generate
from lib.models import load_base
from lib.results import Results, by_seed, interval, kept, listed, markdown_table, number, shown, span

# %% [markdown]
# - `train.BUDGET` is shared with notebook 03 and `python -m lib finetune`; the rest is this notebook's.
# - In profile `full` two cores take about 40 minutes for the runs, 20 for E2E, 55 for the grids, 30 for the learning
#   curve and 430 for the passes over the training split, six runs; E2E's five passes and longer grids are a GPU's.

# %%
BUDGET = train.BUDGET | {
    "rates": (  # tried on the validation split, method by method
        {"full": (1e-4, 1e-3), "lora": (1e-3,)},
        {},
        {"full": (3e-5, 1e-4, 3e-4, 1e-3), "lora": (3e-4, 1e-3, 3e-3, 1e-2)},
    ),
    "e2e_rates": (
        {"lora": (2e-3, 5e-3)},
        {},
        ({"full": (1e-4, 3e-4, 1e-3)} if train.GPU else {}) | {"lora": (5e-4, 2e-3, 5e-3)},
    ),
    "e2e_rate_tokens": (1_280, 0, 600_000 if train.GPU else 100_000),  # that each of these sees, of 2.37 M in a pass
    "curve_tokens": ((2_000, 4_000, 8_000, 12_000), (), (5_000, 20_000, 80_000, 160_000)),
    "curve_documents": (8, 0, 200),  # validation documents that chose no checkpoint, scored
    "curve_generated": (2, 0, 16),  # and generated for
    "curve_new_tokens": (24, 0, 160),
}
budget = profile.budget(**BUDGET)
base = load_base()
results = Results("02_finetune", base=base, seeds=budget.seeds)
pd.DataFrame({name: [*map(str, numbers)] for name, numbers in BUDGET.items()}, index=profile.NAMES).T

# %% [markdown]
# ## The data
#
# - A document is a prompt and a target; groups (documents of one source, or of one prompt) never straddle the splits.
#   `data/README.md` is the data card, and says which forms a file of one's own may have.
# - Look at `target_tokens`: these are the tokens the loss is taken over. Prompts are read, not learned.

# %%
task = tasks.load_task(base=base)
encoded = {split: tasks.encode(base.tokenizer, task[split], base.context) for split in tasks.SPLITS}


def describe(split: str) -> dict:
    rows, tokens = tasks.head(task[split]), pd.Series([len(d.input_ids) for d in encoded[split]])
    texts = [r["prompt"] + r["target"] for r in rows]
    size, prompts = sum(len(t.encode()) for t in texts), sum(d.prompt_length for d in encoded[split])
    counts = {"documents": len(rows), "groups": len({r["group"] for r in rows}), "characters": sum(map(len, texts))}
    counts |= {"bytes": size, "tokens": tokens.sum(), "target_tokens": tokens.sum() - prompts}
    counts |= {"median_tokens": tokens.median(), "p95_tokens": tokens.quantile(0.95), "max_tokens": tokens.max()}
    ends = len(rows) + sum(not r["prompt"] for r in rows)  # EOS, at the end and before a text, has no byte
    return {"task": task.name, "split": split} | counts | {"bytes_per_token": size / (tokens.sum() - ends)}


statistics = results.table("statistics", lambda: [describe(split) for split in tasks.SPLITS])
statistics

# %% [markdown]
# - Three documents, as the model sees them: the target, which it learns, stands in «», and what is before it is the
#   prompt. Here a prompt and a target that run into each other show, before anything is trained.
# - Lengths in tokens of the loaded model's tokenizer. All fit one row: what was longer is cut or left out above.

# %%
example = task["train"][0]
for row, document in zip(tasks.head(task["train"], 3), encoded["train"], strict=False):
    tokens = f"{document.prompt_length} + {len(document.input_ids) - document.prompt_length} tokens"
    print(f"[{row['id']}, {tokens}]\n{row['prompt']}«{row['target']}»\n")
lengths = pd.DataFrame({split: pd.Series([len(d.input_ids) for d in encoded[split]]) for split in encoded})
_ = lengths.plot.hist(bins=40, subplots=True, figsize=(6.4, 4), xlabel="tokens per document", ylabel="documents")

# %% [markdown]
# - How a shipped task came about: documents left after each step of its script in `data`.

# %%
cards = {path.parent.name: json.loads(path.read_text("utf-8")) for path in profile.DATA.glob("*/card.json")}
stages = cards.get(task.name, {}).get("stages", {})
pd.Series(stages, name="documents", dtype=int).to_frame() if stages else f"{task.name} does not ship with the project."

# %% [markdown]
# ## The loss
#
# With prompt $x$ and target $y_1 \dots y_n$ (the last one EOS) the loss is the mean over target tokens
#
# $$\mathcal L = -\frac{1}{n}\sum_{t=1}^{n} \log p_\theta(y_t \mid x, y_{<t}).$$
#
# - Documents are packed end to end into rows without padding. Each keeps positions from 0 and attends to
#   itself alone, so packing changes the speed and not the loss (`tests/test_packing.py`).
# - The logits are computed at target positions only: with a vocabulary of tens of thousands they are the
#   largest tensor of a step. Below the code a packed row of this task.

# %%
display(plots.source(train.completion_loss, packing.attend_within_documents))
row = packing.rows(encoded["train"][:200], budget.pack_length, 1)[0]
batch = train.collate([row])
share = (batch["labels"] != -100).float().mean().item()
print(f"{len(row)} documents, {batch['input_ids'].shape[1]} tokens, {share:.0%} of them targets, no padding")

# %% [markdown]
# ## The methods
#
# - `full` moves every weight; `lora` adds low-rank updates of rank 16 (Hu et al. 2021) to every linear map (Dettmers
#   et al. 2023); `last_blocks` moves the last quarter of the blocks and the final norm.
# - Warm-up and cosine, clipping at 1, AdamW; the best held-out checkpoint is kept; three evaluations without
#   progress end a run. Held-out means the validation split: the test split is not looked at here.

# %%
display(plots.source(train.with_lora, train.only_last_blocks))
pd.DataFrame([vars(train.settings_for(m, 0, task)) for m in train.METHODS]).T

# %% [markdown]
# ## The runs
#
# - One run per method and seed. A seed decides the order of the documents and LoRA's random start. The methods that
#   the budget does not name run with one seed: enough to show what they cost, not to rank them.
# - With the default task comes E2E NLG, which has published rows to stand beside; notebook 03 compares. It comes from
#   `DATA_MIRROR` or the hub.

# %%
plan = [(task, method, seed) for seed in budget.seeds for method in budget.methods]
plan += [(task, method, budget.seeds[0]) for method in train.METHODS if method not in budget.methods]
e2e = hub.reached(tasks.load_task, "e2e") if task.name == "debian" else None
plan += [(e2e, method, 0) for method in budget.e2e_methods] if e2e else []
pd.DataFrame([(t.name, method, seed) for t, method, seed in plan], columns=["task", "method", "seed"])

# %% [markdown]
# - A callback of transformers' Trainer: one figure for all runs, drawn anew at each held-out evaluation.
# - The runs themselves. A finished run is loaded, an interrupted one goes on.


# %%
class LiveCurve(TrainerCallback):
    def __init__(self):
        self.frames, self.shown = {}, display(display_id=True)
        self.run = {}  # the method and seed of the run that trains now

    def on_evaluate(self, args, state, control, **_):
        self.frames[tuple(self.run.values())] = train.history_of(state.log_history, 0).assign(**self.run)
        figure = plots.loss_curves(pd.concat(self.frames.values()), x="step")
        self.shown.update(figure)
        plt.close(figure)


@functools.cache
def trained() -> list[train.Finetuned]:
    runs, curve = [], LiveCurve()
    for t, method, seed in plan:
        curve.run = {"method": method if t is task else f"{t.name} {method}", "seed": seed}
        runs.append(train.finetune(base, t, method, seed, callbacks=[curve]))
        runs[-1].model = None  # reloaded where it is needed: nine models would not fit a laptop
    return runs


print("From stored results: nothing is trained here." if results.stored else f"{len(trained())} runs")

# %% [markdown]
# ## What it cost
#
# - `tokens_per_second` counts prompt and target tokens, evaluations and checkpoints left out; there is no
#   padding to count. `peak_megabytes` is the process's (on a GPU: the device's) high-water mark.

# %%
summary = results.table("runs", lambda: [run.summary for run in trained()])
columns = ["task", "method", "seed", "trainable_parameters", "steps", "tokens", "tokens_per_second"]
summary[[*columns, "seconds", "peak_megabytes", "held_out_loss"]].round(3)


# %% [markdown]
# - Held-out bits per byte against training tokens: seeds thin, their mean bold.
# - What the training loss did, step by step, in nats per target token.


# %%
def curves() -> pd.DataFrame:
    about = ("task", "method", "seed")
    return pd.concat([run.history.assign(**{name: run.summary[name] for name in about}) for run in trained()])


history = results.table("curves", curves)
labels = {"full": "full fine-tuning", "lora": "LoRA", "last_blocks": "last blocks"}
main = history[history["task"] == task.name].replace({"method": labels})
figure = plots.loss_curves(main)
text = f"Held-out bits per byte of {task.name} in fine-tuning: seeds thin, their mean bold; the last blocks with one."
results.figure(figure, "02_curves", text, tokens=budget.train_tokens)
figure = plots.loss_curves(main, "train_loss", ylabel="training loss, nats per target token")

# %% [markdown]
# ## Which rate?
#
# - A grid per method around the rate in use (`train.LEARNING_RATES`), each run scored on the validation documents that
#   the runs above are watched on. Seed 0 alone: enough for rates that lie a factor of three apart.
# - E2E gets its own, for what sees a whole pass of it, and a second schedule at the second rate.
# - Bits per byte by rate; none where a rate was not tried for that method, or its run diverged.


# %%
def tried(t, method: str, rate: float, schedule: str) -> dict:
    """Held-out bits per byte at the end of a run with this rate; kept beside the run."""
    options = {"learning_rate": rate, "schedule": schedule, "evaluations": 1}
    options |= {"train_tokens": budget.e2e_rate_tokens} if t is e2e else {}
    settings = train.settings_for(method, 0, t, **options)

    def run() -> dict:
        curve = train.finetune(base, t, method, 0, quiet=True, **options).history
        return {"bits_per_byte": curve["bits_per_byte"].iloc[-1]}

    about = {"task": t.name, "method": method, "learning_rate": rate, "schedule": schedule, "seed": 0}
    about["train_tokens"] = settings.train_tokens
    return about | kept(train.run_path(base, t, settings) / "rate", [], run)


# %% [markdown]
# - Which are tried: `grid` on the task, `theirs` on E2E.

# %%
grid, theirs = [(task, method, rate, "cosine") for method, some in budget.rates.items() for rate in some], []
for method, some in budget.e2e_rates.items() if e2e else ():
    theirs += [(e2e, method, rate, "cosine") for rate in some] + [(e2e, method, some[1], "linear")]
found = [results.table("rates", lambda: [tried(*trial) for trial in grid], optional=True)]
found += [results.table("rates_e2e", lambda: [tried(*trial) for trial in theirs], optional=True)]
rates = pd.concat(found, ignore_index=True)
if len(rates):
    index = ["task", "schedule", "method"]
    display(rates.pivot_table("bits_per_byte", index, "learning_rate", sort=False).round(3))
else:
    print(results.not_yet)

# %% [markdown]
# ## How much data?
#
# - The same recipe with 5,000 to 160,000 training tokens: three seeds at 80,000, the runs' own budget, and for full
#   fine-tuning at the smallest size, else one.
# - The test split stays unseen here: these rows are scored on the validation documents behind the 64 that watch the
#   runs, which chose no checkpoint. The runs that are not those above are evaluated once, at their end.
# - One ablation, one seed at the middle size: the loss on all tokens, prompt included, instead of the target's alone.

# %%
first = min(budget.validation_documents, len(task["validation"]) - 1)  # a small task of one's own has few
unseen = tasks.head(task["validation"])[first:][: budget.curve_documents]
unseen_encoded = encoded["validation"][first:][: budget.curve_documents]
some = unseen[: budget.curve_generated]
FORM = re.compile(r"(?!(?:an?|the)\b(?!-)).{0,78}[^.]", re.IGNORECASE)  # as in 03, but no "..." ends one
longest = min(budget.curve_new_tokens, max(len(d.input_ids) - d.prompt_length for d in encoded["validation"]))
longest = min(longest, base.context - max(d.prompt_length for d in encoded["validation"]))


def held_out(model) -> dict:
    """Bits per byte of `unseen`, corpus chrF of greedy texts for some of them, and for the default task their form."""
    texts = generate(model, base.tokenizer, [r["prompt"] for r in some], longest, batch_size=64)
    texts = [text.strip() for text in texts]
    found = {"bits_per_byte": metrics.bits_per_byte(metrics.score(model, base.tokenizer, unseen))}
    found["chrf"] = measures.chrf(texts, [r["references"] for r in some])
    synopses = [text.partition("\n")[0].strip() for text in texts] if task.name == "debian" else []
    return found | ({"synopsis_form": np.mean([bool(FORM.fullmatch(s)) for s in synopses])} if synopses else {})


# %% [markdown]
# - A row of the curve: a run, trained unless it is there, and its scores, kept beside it.


# %%
ALL_TOKENS = "loss on all tokens"
whole = min(int(statistics["tokens"].iloc[0]), budget.pass_tokens)  # one pass over the training split


def every_token(documents, tokens: int, seed: int) -> list[packing.Encoded]:
    return [replace(d, prompt_length=0) for d in packing.draw(documents, tokens, seed)]


def learned(method: str, seed: int, tokens: int, variant: str = "", **options) -> dict:
    as_above = tokens == budget.train_tokens and not variant  # evaluated as often as the runs above
    options |= {"train_tokens": tokens} | ({} if as_above else {"evaluations": 1})
    path = train.run_path(base, task, train.settings_for(method, seed, task, **options), variant)
    options |= {"variant": variant, "draw": every_token if variant else None, "quiet": tokens < whole}

    def run() -> dict:
        return held_out(train.finetune(base, task, method, seed, **options).model)

    scores = kept(path / "curve", [len(unseen), len(some), longest], run)
    name = f"{method}, {variant}" if variant else method
    return {"task": task.name, "method": name, "seed": seed, "train_tokens": tokens} | scores


# %% [markdown]
# - The plan: every size, and the ablation.

# %%
sizes = budget.curve_tokens
middle = sizes[len(sizes) // 2] if sizes else 0
curve_plan = [
    (method, seed, size)
    for size in sizes
    for method in budget.methods
    for seed in (budget.seeds if size == budget.train_tokens or (method, size) == ("full", sizes[0]) else [0])
]
if sizes:
    curve_plan += [("full", 0, middle, ALL_TOKENS)]
print(f"{len(curve_plan)} runs")


def learning_curve() -> list[dict]:
    before = {"task": task.name, "method": "none", "seed": 0, "train_tokens": 0}
    return [before | held_out(base.model), *(learned(*row) for row in curve_plan)] if sizes else []


curve = results.table("learning_curve", learning_curve, optional=True)
SHOWN = {c: digits for c, digits in {"bits_per_byte": 3, "chrf": 1, "synopsis_form": 2}.items() if c in curve}
if len(curve):
    display(curve.groupby(["method", "train_tokens"], sort=False)[[*SHOWN]].mean().round(3))
else:
    print(results.not_yet)

# %% [markdown]
# - A grid is one seed, and chose its rate on the documents that watch it. So where its best rate is not the one in use,
#   the runs again at that rate with every seed, scored as the curve's rows are.


# %%
def at_best_rate() -> list[dict]:
    rows = []
    for method, grid in rates[(rates["task"] == task.name) & (rates["schedule"] == "cosine")].groupby("method"):
        best = float(grid.loc[grid["bits_per_byte"].idxmin(), "learning_rate"])
        seeds = budget.seeds if best != train.settings_for(method, 0, task).learning_rate else ()
        found = [learned(method, seed, budget.train_tokens, learning_rate=best) for seed in seeds]
        rows += [row | {"learning_rate": best} for row in found]
    return rows


tuned = results.table("best_rate", lambda: at_best_rate() if len(rates) else [], optional=True)
display(tuned) if len(tuned) else print(results.not_yet)

# %% [markdown]
# - A power law, $a + b N^{-c}$ of $N$ training tokens, fitted to the runs of each method by least squares. What it
#   says of the whole training split has a 95 % interval for one run: of the fit (delta method) and of the scatter.


# %%
def power_law(n, a, b, c):
    return a + b * (n / 100_000) ** -c


def fit(method: str) -> dict:
    part = curve[curve["method"] == method]
    n, bits = part["train_tokens"].to_numpy(float), part["bits_per_byte"].to_numpy()
    row = dict.fromkeys(("a", "b", "c", "predicted", "low", "high"), math.nan)
    row = {"method": method, "points": len(part), "train_tokens": whole} | row
    try:
        p, covariance = optimize.curve_fit(power_law, n, bits, (bits.min() - 0.1, 0.1, 0.3), maxfev=20_000)
    except (RuntimeError, TypeError):  # no fit; fewer points than parameters
        return row
    slope = optimize.approx_fprime(p, lambda q: power_law(whole, *q))
    free = len(part) - 3
    # of the fit, and of one run about it
    variance = slope @ covariance @ slope + ((power_law(n, *p) - bits) ** 2).sum() / max(free, 1)
    half = stats.t.ppf(0.975, free) * math.sqrt(variance)
    predicted = power_law(whole, *p)
    found = {"predicted": predicted, "low": predicted - half, "high": predicted + half}
    return row | dict(zip("abc", p, strict=True)) | found


laws = results.table("power_law", lambda: [fit(m) for m in budget.methods] if len(curve) else [], optional=True)
display(laws) if len(laws) else print(results.not_yet)

# %% [markdown]
# - A forecast is held against what comes: runs of each method on as many tokens, which no fit has seen.
#   Further seeds, the table `forecast_seeds`, were measured later and on other machines.

# %%
long_runs = [(m, 0) for m in budget.methods if len(curve)]
later = [(m, seed) for seed in budget.pass_seeds for m in budget.methods if len(curve)]
passed = results.in_two("forecast", lambda runs: [learned(*run, whole) for run in runs], long_runs, later)
display(passed) if len(passed) else print(results.not_yet)

# %% [markdown]
# ## Is my loss normal?
#
# - Yardsticks on the same documents, all in bits per byte of the target: every token of the vocabulary equally likely
#   ($\ln V$ a token); each as likely as in the training targets (unigram, add one); zstd at its strongest on these
#   targets as one file, alone and after the training targets; the base model. Above the unigram, something is broken.


# %%
def yardsticks() -> list[dict]:
    targets = [i for d in unseen_encoded for i in d.input_ids[d.prompt_length :]]
    bits, size = math.log(2) * sum(d.target_bytes for d in unseen_encoded), base.model.config.vocab_size
    known = Counter(i for d in encoded["train"] for i in d.input_ids[d.prompt_length :])
    unigram = sum(math.log((known.total() + size) / (known[i] + 1)) for i in targets)
    text, before = ("\n".join(r["target"] for r in rows).encode() for rows in (unseen, tasks.head(task["train"])))
    window = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)  # all of it in one window
    primed = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    alone, after = (
        8 * len(zstandard.ZstdCompressor(compression_params=window, dict_data=d).compress(text)) / len(text)
        for d in (None, primed)
    )
    found = {"uniform": len(targets) * math.log(size) / bits, "unigram": unigram / bits, "zstd": alone}
    found["zstd after the training text"] = after
    found["base model"] = curve.loc[curve["method"] == "none", "bits_per_byte"].iloc[0]
    return [{"yardstick": name, "bits_per_byte": value} for name, value in found.items()]


marks = results.table("yardsticks", lambda: yardsticks() if len(curve) else [], optional=True)
display(marks) if len(marks) else print(results.not_yet)

# %% [markdown]
# - Above, the yardsticks far away; below, the curve (seeds as dots), its fit to the whole split, and the base model.


# %%
def against_yardsticks():
    figure, (far, near) = plt.subplots(2, 1, sharex=True, figsize=(plots.WIDTH, 2.8), height_ratios=(1, 2))
    for i, law in enumerate(laws.itertuples()):
        runs = curve[curve["method"] == law.method]
        mean = runs.groupby("train_tokens")["bits_per_byte"].mean()
        near.plot(runs["train_tokens"], runs["bits_per_byte"], plots.MARKERS[i], color=plots.COLORS[i], markersize=3)
        near.plot(mean.index, mean, **plots.look(i))
        n = np.geomspace(min(sizes), whole)
        style = {"color": plots.COLORS[i], "linewidth": 1, "label": labels.get(law.method, law.method)}
        near.plot(n, power_law(n, law.a, law.b, law.c), ":", **style)
    for row in marks.itertuples():
        ax = near if row.yardstick == "base model" else far
        ax.plot((min(sizes), whole), [row.bits_per_byte] * 2, "-", color=plots.GREY, linewidth=1, label=row.yardstick)
    for i, (_, runs) in enumerate(passed.groupby("method", sort=False) if len(passed) else ()):
        look = {"color": plots.COLORS[i], "markersize": 5, "markerfacecolor": "none"}
        near.plot(runs["train_tokens"], runs["bits_per_byte"], plots.MARKERS[i], **look)
    near.set(xscale="log", xlabel="thousand training tokens")
    near.set_xticks([*sizes, whole], [f"{n / 1000:,.0f}" for n in [*sizes, whole]])
    near.minorticks_off()
    figure.supylabel("bits per byte", fontsize=plt.rcParams["axes.labelsize"])
    for ax in (far, near):
        ax.margins(y=0.15)
        plots.label_lines(ax)
    return figure


# %% [markdown]
# - Without rows there is no figure.

# %%
if len(curve) and len(marks):
    text = f"Bits per byte of {len(unseen)} validation documents of {task.name} against training tokens, with "
    text += "yardsticks; dotted: a power law, $a + b N^{-c}$. Each dot "
    text += "is a run: three seeds at the runs' own budget and for full fine-tuning at the smallest size, else seed 0."
    text += " Hollow: runs of one pass, which their law has not seen." if len(passed) else ""
    results.figure(against_yardsticks(), "02_learning_curve", text, seeds=())
else:
    results.block("figure.learning_curve", results.not_yet)

# %% [markdown]
# ## What we saw

# %%
by_run = history.dropna(subset="bits_per_byte").groupby(["task", "method", "seed"], sort=False)["bits_per_byte"]
came = pd.DataFrame({"start": by_run.first(), "best": by_run.min()})
came.groupby(["task", "method"], sort=False).agg(["mean", "count"]).round(3)

# %% [markdown]
# ## What it does not show
#
# - The held-out documents of this notebook chose the checkpoint, so their loss flatters the run a little:
#   notebook 03 uses the test split.
# - Learning rates were chosen before the grids were run, one per method: the distance between the methods is that of
#   these settings and no ranking. At the best rate of its grid LoRA is ahead with one seed on the documents that chose
#   it, and level with three on others.
# - Seconds and tokens per second are as the machine was that day; where other work shared it, as for the results
#   shipped here, they are lower bounds and no comparison of the methods.
# - A seed changes the documents drawn and their order, not the base model.
#
# ## Sources
#
# - Hu et al. 2021, LoRA, arXiv:2106.09685; Dettmers et al. 2023, QLoRA, arXiv:2305.14314 (all linear layers).
# - Krell et al. 2021, packing without cross-contamination, arXiv:2107.02027; first fit decreasing: Johnson 1973.
# - transformers' Trainer, peft, accelerate: the training loop is theirs.

# %% [markdown]
# ## Try it
#
# - What the first run writes for a validation prompt, by sampling. In the terminal `python -m lib generate` does the
#   same for any prompt, and `finetune --out my-model` writes a folder for `from_pretrained`, LoRA merged.

# %%
prompt = task["validation"][0]["prompt"]
if results.stored:
    print("From stored results: no model was trained here that could write.")
else:
    first = train.load(base, trained()[0].path)
    print(prompt, *generate(first.model, base.tokenizer, [prompt], 80, **DECODING["sample"]))
    print(f"\npython -m lib generate --run {first.path.name} --samples 3 --prompt TEXT")

# %% [markdown]
# ## For the report
#
# - Section 4: the example, the splits, how they came about, the other datasets.

# %%
results.block("example", f"```\n{example['prompt']}{example['target']}\n```")
header = ["split", "documents", "share", "bytes", "tokens", "of targets", "median", "bytes per token"]
counts = statistics[["documents", "bytes", "tokens", "target_tokens", "median_tokens"]].map("{:,.0f}".format)
counts.insert(1, "share", (statistics["documents"] / statistics["documents"].sum()).map("{:.1%}".format))
rows = pd.concat([statistics["split"], counts, statistics["bytes_per_token"].round(2)], axis=1).to_numpy()
alone = statistics["groups"].sum() == statistics["documents"].sum()
text = f"The task {task.name}: bytes and tokens of prompts and targets, then of targets alone; the median is tokens "
text += "per document; bytes per token leaves out end tokens. "
groups = f"{statistics['groups'].sum():,} groups of documents."
text += "A group, which no split divides, is one document here." if alone else groups
results.markdown("statistics", header, rows, text, seeds=())

results.claim("task is debian", task.name == "debian")
documents = int(statistics["documents"].sum())
results.value("documents", f"{documents:,}")
card, what, of = cards.get(task.name, {}), "documents", task.name
if task.name == "debian":
    what, of = "packages", f"Debian {card['release']['version']} “{card['suite']}”, main"
results.value("near_duplicate", f"{card['near_duplicate_jaccard']:g}" if "near_duplicate_jaccard" in card else "-")
results.value("family_cap", f"{max(card['module_families'].values()):,}" if "module_families" in card else "no")
results.value("perl", f"{card['sections']['perl'] / documents:.0%}" if "sections" in card else "not measured")
rows = [[stage, f"{count:,}"] for stage, count in stages.items()]
table = f"{markdown_table(['stage', what], rows)}\n\nTable: {what.capitalize()} left after each stage, {of}."
why = f"The task {task.name} does not ship with the project: {documents:,} documents."
results.block("stages", table if rows else why)

# %% [markdown]
# - The other datasets that are shipped.

# %%
OTHERS = {  # what it is, notebooks
    "tang": ("title to Tang quatrain, simplified characters", "04, 07, 10"),
    "idioms": ("four-character idiom to its explanation", "07"),
    "release_notes": ("releases of Python packages of 2026", "10"),
}
rows = []
for name in (name for name in OTHERS if name in cards):
    splits = cards[name].get("splits") or {"test": cards[name]["documents"]}
    counts = [f"{splits[split]:,}" if split in splits else "-" for split in tasks.SPLITS]
    rows.append([f"`{name}`", OTHERS[name][0], *counts, OTHERS[name][1]])
header = ["dataset", "what", *tasks.SPLITS, "notebooks"]
results.block("others", f"{markdown_table(header, rows, 2)}\n\nTable: The other shipped datasets, in documents.")

# %% [markdown]
# - Section 5: the recipe, the runs, their cost.

# %%
own = summary[summary["task"] == task.name]
settings, minutes = own.iloc[0], own["seconds"] / 60
results.value("weight_decay", f"{settings['weight_decay']:g}")
results.value("warmup", f"{settings['warmup_share']:.0%}")
results.value("clip", f"{settings['max_grad_norm']:g}")
results.value("batch", f"{settings['batch_tokens']:,.0f}")
results.value("share", f"{own['tokens'].mean() / statistics['tokens'].iloc[0]:.0%}")
results.value("minutes", f"{minutes.min():.0f} to {minutes.max():.0f}")
lora = own[own["method"] == "lora"].iloc[0]
results.value("lora.parameters", f"{lora['trainable_parameters']:,}")
results.value("lora.share", f"{lora['trainable_parameters'] / lora['base_parameters']:.1%}")
rank = train.settings_for("lora", 0, task).lora_rank
results.value("lora.rank", rank)
results.value("lora.alpha", 2 * rank)  # as lib.train.with_lora has it
results.value("watched", min(budget.validation_documents, len(task["validation"])))
results.value("start", number(came.loc[task.name, "full"]["start"].mean()))

# %% [markdown]
# - One row per task and method: what was trained, at which rate, and how far it came on the validation split.
# - The grids of rates; `in use` is what the runs above take.

# %%
rows = []
for (name, method), runs in summary.groupby(["task", "method"], sort=False):
    progress, r = came.loc[name, method], runs.iloc[0]
    about = [name, labels.get(method, method), f"{r['trainable_parameters']:,}", f"{r['learning_rate']:g}", len(runs)]
    about += [f"{runs['tokens'].mean():,.0f}", f"{runs['steps'].mean():.0f}"]
    rows.append([*about, number(progress["start"].mean()), interval(progress["best"])])
header = ["task", "method", "trained", "rate", "seeds", "tokens", "steps", "start", "best"]
text = "Fine-tuning runs; “start” and “best” are validation bits per byte, mean over seeds with 95 % t interval."
results.markdown("runs", header, rows, text, left=2)

RATE_COLUMNS = {"learning_rate": "{:g}".format, "bits_per_byte": number}
rows = []
for (name, method), grid in rates.groupby(["task", "method"], sort=False) if len(rates) else ():
    used = train.settings_for(method, 0, SimpleNamespace(name=name))
    for schedule, tries in grid.groupby("schedule", sort=False):
        tried_rates, bits = (", ".join(map(form, tries[c])) for c, form in RATE_COLUMNS.items())
        rows.append([name, method, schedule, tried_rates, bits, f"{used.learning_rate:g}, {used.schedule}"])
header = ["task", "method", "schedule", "rates tried", "bits per byte", "in use"]
text = "Learning rates tried, with bits per byte of the validation documents that the runs are watched on, after "
sizes = rates.groupby("task", sort=False)["train_tokens"].first() if len(rates) else pd.Series(dtype=int)
text += f"{listed([f'{size:,} tokens ({name})' for name, size in sizes.items()])}; "
text += "- for a run that diverged." if rates.isna().any(axis=None) else "one run each."
results.markdown("rates", header, rows, text, left=3, seeds=[0])

# %% [markdown]
# - The default task's best rate of each method, and what it reaches beside the rate in use. Level: within the standard
#   deviation of three seeds.

# %%
LEVEL = history.query("task == @task.name and method == 'full'").groupby("seed")["bits_per_byte"].min().std()
lowest, in_use = {}, {}
for method in ("full", "lora"):
    grid = [r for r in rates.itertuples() if (r.task, r.method, r.schedule) == (task.name, method, "cosine")]
    reached = {r.learning_rate: r.bits_per_byte for r in grid if r.bits_per_byte == r.bits_per_byte}
    best, used = min(reached, key=reached.get, default=math.nan), train.settings_for(method, 0, task).learning_rate
    lowest[method], in_use[method] = reached.get(best, math.nan), reached.get(used, math.nan)
    results.value(f"rates.{method}.best", f"{best:g}" if reached else "not measured")
    level = sum(bits < lowest[method] + LEVEL for bits in reached.values()) > 1
    results.claim(f"a second rate is level for {labels[method]}", level)
results.claim("no rate tried is better for full fine-tuning", in_use["full"] <= lowest["full"])
results.claim("another rate tried is better for LoRA", in_use["lora"] > lowest["lora"])
of_e2e = rates[(rates["task"] == "e2e") & (rates["method"] == "lora")] if len(rates) else rates
ends = of_e2e.set_index(["schedule", "learning_rate"])["bits_per_byte"] if len(of_e2e) else pd.Series(dtype=float)
used = ("cosine", train.LEARNING_RATES["e2e lora"])
best = ends["cosine"].idxmin() if len(ends) else math.nan
results.claim("of E2E's rates tried the highest is the best for LoRA", best > used[1])
results.claim("E2E's linear schedule ends lower", len(ends) and ends.get(("linear", used[1]), math.inf) < ends[used])

# %% [markdown]
# - LoRA at that rate with every seed, beside its rate in use and beside full fine-tuning: differences paired by seed,
#   Holm over the two. Then the table of the learning curve (few synopses: no interval).

# %%
lower, change = False, pd.Series(dtype=float)
if len(better := tuned[tuned["method"] == "lora"] if len(tuned) else tuned):
    ends = by_seed(curve[curve["train_tokens"] == budget.train_tokens], "method")[["lora", "full"]]
    changes = -ends.sub(better.set_index("seed")["bits_per_byte"], axis=0)
    lower, change = shown(changes)["lora"] < 0, changes["lora"]
results.value("rates.lora.lower", interval(change, sign=True))
results.claim("at its best rate LoRA ends lower than at the rate in use", lower)
rows = []
measured_runs = pd.concat([curve, passed])
for (method, size), part in measured_runs.groupby(["method", "train_tokens"], sort=False) if len(curve) else ():
    cells = [number(part[c].mean(), d) if c == "synopsis_form" else interval(part[c], d) for c, d in SHOWN.items()]
    name = method.replace("full,", "full fine-tuning,")
    rows.append([{"none": "before", **labels}.get(method, name), f"{size:,}", len(part), *cells])
header = ["method", "tokens", "seeds", "bits per byte", "corpus chrF", "synopsis in form"]
text = f"{len(unseen)} other validation documents of {task.name} scored, {len(some)} texts generated greedily; "
results.markdown("learning_curve", header[: 3 + len(SHOWN)], rows, text + "mean with 95 % t interval.", seeds=())

# %% [markdown]
# - Values: what the law says of the whole split, the ablation, the yardsticks.

# %%
for name in ("yardstick.uniform", "yardstick.unigram", "yardstick.base_model", "all_tokens.gap"):
    results.value(name, "not measured")
results.claim("the learning curve was measured", len(curve) > 0)
forecast = laws.reindex(columns=["method", "predicted", "low", "high"]).set_index("method").reindex(["full", "lora"])
for law in forecast.itertuples():
    ended = passed.loc[passed["method"] == law.Index, "bits_per_byte"] if len(passed) else pd.Series(dtype=float)
    results.value(f"law.{law.Index}", span(law.predicted, law.low, law.high))
    results.value(f"pass.{law.Index}", interval(ended))
    inside = len(ended) > 0 and ended.between(law.low, law.high).all()
    results.claim(f"one pass ended inside its forecast, {law.Index}", inside)
for row in marks.itertuples():
    results.value(f"yardstick.{row.yardstick.replace(' ', '_')}", number(row.bits_per_byte, 2))
if len(curve):
    pair = curve[(curve["train_tokens"] == middle) & curve["method"].str.startswith("full")]
    pair = by_seed(pair, "method")
    results.value("all_tokens.gap", interval(pair.iloc[:, 1] - pair.iloc[:, 0], sign=True))
results.save(data={t.name: t.sha256 for t in {t.name: t for t, _, _ in plan}.values()})
