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
# # 03 Evaluate, before and after
#
# The same held-out documents, the same functions, before and after fine-tuning. What got better, by how much,
# how sure that is, and what was lost on the way.

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
import re
import textwrap
from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import display
from statsmodels.stats.multitest import multipletests

from lib import benchmarks, metrics, people, plots, profile, tasks, train
from lib import texts as measures
from lib.explore import e2e as slots
from lib.generate import DECODING, generate
from lib.hub import Unavailable, outside
from lib.models import load_base
from lib.results import Results, interval, kept, listed, number, span

# %% [markdown]
# - How much is scored and generated, as (fast, cpu, full); what a training sees is notebook 02's.

# %%
BUDGET = train.BUDGET | {
    "eval_documents": (12, 100, 200),  # test documents scored
    "generated": (4, 24, 64),  # and generated for, greedily; by sampling half as many
    "e2e_generated": (4, 24, 630),  # all of E2E's test inputs, as its published rows
    "max_new_tokens": (24, 120, 160),
    "wikitext_tokens": (2_048, 8_192, 16_384),  # leading parts of the benchmarks
    "lambada_documents": (8, 100, 300),
    "blimp_pairs": (1, 2, 10),  # of each paradigm
}
budget = profile.budget(**BUDGET)
pd.DataFrame(BUDGET, index=profile.NAMES).T

# %% [markdown]
# - The base model and the task. One line says which model came.

# %%
base = load_base()
results = Results("03_evaluate", base=base, seeds=budget.seeds)
task = tasks.load_task(base=base)

# %% [markdown]
# ## Measure
#
# - A text for each of the first test prompts, as long as the longest validation target, at most `max_new_tokens` and
#   what the longest of the prompts leaves of the context.


# %%
def write(model, task, count, decoding, seed):
    documents = tasks.encode(base.tokenizer, task["validation"], 10**9)
    longest = max(len(d.input_ids) - d.prompt_length for d in documents)
    rows = tasks.head(task["test"], count)
    begun = max(d.prompt_length for d in tasks.encode(base.tokenizer, rows, base.context))
    longest, prompts = min(longest, base.context - begun), [r["prompt"] for r in rows]
    options = {"seed": seed, "desc": f"{task.name}: {decoding}", **DECODING[decoding]}
    together = 640 if profile.device().type == "cuda" else 64  # sequences: a GPU has room, and waits for launches
    return generate(model, base.tokenizer, prompts, min(longest, budget.max_new_tokens), together, **options)


# %% [markdown]
# - All that is measured of one model: nats of the held-out targets, texts by greedy decoding, half as many by sampling
#   with the run's seed, and general text that nobody fine-tuned on.
# - It is kept beside the run: an interrupted notebook goes on, and a measure of texts can be added. Texts stay in
#   `data/runs`, which git ignores.


# %%
def measure(task, run=None, generated=budget.generated, general=None):
    model, who = base.model, {"stage": "before", "method": "none", "seed": 0}
    if run:
        model, who = run.model, {"stage": "after", "method": run.summary["method"], "seed": run.summary["seed"]}
    general, documents, sampled = general or {}, budget.eval_documents, budget.generated // 2

    def found():
        rows, label = tasks.head(task["test"], documents), f"{task.name}, {who['method']}: scoring"
        out = {"scores": metrics.score(model, base.tokenizer, rows, label).to_dict("records"), "forgetting": {}}
        out["texts"] = write(model, task, generated, "greedy", who["seed"])
        out["sampled"] = write(model, task, sampled, "sample", who["seed"])
        for name, size in general.items():
            numbers = getattr(benchmarks, name)(model, base.tokenizer, size)
            out["forgetting"] |= {f"{name}_{k}": v for k, v in numbers.items()}
        return out

    settings = [task.sha256, base.name, base.revision, documents, generated, sampled, budget.max_new_tokens]
    folder = run.path if run else profile.output_root() / "data" / "runs" / f"{task.name}-before-seed0"
    record = kept(folder / "measured", [*settings, DECODING, general], found)
    return SimpleNamespace(task=task.name, **who, **record | {"scores": pd.DataFrame(record["scores"])})


# %% [markdown]
# - General text comes from `DATA_MIRROR` or the hub, of each set the leading part: enough to see a collapse.

