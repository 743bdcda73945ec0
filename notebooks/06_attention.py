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
# constant-size state can hold, and how good Nystrom's approximation is on a pretrained model's queries and keys.

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
import copy
import inspect
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Code, display

from lib import hub, models, plots, profile, tasks
from lib.explore import attention, costs, scratch
from lib.explore.attention import ATTENTIONS, Attention
from lib.results import Results, by_seed, interval, listed, number, shown

# %% [markdown]
# - The budget: (fast, cpu, full). Text in UTF-8 bytes, lengths in tokens. On a GPU the timings go on to 65,536; on
#   a CPU the quadratic forms take minutes a pass from 16,384 on.

# %%
lengths = (256, 512, 1_024, 2_048, 4_096, 8_192)
budget = profile.budget(
    seeds=((0, 1), (0, 1), (0, 1, 2, 3, 4)),  # the variants lie close together
    train_bytes=(12_000, 400_000, 1_200_000),
    eval_bytes=(4_000, 30_000, 50_000),  # leading held-out text
    n_layer=(1, 4, 4),
    n_embd=(32, 128, 128),
    lengths=((64, 128, 256), lengths, lengths),  # of the timings
    repeats=(2, 3, 5),  # of each timing
    heads_tokens=(64, 512, 512),  # real queries and keys, for Nystrom's error
)
if profile.device().type == "cuda" and profile.name() != "fast":
    budget.lengths += (16_384, 32_768, 65_536)
results = Results("06_attention", seeds=budget.seeds)
NAMES, SOFTMAX = list(ATTENTIONS), "softmax_sdpa"

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
for function in (attention.kernel, attention.nystrom_naive):
    display(Code(inspect.getsource(function), language="python"))

# %% [markdown]
# - They enter through transformers' AttentionInterface: one name in a config, no copied model file, and the same
#   name works on a pretrained model (`use_attention`). A new variant is one function and one line of the registry.

# %%
for function in (attention.Attention, attention.use_attention):
    display(Code(inspect.getsource(function), language="python"))

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
    ax.set_title(name, fontsize=8.5)
    ax.set_axis_off()
text = "Attention weights of each variant for the same random queries (rows) and keys (columns), 32 tokens."
results.figure(figure, "06_weights", text, scratch=True)

# %% [markdown]
# ## Quality at an equal budget
#
# - One thing changes, the attention. Text, order, seeds, steps, learning rate and all other weights are equal;
#   positions are RoPE in all. `softmax` is trained as `softmax_sdpa`, the same function by the fused kernel (a test
#   holds outputs and gradients equal). Held-out windows of the trained length slide by half. A caption's training
#   tokens are the mean over runs, rounded: seeds draw other documents and differ by a step.

# %%
texts = scratch.documents("debian", "test", budget.eval_bytes)
shared = {"train_bytes": budget.train_bytes, "n_layer": budget.n_layer, "n_embd": budget.n_embd}


@cache
def runs() -> list[scratch.Trained]:
    return scratch.train_all(
        [scratch.Recipe(seed=s, attention=name, position="rope", **shared) for s in budget.seeds for name in NAMES[1:]]
    )


