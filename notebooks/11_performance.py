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
# # 11 Performance
#
# What a training, an evaluation and a generation cost here, against what one would take instead; how the cost grows;
# and what is left after kills, full disks, cut networks and fuzzed files. `python -m lib bench` makes the first part
# alone and prints its table.

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
from IPython.display import Code, display

from lib import plots, profile
from lib.explore import bench, bench_findings, bench_plots, bench_quality, faults, fuzz
from lib import fast, results, tasks
from lib.explore import scaling

started, budget = results.start(), profile.current().performance

# %% [markdown]
# ## The principle
#
# A training step is matrix products, 6 FLOP per weight and token, and everything else. The products have a ceiling,
# the machine's own speed at exactly these shapes; everything else can be left out or made small. Three things decide:
#
# | what | wasted | here |
# |--|--|--|
# | padding | positions that no loss needs | documents packed end to end, each attending to itself |
# | logits | 50,257 numbers a position, in float32, four times | targets alone, a few rows at a time, in place |
# | number format | float32 products at a third of bfloat16's speed | bfloat16 products, float32 weights and sums |

# %% [markdown]
# - The change, in code: the loss whose softmax never exists whole, and whose gradient takes the place of the logits.

# %%
display(Code(inspect.getsource(fast._SummedCrossEntropy), language="python"))

# %% [markdown]
# - Dropout's random numbers are drawn by one thread while the others wait: a quarter of them do.

# %%
display(Code(inspect.getsource(fast._Dropped), language="python"))

# %% [markdown]
# ## Against others
#
# - GPT-2 117M's configuration with random weights (speed does not depend on them), the task `debian`, the same
#   documents, token ids and labels for every system. Each measurement is a process of its own; the systems take
#   turns, run by run. `default`: as documented. `best`: what we found to be fastest for it here.

# %%
for kind, systems in bench.SYSTEMS.items():
    for (system, setting), entry in systems.items():
        print(f"{kind:10} {system:9} {setting:8} {entry.run.__doc__.splitlines()[0]} {entry.options or ''}")

# %%
raw = bench.measured()
tables = bench.tables(raw)
print(bench.shown(tables))

# %% [markdown]
# - Useful tokens are those of targets and their EOS. Dots: runs; bar: median.

# %%
provenance = results.provenance(None)
figure = bench_plots.speeds(tables, bench.SPEED)
text = f"Tokens per second on {provenance['device']}, medians of {budget.runs}; GPT-2 117M's configuration."
if not budget.gpt2_tokens:
    text = "Tokens per second of a tiny model."
path = plots.save_figure(figure, "11_speed", text)

# %% [markdown]
# - Ours over each other system, run by run: median and range, and the mark that was set before measuring.

# %%
tables["ratios"].round(2)

# %% [markdown]
# - Equal numbers: bits per byte of the same documents, and how they differ from the float32 loop's.

# %%
bits = tables["evaluation"].groupby(["system", "setting"])["bits_per_byte"].mean()
(bits - bits["tutorial", "default"]).rename("difference").to_frame().assign(bits_per_byte=bits)

# %% [markdown]
# ## Quality
#
# - The same documents in the same steps of a plain float32 loop, without any of the changes: the held-out loss after
#   equal tokens, three seeds. Without dropout in either: its random numbers would differ between the two.

# %%
base = bench.random_base()
folder, tokens = str(bench.model_folder()), budget.quality_tokens
quality = pd.DataFrame(bench_quality.quality(folder, base, (0, 1, 2), tokens))
wide = quality.pivot(index="seed", columns="system", values="held_out_loss")
wide.assign(percent=100 * (wide["ours"] / wide["plain"] - 1)).round(4)

# %% [markdown]
# ## Scaling
#
# - Against the documents (tokenising and packing), the length of a document, the rows behind a step, the processes.

# %%
rows = scaling.by_data(base.tokenizer, budget.sizes)
rows += scaling.by_context(base.model, budget.lengths)
rows += scaling.by_batch(base.model, budget.batches, 4 * (budget.padded // 4))
rows += scaling.by_processes(folder, tokens)
grown = pd.DataFrame(rows)

# %%
figure = plots.lines(
    grown[grown["axis"] == "context"],
    "value",
    "result",
    "measure",
    panel="measure",
    logy=True,
    xlabel="tokens in a document",
    ylabel="",
    sharey=False,
)
path = plots.save_figure(figure, "11_context", "A training step over one document, by its length.")
fitted = scaling.fits(grown)
fitted.round(3)

# %% [markdown]
# - Elsewhere, as an estimate: the device's peak, times the share of it that others report for this model.

# %%
expected = scaling.estimates(bench.flop_per_useful_token(), profile.PROFILES["full"].train_tokens)
expected.round(1)

# %% [markdown]
# ## Reliability
#
# - Faults injected on purpose, on a tiny model, and what was lost: a damaged file, a result that differs by a bit, an
#   error that is no sentence. The last rows of the first table are tests of the project, run here and counted.

# %%
injected = pd.DataFrame(faults.table() + faults.tested())
injected

# %%
injected = pd.concat([injected, pd.DataFrame(fuzz.fuzz())], ignore_index=True)
injected.tail(3)

# %%
tables |= {"quality": quality, "scaling": grown, "fits": fitted, "estimates": expected, "faults": injected}
data = {"debian": tasks.load_task("debian").sha256}
path = results.save("11_performance", tables, seeds=(0, 1, 2), data=data, started=started)

# %% [markdown]
# ## What we saw
#
# - Stated from this run's numbers, with the marks beside them.

# %%
for line in bench_findings.speed_findings(tables) + bench_findings.equal_findings(tables):
    print(line)

# %% [markdown]
# - How cost grows, and what the faults left.

# %%
for line in bench_findings.cost_findings(fitted) + bench_findings.fault_findings(injected):
    print(line)

# %% [markdown]
# How to read it:
#
# - Padding decides first: a document of 150 tokens in a row of 512 is two thirds nothing. Number format comes second,
#   the rest third.
# - A peer's `default` is what a user gets who reads one page of its manual; `best` is what its manual permits.
# - What stays fixed in a step is the optimizer: it reads and writes seven numbers per weight, whatever the batch.
#
# ## What it does not show
#
# - One machine, two cores, one model size. Nothing here was measured on a GPU; the estimates are no measurement.
# - The learning rate is the same for all systems and suits random weights; seconds to a loss from a pretrained start
#   would differ.
# - litgpt is not in the table: it has no GPT-2. Its nearest, pythia-160m, is another model.
# - A full disk is a limit on a file's size here, which fails with another number than a disk does.
#
# ## Sources
#
# - Packing: Krell et al. 2021, arXiv:2107.02027. Loss in pieces: Hsu et al. 2024 (Liger kernel), arXiv:2410.10989;
#   Wijmans et al. 2024, arXiv:2411.09009. Mixed precision: Micikevicius et al. 2018, arXiv:1710.03740. FLOP:
#   Kaplan et al. 2020, arXiv:2001.08361; share of a peak: Chowdhery et al. 2022, arXiv:2204.02311.
# - trl: github.com/huggingface/trl; lm-evaluation-harness: github.com/EleutherAI/lm-evaluation-harness.