# %%
general = {}
sizes = {"wikitext2": budget.wikitext_tokens, "lambada": budget.lambada_documents, "blimp": budget.blimp_pairs}
for name, size in sizes.items() if not results.stored else ():
    try:
        outside(name)
        general[name] = size
    except Unavailable as reason:
        print(f"Skipped: {reason}")

# %% [markdown]
# - The base model first, then each run of notebook 02: loaded if it is there, trained if not. General text for the
#   first seed alone. The test split was not looked at before this notebook.
# - `RESULTS=stored` measures nothing: the tables come from the last run's file.

# %%
measured = []
if not results.stored:
    measured.append(measure(task, general=general))
    for seed in budget.seeds:
        for method in budget.methods:
            run = train.finetune(base, task, method, seed)
            measured.append(measure(task, run, general=general if seed == budget.seeds[0] else None))

# %% [markdown]
# - E2E NLG beside the default task: it has published GPT-2 rows. It comes from `DATA_MIRROR` or the hub.

# %%
try:
    e2e = tasks.load_task("e2e") if task.name == "debian" else None
except Unavailable as reason:
    e2e = None
    print(f"Skipped: {reason}")
if e2e and not results.stored:
    run = train.finetune(base, e2e, "full", 0)
    measured += [measure(e2e, model, budget.e2e_generated) for model in (None, run)]
counts = [(task, budget.generated)] + ([(e2e, budget.e2e_generated)] if e2e else [])
rows_of = {t.name: tasks.head(t["test"], n) for t, n in counts}  # what was generated for
train_of = {t.name: [row["target"] for row in t["train"]] for t, _ in counts}

# %% [markdown]
# ## Before and after
#
# Bits per byte is $\sum \text{nats} / (\ln 2 \cdot \sum \text{bytes})$ over the targets' bytes; token perplexity
# is $\exp(\sum \text{nats} / \sum \text{tokens})$ over the same nats. EOS is a token and not a byte.
#
# - The checks of the default task, and of no other. Debian's form (Policy 3.4.1, Developer's Reference 6.2.2): a
#   synopsis of at most 80 characters, without a leading article and a full stop, then a long description.
#   `synopsis_form` is all three of the synopsis.


# %%
def debian_form(text):
    synopsis, long = map(str.strip, text.strip().partition("\n")[::2])
    form = {
        "synopsis_at_most_80": 0 < len(synopsis) <= 80,
        "no_article": not re.match(r"(?:an?|the)\b(?!-)", synopsis, re.IGNORECASE),
        "no_full_stop": not synopsis.endswith(".") or synopsis.endswith(("...", "etc.")),
    }
    return form | {"has_long_description": bool(long), "synopsis_form": all(form.values())}


# %% [markdown]
# - Debtags whose values a description talks about: on the validation split a human description mentions 54 % of these
#   tags and that of the next package 11 %. Without such a contrast: role, scope, interface, uitoolkit, devel, x11.
# - A tag's value and other words that say it, as prefixes; short on purpose.

# %%
FACETS = """accessibility admin biology culture field game hardware mail made-of network office protocol
science security sound suite system use web works-with works-with-format"""
SYNONYMS = """gameplaying game play; timekeeping time clock date; text string word; viewing display show; monitor
watch; checking test verif valid; configuring setting setup; organizing manag; analysing analy;
learning teach educat tutor; storing storage backup archiv; chatting irc messag; synchronizing sync;
transmission send transfer; downloading fetch; image graphic picture photo; audio sound music; video
movie film; db database sql; source code; package deb apt; logfile log; plaintext text; jpg jpeg;
oggvorbis ogg vorbis; ssl tls; http web; mathematics math; cryptography encrypt crypt;
virtualization virtual xen qemu kvm; filesystem disk mount; vcs git version; raster image picture
photo; vector svg drawing; biology bio gene dna protein sequenc; bioinformatics bio gene dna;
entertaining fun game amus; storage disk drive tape; cd disc"""
SYNONYMS = {value: others for value, *others in map(str.split, SYNONYMS.split(";"))}

# %% [markdown]
# - `tags_reflected`: the share of the prompt's tags that a word of the text says. A word says a tag if it begins with
#   the tag's value, its stem or a synonym; values of fewer than four letters ("c", "r", "x11") must be the whole word.


