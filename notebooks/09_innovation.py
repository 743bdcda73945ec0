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
# # 09 Three experiments of our own
#
# 1. **Model**: a pretrained model's softmax attention turned into linear attention, layer by layer.
# 2. **Algorithm**: what fine-tuning gains on a task against what it forgets, for seven ways to do it.
# 3. **Benchmark**: how much each common evaluation mistake changes a ranking, and a function that finds them.
#
# Each has a hypothesis, a method, a control and a result; a negative result stays.

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

from lib import plots
from lib.explore import audit, continual, convert, findings, frontier, hybrid, innovation_plots
from lib import profile, results, tasks
from lib.explore import recurrent, traps
from lib.metrics import mean_interval
from lib.models import load_base

started, budget = results.start(), profile.current().innovation
base, task = load_base(), tasks.load_task("debian")
provenance = results.provenance(base, budget.seeds)

# %% [markdown]
# # 1 Model: from softmax to linear attention
#
# ## The principle
#
# Softmax attention keeps every key and value, so a token costs more the longer the text. Linear attention replaces
# $\exp(q_t \cdot k_j / \sqrt{D})$ by $\phi(q_t) \cdot \phi(k_j)$, whose sums $S_t = \sum_{j \le t} \phi(k_j) v_j^\top$
# and $z_t = \sum_{j \le t} \phi(k_j)$ have one size for ever. With a softmax window of $w$ tokens in front:
#
# $$o_t = \frac{\gamma \sum_{j > t - w} e^{s_{tj} - \max s_t} v_j + \phi(q_t) \sum_{j \le t - w} \phi(k_j) v_j^\top}
# {\gamma \sum_{j > t - w} e^{s_{tj} - \max s_t} + \phi(q_t) \cdot \sum_{j \le t - w} \phi(k_j)}, \qquad
# \phi(x) = [\mathrm{softmax}(x W), \mathrm{softmax}(-x W)]$$
#
# | form | near tokens | far tokens | learned before fine-tuning |
# |--|--|--|--|
# | `linear` | $\phi$ | $\phi$ | $W$ of queries and keys per head |
# | `linear+window` | softmax | $\phi$ | $W$, and $\gamma$ per head |
# | `window` (control) | softmax | nothing | nothing |
#
# **Hypothesis.** With feature maps that are matched to each layer's outputs first, and a short fine-tuning, part of the
# layers can be converted at a small cost in bits per byte; some layers cost far more than others. **Controls.** The
# same fine-tuning of the unconverted model; the conversion without matching; the window without its linear part.

# %% [markdown]
# - The change: the feature map, and the recurrent step that decoding runs. `lib/explore/hybrid.py` has the form for whole
#   texts beside it; `tests/test_hybrid.py` holds both against a naive one, in outputs and gradients, and checks that
#   no token sees the future, in a GPT-2 and in a Llama with grouped-query attention.

# %%
for part in (hybrid.FeatureMaps, hybrid.hybrid_step):
    display(Code(inspect.getsource(part), language="python"))

# %% [markdown]
# - The matching: queries, keys and values are those of the unconverted model, so one pass trains all layers at once,
#   and nothing but the feature maps moves.

# %%
for part in (hybrid.attend_matching, convert.match):
    display(Code(inspect.getsource(part), language="python"))

# %% [markdown]
# ## The experiment: which layers can be converted
#
# - Each layer alone, as `linear+window` with matched maps. Damage: bits per byte of validation text above the
#   unconverted model's. `linear` and the control `window` then take the same layers in the same order.

# %%
sizes = {
    "length": budget.row_length,
    "matching_tokens": budget.matching_tokens,
    "tuning_tokens": budget.tuning_tokens,
    "damage_tokens": budget.damage_tokens,
    "eval_tokens": budget.eval_tokens,
}
experiments = []
for seed in budget.seeds:
    both = convert.Experiment(base, task, convert.Conversion("linear+window", seed, **sizes))
    others = [convert.Conversion(form, seed, **sizes) for form in ("linear", "window")]
    experiments += [both, *(convert.Experiment(base, task, o, ranking=both) for o in others)]
damage = pd.concat([e.damage() for e in experiments if e.ranking is e], ignore_index=True)

