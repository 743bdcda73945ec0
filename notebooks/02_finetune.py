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

# %% [markdown]
# - On Colab the next cell fetches the project and installs what Colab lacks; elsewhere it does nothing.
# - JupyterLab saves what you ran: stepping through with `PROFILE=fast` replaces the outputs that are kept in git;
#   `git checkout notebooks/*.ipynb` brings them back.

# %%
REPOSITORY = ""  # on Colab: the address of your team's copy, such as https://github.com/you/coursework
import glob, os, subprocess, sys

if "google.colab" in sys.modules:
    if REPOSITORY and not glob.glob("/content/*/lib/colab.py"):
        subprocess.run(["git", "clone", "-q", REPOSITORY, "/content/project"])
    if not (found := glob.glob("/content/*/lib/colab.py")):
        ways = "set REPOSITORY above to the address of your copy, or upload the project's zip to /content and run"
        sys.exit(f"The project is not here: {ways} `!unzip -q /content/NAME.zip`; then run this cell again.")
    os.chdir(f"{os.path.dirname(found[0])}/../notebooks")
    subprocess.run([sys.executable, "-m", "lib", "colab"], cwd="..", check=True)
    sys.path.insert(0, "..")

# %%
import functools
import inspect
import json

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from transformers import TrainerCallback

from lib import packing, plots, profile, tasks, train
from lib.generate import DECODING, generate
from lib.models import load_base
from lib.results import Results, interval, markdown_table, number

budget = profile.budget(**train.BUDGET)
base = load_base()
results = Results("02_finetune", base=base, seeds=budget.seeds)
pd.DataFrame(train.BUDGET, index=profile.NAMES).T  # shared with notebook 03 and `python -m lib finetune`

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

# %%
example = task["train"][0]
for row, document in zip(tasks.head(task["train"], 3), encoded["train"], strict=False):
    tokens = f"{document.prompt_length} + {len(document.input_ids) - document.prompt_length} tokens"
    print(f"[{row['id']}, {tokens}]\n{row['prompt']}«{row['target']}»\n")

# %% [markdown]
# - How a shipped task came about: documents left after each step of its script in `data`.

# %%
cards = {path.parent.name: json.loads(path.read_text("utf-8")) for path in profile.DATA.glob("*/card.json")}
stages = cards.get(task.name, {}).get("stages", {})
pd.Series(stages, name="documents", dtype=int).to_frame() if stages else print("Read as it is:", task.name)

# %% [markdown]
# - Lengths in tokens of the loaded model's tokenizer. All fit one row: what was longer is cut or left out above.

# %%
figure, axes = plt.subplots(3, 1, sharex=True, figsize=(6.4, 4))
for ax, (split, documents), color in zip(axes, encoded.items(), plots.COLORS, strict=False):
    lengths = pd.Series([len(d.input_ids) for d in documents])
    ax.hist(lengths, 40, (0, statistics["max_tokens"].max()), color=color, edgecolor="white", linewidth=0.4)
    ax.axvline(lengths.median(), color=plots.INK, linewidth=1, linestyle="--")
    ax.set(title=f"{split}: {len(lengths):,} documents, median {lengths.median():g}", ylabel="documents")
axes[-1].set_xlabel("tokens per document")
results.figure(figure, "02_lengths", f"Document lengths of the task {task.name}, in tokens.", seeds=())

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
#   largest tensor of a step.

# %%
print(inspect.getsource(train.completion_loss))
print(inspect.getsource(packing.attend_within_documents))

# %% [markdown]
# - A packed row of this task: how many documents share it, and how much of it is target.

# %%
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
print(inspect.getsource(train.with_lora), inspect.getsource(train.only_last_blocks), sep="\n")
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
try:
    plan += [(tasks.load_task("e2e"), "full", 0)] if task.name == "debian" else []
except tasks.Unavailable as reason:
    print(f"Skipped: {reason}")
pd.DataFrame([(t.name, method, seed) for t, method, seed in plan], columns=["task", "method", "seed"])

# %% [markdown]
# - A callback of transformers' Trainer: one figure for all runs, drawn anew at each held-out evaluation.


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


# %% [markdown]
# - The runs themselves. A finished run is loaded, an interrupted one goes on.


# %%
@functools.cache
def trained() -> list[train.Finetuned]:
    runs, curve = [], LiveCurve()
    for t, method, seed in plan:
        curve.run = {"method": method if t is task else f"{t.name} {method}", "seed": seed}
        runs.append(train.finetune(base, t, method, seed, callbacks=[curve]))
        runs[-1].model = None  # reloaded where it is needed: nine models would not fit a laptop
    return runs


print("RESULTS=stored: nothing is trained." if results.stored else f"{len(trained())} runs")

# %% [markdown]
# ## What it cost
#
# - `tokens_per_second` counts prompt and target tokens, evaluations and checkpoints left out; there is no
#   padding to count. `peak_megabytes` is the process's (on a GPU: the device's) high-water mark.

# %%
summary = results.table("runs", lambda: [run.summary for run in trained()])
shown = ["task", "method", "seed", "trainable_parameters", "steps", "tokens", "tokens_per_second"]
summary[[*shown, "seconds", "peak_megabytes", "held_out_loss"]].round(3)


# %% [markdown]
# - Held-out bits per byte against training tokens: seeds thin, their mean bold.