# %%
def says(tag, text):
    value = tag.rpartition("::")[2].split(":")[-1]
    said = set(re.findall(r"[a-z0-9]+\+*", text.lower()))
    # a crude stem: the word less one ending, at least four letters of it ("converting" -> "convert")
    short = {w: re.sub(r"(?:ings?|ers?|ors?|ions?|ies|ed|es|s|e|y)$", "", w) for w in value.split("-") if len(w) > 3}
    stems = [stem if len(stem) >= 4 else w for w, stem in short.items()]
    wanted = {value, *SYNONYMS.get(value, ()), *stems}
    return any(w in said if len(w) < 4 else any(s.startswith(w) for s in said) for w in wanted)


def tags_reflected(prompt, text):
    line = re.search(r"^Tags:(.*)$", prompt, re.MULTILINE)
    tags = [tag.strip() for tag in line[1].split(",")] if line else []
    tags = [tag for tag in tags if "::" in tag and tag.partition("::")[0] in FACETS.split()]
    return sum(says(tag, text) for tag in tags) / len(tags) if tags else np.nan


# %% [markdown]
# - Which model a row is of, and the checks that its task brings: Debian and E2E have some, other tasks none.


# %%
def who(m):
    return {"task": m.task, "stage": m.stage, "method": m.method, "seed": m.seed}


def own_checks(name, rows, texts):
    if name != "debian":
        return slots.checks(rows, texts) if name == "e2e" else {}
    found = pd.DataFrame(map(debian_form, texts)).astype(float).mean().to_dict()
    shares = [tags_reflected(r["prompt"], text) for r, text in zip(rows, texts, strict=True)]
    return found | {"tags_reflected": pd.Series(shares).mean()}


# %% [markdown]
# - Bits per byte can be held against any model; the perplexity only against models of the same tokenizer.
# - BLEU, chrF, ROUGE-L compare one generated text per prompt with the human one. For open-ended text they
#   stay low even when a text is fine: look at the difference, not at the height. Where documents have no prompt, texts
#   are written from nothing, and these measures say little.
# - chrF has two forms: here it is counted over all texts together (corpus chrF), for the tests below text by text, and
#   averaged (mean document chrF).


# %%
def row(m):
    """Every number of one model, by the same functions before and after."""
    rows, texts = rows_of[m.task], [text.strip() for text in m.texts]
    references = [list(r["references"]) for r in rows]
    overlap = measures.longest_overlap(texts, train_of[m.task])
    seen = {" ".join(text.split()) for text in train_of[m.task]}
    return {
        **who(m),
        **metrics.describe(m.scores),
        "decoding": "greedy",
        "generated": len(texts),
        "bleu": measures.bleu(texts, references, lowercase=m.task == "e2e"),
        "chrf": measures.chrf(texts, references),
        "rouge_l": measures.rouge_l(texts, references),
        "overlap_words_median": float(np.median(overlap)),
        "overlap_words_max": max(overlap),
        "copied_share": float(np.mean([" ".join(text.split()) in seen for text in texts])),
        **own_checks(m.task, rows, texts),
    }


table = results.table("before_after", lambda: pd.DataFrame([row(m) for m in measured]))
headline = ["bits_per_byte", "perplexity", "bleu", "chrf", "rouge_l"]
table[["task", "stage", "method", "seed", *headline]].round(3)


# %% [markdown]
# - Mean over seeds with a 95 % t interval. A single seed has no interval.


# %%
def seed_means():
    for (name, stage, method), part in table.groupby(["task", "stage", "method"], sort=False):
        for measure in headline:
            mean, low, high = metrics.mean_interval(part[measure])
            found = {"measure": measure, "mean": mean, "low": low, "high": high, "seeds": len(part)}
            yield {"task": name, "stage": stage, "method": method} | found


summary = results.table("summary", seed_means)
summary.pivot_table(index=["task", "stage", "method"], columns="measure", values="mean", sort=False).round(3)

# %% [markdown]
# - Open dot: before. Filled dot: after, with its interval over seeds.