# %%
layers = damage.groupby(["form", "layer"])[["error_unmatched", "matching_error", "damage"]].mean()
figure = plots.lines(damage, "layer", "damage", "form", logx=False, ylabel="bits per byte above softmax")
text = "Damage of converting one layer alone, by layer; mean and range of seeds. No fine-tuning yet."
path = plots.save_figure(figure, "09_damage", plots.caption(text, provenance, budget.matching_tokens))
layers.round(4)

# %% [markdown]
# ## Quality against the share of converted layers
#
# - The layers that cost least go first. `converted`: matched maps, nothing else moved. `fine_tuned`: all parameters
#   on a little more text; at share 0 that is the control, the same fine-tuning of the unconverted model. Share 0 is
#   softmax whatever the form, and stands in the line of `linear+window`.

# %%
conversion = pd.DataFrame([e.row(**step) for e in experiments for step in e.plan()])
conversion["series"] = conversion["form"].where(conversion["matched"], conversion["form"] + ", unmatched")
ordered = conversion[conversion["order"] == "least_damage"]
ordered.pivot_table(index=["stage", "series"], columns="share", values="bits_per_byte", sort=False).round(3)

# %%
worst = min(
    1.5 * ordered.loc[ordered["stage"] == "fine_tuned", "bits_per_byte"].max(), 1.02 * ordered["bits_per_byte"].max()
)  # what is not fine-tuned may lie far above
figure = plots.lines(
    ordered,
    "share",
    "bits_per_byte",
    "series",
    panel="stage",
    logx=False,
    top=worst,
    xlabel="share of converted layers",
    ylabel="bits per byte (lower is better)",
)
text = (
    f"Test text against the share of layers that were converted, rows of {budget.row_length} tokens; "
    f"matching on {budget.matching_tokens:,} tokens, fine-tuning on {budget.tuning_tokens:,}."
)
path = plots.save_figure(figure, "09_conversion", plots.caption(text, provenance))

# %% [markdown]
# ## Decoding at long context
#
# - The whole model, one more token after many: time, and what has to be kept. Share 0 is the KV cache.

# %%
decoding = recurrent.decoding_table(base, budget.contexts)
long = decoding.melt(["form", "share", "context"], ["milliseconds", "state_kilobytes"], "what")
long["line"] = long["form"] + long["share"].map(" {:.0%}".format)
figure = plots.lines(
    long,
    "context",
    "value",
    "line",
    panel="what",
    sharey=False,
    logy=True,
    xlabel="earlier tokens",
    ylabel="milliseconds a token; kilobytes of state",
)
text = "Decoding one token with the whole model, batch 1: milliseconds, and kilobytes of state (float32)."
path = plots.save_figure(figure, "09_decoding", plots.caption(text, provenance))
conversion = recurrent.with_decoding(conversion.drop(columns="series"), decoding)

# %% [markdown]
# # 2 Algorithm: what is gained and what is forgotten
#
# ## The principle
#
# Fine-tuning moves the weights from $\theta_0$ to $\theta$. Ways to pay less for it in general text:
#
# | method | what it does |
# |--|--|
# | `full` | every weight, by AdamW |
# | `LoRA` | $W = W_0 + B A$ with $B A$ of rank $r$ |
# | `last blocks` | the last quarter of the blocks and the final norm |
# | `L2-SP` | loss $+ \frac{\beta}{2} \lVert \theta - \theta_0 \rVert^2$ |
# | `replay` | a quarter of the tokens is text that the base model itself sampled |
# | `interpolation` | $(1 - \alpha)\,\theta_0 + \alpha\,\theta$, after the training: it costs nothing |
# | `Muon` | orthogonalised momentum for the blocks' matrices instead of AdamW |
#
# **Hypothesis.** Some method forgets less at the same gain than simply stopping on the way. **Control.** That way
# itself: interpolation between before and full fine-tuning, read off at each method's gain, seed by seed.

# %%
for part in (continual.PullToStart, continual.with_replay, continual.interpolate):
    display(Code(inspect.getsource(part), language="python"))