def measure(run: scratch.Trained) -> dict:
    r, length = run.recipe, run.recipe.train_length
    score = scratch.score_stream(run.model, run.encoding, texts, length, length // 2)
    row = {"attention": r.attention, "position": r.position, "seed": r.seed, "bits_per_byte": score.bits_per_byte}
    return row | {key: run.summary[key] for key in ("tokens", "parameters")}


quality = results.table("quality", lambda: [measure(run) for run in runs()])
tokens = int(quality["tokens"].mean().round(-3))
figure = plots.dots(
    quality, "bits_per_byte", "attention", titles={None: "debian"}, xlabel="bits per byte (lower is better)"
)
text = "Small GPT-2s trained from scratch on debian, one attention each. Dots: seeds; bar: 95 % t interval."
results.figure(figure, "06_quality", text, tokens=tokens, scratch=True)

# %% [markdown]
# - Where in a row of 256 tokens the difference arises: bits per token by how many tokens were seen, the same text in
#   every step. A line that goes on falling uses the longer context; one that rises is disturbed by it.

# %%
by_position = results.table("loss_by_position", lambda: scratch.loss_by_position(runs(), texts, 256))
look = {"logx": False, "xlabel": "tokens seen before", "ylabel": "bits per token"}
figure = plots.lines(by_position, "seen", "bits_per_token", "attention", **look)
results.figure(figure, "06_loss_by_position", "Loss by position inside a row.", tokens=tokens, scratch=True)

# %% [markdown]
# - The same with GPT-2's learned positions, one seed: at this budget the position table is still being learned and
#   decides more than the attention does. Kept as a negative result, and the reason for RoPE above.


# %%
def learned_positions() -> list[dict]:
    recipes = [scratch.Recipe(seed=0, attention=name, **shared) for name in (SOFTMAX, "linear")]
    return [measure(run) for run in scratch.train_all(recipes)]


results.table("learned_positions", learned_positions).round(3)

# %% [markdown]
# ## Does any see the future?
#
# - Change all tokens after t: outputs up to t must stay. On the trained models, whole rows, rows with padding on
#   the left and on the right, around the edges of chunks, windows and segments. 0 is what causal means.


# %%
def leaks() -> list[dict]:
    first = {run.recipe.attention: run.model for run in runs() if run.recipe.seed == budget.seeds[0]}
    first = {"softmax": attention.use_attention(copy.deepcopy(first[SOFTMAX]), "softmax")} | first
    return [{"attention": name, "max_difference": costs.leak(model, 150)} for name, model in first.items()]


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
    model, rows = copy.deepcopy(runs()[0].model), []
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
# - Softmax keeps everything and finds it, but has no way to prefer the newer; the delta rule erases before it writes,
#   until more keys are stored than a head has dimensions (64).

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
look = {"panel": "task", "xlabel": "pairs written", "ylabel": "share retrieved"}
figure = plots.lines(recall, "pairs", "accuracy", "attention", **look)
text = f"Associative recall in one head of {costs.HEAD_DIM} dimensions, random keys and values."
results.figure(figure, "06_recall", text, scratch=True)

# %% [markdown]
# ## Time and memory against length
#
# - One attention operation, 4 heads of 64, batch 1, float32; the variants take turns, medians. On a log-log
#   plot a slope of 2 is quadratic, 1 is linear. Peak memory is what the pass adds.

# %%
scaling = results.table("scaling", lambda: costs.scaling(NAMES, budget.lengths, budget.repeats))
device = results.provenance()["device"]
look = {"panel": "pass", "logy": True, "xlabel": "tokens"}
figure = plots.lines(scaling, "length", "milliseconds", "attention", ylabel="milliseconds", **look)
text = f"Time of one attention operation, medians of {budget.repeats}, on {device}."
results.figure(figure, "06_scaling", text, scratch=True)

# %% [markdown]
# - The same passes in memory; below a megabyte nothing can be told from noise.

# %%
measurable = scaling[scaling["peak_megabytes"] > 1]
if measurable.empty:
    print("No figure of memory: at these lengths no pass adds a megabyte that this machine could measure.")
else:
    figure = plots.lines(measurable, "length", "peak_megabytes", "attention", ylabel="peak megabytes", **look)
    text = f"Peak memory of one attention operation above its inputs, on {device}."
    results.figure(figure, "06_memory", text, scratch=True)

# %% [markdown]
# - Fitted exponents over the three longest lengths (memory: of those with more than a megabyte; nan: fewer than two).
# - From which length on each is faster than softmax (both passes), against the naive form and against the fused kernel
#   (nan: not within the lengths measured).


# %%
def exponent(df: pd.DataFrame, value: str) -> float:
    """The slope of log `value` against log length over the three longest: 2 is quadratic, 1 linear, nan of one."""
    logs = np.log(df.sort_values("length").tail(3)[["length", value]])
    return float(np.polyfit(logs["length"], logs[value], 1)[0]) if len(logs) > 1 else float("nan")


def fits() -> list[dict]:
    rows = []
    for name, own in scaling.groupby("attention", sort=False):
        row = {"attention": name}
        for kind in costs.PASSES:
            passes = own[own["pass"] == kind]
            row[f"time_exponent_{kind}"] = exponent(passes, "milliseconds")
            row[f"memory_exponent_{kind}"] = exponent(passes[passes["peak_megabytes"] > 1], "peak_megabytes")
        for against in ("softmax", SOFTMAX):
            start = float("nan") if name == against else costs.crossover(scaling, name, against)
            row[f"faster_than_{against}_from"] = start
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
figure = plots.lines(decoding, "context", "milliseconds", "attention", **look)
results.figure(
    figure, "06_decoding", f"One token of one attention operation after a context, on {device}.", scratch=True
)
decoding.pivot(index="context", columns="attention", values="state_kilobytes").round(0)

# %% [markdown]
# ## Nystrom on a pretrained model
#
# - Real queries, keys and values of every layer, one text. `paper`: the encoder's form against softmax without a
#   mask. `causal`: ours against causal softmax. `near_only`: ours without its approximated part.


# %%
def nystrom_errors(q, k, v, scale, landmarks: int) -> dict[str, float]:
    """Relative errors |approximation - softmax attention| / |softmax attention| of one layer's outputs."""
    length = q.shape[2]
    segment = -(-(length - 1) // landmarks)
    block = (torch.arange(length, device=q.device) - 1) // segment  # the first token stands alone
    everything = torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device)
    own = ((block[:, None] == block) | (block == -1)) & everything.tril()
    whole, causal = attention.softmax(q, k, v, scale, everything), attention.softmax(q, k, v, scale)
    forms = {
        "paper": (nystromformer(q, k, v, scale, landmarks), whole),
        "causal": (attention.nystrom(q, k, v, scale, segment=segment), causal),
        "near_only": (attention.softmax(q, k, v, scale, own), causal),
    }
    return {form: float((got - exact).norm() / exact.norm()) for form, (got, exact) in forms.items()}


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
    torch.testing.assert_close(
        model(ids).logits, own, atol=1e-3 * float(own.abs().max()), rtol=0
    )  # and still is itself
    model.set_attn_implementation(before)
    del ATTENTIONS["recording"]
    return heads


# %% [markdown]
# - The error against the number of landmarks: 1 means an output no nearer to the model's own than 0 would be.


# %%
def nystrom_rows() -> list[dict]:
    try:
        results.base = models.load_base()
    except hub.Unavailable as reason:
        print(f"Skipped: {reason}")
        return []
    base = results.base
    ids = torch.tensor([base.tokenizer("\n\n".join(texts)).input_ids[: budget.heads_tokens]])
    return [
        {"layer": layer, "form": form, "landmarks": m, "error": error}
        for layer, heads in enumerate(real_heads(base.model, ids.to(base.model.device)))
        for m in (4, 8, 16, 32, 64, 128)
        if m <= budget.heads_tokens // 4
        for form, error in nystrom_errors(*heads, m).items()
    ]


errors = results.table("nystrom_error", nystrom_rows)
if len(errors):
    by_layer = errors.rename(columns={"layer": "seed"})  # the band is over layers here
    figure = plots.lines(by_layer, "landmarks", "error", "form", logy=True, ylabel="relative error of the output")
    text = f"Nystrom's error on {budget.heads_tokens} tokens of debian text; line: mean over layers, band: all layers."
    results.figure(figure, "06_nystrom_error", text)

# %% [markdown]
# ## What we saw

# %%
wide = by_seed(quality, "attention")
against = {name: wide[name] - wide[SOFTMAX] for name in wide.columns.drop(SOFTMAX)}
for name, gap in against.items():
    print(f"{name:10} {wide[name].mean():.3f} bits per byte; to softmax {interval(gap, sign=True)}, by seed")
times = decoding.pivot(index="context", columns="attention", values="milliseconds")[names]
slower = times.iloc[-1] / times.iloc[0]
print(f"Decoding, {times.index[-1]:,} against {times.index[0]:,} tokens before:", slower.round(1).to_dict())
if len(errors):
    mean_error = errors.groupby(["form", "landmarks"])["error"].mean().unstack("form")
    print("Nystrom's error, mean over layers:", mean_error.round(2).to_dict("index"))

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

# %% [markdown]
# ## For the report
#
# - The table of section 6.3: quality, and how time grows.

# %%
longest, fit, rows = scaling["length"].max(), fitted.set_index("attention"), []
power, faster = fit["time_exponent_forward+backward"], fit[f"faster_than_{SOFTMAX}_from"]
for name in wide:
    start = f"{faster[name]:,.0f} tokens" if faster[name] == faster[name] else f"not up to {longest:,}"
    gap = interval(against[name], sign=True) if name in against else ""
    rows.append([f"`{name}`", interval(wide[name]), gap, number(power[name], 2), start if name in against else ""])
text = (
    f"Held-out bits per byte after {tokens:,} training tokens; “time exponent” is that of the length, forward and "
    f"backward, on {device}; mean, 95 % t interval."
)
header = ["attention", "bits per byte", "minus softmax, by seed", "time exponent", "faster from"]
results.markdown("quality", header, rows, text, scratch=True)

# %% [markdown]
# - Values of its sentences, and a claim per sentence that hangs on them. Quality first: who is ahead of softmax, and
#   the order of three that others published.

# %%
results.value("seeds", f"{len(budget.seeds)} seed{'s' * (len(budget.seeds) > 1)}")
told = shown(against)  # corrected for the number of mechanisms compared
for side, name in ((-1, "ahead"), (0, "level"), (1, "behind")):
    results.value(name, listed([a for a in told if told[a] == side], code=True))
order = list(wide.mean()[[SOFTMAX, "delta", "linear"]].sort_values().index)
results.value("order", " < ".join(f"`{name}`" for name in order))
results.value("linear.minus_delta", interval(wide["linear"] - wide["delta"], sign=True))
results.claim("softmax, delta and linear in the published order", order == [SOFTMAX, "delta", "linear"])
results.claim("the window is not behind softmax", told["window"] <= 0)

# %% [markdown]
# - Recall at half of the most pairs, where the delta rule has as many keys as a head has dimensions.

# %%
pairs = recall["pairs"].max() // 2
asked = recall[(recall["pairs"] == pairs) & (recall["task"] == "recall")]
results.value("recall.pairs", pairs)
for name, part in asked.groupby("attention")["accuracy"]:
    results.value(f"recall.{name}", interval(part, 2, top=1))
    results.value(f"recall.{name}.percent", f"{part.mean():.0%}")
retrieved = by_seed(asked, "attention", "accuracy")
results.claim("delta retrieves more than linear", shown(retrieved["delta"] - retrieved["linear"]) > 0)

# %% [markdown]
# - Cost: decoding at the longest context over that at the shortest, and how time grows with length.

# %%
results.value("decoding.short", f"{times.index[0]:,}")
results.value("decoding.long", f"{times.index[-1]:,}")
for name, ratio in slower.items():
    results.value(f"decoding.{name}", number(ratio, 1))
for name in (SOFTMAX, "linear"):
    results.value(f"exponent.{name}", number(power[name], 2))
results.value("longest", f"{longest:,}")
results.value("never_faster", listed([name for name in against if faster[name] != faster[name]], code=True))
results.claim("Nystrom's time grows faster than softmax's", power["nystrom"] > power[SOFTMAX])
results.claim("linear time grows more slowly than softmax's", power["linear"] < power[SOFTMAX])

# %% [markdown]
# - Causality: the largest leak of all mechanisms, and what the two controls leak.

# %%
results.value("leak", f"{leak['max_difference'].max():.0e}" if leak["max_difference"].any() else 0)
results.value("leak.mechanisms", len(leak))
for row in controls.itertuples():
    results.value(f"leak.{row.attention.split()[0]}", number(row.max_difference, 1))
results.claim("no attention sees the future", leak["max_difference"].max() < 1e-3)
results.claim("the leak test finds both controls", controls["max_difference"].min() > 0.1)

# %% [markdown]
# - Nystrom on a pretrained model. Above a relative error of 0.1 the rest of a model has not seen the like.

# %%
USABLE = 0.1
results.value("nystrom.usable", USABLE)
results.value("nystrom.model", results.provenance()["base_model"])
for form in ("causal", "near_only"):
    by_landmarks = (
        errors[errors["form"] == form].groupby("landmarks")["error"].mean() if len(errors) else pd.Series([None])
    )
    for what, value in (("least", by_landmarks.min()), ("most", by_landmarks.max())):
        results.value(f"nystrom.{form}.{what}", number(value, 2) if len(errors) else "not measured")
usable = len(errors) and errors[errors["form"] == "causal"].groupby("landmarks")["error"].mean().min() <= USABLE
results.claim("Nystrom's error is too large at every number of landmarks", len(errors) and not usable)

# %%
results.save(data={"debian": tasks.load_task("debian").sha256})

# %% [markdown]
# ## Sources
#
# - Softmax: Vaswani et al. 2017, arXiv:1706.03762; fused: Dao et al. 2022, arXiv:2205.14135. Window: Child et al. 2019,
#   arXiv:1904.10509. Linear: Katharopoulos et al. 2020, arXiv:2006.16236. Performer: Choromanski et al. 2021,
#   arXiv:2009.14794. Delta rule: Schlag et al. 2021, arXiv:2102.11174; chunked: Yang et al. 2024,
#   arXiv:2406.06484. Nystromformer: Xiong et al. 2021, arXiv:2102.03902.