# %%
own = table[table["task"] == task.name]
axes = {"bits_per_byte": "bits per byte (lower is better)", "chrf": "corpus chrF (higher is better)"}
figure = plots.before_after(own, axes)
documents, generated = (int(own[c].iloc[0]) for c in ("documents", "generated"))
text = f"{task.name}: {documents} held-out documents scored, {generated} generated."
results.figure(figure, "03_before_after", text, tokens=budget.train_tokens)

# %% [markdown]
# ## Is the difference real?
#
# - Paired by document: `low` to `high` is a 95 % interval of `difference` = after - before; `how` it and `p_value` were
#   computed stands beside them. Groups of documents are the observations; seeds are averaged per document first.
# - An interval that excludes 0 says that other documents of this kind would show the difference too. Several
#   comparisons are several chances to be wrong: `holm` is the p-value corrected for all rows of the table.
# - Fewer than ten groups of documents show nothing, whatever their interval says.


# %%
def chrf_of(m):
    rows = rows_of[m.task]
    values = [measures.chrf([t.strip()], [r["references"]]) for t, r in zip(m.texts, rows, strict=True)]
    return pd.DataFrame({"id": [r["id"] for r in rows], "group": [r["group"] for r in rows], "chrf": values})


def comparisons():
    after = {(m.task, m.method): [] for m in measured if m.stage == "after"}
    for m in measured:
        after.get((m.task, m.method), []).append(m)
    for (name, method), runs in after.items():
        before = [m for m in measured if m.task == name and m.stage == "before"]
        bits = metrics.paired([m.scores for m in before], [m.scores for m in runs])
        chrf = metrics.paired(list(map(chrf_of, before)), list(map(chrf_of, runs)), "chrf", None)
        for measure, found in (("bits_per_byte", bits), ("chrf", chrf)):
            yield {"task": name, "method": method, "seeds": len(runs), "measure": measure} | found


significance = results.table("significance", comparisons)
holm = multipletests(significance["p_value"], method="holm")[1]
significance.assign(holm=holm).map(lambda x: f"{x:.4g}" if isinstance(x, float) else x)

# %% [markdown]
# ## The task's own checks
#
# - The row `human` is what people's own texts reach: the ceiling, and it is not 100 %. A task of one's own has none.

# %%
texts = [r["references"][0] for r in rows_of[task.name]]
human = results.table("human", lambda: [{"method": "human"} | own_checks(task.name, rows_of[task.name], texts)])
checks = [c for c in human if c != "method"]
shown = own.groupby("method", sort=False)[checks].mean().reset_index()
pd.concat([shown, human], ignore_index=True).round(3)  # nothing where the task brings no checks of its own

# %% [markdown]
# - With the default task, E2E beside published rows. Those are of other models and budgets: GPT-2 medium, full and
#   LoRA, 68.2 and 70.4 BLEU (Hu et al. 2021, five passes over 42,061 rows); GPT-2 small, LoRA, 67.27 (user report).
# - BLEU and NIST follow mteval-v13a's definition; `lib/texts.py` names the differences that stay.

# %%
HU = "Hu et al. 2021"
PUBLISHED = [  # BLEU, NIST, ROUGE-L (coco-caption's there, not ours); no slot errors were published
    ("published: GPT-2 medium, full", 68.2, 8.62, 0.710, HU),
    ("published: GPT-2 medium, LoRA", 70.4, 8.85, 0.718, HU),
    ("published: GPT-2 large, full", 68.5, 8.78, 0.699, HU),
    ("published: GPT-2 large, LoRA", 70.4, 8.89, 0.720, HU),
    ("published: GPT-2 small, LoRA", 67.27, 8.60, 0.681, "user report"),
]
PUBLISHED = pd.DataFrame(PUBLISHED, columns=["system", "bleu", "nist", "rouge_l", "source"])
ROWS = {"none": "before", "full": "after, full", "lora": "after, LoRA"}
made = results.provenance()
e2e_table = table[table["task"] == "e2e"]
if len(e2e_table):
    ours = e2e_table.assign(system=e2e_table["method"].map(ROWS), source=made["base_model"])
    both = pd.concat([ours, PUBLISHED], ignore_index=True)
    display(both[["system", "bleu", "nist", "rouge_l", "ser", "source"]].round(3))