# %% [markdown]
# - One training loop, `lib.train`, with other settings; equal tokens, replayed ones counted. Learning rates are those
#   of notebook 02 and were not tuned for this comparison; Muon's step is scaled so that AdamW's rate serves it.

# %%
table = frontier.table(base, task, frontier.possible(), budget.seeds)
general = frontier.general_measure(table)
if reason := frontier.out_of_reach("wikitext2"):
    print(f"Skipped: {reason}")
print(f"General text: {frontier.GENERAL[general]}.")
summary = frontier.summary(table, general)
summary.round(4)

# %% [markdown]
# - Left and down is better. Filled points are on the front: none is better in both. The dashed line is the control.

# %%
figure = innovation_plots.front(summary, frontier.GENERAL[general])
text = f"Gain against forgetting on {task.name}, {budget.documents} test documents; 95 % t intervals over seeds."
path = plots.save_figure(figure, "09_frontier", plots.caption(text, provenance, budget.frontier_tokens))

# %% [markdown]
# - General text minus the control's at the same gain: below 0 is less forgotten. `seeds` counts those whose gain lies
#   on the control's way at all (nan: none does), `beyond` those that gain more than full fine-tuning, its end.

# %%
against = frontier.against_interpolation(table, general)
against.round(4)

# %% [markdown]
# # 3 Benchmark: what evaluation mistakes do
#
# ## The principle
#
# A ranking of models is what a report is read for. So: rank the same models soundly (bits per byte of held-out text,
# mean over seeds) and with one mistake, and count the pairs that change places. All are small GPT-2s trained here.
#
# | mistake | what it measures instead |
# |--|--|
# | own samples | $\exp$ of the mean nats of text that the model wrote itself |
# | padding counted | the same mean over padded rows, padding included |
# | token perplexity | $\exp(\text{nats} / \text{tokens})$ between models whose tokens differ |
# | overlap | documents that training saw, in some of the models |
# | leaking attention | one pass over the text, with a mask that is off by one |
# | one seed, no interval | an order that other seeds would not give |
#
# **Hypothesis.** Each mistake changes the ranking, not only the level. **Control.** The sound ranking of the same
# models, and of it the pairs that its seeds tell apart (`shown_pairs`): only these can be shown to turn round
# (`shown_flips`). For the leak, the same models scored from prefixes, which a causal model does not notice.

# %%
display(Code(inspect.getsource(traps.padded_perplexity), language="python"))
runs = traps.train_models(budget.seeds)
texts = traps.held_out()
sound = traps.as_frame(runs, lambda run: traps.bits_per_byte(run, texts))
sound.groupby("model", sort=False)["bits_per_byte"].agg(["mean", "std", "count"]).round(3)

# %%
tokens, source = traps.token_perplexity(budget.seeds, texts)
print(f"Token perplexity: {source}.")
values = pd.DataFrame(
    [
        *traps.own_samples(runs, texts),
        *traps.padding_counted(runs, texts),
        *tokens,
        *traps.overlap(runs, budget.seeds),
        *traps.leaking_attention(runs, budget.seeds, texts),
        *traps.one_seed(sound),
    ]
)
unsure = pd.DataFrame([traps.no_interval(sound)])
trap_table = pd.concat([traps.summary(values), unsure], ignore_index=True)
trap_table

# %% [markdown]
# - Rank by the sound measure at the left, by the mistake at the right; what moves is dark.

# %%
figure = innovation_plots.rankings(values)
text = (
    f"Ranks of small GPT-2s trained on {budget.trap_bytes:,} bytes, soundly and with a mistake (1: best). "
    f"Token perplexity: {source}."
)
trap_provenance = results.provenance(None, budget.seeds)
path = plots.save_figure(figure, "09_traps", plots.caption(text, trap_provenance))

# %% [markdown]
# ## The audit
#
# - `audit(rows, protocol)` reads a results table and what is declared about it. Here a table with every mistake:

# %%
display(Code(inspect.getsource(audit.Protocol), language="python"))
bad = traps.as_frame({k: r for k, r in runs.items() if k[1] == budget.seeds[0]}, traps.sample_perplexity)
declared = audit.Protocol(
    "perplexity",
    ("model",),
    text="own samples",
    overlap=len(texts),
    padding_counted=True,
    leak=traps.leaks(budget.seeds),
    claims=(("plain", "one layer"),),
)
for finding in audit.audit(bad.rename(columns={"bits_per_byte": "perplexity"}), declared):
    print(f"- {finding}")

