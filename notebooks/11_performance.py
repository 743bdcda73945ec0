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
# # 11 Performance
#
# What a training, an evaluation and a generation cost here, against what one would take instead; how the cost grows;
# and what is left after kills, full disks, cut networks and fuzzed files. `python -m lib bench` makes the first part
# alone and prints its table.

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
import copy, inspect, json, re, statistics, tempfile, time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Code, display
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lib import fast, plots, profile, tasks, train
from lib.explore import bench
from lib.metrics import score_encoded
from lib.packing import Encoded, document_attention, draw, rows
from lib.results import Results, number, span
from lib.tasks import encode, head

# %% [markdown]
# - The budgets: (fast, cpu, full). Random weights: speed does not depend on them.

# %%
budget = profile.budget(
    seeds=((0, 1, 2), (0, 1, 2), (0, 1, 2)),  # of the comparison of what is learned
    product_rows=(128, 512, 512),  # of the matrix products behind the ceiling
    quality_tokens=(4_000, 8_192, 8_192),  # that each of its runs sees
    lengths=((64, 128, 256), (128, 256, 512, 1_024), (128, 256, 512, 1_024)),  # tokens in a document
    batches=((1, 2, 4), (1, 2, 4), (1, 2, 4)),  # rows behind a step
    sizes=((50, 100, 200), (500, 1_000, 2_000, 4_000), (500, 1_000, 2_000, 4_000)),  # documents prepared
)
results = Results("11_performance", seeds=budget.seeds)
pd.DataFrame(bench.BUDGET, index=profile.NAMES).T

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
# - GPT-2 117M's configuration with random weights, the task `debian`, the same documents, token ids and labels for
#   every system. Each measurement is a process of its own; the systems take turns, run by run. `default`: as
#   documented. `best`: what we found to be fastest for it here.
# - Training: `lib.train.finetune`; trl's SFTTrainer; transformers' Trainer as its tutorials use it, every document
#   padded to one length, float32. Evaluation: `lib.metrics.score_encoded`; one document at a time through the model's
#   own loss, float32; lm-evaluation-harness' HFLM. Generation: `lib.generate`; transformers' pipeline, greedy.

# %%
made = {} if results.stored else bench.compare()
made = {kind: results.table(kind, lambda kind=kind: made[kind]) for kind in (*bench.SPEED, "ratios")}
ratios = made["ratios"]
summary = bench.summary(made)
summary.round(2)

# %% [markdown]
# - Useful tokens are those of targets and their EOS. Dots: runs; bar: median.

# %%
device, runs = made["training"]["device"].iloc[0], profile.budget(**bench.BUDGET).runs
figure, axes = plt.subplots(1, 3, figsize=(10.3, 2.6))
for ax, (kind, column) in zip(axes, bench.SPEED.items(), strict=True):
    groups, names = made[kind].groupby(["system", "setting"], sort=False)[column], []
    for y, ((system, setting), part) in enumerate(groups):
        names.append(system if setting == "default" else f"{system}, {setting}")
        ax.barh(y, part.median(), color=plots.COLORS[0] if system == "ours" else plots.PALE, height=0.62)
        ax.plot(part, [y] * len(part), ".", color=plots.INK, markersize=4)
        plots.note(ax, f"{part.median():,.0f}", (part.max(), y), (5, 0), va="center")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(0, made[kind][column].max() * 1.25)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_title(kind)
    ax.set_xlabel("tokens per second")
size = "a tiny model" if profile.name() == "fast" else "GPT-2 117M's configuration"
results.figure(figure, "11_speed", f"Tokens per second on {device}, medians of {runs}; {size}.", scratch=True)

# %% [markdown]
# - Ours over each other system, run by run: median and range, and the mark that was set before measuring.

# %%
ratios.round(2)

# %% [markdown]
# - Equal numbers: bits per byte of the same documents, and how they differ from the float32 loop's.

# %%
bits = made["evaluation"].groupby(["system", "setting"])["bits_per_byte"].mean()
(bits - bits["tutorial", "default"]).rename("difference").to_frame().assign(bits_per_byte=bits)

# %% [markdown]
# - How much of the machine is used: model FLOP of a training or an evaluation against the faster matrix products of
#   the same run (MFU, Chowdhery et al. 2022, appendix B). Padding, recomputation and logits that no loss needs are
#   time and no model FLOP.
# - Forward 2 FLOP per weight and token, backward twice that (Kaplan et al. 2020, section 2.1); the output layer for
#   targets alone; attention's two products over half a document on average.