if e2e:
    pairs = [(r["prompt"], text) for r in rows_of["e2e"] for text in r["references"]]
    print(f"People, by the same check: {slots.slot_errors(*zip(*pairs, strict=True))['ser']:.1%} slot errors.")

# %% [markdown]
# ## Diversity, repetition, copying
#
# - `rep_4`: share of 4-grams that repeat inside a text. Greedy decoding of a small model runs in circles;
#   sampling does not. `self_bleu`: how alike the texts are to each other.
# - `overlap_words_max`: the longest run of words that some training target also has. `copied_share`: outputs
#   that are a training target word for word.


# %%
def diversities():
    for m in measured:
        for decoding, texts in (("greedy", m.texts), ("sample", m.sampled)):
            yield who(m) | {"decoding": decoding, **measures.diversity(texts)}


diversity = results.table("diversity", diversities)
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
# - The leading part of each set and one seed: not enough to rank the methods.

# %%
forgetting = results.table(
    "forgetting", lambda: [who(m) | {"measure": k, "value": v} for m in measured for k, v in m.forgetting.items()]
)
if len(forgetting):
    groups = forgetting.groupby(["measure", "method"], sort=False)["value"]
    display(groups.mean().unstack().round(3))

# %% [markdown]
# ## Samples
#
# - Chosen by a seed, not by hand. The human text first, then before, then after.


# %%
def drawn(count=3):
    for name, rows in rows_of.items():
        first = {}  # of each method the first seed
        for m in measured:
            if m.task == name:
                first.setdefault("before" if m.method == "none" else m.method, m)
        for i in sorted(np.random.default_rng(0).choice(len(rows), min(count, len(rows)), replace=False)):
            row = rows[i]
            given = {"task": name, "id": row["id"], "prompt": row["prompt"], "human": row["references"][0]}
            yield given | {k: m.texts[i].strip() for k, m in first.items()}


samples = results.table("samples", drawn)
for sample in samples.to_dict("records"):
    for name, text in sample.items():
        if isinstance(text, str):
            print(f"[{name}] {text}")
    print("-" * 100)

# %% [markdown]
# ## People: a blind A/B
#
# - Which side is "after" is shuffled. Ratings are kept in `data/runs`, out of git; several people can rate,
#   each under a name of their own.
# - The pairs of the first training method: before and after for the same prompts.

# %%
pairs = []
if results.stored:
    print("The texts to compare are made by a run that measures; RESULTS=stored has none.")
else:
    full = next(m for m in measured if m.method == budget.methods[0])
    pairs = [
        people.Pair(row["id"], row["prompt"], before.strip(), after.strip())
        for row, before, after in zip(rows_of[task.name], measured[0].texts, full.texts, strict=True)
    ][:20]
    ratings = profile.kept_root() / "data" / "runs" / f"ratings-{task.name}.jsonl"
    display(people.rating_widget(pairs, os.environ.get("RATER", "").strip() or "me", ratings))

# %% [markdown]
# - What all raters said of these pairs: run this cell again after rating. A skipped pair is not rated.

# %%
if pairs:
    rows = [r for r in people.read_lines(ratings) if people.Pair(*map(r.get, people.Pair._fields)) in pairs]
    said = people.summarise(rows)
    raters = f"by {said['raters']} rater{'s' * (said['raters'] > 1)}"
    print(f"{said['n']} of {len(pairs)} pairs rated {raters}." if said["n"] else "No ratings yet.")
    if said["n"]:
        share = span(said["win_rate"], said["low"], said["high"], 2)
        print(f"After is better in {said['after']}, before in {said['before']}, tie {said['tie']}; {share} for after.")
        print(f"Agreement of two raters {number(said['agreement'], 2)}, kappa {number(said['kappa'], 2)}.")

# %% [markdown]
# ## A judge model
#
# - Any OpenAI-compatible endpoint: `JUDGE_BASE_URL`, `JUDGE_MODEL`, `JUDGE_API_KEY`. Every pair is judged in
#   both orders, and only a verdict that survives the swap counts.

# %%
try:
    if pairs:
        verdicts, found = people.judge(pairs)
        display(verdicts, pd.Series(found, name="judge").to_frame())
except people.JudgeUnavailable as reason:
    print(f"Skipped: {reason}")