# %% [markdown]
# - And this project's own shipped tables, with what the notebooks declare of them.

# %%
audited = audit.audit_results(audit.shipped_results())
counts = audited.groupby(["notebook", "table", "trap"], sort=False).size().rename("findings")
display(counts.reset_index() if len(counts) else "No results are shipped yet.")
for row in audited[audited["trap"] == "one seed"].itertuples():
    print(f"{row.notebook}, {row.table}: {row.where}: {row.problem} {row.way_out}")

# %%
tables = {
    "conversion": conversion,
    "layer_damage": damage,
    "decoding": decoding,
    "frontier": table,
    "front": summary,
    "against_interpolation": against,
    "traps": trap_table,
    "trap_values": values,
    "audit": audited,
}
path = results.save(
    "09_innovation", tables, base=base, seeds=budget.seeds, data={"debian": task.sha256}, started=started
)

# %% [markdown]
# ## What we saw
#
# The next cells state it from this run's own numbers, with the conditions computed.

# %%
for sentence in findings.conversion_findings(conversion, damage, decoding):
    print(f"- {sentence}")

# %%
for sentence in findings.frontier_findings(table, summary, against, general):
    print(f"- {sentence}")

# %%
for sentence in findings.trap_findings(trap_table):
    print(f"- {sentence}")

# %%
mean, low, high = mean_interval(sound.loc[sound["model"] == "plain", "bits_per_byte"])
print(f"Seeds move the plain small model by {(high - low) / 2:.3f} bits per byte around {mean:.3f} (95 % t).")

# %% [markdown]
# ## What it does not show
#
# - Conversion: matching and fine-tuning took thousands of tokens where the papers take tens of millions, so the cost at
#   high shares is an upper bound for this method, not its limit. Debian documents are short: what lies further back
#   than a document cannot help, and a window loses little there. Recall over long distances was not tested.
# - Decoding times are those of plain PyTorch at batch 1, without kernels of either side; a context that is not longer
#   than the state saves nothing.
# - Frontier: one task, one budget of a few steps, rates not tuned per method, one strength of each. A method that lies
#   behind the interpolation here may lie before it elsewhere. Intervals are over seeds, on the same few texts; other
#   texts would move them further. Replay is of the base model's own samples, so that without WikiText-2 the general
#   measure is the replayed kind of text, which favours replay. What a text from the base model costs beyond the base
#   model's own bits estimates KL(base || tuned) on short samples, no more. L2-SP's pull goes through AdamW, which
#   scales it with the rest of the gradient; the paper used SGD.
# - Traps: small models, chosen by us, in a number that makes some flips likely; the same mistake may leave another
#   ranking alone, and a ranking that it left alone here is no proof that it is harmless: the level is wrong anyway.
# - `audit` believes what is declared. It finds what rows contradict, not what nobody wrote down.
#
# ## Sources
#
# - Linear attention: Katharopoulos et al. 2020, arXiv:2006.16236. Conversion: Kasai et al. 2021 (T2R),
#   arXiv:2103.13076; Zhang et al. 2024 (Hedgehog), arXiv:2402.04347; Zhang et al. 2024 (LoLCATs), arXiv:2410.10254.
# - LoRA: Hu et al. 2021, arXiv:2106.09685. L2-SP: Li et al. 2018, arXiv:1802.01483. Replay: Rolnick et al. 2019,
#   arXiv:1811.11682; of a model's own samples: Sun et al. 2020, arXiv:1909.03329, Huang et al. 2024, arXiv:2403.01244.
#   WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903. Muon: Jordan et al. 2024; its scale: Liu et al. 2025,
#   arXiv:2502.16982.
# - Traps: Gao et al. 2020 (bits per byte), arXiv:2101.00027; Holtzman et al. 2020 (samples of low entropy),
#   arXiv:1904.09751; Sainz et al. 2023 (contamination), arXiv:2310.18018; Dodge et al. 2020 (seeds), arXiv:2002.06305.