# %%
debian = tasks.load_task("debian")
shape = profile.budget(**bench.BUDGET)
base = None if results.stored else bench.random_base()


def flop_per_useful_token(kind: str) -> float:
    """Behind one target token, its prompt's share in it."""
    examples = head(debian["train"], 500) if kind == "training" else head(debian["test"], shape.documents)
    documents = encode(base.tokenizer, examples, 1_024)
    lengths = [len(d.input_ids) for d in documents]
    targets = sum(lengths) - sum(d.prompt_length for d in documents)
    body = sum(2 * shape.n_layer * shape.n_embd * (12 * shape.n_embd * n + n * n) for n in lengths)
    passes = 3 if kind == "training" else 1
    return passes * (body / targets + 2 * shape.n_embd * len(base.tokenizer))


# %% [markdown]
# - How anything is timed here: the median of three, after one that is not counted.


# %%
def seconds_of(work) -> float:
    taken = []
    for _ in range(4):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


# %% [markdown]
# - The ceiling: the products of one training step alone, in both number formats.


# %%
def ceiling_rows() -> list[dict]:
    """GFLOP a second of the products of one training step, forward and both backward ones: each layer's four shapes and
    the output layer; one product of 2 m n k FLOP per shape is timed and counts as often as a step has it."""
    out, m, c = [], budget.product_rows, shape.n_embd
    shapes = [(shape.n_layer, *s) for s in ((c, 3 * c), (c, c), (c, 4 * c), (4 * c, c))]
    for run, dtype in [(run, dtype) for run in range(shape.runs) for dtype in ("float32", "bfloat16")]:
        flop = seconds = 0.0
        for times, k, n in (*shapes, (1, c, base.model.config.vocab_size)):
            sizes, kind = ((m, k), (k, n), (m, n)), getattr(torch, dtype)
            x, w, y = (torch.randn(size, device=profile.device()).to(kind) for size in sizes)
            for left, right in ((x, w), (y, w.T), (x.T, y)):  # output, gradient of the input, of the weight
                flop += times * 2 * m * k * n
                seconds += times * seconds_of(lambda left=left, right=right: left @ right)
        out.append({"dtype": dtype, "device": device, "run": run, "gflops": flop / seconds / 1e9})
    return out


made["ceiling"] = results.table("ceiling", ceiling_rows)
made["ceiling"].groupby("dtype")["gflops"].median().round(0)


# %% [markdown]
# - What each system reaches, in GFLOP a second and as a share of the faster format's products in the same run.


# %%
def limit_rows() -> pd.DataFrame:
    top, parts = made["ceiling"].groupby("run")["gflops"].max(), []
    for kind in ("training", "evaluation"):
        gflops = made[kind][bench.SPEED[kind]] * flop_per_useful_token(kind) / 1e9
        part = made[kind][["system", "setting", "run"]].assign(gflops=gflops, share=gflops / made[kind]["run"].map(top))
        parts.append(part.assign(kind=kind))
    return pd.concat(parts)


limits = results.table("limits", limit_rows)
reached = limits.groupby(["kind", "system", "setting"], sort=False)[["gflops", "share"]].median()
reached.round(2)

# %% [markdown]
# ## Quality
#
# - The same documents in the same steps of a plain float32 loop, without any of the changes: the held-out loss after
#   equal tokens. First the project's step.