# %% [markdown]
# ## What we saw
#
# - Every comparison that this run made, with its condition computed.

# %%
METHODS = {"full": "full fine-tuning", "lora": "LoRA"}
MEASURES = {"bits_per_byte": "bits per byte", "chrf": "mean document chrF"}
FEW = "too few documents to say anything"


def told(r):
    """The difference with its interval, or that there are too few groups of documents for one."""
    return span(r.difference, r.low, r.high, sign=True) if r.clusters >= tasks.MIN_GROUPS else FEW


for r in significance.itertuples():
    gap = told(r) + ("" if r.low * r.high > 0 or told(r) == FEW else ", includes 0: not shown")
    of = f"{r.task}, {r.method}, {MEASURES[r.measure]}"
    print(f"{of}: {r.before:.3f} -> {r.after:.3f}, seeds: {r.seeds}, difference {gap}")

# %% [markdown]
# ## What it does not show
#
# - Text metrics reward the words of one reference; a text can be right in other words. The blind A/B is
#   there for that, and is empty until people rate.
# - Public texts, as those of the shipped tasks, may have stood in the base model's pretraining. Before and after share
#   that, the height of "before" does not stand for unseen text.
# - One base model, one task (and one run on a second): not a statement about fine-tuning in general.
#
# ## Sources
#
# - BLEU, chrF: sacrebleu (Post 2018). ROUGE-L: rouge-score (Lin 2004). E2E: Novikova et al. 2017; slot errors
#   after Dušek et al. 2019; published rows: Hu et al. 2021, arXiv:2106.09685.
# - LAMBADA: Paperno et al. 2016; WikiText-2: Merity et al. 2016; BLiMP: Warstadt et al. 2020; protocols of
#   lm-evaluation-harness. Position bias of judges: Zheng et al. 2023, arXiv:2306.05685.

# %% [markdown]
# ## For the report
#
# - The main table: means over seeds with their intervals.


# %%
FORM = {"synopsis_form": "synopsis in form", "has_long_description": "long description"}
FORM["tags_reflected"] = "tags reflected"
SHARES = {*FORM, "distinct_2", "rep_4"}


def cells(part, digits):
    return [interval(part[c], d, top=1 if c in SHARES else np.inf) for c, d in digits.items()]


groups = [(ROWS.get(m, m), part) for m, part in own.groupby("method", sort=False)]
digits = {"bits_per_byte": 3, "perplexity": 1, "bleu": 1, "chrf": 1, "rouge_l": 2}
header = ["", "bits per byte", "token perplexity", "BLEU", "corpus chrF", "ROUGE-L"]
text = (
    f"{task.name}, test split: the first {documents} documents scored in bits per byte and token perplexity, "
    f"{generated} texts generated greedily; mean over seeds with 95 % t interval."
)
results.markdown("before_after", header, [[name, *cells(part, digits)] for name, part in groups], text)

# %% [markdown]
# - The tests: `shown` is an interval without 0, `better` the right direction of the difference.

# %%
tests = significance.assign(
    holm=holm,
    name=[f"{r.task}, {METHODS.get(r.method, r.method)}, {MEASURES[r.measure]}" for r in significance.itertuples()],
    shown=(significance["low"] * significance["high"] > 0) & (significance["clusters"] >= tasks.MIN_GROUPS),
    better=(significance["difference"] < 0) == (significance["measure"] == "bits_per_byte"),
    gap=[told(r) for r in significance.itertuples()],
)
header = ["comparison", "before", "after", "difference", "documents", "seeds", "p", "p, Holm"]
rows = [
    [r.name, number(r.before), number(r.after), r.gap, r.documents, r.seeds, f"{r.p_value:.0e}", f"{r.holm:.0e}"]
    for r in tests.itertuples(index=False)
]
how = "bootstrap interval over groups and Wilcoxon's test over documents"  # of results that do not say
how = listed(significance["how"].unique()) if "how" in significance else how
results.value("how", how)
text = f"After against before, paired by document: {how}. Behind each difference its 95 % interval; last, the p-values "
results.markdown("tests", header, rows, text + "by Holm's correction for the number of rows.")

# %% [markdown]
# - The task's own checks, with the people's row as the ceiling.

