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
# and what is left after kills, full disks, cut networks and fuzzed files. `python -m lib bench`: the first part alone.

# %% [markdown]
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
import contextlib, copy, dataclasses, json, math, re, statistics, tempfile, time
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lib import fast, plots, profile, tasks, train
from lib.explore import bench, costs
from lib.hub import quiet
from lib.metrics import bits_per_byte, score_encoded
from lib.models import load_base
from lib.packing import Encoded, document_attention, draw, rows
from lib.results import Results, device_name, kept, listed, number, span
from lib.tasks import encode, head

# %% [markdown]
# - The budgets: (fast, cpu, full). Random weights: speed does not depend on them.

# %%
budget = profile.budget(
    seeds=((0,), (0, 1, 2), (0, 1, 2)),  # of the comparison of what is learned
    product_rows=(128, 512, 512),  # of the matrix products behind the ceiling
    quality_tokens=(4_000, 8_192, 8_192),  # that each of its runs sees
    lengths=((64, 128, 256), (128, 256, 512, 1_024), (128, 256, 512, 1_024)),  # tokens in a document
    batches=((1, 2, 4), (1, 2, 4), (1, 2, 4)),  # rows behind a step
    sizes=((50, 100, 200), (500, 1_000, 2_000, 4_000), (500, 1_000, 2_000, 4_000)),  # documents prepared
    target_tokens=(3_000, 60_000, 60_000),  # that a training to a quality sees at most
    first_look=(2, 40, 40),  # step after which the held-out documents are scored first, then after every `looks`th
    looks=(1, 4, 4),
    looked_at=(4, 32, 32),  # held-out documents
    processes=((2,), (1, 2), (1, 2)),  # that share a training
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
# | number format | float32 products at half of bfloat16's speed | bfloat16 products, float32 weights and sums |

# %% [markdown]
# - The change, in code: the loss whose softmax never exists whole, and whose gradient takes the place of the logits.
# - Dropout's random numbers are drawn by one thread while the others wait: a quarter of them do.

# %%
plots.source(fast._SummedCrossEntropy, fast._Dropped)

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
made = {kind: results.table(kind, lambda kind=kind: bench.compare([kind])[kind]) for kind in bench.SPEED}
ratios = made["ratios"] = results.table("ratios", lambda: bench.ratios(made))
ratios["mark"] = ratios[["kind", "system", "setting"]].apply(tuple, axis=1).map(bench.MARKS)
summary = bench.summary(made)
summary.round(2)

# %% [markdown]
# - Useful tokens are those of targets and their EOS. Dots: runs; bars: 95 % intervals of their means.

# %%
runs = profile.budget(**bench.BUDGET).runs
where = pd.Series({kind: made[kind]["device"].iloc[0] for kind in bench.SPEED})
machines = "; ".join(f"{', '.join(kinds)}: {name}" for name, kinds in where.groupby(where).groups.items())
speeds = pd.concat([made[kind].assign(kind=kind, speed=made[kind][column]) for kind, column in bench.SPEED.items()])
speeds["label"] = speeds["system"] + ", " + speeds["setting"]
titles = dict(zip(bench.SPEED, bench.SPEED, strict=True))
figure = plots.dots(speeds, "speed", "label", "kind", titles, form=",.0f", xlabel="tokens per second")

# %% [markdown]
# ### Time to a quality
#
# - Tokens per second count a step that teaches less as much as one that teaches more. So: seconds until held-out
#   documents cost a target of bits per byte, the pretrained model fine-tuned on `debian`'s documents of at most 128
#   tokens, trl's own 8 a step (ours packs as many in the mean): of any length they would have taken hours on two cores.
#   The same documents, constant rate and weight decay; the rest is each system's.
# - The target is what a pilot, ours with a seed of its own, reaches in 40 steps. The clock runs from the begin of the
#   first step; scoring the held-out documents stops it, on both sides.

# %%
debian = tasks.load_task("debian")
TO_QUALITY = {"learning_rate": 5e-5, "weight_decay": 0.01}
LONGEST, MEAN, A_STEP = 128, 105, 8  # tokens of a document at most and in the mean; documents a step


class Target(bench.Clock):
    """Ends a training at `target` bits per byte of `held_out`; looking is no time."""

    def __init__(self, held_out: list[Encoded], target: float) -> None:
        super().__init__(math.inf)
        self.held_out, self.target, self.bits = held_out, target, math.nan

    def on_step_end(self, args, state, control, model=None, **more):
        super().on_step_end(args, state, control, **more)
        done = len(self.steps) - budget.first_look
        if done < 0 or done % budget.looks:
            return
        began = time.perf_counter()
        self.bits = bits_per_byte(score_encoded(model, self.held_out))
        self.begin += time.perf_counter() - began
        if self.bits <= self.target:
            raise bench.Enough


# %% [markdown]
# - The documents.


# %%
def short_ones(start) -> tasks.Task:
    """`debian` with the documents of at most LONGEST tokens, and as many to validate as are looked at."""
    parts = {}
    for name, most in (("train", None), ("validation", budget.looked_at)):
        lengths = [len(d.input_ids) for d in encode(start.tokenizer, debian[name], start.context)]
        parts[name] = debian[name].select([i for i, n in enumerate(lengths) if n <= LONGEST][:most])
    return debian.replace(**parts)


# %% [markdown]
# - One training to the target; its row says what was reached when the documents ran out first.


# %%
def to_quality(start, task, a_step: int, system: str, setting: str, seed: int, target: float) -> dict:
    clock = Target(encode(start.tokenizer, task["validation"], start.context), target)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.suppress(bench.Enough), quiet():
        if system == "ours":
            own = dict.fromkeys(("pack_length", "batch_tokens"), a_step * MEAN)
            own |= dict.fromkeys(("evaluations", "validation_documents"), 1)
            own |= {"train_tokens": budget.target_tokens, "schedule": "constant", "callbacks": (clock,), "quiet": True}
            with mock.patch.object(profile, "output_root", return_value=Path(folder)):  # the run goes with the folder
                train.finetune(start, task, "full", seed, **TO_QUALITY, **own)
        else:
            function, options, _ = bench.SYSTEMS["training", system, setting]
            options = {**TO_QUALITY, "per_device_train_batch_size": a_step, "seed": seed, **options}
            theirs = dataclasses.replace(start, model=copy.deepcopy(start.model))
            drawn = draw(encode(start.tokenizer, task["train"], start.context), budget.target_tokens, seed)
            function(theirs, drawn, clock, None, folder, lr_scheduler_type="constant", **options)
    row = {"system": system, "setting": setting, "device": device_name(), "seed": seed, "target": target}
    return row | {"seconds": clock.steps[-1][0], "steps": len(clock.steps), "bits_per_byte": clock.bits}


# %% [markdown]
# - Seed by seed the systems take turns, each seed with another one first; a finished seed is kept in data/runs.


# %%
def one_seed(start, task, a_step: int, seed: int, target: float) -> list[dict]:
    keys = [("ours", "default"), ("trl", "default"), ("trl", "best")] if find_spec("trl") else [("ours", "default")]
    out = [to_quality(start, task, a_step, *keys[(seed + i) % len(keys)], seed, target) for i in range(len(keys))]
    for row in out:
        print(" ".join(f"{name} {cell}" for name, cell in row.items()), flush=True)
    return out


def quality_rows(a_step: int) -> list[dict]:
    start, out, path = load_base(), [], profile.output_root() / "data" / "runs" / "to-quality"
    task = short_ones(start)
    target = to_quality(start, task, a_step, "ours", "default", max(budget.seeds) + 1, math.inf)["bits_per_byte"]
    for seed in budget.seeds:
        settings = [start.name, seed, TO_QUALITY, a_step, MEAN, *vars(budget).items(), device_name(), results.commit]
        out += kept(path, settings, lambda seed=seed: {"rows": one_seed(start, task, a_step, seed, target)})["rows"]
    return out


reached_in = results.table("time_to_quality", lambda: quality_rows(A_STEP))
reached_in

# %% [markdown]
# - The first comparison had two documents a step and met neither mark. Our step was then little faster than trl's best:
#   the stand-in's rotary positions leave queries and keys in float32, so that training took torch's slow backward of
#   short documents instead of `fast.causal_attention`'s; GPT-2's own do not. That is mended since, and a step has trl's
#   own number of documents. Both changes came after the marks were missed, so that both comparisons are told.
# - Equal numbers: bits per byte of the same documents, and how they differ from the float32 loop's.

# %%
first_try = results.table("time_to_quality_two", lambda: quality_rows(2))
display(first_try.pivot_table("seconds", "seed", ["system", "setting"]))
bits = made["evaluation"].groupby(["system", "setting"])["bits_per_byte"].mean()
(bits - bits["tutorial", "default"]).rename("difference").to_frame().assign(bits_per_byte=bits)

# %% [markdown]
# - How much of the machine is used: model FLOP of a training or an evaluation against the faster matrix products of
#   the same run (MFU, Chowdhery et al. 2022, appendix B). Padding, recomputation and needless logits are no model FLOP.
# - Forward 2 FLOP per weight and token, backward twice that (Kaplan et al. 2020, section 2.1); the output layer for
#   targets alone; attention's two products over half a document on average.

# %%
shape = profile.budget(**bench.BUDGET)
base = None if results.anew == ["stored"] else bench.random_base()


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
# - The ceiling: the products of one training step alone, in both number formats.


# %%
def seconds_of(work) -> float:
    return statistics.median([costs.seconds(work) for _ in range(4)][1:])


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
        out.append({"dtype": dtype, "device": device_name(), "run": run, "gflops": flop / seconds / 1e9})
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
# - The plain step.


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


def with_dropout(model: nn.Module, p: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model.to(profile.device()).train()


# %% [markdown]
# - Both from the same weights, for each seed's draw of documents. The mark, half a percent, was set with dropout on and
#   missed then: 0.70 % in one seed of three. Dropout's random numbers differ between the two, so a control was missing:
#   the plain loop itself, with other draws (`plain again`). With dropout off nothing but arithmetic differs.


# %%
def trained(system: str, steps, seed: int, p: float) -> nn.Module:
    torch.manual_seed(seed + 1_000 * (system == "plain again"))
    if system == "ours":
        quick = Stepper(with_dropout(fast.fuse_dropout(copy.deepcopy(base.model)), p), bench.LEARNING_RATE)
        for step in steps:
            quick([step])
        return quick.model
    own = {"dtype": torch.float32, "use_safetensors": True}
    slow = with_dropout(AutoModelForCausalLM.from_pretrained(bench.model_folder(), **own), p)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=bench.LEARNING_RATE)
    for step in steps:
        plain_step(slow, optimizer, step)
    return slow


# %% [markdown]
# - The held-out loss of each, and by how much it is above the plain loop's.


# %%
def learned(p: float, systems=("plain", "ours")) -> list[dict]:
    out, documents = [], encode(base.tokenizer, debian["train"], base.context)
    held_out = encode(base.tokenizer, head(debian["validation"], 32), base.context)
    for seed in budget.seeds:
        steps = rows(draw(documents, budget.quality_tokens, seed), 2_048, 1)
        for system in systems:
            scores = score_encoded(trained(system, steps, seed, p), held_out)
            loss = scores["nats"].sum() / scores["tokens"].sum()
            out.append({"system": system, "seed": seed, "steps": len(steps), "held_out_loss": loss})
            print(f"dropout {p}, {system}, seed {seed}: {loss:.4f}", flush=True)
    return out


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return pd.DataFrame(columns=["plain again", "ours"], dtype=float)
    wide = table.pivot(index="seed", columns="system", values="held_out_loss")
    return wide.drop(columns="plain").div(wide["plain"], axis=0) - 1


# %% [markdown]
# - In percent; with dropout on where that was measured.

# %%
gap = gaps(results.table("quality", lambda: learned(0.0)))["ours"]
with_it = results.table("quality_dropout", lambda: learned(0.1, ("plain", "plain again", "ours")), optional=True)
dropped = gaps(with_it)
display(gap.to_frame("dropout off, %").mul(100).round(3))
display(dropped.mul(100).round(3)) if len(with_it) else print(results.not_yet)

# %% [markdown]
# ## Scaling
#
# - Against the documents (tokenising and packing), a document's length, the rows behind a step. First what is measured.


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
#   gloo. Windows has the one alone, since its torch lacks the libuv that the launcher asks for.


# %%
def by_processes(threads: int = 2) -> list[tuple]:
    launch = ("-m", "accelerate.commands.launch", "--config_file", "lib/accelerate_ddp.yaml")
    settings = {"train_tokens": budget.quality_tokens, "pack_length": 640, "batch_tokens": 1_280, "evaluations": 1}
    settings |= {"validation_documents": 8, "learning_rate": bench.LEARNING_RATE}
    options = [part for name, number in settings.items() for part in ("--set", f"{name}={number}")]
    out, counts = [], [n for n in budget.processes if n == 1 or os.name != "nt"]
    for n, how in ((n, launch if n > 1 else ()) for n in counts):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
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


columns = ["axis", "value", "measure", "result"]
scaling = results.table("scaling", lambda: pd.DataFrame(grown() + by_processes(), columns=columns))

# %% [markdown]
# - Per axis the exponent (slope of the logarithms), and for the batch the seconds of a step that no row explains (the
#   straight line's value at 0) and of each row. Last, one process beside two.


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
MEASURED = {"step_seconds": "seconds of a step", "added_megabytes": "megabytes added"}
context = scaling[scaling["axis"] == "context"].replace({"measure": MEASURED})
axes = {"panel": "measure", "logy": True, "xlabel": "tokens in a document", "ylabel": " ", "sharey": False}
figure = plots.lines(context, "value", "result", "measure", **axes)
display(fits.round(3))
scaling[scaling["axis"] == "processes"].pivot(index="value", columns="measure", values="result").round(2)

# %% [markdown]
# - What bounds each: where its seconds go, by torch's profiler, operation by operation. `products` and `output layer`,
#   whose product is float32 but in training, are the most that its share of the machine's products can become; Python
#   is what no operation accounts for. A table without `output layer` counts it among the products.

# %%
GROUPS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product"),
    "optimizer": ("aten::_fused_adamw", "aten::_foreach"),
    "softmax and loss": ("aten::_log_softmax", "aten::_softmax", "aten::nll", "aten::argmax", "_SummedCross"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::index", "aten::where", "aten::empty", "aten::fill"),
}


def parts(kind: str, work) -> list[dict]:
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        began = time.perf_counter()
        work()
        whole = time.perf_counter() - began
    found = dict.fromkeys(("output layer", *GROUPS, "norms, GELU, sums, dropout"), 0.0)
    for op in seen.key_averages(group_by_input_shape=True):
        name = next((name for name, starts in GROUPS.items() if op.key.startswith(starts)), list(found)[-1])
        if name == "products" and base.model.config.vocab_size in np.concatenate([[0], *op.input_shapes]):
            name = "output layer"
        found[name] += op.self_cpu_time_total / 1e6
    found["Python"] = whole - sum(found.values())
    return [{"kind": kind, "part": part, "seconds": s, "share": s / whole} for part, s in found.items()]


# %% [markdown]
# - Of a training step, an evaluation and a generation.


# %%
def profile_rows() -> list[dict]:
    step, training = Stepper(copy.deepcopy(base.model)), [random_documents(shape.padded // 4, 4 * shape.padded)]
    held_out = encode(base.tokenizer, head(debian["test"], shape.documents // 8), 1_024)
    prompts = [row["prompt"] for row in head(debian["test"], 32)]
    write = bench.OURS["generation"](base)
    out = parts("training", lambda: step(training)) + parts("evaluation", lambda: score_encoded(base.model, held_out))
    return [{**row, "device": device_name()} for row in out + parts("generation", lambda: write(prompts, 24))]


spent = results.table("profile", profile_rows)
spent.pivot(index="part", columns="kind", values="share").round(2)

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
# - A mark is a factor that was set before measuring: `bench.MARKS`; 2 and 1.3 for the time to a quality; 80 % of the
#   machine's products (60 % at first) for a training and an evaluation; half a percent for the held-out loss.
# - Faults: no loss among n leaves a share of losses of up to 1 - 0.025^(1/n) open (Clopper and Pearson 1934). The steps
#   of the long run are no faults: nothing disturbs them, their memory is watched.

# %%
QUALITY_MARKS = {"default": 2.0, "best": 1.3}


def over(table: pd.DataFrame, column: str = "seconds") -> dict[str, pd.Series]:
    """Setting of trl -> its seconds or steps over ours, by seed; empty without trl."""
    wide = table.pivot_table(column, "seed", ["system", "setting"])
    return {s: wide["trl", s] / wide["ours", "default"] for s in QUALITY_MARKS if ("trl", s) in wide}


to_target, steps_to, first_ratio = over(reached_in), over(reached_in, "steps"), over(first_try)
own = reached.loc[("training", "ours", "default"), "share"]
display(ratios.assign(met=ratios["ratio"] >= ratios["mark"]).dropna(subset=["mark"]).round(2))
for setting, ratio in to_target.items():
    print(f"To the target trl ({setting}) takes {ratio.round(2).tolist()} times as long, by seed.")
    print(f"In steps {steps_to[setting].round(2).tolist()} times as many.")
print(f"Training reaches {own:.0%} of the machine's products; the losses lie at most {gap.abs().max():.2%} apart.")
if len(dropped):
    print(f"With dropout on, in percent: {dropped.mul(100).round(2).to_dict('list')}")
undisturbed, fuzzed = faults["fault"] == "long run (steps)", faults["fault"].str.startswith("fuzzed")
faults[~undisturbed].assign(at_most=(1 - 0.025 ** (1 / faults["injected"])).map("{:.2%}".format))

# %% [markdown]
# ## What it does not show
#
# - Two processors, one or two cores, one model size. Nothing here was measured on a GPU; estimates are no measurement.
# - In tokens per second the learning rate suits random weights. The time to a quality is one target on short documents;
#   on longer ones, which need more padding, it may differ.
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
# - What section 6.8 and the headline take: values, and the claims behind sentences. Per other system with a mark how
#   many times as fast ours is, and whether the mark was met.

# %%
by = ratios.set_index(["kind", "system", "setting"]).reindex([*bench.MARKS])  # nan: not measured
for key, row in by.iterrows():
    results.value(".".join(key), span(row["ratio"], row["low"], row["high"], 2))
    results.claim(f"mark met, {', '.join(key)}", row["ratio"] >= row["mark"])
    results.claim(f"mark not met, {', '.join(key)}", row["ratio"] < row["mark"])
results.claim("time to quality measured", len(to_target) == 2)
for setting, ratio in to_target.items():
    results.value(f"to_target.{setting}", span(ratio.median(), ratio.min(), ratio.max(), 2))
    results.value(f"to_target.mark.{setting}", f"{QUALITY_MARKS[setting]:g}")
    results.claim(f"time to quality, mark met, {setting}", ratio.median() >= QUALITY_MARKS[setting])
    results.claim(f"time to quality, mark not met, {setting}", ratio.median() < QUALITY_MARKS[setting])
for setting, ratio in first_ratio.items():
    results.value(f"first.{setting}", span(ratio.median(), ratio.min(), ratio.max(), 2))
    results.claim(f"the first comparison missed its mark, {setting}", ratio.median() < QUALITY_MARKS[setting])
late, best = first_try[first_try["bits_per_byte"] > first_try["target"]], {"default": "", "best": " at its best"}
unfinished = [f"{row.system}{best[row.setting]} (seed {row.seed})" for row in late.itertuples()]
results.value("first.late", listed(unfinished))

# %% [markdown]
# - What a training and an evaluation reach of the machine's products.

# %%
for kind in ("training", "evaluation"):
    share = reached.loc[(kind, "ours", "default"), "share"]
    results.value(f"share.{kind}", f"{share:.0%}")
    results.claim(f"{kind} stays below 80 % of the products", share < 0.8)
results.value("retired", f"{5 * reached.loc[('evaluation', 'tutorial', 'default'), 'share']:.0%}")
results.value("bits.ours", number(bits["ours", "default"], 4))
results.value("bits.loop", number(bits["tutorial", "default"], 4))
results.value("loss.worst", f"{gap.abs().max():.2%}")
results.value("loss.seeds", len(gap))
results.claim("the faster step learns the same", gap.abs().max() <= 0.005)
results.claim("with dropout not measured again", dropped.empty)
results.value("faults", f"{faults.loc[~fuzzed & ~undisturbed, 'injected'].sum():,}")
results.value("fuzzed", f"{faults.loc[fuzzed, 'injected'].sum():,}")
results.value("kinds", (~undisturbed & ~fuzzed).sum())
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
header = ["", "system", "setting", "tokens per second", "peak memory, GB", "ours, times as fast", "target"]
text = (
    f"Tokens per second of each system. Medians of {runs} runs, of the ratios too, which are taken run by run (so not "
    f"ratios of medians), and in brackets their range ({machines}). Tokens: targets learned from, targets scored, new "
    "tokens. GPT-2 117M's configuration with random weights. “Default” is as documented, “best” the fastest setting "
    "found (trl: bfloat16, no checkpointing, rows grouped by length), “target” our own mark. “Tutorial”, training: "
    "transformers' Trainer, batch 2, every document padded to 512 tokens, float32; evaluation: one document at a time."
)
results.markdown("speed", header, cells, text, left=3, seeds=(), scratch=True)

# %% [markdown]
# - Each training to the target.

# %%
if to_target:
    cells = []
    for row in reached_in.sort_values(["system", "setting", "seed"]).itertuples():
        reached_it = "yes" if row.bits_per_byte <= row.target else "no: out of documents"
        numbers = row.seed, number(row.seconds, 0), row.steps, number(row.bits_per_byte, 4), reached_it
        cells.append([row.system, row.setting, *numbers])
    text = f"Each training until {budget.looked_at} held-out documents cost {reached_in['target'].iloc[0]:.4f} bits "
    text += f"per byte, looked at from step {budget.first_look} on, every {budget.looks} steps, which is not timed: "
    text += f"the stand-in on debian's documents of at most {LONGEST} tokens, {A_STEP} a step, rate "
    text += f"{TO_QUALITY['learning_rate']:g}; {reached_in['device'].iloc[0]}."
    header = ["system", "setting", "seed", "seconds", "steps", "bits per byte", "reached"]
    results.markdown("time_to_quality", header, cells, text, left=2, seeds=())

results.save(data={"debian": debian.sha256})