# %%
class Stepper:
    """lib.train's step, without Trainer around it: packed rows, forward, backward, clipping, fused AdamW."""

    def __init__(self, model: nn.Module, learning_rate: float = 1e-5) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

    def __call__(self, batches: list[list[Encoded]]) -> None:
        with document_attention(self.model):
            for row in batches:
                inputs = {k: v.to(profile.device()) for k, v in train.collate([row]).items()}
                labels = inputs.pop("labels")
                with profile.autocast():
                    train.completion_loss(self.model(**inputs), labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


# %% [markdown]
# - The plain step. Without dropout in either: its random numbers differ between the two, which after so few steps moves
#   a loss by more than arithmetic does; tests/test_fast.py checks its distribution.


# %%
def plain_step(model: nn.Module, optimizer, documents: list[Encoded]) -> None:
    """One document at a time, float32 throughout."""
    targets = sum(len(d.input_ids) - max(d.prompt_length, 1) for d in documents)
    for d in documents:
        ids, first = torch.tensor([d.input_ids], device=model.device), max(d.prompt_length, 1)
        nats = nn.functional.cross_entropy(model(ids).logits[0, first - 1 : -1], ids[0, first:], reduction="sum")
        nats.div(targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(profile.device()).train()


# %% [markdown]
# - Both from the same weights, for each seed's draw of documents; `percent` is by how much our loss is higher.


# %%
def learned() -> list[dict]:
    out, documents = [], encode(base.tokenizer, debian["train"], base.context)
    held_out = encode(base.tokenizer, head(debian["validation"], 32), base.context)
    for seed in budget.seeds:
        steps = rows(draw(documents, budget.quality_tokens, seed), 2_048, 1)
        own = {"dtype": torch.float32, "use_safetensors": True}
        slow = without_dropout(AutoModelForCausalLM.from_pretrained(bench.model_folder(), **own))
        optimizer = torch.optim.AdamW(slow.parameters(), lr=bench.LEARNING_RATE)
        quick = Stepper(without_dropout(fast.fuse_dropout(copy.deepcopy(base.model))), bench.LEARNING_RATE)
        for step in tqdm(steps, desc=f"seed {seed}", leave=False):
            plain_step(slow, optimizer, step)
            quick([step])
        for system, model in (("plain", slow), ("ours", quick.model)):
            scores = score_encoded(model, held_out)
            loss = scores["nats"].sum() / scores["tokens"].sum()
            out.append({"system": system, "seed": seed, "steps": len(steps), "held_out_loss": loss})
    return out


quality = results.table("quality", learned)
wide = quality.pivot(index="seed", columns="system", values="held_out_loss")
gap = wide["ours"] / wide["plain"] - 1
wide.assign(percent=100 * gap).round(4)

# %% [markdown]
# ## Scaling
#
# - Against the documents (tokenising and packing), the length of a document, the rows behind a step. Seconds are
#   medians of three, after one that is not counted. First what is measured: random documents, and the preparation.


# %%
def random_documents(length: int, tokens: int) -> list[Encoded]:
    """Of one length, `tokens` in all, a quarter of each its prompt."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(base.tokenizer), (max(tokens // length, 1), length), generator=generator)
    return [Encoded(row.tolist(), length // 4, 4 * length) for row in ids]


def prepare(count: int) -> None:
    documents = encode(base.tokenizer, head(debian["train"], count), 1_024)
    rows(draw(documents, sum(len(d.input_ids) for d in documents), 0), 2_048, 1)


# %% [markdown]
# - A row is (axis, value on it, what was measured, result). Memory is what a step adds to the peak before it.


# %%
def grown() -> list[tuple]:
    out, step = [], Stepper(copy.deepcopy(base.model))
    for n in budget.sizes:
        out.append(("documents", n, "preparation_seconds", seconds_of(lambda n=n: prepare(n))))
    for n in tqdm(budget.lengths, desc="lengths"):
        batch = [random_documents(n, n)]
        out.append(("context", n, "step_seconds", seconds_of(lambda b=batch: step(b))))
        with fast.peak_memory(seconds=0.001) as peak:
            step(batch)
            out.append(("context", n, "added_megabytes", peak(above=True)))
    for n in tqdm(budget.batches, desc="batches"):
        batch = [random_documents(shape.padded // 4, shape.padded)] * n
        out.append(("batch", n, "step_seconds", seconds_of(lambda b=batch: step(b))))
    return out


# %% [markdown]
# - Against the processes: one on all threads, or two that share them, the same two rows a step in both; on a CPU over
#   gloo.


# %%
def by_processes(threads: int = 2) -> list[tuple]:
    launch = ("-m", "accelerate.commands.launch", "--config_file", "lib/accelerate_ddp.yaml")
    settings = {"train_tokens": budget.quality_tokens, "pack_length": 640, "batch_tokens": 1_280, "evaluations": 1}
    settings |= {"validation_documents": 8, "learning_rate": bench.LEARNING_RATE}
    options = [part for name, number in settings.items() for part in ("--set", f"{name}={number}")]
    out = []
    for n, how in ((1, ()), (2, launch)):
        with tempfile.TemporaryDirectory() as folder:
            own = {"PROFILE": "fast", "FAST_OUTPUT": folder, "BASE_MODEL": str(bench.model_folder())}
            own |= {"OMP_NUM_THREADS": str(max(threads // n, 1)), "PYTHONUTF8": "1"}
            command = [sys.executable, *how, "-m", "lib", "finetune", "--task", "debian", *options]
            given = {"cwd": profile.ROOT, "env": {**os.environ, **own}, "capture_output": True, "encoding": "utf-8"}
            done = subprocess.run(command, **given)
        for measure in ("tokens_per_second", "held_out_loss"):
            found = re.search(rf"^{measure} +([\d.,]+)$", done.stdout, re.MULTILINE)
            if not found:
                raise RuntimeError(f"{n} process(es): {done.stderr[-1000:]}")
            out.append(("processes", n, measure, float(found[1].replace(",", ""))))
    return out


# %% [markdown]
# - All rows, one table.


# %%
def scaling_rows() -> list[dict]:
    return [dict(zip(("axis", "value", "measure", "result"), row, strict=True)) for row in grown() + by_processes()]


scaling = results.table("scaling", scaling_rows)

# %% [markdown]
# - Per axis the exponent (slope of the logarithms), and for the batch the seconds of a step that no row explains (the
#   straight line's value at 0) and of each row.


# %%
def fit_rows() -> list[dict]:
    out = []
    for (axis, measure), part in scaling.groupby(["axis", "measure"], sort=False):
        if len(part) >= 3:
            x, y = part["value"].to_numpy(float), part["result"].to_numpy(float).clip(1e-9)
            each, fixed = np.polyfit(x, y, 1) if axis == "batch" else (np.nan, np.nan)
            exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
            out.append({"axis": axis, "measure": measure, "exponent": exponent, "fixed": fixed, "each": each})
    return out


fits = results.table("fits", fit_rows)
context = scaling[scaling["axis"] == "context"]
axes = {"panel": "measure", "logy": True, "xlabel": "tokens in a document", "ylabel": " ", "sharey": False}
figure = plots.lines(context, "value", "result", "measure", **axes)
results.figure(figure, "11_context", "A training step over one document, by its length.", scratch=True)
fits.round(3)

# %% [markdown]
# - Elsewhere, as an estimate: the device's peak (NVIDIA's data sheets, dense half precision), times the share of it
#   that others report for this model: between a quarter and a half of a GPU's peak.


# %%
def estimates() -> list[dict]:
    tokens = train.BUDGET["train_tokens"][-1]
    devices = {  # peak TFLOP/s, share expected of it, GPUs
        "one T4, float16": (65.0, 0.25, 1),
        "one A100, bfloat16": (312.0, 0.35, 1),
        "eight A100, bfloat16": (312.0, 0.30, 8),
    }
    out = []
    for name, (peak, share, gpus) in devices.items():
        rate = peak * 1e12 * share * gpus / flop_per_useful_token("training")
        out.append({"device": name, "useful_tokens_per_second": rate, "seconds": tokens / rate})
    return out


results.table("estimates", estimates).round(1)

# %% [markdown]
# ## Reliability
#
# - Faults injected on purpose, on a tiny model, and what was lost: a damaged file, a result that differs by a bit, an
#   error that is no sentence. They are tests of the project, `tests/test_faults.py`, `tests/test_fuzz.py` and those
#   that `tests/conftest.py` names; `FAULTS_OUT=data/faults.json pytest -m fault -n 0` runs ten times as many as
#   `pytest` does, and writes the rows that stand here.

# %%
counted = json.loads((profile.DATA / "faults.json").read_text(encoding="utf-8"))
print("Counted on {device}, {created}, commit {git_commit:.7}.".format(**counted["provenance"]))
faults = results.table("faults", lambda: counted["faults"])
faults

# %% [markdown]
# ## What we saw
#
# - A mark is a factor that was set before measuring: `bench.MARKS`, 60 % of the machine's products for a training, and
#   a held-out loss within 0.5 % of the plain loop's.

# %%
met = ratios.assign(met=ratios["ratio"] >= ratios["mark"]).dropna(subset=["mark"])
own = reached.loc[("training", "ours", "default"), "share"]
display(met.round(2))
print(f"Training reaches {own:.0%} of the machine's products; the losses lie at most {gap.abs().max():.2%} apart.")
named = fits.set_index(["axis", "measure"])
batch, length = named.loc[("batch", "step_seconds")], named.loc[("context", "step_seconds")]
print(f"A step takes {batch['fixed']:.2f} s, and {batch['each']:.2f} s for each row.")
print(f"A step over one document grows as its length to the {length['exponent']:.2f}.")
print(f"{faults['injected'].sum():,} faults of {len(faults)} kinds, {faults['lost'].sum()} with a loss.")

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

# %% [markdown]
# ## For the report
#
# - What section 6.8 and the headline take: values, and the claims behind sentences. Per other system how many times as
#   fast ours is, and whether the mark was met.

# %%
by = ratios.set_index(["kind", "system", "setting"])
for key in bench.SYSTEMS:
    if key[1] != "ours":
        row = by.loc[key] if key in by.index else None
        results.value(".".join(key), "not measured" if row is None else span(row["ratio"], row["low"], row["high"], 2))
        if key in bench.MARKS:
            results.value(f"mark.{'.'.join(key)}", f"{bench.MARKS[key]:g}")
            results.claim(f"mark met, {', '.join(key)}", row is not None and row["ratio"] >= row["mark"])
loop = ("evaluation", "tutorial", "default")
results.claim("mark not met, evaluation, tutorial, default", by.loc[loop, "ratio"] < bench.MARKS[loop])

# %% [markdown]
# - The machine's products, what an evaluation reaches of them, and what the mark that was not met would need.

# %%
top = made["ceiling"].groupby("dtype")["gflops"].median()
wanted = bench.MARKS[loop] * reached.loc[loop, "gflops"]
results.claim("no room for the mark of the evaluation", wanted > top.max())
results.value("evaluation.loop.gflops", number(reached.loc[loop, "gflops"], 0))
results.value("evaluation.ours.gflops", number(reached.loc[("evaluation", "ours", "default"), "gflops"], 0))
results.value("evaluation.wanted.gflops", number(wanted, 0))
results.value("ceiling.gflops", f"{top.max():.0f} in {top.idxmax()}")
results.value("share", f"{own:.0%}")
results.claim("training reaches its share of the products", own >= 0.6)

# %% [markdown]
# - That the numbers stay the same: bits per byte, and the loss after equal training; then what a step costs.

# %%
results.value("bits.ours", number(bits["ours", "default"], 4))
results.value("bits.loop", number(bits["tutorial", "default"], 4))
results.value("loss.gap", f"{gap.mean():+.2%}")
results.value("loss.worst", f"{gap.abs().max():.2%}")
results.value("loss.seeds", len(gap))
results.claim("the faster step learns the same", gap.abs().max() <= 0.005)
results.value("step.fixed", number(batch["fixed"], 2))
results.value("step.each", number(batch["each"], 2))
results.value("step.exponent", number(length["exponent"], 2))

# %% [markdown]
# - Faults injected and fuzzed inputs.

# %%
fuzzed = faults["fault"].str.startswith("fuzzed")
steps = faults["fault"] == "long run (steps)"  # whose steps are no faults
results.value("faults", f"{faults.loc[~fuzzed & ~steps, 'injected'].sum():,}")
results.value("fuzzed", f"{faults.loc[fuzzed, 'injected'].sum():,}")
results.value("kinds", len(faults))
results.claim("no fault lost anything", faults["lost"].sum() == 0)

# %% [markdown]
# - The table of speeds.

# %%
cells = []
for row in summary.itertuples():
    ratio = "" if np.isnan(row.ratio) else span(row.ratio, row.low, row.high, 2)
    mark = "" if np.isnan(row.mark) else f"{row.mark:g}"
    speed = number(row.tokens_per_second, 0), number(row.peak_gigabytes, 2)
    cells.append([row.kind, row.system, row.setting, *speed, ratio, mark])
header = ["", "system", "setting", "tokens per second", "peak memory, GB", "ours, times as fast", "mark"]
text = (
    f"Medians of {runs} runs and, in brackets, the range of the ratios within a run, on {device}. “Times as fast” is "
    "the median of the runs' ratios. Tokens: targets learned from, targets scored, new tokens. GPT-2 117M's "
    "configuration with random weights."
)
results.markdown("speed", header, cells, text, left=3, scratch=True)

# %% [markdown]
# - The table of faults.

# %%
text = "Faults injected and what was lost: a damaged file, a result off by a bit, an error without a way out."
cells = [[row.fault, f"{row.injected:,}", row.lost] for row in faults.itertuples()]
results.markdown("faults", ["fault", "injected", "lost"], cells, text, scratch=True)
results.save(data={"debian": debian.sha256})