# %%
if set(FORM) <= set(checks):
    rows = [[name, *cells(part, dict.fromkeys(FORM, 3))] for name, part in groups]
    rows.append(["people", *(number(human[c].iloc[0]) for c in FORM)])
    text = "Shares of generated texts with the form that Debian asks for, and of the prompt's tags reflected."
    results.markdown("checks", ["", *FORM.values()], rows, text)
else:
    results.block("checks", f"The task {task.name} brings no checks of its own.")

# %% [markdown]
# - The diversity of the texts, greedy and sampled.

# %%
likeness = diversity[diversity["task"] == task.name]
columns = {"distinct_2": 3, "rep_4": 3, "self_bleu": 1}
rows = [
    [ROWS.get(m, m), decoding, *cells(part, columns)]
    for (m, decoding), part in likeness.groupby(["method", "decoding"], sort=False)
]
text = "distinct-2: share of different word pairs; rep-4: share of repeated 4-grams in a text; self-BLEU: likeness."
results.markdown("diversity", ["", "decoding", "distinct-2", "rep-4", "self-BLEU"], rows, text, left=2)

# %% [markdown]
# - E2E beside the published rows.

# %%
tuned, small = e2e_table[e2e_table["method"] != "none"], PUBLISHED.iloc[-1]
if len(e2e_table):
    columns = {"bleu": 2, "nist": 2, "rouge_l": 3, "ser": 3}
    header = ["E2E NLG", "BLEU", "NIST", "ROUGE-L", "slot errors", "model or source"]
    rows = [[r["system"], *(number(r[c], d) for c, d in columns.items()), r["source"]] for _, r in both.iterrows()]
    text = f"E2E NLG, {int(tuned['generated'].iloc[0])} test inputs, greedy decoding, one seed; published rows are of "
    results.markdown("e2e", header, rows, text + "other models and budgets (five passes, beam search).", seeds=[0])
else:
    why = "was not within reach of the machine" if task.name == "debian" else "stands beside the default task alone"
    results.block("e2e", f"E2E NLG {why}, so it was not measured.")

# %% [markdown]
# - General text before and after. `worse` lists each perplexity that rose and each accuracy that fell.

# %%
GENERAL = {  # measure -> name, digits, whether lower is better
    "wikitext2_token_perplexity": ("WikiText-2, perplexity per token", 2, True),
    "wikitext2_word_perplexity": ("WikiText-2, perplexity per word", 2, True),
    "lambada_word_perplexity": ("LAMBADA, perplexity of the last word", 2, True),
    "lambada_word_accuracy": ("LAMBADA, accuracy of the last word", 3, False),
    "blimp_accuracy": ("BLiMP, accuracy", 3, False),
}
worse, general_count = [], 0
if len(forgetting):
    means = forgetting.pivot_table(index="measure", columns="method", values="value", sort=False)
    known = [k for k in GENERAL if k in means.index]
    header = ["general text", *(ROWS.get(m, m) for m in means)]
    rows = [[GENERAL[k][0], *(number(x, GENERAL[k][1]) for x in means.loc[k])] for k in known]
    text = f"General text before and after, leading parts: {budget.wikitext_tokens:,} tokens of WikiText-2, "
    text += f"{budget.lambada_documents} passages of LAMBADA, {budget.blimp_pairs} pairs of each of BLiMP's paradigms."
    results.markdown("forgetting", header, rows, text, seeds=[budget.seeds[0]])
    for k in known:
        gaps = (means.loc[k] - means.loc[k, "none"]).drop("none") * (1 if GENERAL[k][2] else -1)
        worse += [f"{GENERAL[k][0]} ({METHODS.get(m, m)})" for m in gaps.index[gaps > 0]]
        general_count += len(gaps)
else:
    results.block("forgetting", "WikiText-2, LAMBADA and BLiMP were not within reach of the machine.")

# %% [markdown]
# - The first sample, shortened.


# %%
def fenced(text, lines=8):
    """The leading lines of a text in a fence, without what would end the fence or look like a mark."""
    text = text.strip("\n").replace("```", "'''").replace("<!-", "<! -").replace("-->", "-- >")
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(line, 80) or [""]]
    return "\n".join(["```", *wrapped[:lines], *["[...]"] * (len(wrapped) > lines), "```"])


