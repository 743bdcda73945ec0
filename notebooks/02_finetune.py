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
# # 02 Fine-tune
#
# One function, `lib.train.finetune`, teaches the base model a task by three methods. This notebook shows the
# data it learns from, the loss it minimises, the curves, and what each method costs. Whether the result is
# any good is the question of notebook 03.

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

import pandas as pd

from lib import callbacks, packing, plots, profile, results, tasks, train
from lib.models import load_base

started = results.start()
budget = profile.current()
base = load_base()

# %% [markdown]
# ## The data
#
# - A document is a prompt and a target; groups (source packages, meaning representations) never straddle the
#   splits. `data/README.md` is the data card.
# - Look at `target_tokens`: these are the tokens the loss is taken over. Prompts are read, not learned.

# %%
task = tasks.load_task()
statistics = tasks.token_statistics(task, base.tokenizer)
statistics

# %% [markdown]
# - One document, as the model sees it: everything up to `Description:` is the prompt.

# %%
example = task.train[0]
print(example.prompt + "«" + example.target + "»")

# %% [markdown]
# - Lengths in tokens of the loaded model's tokenizer. All fit one row, so no document is cut.

# %%
lengths = {
    split: [len(d.input_ids) for d in tasks.encode(base.tokenizer, getattr(task, split), base.context)]
    for split in tasks.SPLITS
}
figure = plots.histogram(lengths)
provenance = results.provenance(base, budget.seeds)
path = plots.save_figure(figure, "02_lengths", f"Document lengths of the task {task.name}, in tokens of {base.name}.")

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
encoded = tasks.encode(base.tokenizer, task.train[:200], base.context)
row = packing.rows(encoded, budget.pack_length, 1)[0]
batch = train.collate([row])
share = (batch["labels"] != -100).float().mean().item()
print(f"{len(row)} documents, {batch['input_ids'].shape[1]} tokens, {share:.0%} of them targets, no padding")

# %% [markdown]
# ## The methods
#
# - `full` moves every weight; `lora` adds low-rank updates of rank 16 to every linear map (Hu et al. 2021);
#   `last_blocks` moves the last quarter of the blocks and the final norm.
# - Warm-up and cosine, clipping at 1, AdamW; the best held-out checkpoint is kept; three evaluations without
#   progress end a run. Held-out means the validation split: the test split is not looked at here.

# %%
for method in train.METHODS.values():
    print(inspect.getsource(method.prepare))
pd.DataFrame([vars(train.settings_for(m, 0, task)) for m in train.METHODS]).T

# %% [markdown]
# ## The runs
#
# - One run per method and seed. A seed decides the order of the documents and LoRA's random start.
# - The curve redraws at each evaluation. A finished run is loaded, an interrupted one goes on.

# %%
live = callbacks.LiveCurve()
runs = {}
for seed in budget.seeds:
    for method in budget.methods:
        show = live.follow(method, seed)
        runs[method, seed] = train.finetune(base, task, method, seed, callbacks=[show])
        runs[method, seed].model = None  # reloaded where it is needed: nine models would not fit a laptop

# %% [markdown]
# - The remaining methods run with one seed: enough to show what they cost, not to rank them.

# %%
for method in (m for m in train.METHODS if m not in budget.methods):
    show = live.follow(method, budget.seeds[0])
    run = train.finetune(base, task, method, budget.seeds[0], callbacks=[show])
    runs[method, budget.seeds[0]] = run
    run.model = None

# %% [markdown]
# - E2E NLG has published rows to stand beside; notebook 03 compares. It comes from `DATA_MIRROR` or the hub.

# %%
try:
    e2e = tasks.load_task("e2e") if task.name == "debian" else None
    note = "" if e2e else "E2E NLG runs beside the default task only."
except tasks.TaskUnavailable as reason:
    e2e, note = None, f"Skipped: {reason}"
if e2e:
    runs["e2e", 0] = train.finetune(base, e2e, "full", 0, callbacks=[live.follow("e2e full", 0)])
    runs["e2e", 0].model = None
print(note)

# %% [markdown]
# ## What it cost
#
# - `tokens_per_second` counts prompt and target tokens, evaluations and checkpoints left out; there is no
#   padding to count. `peak_megabytes` is the process's (on a GPU: the device's) high-water mark.

# %%
summary = pd.DataFrame([run.summary for run in runs.values()])
shown = ["task", "method", "seed", "trainable_parameters", "steps", "tokens", "tokens_per_second"]
summary[[*shown, "seconds", "peak_megabytes", "held_out_loss"]].round(3)

# %% [markdown]
# - Held-out bits per byte against training tokens: seeds thin, their mean bold.

# %%
history = pd.concat(
    [
        run.history.assign(task=run.summary["task"], method=run.summary["method"], seed=run.summary["seed"])
        for run in runs.values()
    ]
)
main = history[history["task"] == task.name]
figure = plots.loss_curves(main)
text = f"Held-out bits per byte of {task.name} during fine-tuning; last_blocks with one seed."
caption = plots.caption(text, provenance, budget.train_tokens)
path = plots.save_figure(figure, "02_curves", caption)

# %% [markdown]
# - What the training loss did, step by step, in nats per target token.

# %%
figure = plots.loss_curves(main, "train_loss", ylabel="training loss, nats per target token")
text = f"Training loss of {task.name}, per logged step."
path = plots.save_figure(figure, "02_training_loss", plots.caption(text, provenance, budget.train_tokens))

# %%
tables = {"runs": summary, "curves": history, "statistics": statistics}
data = {t.name: t.sha256 for t in (task, e2e) if t}
path = results.save("02_finetune", tables, base=base, seeds=budget.seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# The next cell states it from this run's own numbers.

# %%
first = main.dropna(subset="bits_per_byte").groupby(["method", "seed"])["bits_per_byte"].first()
best = main.groupby(["method", "seed"])["bits_per_byte"].min()
for method, part in best.groupby("method", sort=False):
    start = first[method].mean()
    print(f"{method}: held-out bits per byte {start:.3f} -> {part.mean():.3f} (mean of {len(part)} seeds)")

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
# - Krell et al. 2021, packing without cross-contamination, arXiv:2107.02027.
# - transformers' Trainer, peft, accelerate: the training loop is theirs.