# %%
def curves() -> pd.DataFrame:
    about = ("task", "method", "seed")
    return pd.concat([run.history.assign(**{name: run.summary[name] for name in about}) for run in trained()])


history = results.table("curves", curves)
main = history[history["task"] == task.name]
figure = plots.loss_curves(main)
text = f"Held-out bits per byte of {task.name} during fine-tuning; last_blocks with one seed."
results.figure(figure, "02_curves", text, tokens=budget.train_tokens)

# %% [markdown]
# - What the training loss did, step by step, in nats per target token.

# %%
figure = plots.loss_curves(main, "train_loss", ylabel="training loss, nats per target token")
text = f"Training loss of {task.name}, per logged step."
results.figure(figure, "02_training_loss", text, tokens=budget.train_tokens)

# %% [markdown]
# ## What we saw

# %%
held_out = history.dropna(subset="bits_per_byte").groupby(["task", "method", "seed"], sort=False)["bits_per_byte"]
learned = pd.DataFrame({"start": held_out.first(), "best": held_out.min()})
learned.groupby(["task", "method"], sort=False).agg(["mean", "count"]).round(3)

# %% [markdown]
# ## What it does not show
#
# - The held-out documents of this notebook chose the checkpoint, so their loss flatters the run a little:
#   notebook 03 uses the test split.
# - Learning rates were chosen beforehand, one per method, and never tuned: the distance between the methods
#   is that of these settings and no ranking of the methods.
# - Seconds and tokens per second are as the machine was that day; where other work shared its two cores, as
#   for the results shipped here, they are lower bounds and no comparison of the methods. The first of these
#   runs (full, seed 0) ran with another setting of the memory allocator: its peak memory is not the others'.
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
    print("RESULTS=stored: no model was trained that could write.")
else:
    first = train.load(base, trained()[0].path)
    print(prompt, *generate(first.model, base.tokenizer, [prompt], 80, **DECODING["sample"]))
    print(f"\npython -m lib generate --run {first.path.name} --samples 3 --prompt TEXT")

# %% [markdown]
# ## For the report
#
# - Section 4: the example, the splits, how they came about, the other datasets.

# %%
name = base.name.removesuffix(" (stand-in)")
results.value("model", f"the stand-in {name}" if base.stand_in else "GPT-2 117M")
results.block("example", f"```\n{example['prompt']}{example['target']}\n```")
header = ["split", "documents", "groups", "bytes", "tokens", "of targets", "median", "bytes per token"]
counts = statistics[["documents", "groups", "bytes", "tokens", "target_tokens", "median_tokens"]].map("{:,.0f}".format)
rows = pd.concat([statistics["split"], counts, statistics["bytes_per_token"].round(2)], axis=1).to_numpy()
text = f"The task {task.name}, prompts and targets, but for “of targets”; the median is tokens per document."
results.markdown("statistics", header, rows, text, seeds=())

# %% [markdown]
# - What the source became, stage by stage.

# %%
results.claim("task is debian", task.name == "debian")
documents = int(statistics["documents"].sum())
results.value("documents", f"{documents:,}")
card, what, of = cards.get(task.name, {}), "documents", task.name
if task.name == "debian":
    what, of = "packages", f"Debian {card['release']['version']} “{card['suite']}”, main"
results.value("perl", f"{card['sections']['perl'] / documents:.0%}" if "sections" in card else "not measured")
rows = [[stage, f"{count:,}"] for stage, count in stages.items()]
table = f"{markdown_table(['stage', what], rows)}\n\nTable: {what.capitalize()} left after each stage, {of}."
results.block("stages", table if rows else f"The task {task.name} was read as it is: {documents:,} documents.")

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
results.value("tokens", f"{own['tokens'].mean():,.0f}")
results.value("train.tokens", f"{statistics['tokens'].iloc[0]:,}")
results.value("share", f"{own['tokens'].mean() / statistics['tokens'].iloc[0]:.0%}")
results.value("minutes", f"{minutes.min():.0f} to {minutes.max():.0f}")
results.value("minutes.longest", f"{summary['seconds'].max() / 60:.0f}")
results.value("device", results.provenance()["device"])
lora = own[own["method"] == "lora"].iloc[0]
results.value("lora.parameters", f"{lora['trainable_parameters']:,}")
results.value("lora.share", f"{lora['trainable_parameters'] / lora['base_parameters']:.1%}")
results.value("parameters", f"{lora['base_parameters']:,}")

# %% [markdown]
# - One row per task and method: what was trained, at which rate, and how far it came on the validation split.

# %%
rows = []
for (name, method), runs in summary.groupby(["task", "method"], sort=False):
    curve, one = learned.loc[name, method], runs.iloc[0]
    about = [name, method, f"{one['trainable_parameters']:,}", f"{one['learning_rate']:g}", len(runs)]
    about += [f"{runs['tokens'].mean():,.0f}", f"{runs['steps'].mean():.0f}"]
    rows.append([*about, number(curve["start"].mean()), interval(curve["best"])])
header = ["task", "method", "trained", "rate", "seeds", "tokens", "steps", "start", "best"]
text = "Fine-tuning runs; “start” and “best” are validation bits per byte, mean over seeds with 95 % t interval."
results.markdown("runs", header, rows, text, left=2)

# %%
results.save(data={t.name: t.sha256 for t in {t.name: t for t, _, _ in plan}.values()})
