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
# # 03 Evaluate, before and after
#
# The same held-out documents, the same functions, before and after fine-tuning. What got better, by how much,
# how sure that is, and what was lost on the way.

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
import pandas as pd
from IPython.display import display

from lib import evaluate, people, plots, profile, results, tasks, train
from lib.models import load_base

started = results.start()
budget = profile.current()
base = load_base()
task = tasks.load_task()

# %% [markdown]
# ## Measure
#
# - The base model first, then each run of notebook 02: loaded if it is there, trained if not.
# - Per model: nats of the held-out targets, one text per test prompt, one more text by sampling; for the first
#   seed also general text that nobody fine-tuned on. The test split was not looked at before this notebook.

# %%
measured = [evaluate.measure(base, task)]
for seed in budget.seeds:
    for method in budget.methods:
        run = train.finetune(base, task, method, seed)
        measured.append(evaluate.measure(base, task, run, forgetting=seed == budget.seeds[0]))

# %% [markdown]
# - E2E NLG beside the default task: it has published GPT-2 rows. It comes from `DATA_MIRROR` or the hub.

# %%
try:
    e2e = tasks.load_task("e2e") if task.name == "debian" else None
    note = "" if e2e else "E2E NLG runs beside the default task only."
except tasks.TaskUnavailable as reason:
    e2e, note = None, f"Skipped: {reason}"
e2e_measured = []
if e2e:
    e2e_run = train.finetune(base, e2e, "full", 0)
    e2e_measured = [evaluate.measure(base, e2e, forgetting=False), evaluate.measure(base, e2e, e2e_run)]
print(note)

# %% [markdown]
# ## Before and after
#
# Bits per byte is $\sum \text{nats} / (\ln 2 \cdot \sum \text{bytes})$ over the targets' bytes; token perplexity
# is $\exp(\sum \text{nats} / \sum \text{tokens})$ over the same nats. EOS is a token and not a byte.
#
# - Bits per byte can be held against any model; the perplexity only against models of the same tokenizer.
# - BLEU, chrF, ROUGE-L compare one generated text per prompt with the human one. For open-ended text they
#   stay low even when a description is fine: look at the difference, not at the height.

# %%
table = evaluate.before_after(task, measured)
if e2e:
    table = pd.concat([table, evaluate.before_after(e2e, e2e_measured)], ignore_index=True)
headline = ["task", "stage", "method", "seed", "bits_per_byte", "perplexity", "bleu", "chrf", "rouge_l"]
print(table[headline].round(3).to_string(index=False))

# %% [markdown]
# - Mean over seeds with a 95 % t interval. A single seed has no interval.

# %%
measures = ["bits_per_byte", "perplexity", "bleu", "chrf", "rouge_l"]
summary = evaluate.seed_summary(table, measures)
summary.pivot_table(index=["task", "stage", "method"], columns="measure", values="mean", sort=False).round(3)

# %% [markdown]
# - Open dot: before. Filled dot: after, with its interval over seeds.

# %%
provenance = results.provenance(base, budget.seeds)
axes = {"bits_per_byte": "bits per byte (lower is better)", "chrf": "chrF (higher is better)"}
figure = plots.before_after(table[table["task"] == task.name], axes)
text = f"{task.name}: {len(measured[0].scores)} held-out documents scored, {len(measured[0].texts)} generated."
path = plots.save_figure(figure, "03_before_after", plots.caption(text, provenance, budget.train_tokens))

# %% [markdown]
# ## Is the difference real?
#
# - Paired by document: a bootstrap over groups gives `low` to `high`, 95 % of `difference` = after - before;
#   `p_value` is Wilcoxon's signed-rank test on the same documents. Seeds are averaged per document first.
# - An interval that excludes 0 says that other documents of this kind would show the difference too.

# %%
significance = evaluate.significance(task, measured)
if e2e:
    found = evaluate.significance(e2e, e2e_measured)
    significance = pd.concat([significance, found], ignore_index=True)
significance.round(4)

# %% [markdown]
# ## The task's own checks
#
# - Debian: a synopsis of at most 80 characters, without a leading article and without a full stop (Debian
#   Policy 3.4.1 and the Developer's Reference 6.2.2); a long description present; the share of the prompt's
#   debtags that the text reflects.
# - The row `human` is what people's own descriptions reach: the ceiling, and it is not 100 %.

# %%
checks = [c for c in evaluate.human_checks(task) if c in table]
human = pd.DataFrame([{"method": "human", **evaluate.human_checks(task)}])
shown = table[table["task"] == task.name].groupby("method", sort=False)[checks].mean().reset_index()
own = pd.concat([shown, human], ignore_index=True).round(3)
own if checks else print(f"The task {task.name} brings no checks of its own.")

# %% [markdown]
# - E2E beside published rows. Those are of other models and budgets: GPT-2 medium, full and LoRA, 68.2 and
#   70.4 BLEU (Hu et al. 2021, five passes over 42,061 rows); GPT-2 small, LoRA, 67.27 (user report).
# - BLEU and NIST follow mteval-v13a's definition; `lib/texts.py` names the differences that stay.