names = {"prompt": "Prompt", "human": "People", "before": "Before", "full": "After, full", "lora": "After, LoRA"}
first = samples.iloc[0]
results.block("sample", "\n\n".join(f"{name}:\n\n{fenced(first[k])}" for k, name in names.items() if first.get(k)))

# %% [markdown]
# - Values: the setting, the main numbers of each method, and the comparisons.

# %%
results.value("model", made["base_model"].removesuffix(" (stand-in)"))
results.value("parameters", f"{made['parameters']:,}")
results.value("documents", documents)
results.value("seeds", f"{len(made['seeds'])} seed{'s' * (len(made['seeds']) > 1)}")
results.value("train_tokens", f"{budget.train_tokens:,}")
for method, part in own.groupby("method", sort=False):
    for column, d in digits.items():
        results.value(f"{'before' if method == 'none' else method}.{column}", interval(part[column], d))
for r in tests[(tests["task"] == task.name) & (tests["measure"] == "bits_per_byte")].itertuples():
    results.value(f"{r.method}.difference", r.gap)
results.value("compared", len(tests))
results.value("not_better", listed(tests.loc[~(tests["shown"] & tests["better"]), "name"]))
results.value("general.compared", general_count or "not measured")
results.value("general.worse", listed(worse) if general_count else "not measured")

# %% [markdown]
# - Values of copying, repetition and tags, and of E2E; what was not measured says so.

# %%
after = own[own["stage"] == "after"]
results.value("overlap.before", int(own.loc[own["stage"] == "before", "overlap_words_max"].max()))
results.value("overlap.after", int(after["overlap_words_max"].max()))
for stage, name in (("before", "overlap.e2e.before"), ("after", "overlap.e2e.after")):
    longest = e2e_table.loc[e2e_table["stage"] == stage, "overlap_words_max"] if len(e2e_table) else []
    results.value(name, int(longest.max()) if len(longest) else "not measured")
results.value("copied", f"{own['copied_share'].max():.0%}")
for (stage, method, decoding), part in likeness.groupby(["stage", "method", "decoding"]):
    results.value(f"repeats.{stage if stage == 'before' else method}.{decoding}", f"{part['rep_4'].mean():.0%}")
tags = own.loc[own["method"] == "full", "tags_reflected"].mean() if "tags_reflected" in checks else np.nan
people_tags = human["tags_reflected"].iloc[0] if "tags_reflected" in checks else np.nan
gap = tuned["bleu"].mean() - small["bleu"] if len(tuned) else np.nan
values = {"tags.full": f"{tags:.0%}", "tags.people": f"{people_tags:.0%}"}
values |= {"e2e.bleu": f"{tuned['bleu'].mean():.1f}", "e2e.gap": f"{abs(gap):.1f}"}
for name, value in values.items():
    results.value(name, "not measured" if "nan" in value else value)
results.value("e2e.train_tokens", f"{budget.e2e_train_tokens:,}")

# %% [markdown]
# - The conditions under which the report's sentences stand, and the file: `data/results/03_evaluate.json`.

# %%
results.claim("task is debian", task.name == "debian")
results.claim("stand-in", made["stand_in"])
results.claim("stand-in is SmolLM2-135M-Instruct", made["stand_in"] and "SmolLM2-135M-Instruct" in made["base_model"])
main = tests[(tests["task"] == task.name) & (tests["measure"] == "bits_per_byte")].set_index("method")
for method in budget.methods:
    results.claim(f"{method} beats before", bool(main.loc[method, "shown"] and main.loc[method, "better"]))
results.claim("every comparison is better", bool((tests["shown"] & tests["better"] & (tests["holm"] < 0.001)).all()))
results.claim("general text was measured", general_count > 0)
results.claim("no general text got worse", general_count > 0 and not worse)
results.claim("people reflect more tags", tags < people_tags)
results.claim("E2E was measured", len(e2e_table) > 0)
results.claim("E2E ends below the documented GPT-2 small", gap < 0)
results.save(data={t.name: t.sha256 for t in (task, e2e) if t})
print(table[["task", "stage", "method", "seed", *headline]].round(3).to_string(index=False))