# %%
if e2e:
    e2e_human = pd.DataFrame([{"stage": "human", **evaluate.human_checks(e2e)}])
    columns = ["stage", "method", "bleu", "nist", "rouge_l", "chrf", "missing", "wrong", "added", "ser"]
    e2e_table = table[table["task"] == "e2e"][columns]
    display(pd.concat([e2e_table, e2e_human], ignore_index=True).round(3))
    print(f"{e2e_run.summary['tokens']:,} training tokens; {len(e2e_measured[1].texts)} of 630 test inputs.")

# %% [markdown]
# ## Diversity, repetition, copying
#
# - `rep_4`: share of 4-grams that repeat inside a text. Greedy decoding of a small model runs in circles;
#   sampling does not. `self_bleu`: how alike the texts are to each other.
# - `overlap_words_max`: the longest run of words that some training target also has. `copied_share`: outputs
#   that are a training target word for word.

# %%
diversity = evaluate.diversity([*measured, *e2e_measured])
average = diversity.drop(columns="seed").groupby(["task", "method", "decoding"], sort=False)
display(average.mean(numeric_only=True).round(3))
overlap = ["overlap_words_median", "overlap_words_max", "copied_share"]
table.groupby(["task", "method"], sort=False)[overlap].mean().round(3)

# %% [markdown]
# ## What was forgotten
#
# - General text, before and after. WikiText-2 by the two protocols that get confused: `wikitext2_block_...`
#   per token in blocks of 1,024, `wikitext2_word_...` per word as lm-evaluation-harness counts.
# - LAMBADA by last token and by last word; BLiMP: the share of pairs whose grammatical sentence is likelier.
# - The leading part of each set and one seed: enough to see a collapse, not to rank the methods.

# %%
forgetting = evaluate.forgetting(measured)
for reason in evaluate.skipped():
    print(f"Skipped: {reason}")
if len(forgetting):
    groups = forgetting.groupby(["measure", "method"], sort=False)["value"]
    display(groups.mean().unstack().round(3))

# %% [markdown]
# ## Samples
#
# - Chosen by a seed, not by hand. The human text first, then before, then after.

# %%
samples = evaluate.samples(task, measured)
if e2e:
    samples += evaluate.samples(e2e, e2e_measured)
for sample in samples:
    for name, text in sample.items():
        print(f"[{name}] {text}")
    print("-" * 100)

# %% [markdown]
# ## People: a blind A/B
#
# - Which side is "after" is shuffled. Ratings are kept in `data/runs`, out of git; several people can rate,
#   each under a name of their own. The buttons work where the notebook runs live.

# %%
full = next(m for m in measured if m.method == budget.methods[0])
examples = evaluate.generated_examples(task)
pairs = [
    people.Pair(e.id, e.prompt, before.strip(), after.strip())
    for e, before, after in zip(examples, measured[0].texts, full.texts, strict=True)
]
rater = people.Rater(pairs[:20], os.environ.get("RATER", "me"), evaluate.path_of_ratings(task))
display(people.rating_widget(rater))
ratings = people.summarise(people.read_lines(rater.path))
ratings

# %% [markdown]
# ## A judge model
#
# - Any OpenAI-compatible endpoint: `JUDGE_BASE_URL`, `JUDGE_MODEL`, `JUDGE_API_KEY`. Every pair is judged in
#   both orders, and only a verdict that survives the swap counts.

# %%
try:
    verdicts, judged = people.judge(pairs[:20])
    display(verdicts, judged)
except people.JudgeUnavailable as reason:
    verdicts, judged = [], {}
    print(f"Skipped: {reason}")

# %%
tables = {
    "before_after": table,
    "summary": summary,
    "significance": significance,
    "human": human,
    "diversity": diversity,
    "forgetting": forgetting,
    "samples": pd.DataFrame(samples),
}
data = {t.name: t.sha256 for t in (task, e2e) if t}
path = results.save("03_evaluate", tables, base=base, seeds=budget.seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# The next cell states it from this run's own numbers, with the conditions computed.

# %%
for row in significance.itertuples():
    sure = "excludes 0" if row.low * row.high > 0 else "includes 0: not shown"
    print(
        f"{row.task}, {row.method}, {row.measure}: {row.before:.3f} -> {row.after:.3f}, difference "
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}], {row.seeds} seeds: {sure}"
    )

# %% [markdown]
# ## What it does not show
#
# - Text metrics reward the words of one reference; a description can be right in other words. The blind A/B is
#   there for that, and is empty until people rate.
# - Debian descriptions are public: the base model may have seen some of them in its pretraining. Before and
#   after share that, the height of "before" does not stand for unseen text.
# - One base model, one task (and one run on a second): not a statement about fine-tuning in general.
#
# ## Sources
#
# - BLEU, chrF: sacrebleu (Post 2018). ROUGE-L: rouge-score (Lin 2004). E2E: Novikova et al. 2017; slot errors
#   after Dušek et al. 2019; published rows: Hu et al. 2021, arXiv:2106.09685.
# - LAMBADA: Paperno et al. 2016; WikiText-2: Merity et al. 2016; BLiMP: Warstadt et al. 2020; protocols of
#   lm-evaluation-harness. Position bias of judges: Zheng et al. 2023, arXiv:2306.05685.
