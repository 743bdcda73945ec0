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
# # 08 Private-domain data
#
# Data that one collects alone, cleaned of personal data as far as a program can, and a model fine-tuned on it.
# Then the question that decides what may be published: what does the model remember of it?

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
import functools, itertools, json, math, re

import numpy as np
import pandas as pd
from IPython.display import display
from scipy import stats
from statsmodels.stats.api import multipletests, proportion_confint

from lib import metrics, plots, profile, tasks, texts
from lib.explore import anonymise, memorise, private
from lib.generate import generate
from lib.models import load_base
from lib.results import Results, interval, kept, shown, span
from lib.train import LEARNING_RATES, finetune

# %% [markdown]
# - The budget: (fast, cpu, full). The packages' docstrings are the default documents.

# %%
# pure Python, documented by many hands, and installed anyway
DOCUMENTED = ("accelerate", "datasets", "huggingface_hub", "matplotlib", "nltk", "peft", "sacrebleu")
budget = profile.budget(
    seeds=((0, 1), (0,), (0, 1, 2)),
    packages=(("filelock", "sacrebleu", "tqdm"), DOCUMENTED, DOCUMENTED),
    train_tokens=(8_000, 12_000, 12_000),  # of one run, canaries among them
    # short rows: what is remembered grows with the steps that a copy is part of, not with the tokens
    pack_length=(640, 256, 256),
    canaries=(1, 2, 2),  # different ones for each number of repetitions
    controls=(2, 3, 3),  # canaries that are never inserted
    validation_documents=(8, 8, 8),
    eval_documents=(8, 40, 40),  # test documents scored
    generate_documents=(4, 16, 16),  # test documents generated for
    max_new_tokens=(12, 32, 32),
    probe_documents=(8, 32, 32),  # training and test documents continued from their first half
    # the second experiment: more canaries of fewer numbers, and membership
    asked_seeds=((0, 1), (0,), (0, 1, 2, 3, 4, 5)),
    copies=((1, 4, 64), (1, 4, 64), (1, 2, 4, 16, 64)),
    copied_canaries=(2, 3, 3),  # of each number, in each model
    copied_tokens=(8_000, 12_000, 8_000),
    members=(12, 40, 40),  # training documents asked for membership
    beside=(1, 3, 3),  # of the file of each of these, that were not trained on
    others=(12, 100, 100),  # held-out ones: 1 % false positives need 100
)

# %% [markdown]
# - The model, the results file, and the two methods of fine-tuning that are compared.

# %%
METHODS = {"full": "full fine-tuning", "lora": "LoRA"}
LEFT = {"no": "duplicates left in", "yes": "duplicates removed"}
NAMED = {(m, d): f"{name}, {left}" for m, name in METHODS.items() for d, left in LEFT.items()}
base = load_base()
results = Results("08_private_domain", base=base, seeds=budget.seeds)

# %% [markdown]
# ## The principle
#
# **Collecting.** Every kind of file becomes pairs of prompt and target, so that one loss and one metric fit all:
#
# | kind | prompt | target | never split |
# |--|--|--|--|
# | text `.txt .rst .tex` | first line, or the end of the piece before | the rest, in pieces | file |
# | Markdown | heading | what stands below it | file |
# | Python | signature | docstring | file |
# | chat export `[time] name: text`, WhatsApp, WeChat, QQ, JSON | up to three turns before | reply | day or 20 turns |
# | mail `.eml .mbox` | subject | what the sender wrote in plain text | thread |
#
# **Remembering.** A canary is an invented secret, inserted a known number of times. After training, all
# $|R|$ codes of its form are ranked by the model's probability; the canary's exposure is
#
# $$\text{exposure} = \log_2 |R| - \log_2 \text{rank} \quad \text{bits.}$$
#
# - Rank 1 of 10,000 is 13.3 bits. A code that the model never saw has a uniform rank: 1.44 bits in the mean.
#
# **Membership.** Was this real document in the training text? Over the tokens $E$ that the tuned model does not rank
# first, rises of log-probability against the base model are compared with falls (Ilic et al. 2026):
#
# $$\Delta_t = \log p_\text{tuned}(x_t) - \log p_\text{base}(x_t), \quad
#   P = \sum_{t \in E} \max(\Delta_t, 0), \quad N = \sum_{t \in E} \max(-\Delta_t, 0), \quad
#   \text{score} = \frac{P}{P + N}.$$
#
# - The paper's score is $P / N$: the same order, so the same ROC curve.

# %% [markdown]
# ## Collect
#
# - `PRIVATE_DATA=/path/to/folder` takes a folder of one's own; without it the docstrings of Python packages that
#   are installed anyway serve: text by many hands, with some of their authors' addresses in it.

# %%
CONSENT = """
Before you train on this folder: every person whose words are in it must know and agree. Chats and mail hold other
people's words as well as yours. The anonymiser replaces what it recognises and misses some of it: read samples in
data/private before training. Nothing leaves this machine: collected text stays in data/private, weights and generated
text in data/runs, both ignored by git. Treat a model trained on it as you would treat the text itself, and delete both
when you are done.
"""


@functools.cache
def collection() -> private.Collection:
    return private.collect(budget.packages)


if results.stored:
    print("RESULTS=stored: the documents are not collected again.")
else:
    print(CONSENT if collection().own else "Public docstrings: nobody has to be asked.")

# %% [markdown]
# - The data card, written from what was found: what was read and skipped, in which encodings, what was replaced,
#   what was removed as a duplicate, how the rest was split. No text, no names of files. A file that was read wrongly
#   shows here: a chat that gives no messages, an odd encoding, unreadable characters (such documents are left out).
# - Near-duplicates are removed before the split, by the similarity of word 3-shingles; what the table of kinds
#   calls "never split" is in one split only.
# - What a document looks like. Of a folder of one's own nothing is shown.

# %%
card = results.table("card", lambda: collection().card)
display(card.set_index(["what", "key"])["value"].map("{:,.0f}".format).to_frame())
display(plots.source(private.triples, texts.without_near_duplicates))
for row in [] if results.stored or collection().own else tasks.head(collection().task["test"], 2):
    print(row["prompt"] + row["target"], end="\n" + "-" * 80 + "\n")

# %% [markdown]
# ## Anonymise
#
# - Rules that a program can check: a pattern, and for most a check of what it finds. One check, and the rules at work:

# %%
display(plots.source(anonymise.resident_id))
text = "Mira Holm (mira@holm.example, +1 202-555-0143) logged in from 10.3.44.7, not from version 10.3.44.7."
names = anonymise.read_names(anonymise.LABELLED / "names.txt")
print(anonymise.anonymise(text, names)[0])

# %% [markdown]
# - How well? `data/anonymiser` is a labelled set: invented people and addresses, English and Chinese, in ordinary forms
#   and in odd ones (full-width letters, escapes, an address torn over two lines), with version numbers, hashes, dates,
#   ISBNs and documentation addresses as traps. The rules were written while looking at one half, "tune".
# - This is the other half. An item counts if category and characters are exactly right.


# %%
def labelled(half: str) -> list[tuple[str, list[anonymise.Found], str, list[str]]]:
    """(text, its items, kind, speakers) of a half; {{ip|10.0.0.1}} marks an item in the file."""
    rows, lines = [], (anonymise.LABELLED / "labelled.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        text, items = row["text"], []
        while mark := re.search(r"\{\{(\w+)\|(.*?)\}\}", text, re.DOTALL):
            items.append(anonymise.Found(mark.start(), mark.start() + len(mark[2]), mark[1]))
            text = text[: mark.start()] + mark[2] + text[mark.end() :]
        rows += [(text, items, row.get("kind", "ordinary"), row.get("speakers", []))] * (row["half"] == half)
    return rows


items = []
for text, wanted, kind, speakers in labelled("test"):
    found = anonymise.find(text, names, speakers)
    for item in sorted({*found, *wanted}):
        about = {"category": item.category, "kind": kind, "item": text[item.start : item.end], "text": text}
        items.append({**about, "found": item in found, "labelled": item in wanted})
items = pd.DataFrame(items)

# %% [markdown]
# - Precision and recall by category, and by the kind of text. No model and no seed; the rows were made when the results
#   file says, under `tables_made`, and a test compares them with what the rules find.
# - Every mistake on that half: what was missed, what was taken wrongly.


# %%
def measured_anonymiser(by: str) -> list[dict]:
    rows = []
    for name, part in [*items.groupby(by, sort=False), *[("all", items)] * (by == "category")]:
        counts = {"found": part["found"].sum(), "labelled": part["labelled"].sum()}
        row = {by: name, **counts, "correct": (part["found"] & part["labelled"]).sum()}
        for measure, total in (("precision", row["found"]), ("recall", row["labelled"])):
            exact = stats.binomtest(row["correct"], total).proportion_ci() if total else (None, None)  # Clopper-Pearson
            row |= dict(zip((f"{measure}_low", f"{measure}_high"), exact, strict=True))
            row[measure] = row["correct"] / total if total else None
        rows.append(row)
    return rows


by_category = results.table("anonymiser", lambda: measured_anonymiser("category"))
by_kind = results.table("anonymiser_by_kind", lambda: measured_anonymiser("kind"))
columns = ["labelled", "found", "correct", "precision", "recall"]
display(by_category.set_index("category")[columns].round(3), by_kind.set_index("kind")[columns].round(3))
mistakes = items[items["found"] != items["labelled"]]
mistakes = mistakes.assign(kind=mistakes["found"].map({True: "wrong", False: "missed"}))
with pd.option_context("display.max_colwidth", None):
    display(mistakes[["kind", "category", "item", "text"]])

# %% [markdown]
# ## The experiment
#
# - Canaries of each number of repetitions go into the training text. Four conditions: full fine-tuning or LoRA, with
#   the duplicates or after the collection's own duplicate removal. All see equally much text, once where
#   there is enough of it: what the removal frees is filled with further documents. Controls are never inserted.
# - Names, things and codes are drawn anew for every seed. The code that scores all 10,000 codes of one canary in one
#   batch; a test compares it with reading each code alone.

# %%
canaries = memorise.canaries(0, budget.canaries, budget.controls)
example = pd.DataFrame([(c.repetitions, c.row()["target"]) for c in canaries], columns=["repetitions", "text"])
display(example.groupby("repetitions").first(), plots.source(memorise.code_log_probabilities))

# %% [markdown]
# - A run goes over whole passes of the mixed text, to its end: one evaluation, no early stop, no row left out, so that
#   every canary is seen exactly as often as it stands there, times the passes.
# - `verbatim`: how many documents greedy decoding continues word for word for ten tokens, from the prompt and the first
#   half of the target (too short ones, and those cut inside a character, are left out).


# %%
def train(mixed: memorise.Mixed, method: str, seed: int):
    sizes = {"train_tokens": mixed.tokens * mixed.passes, "pack_length": budget.pack_length, "evaluations": 1}
    sizes |= {"batch_tokens": budget.pack_length, "validation_documents": budget.validation_documents}
    return finetune(base, mixed.task, method, seed, **sizes)


def verbatim(model, rows: list[dict], tokens: int = 10) -> dict:
    pairs = []
    for row in rows:
        ids = base.tokenizer(row["target"], add_special_tokens=False).input_ids
        half = len(ids) // 2
        seen, rest = base.tokenizer.decode(ids[:half]), base.tokenizer.decode(ids[half : half + tokens])
        if len(ids) - half >= tokens and "\ufffd" not in seen + rest:
            pairs.append((row["prompt"] + seen, rest))
    written = generate(model, base.tokenizer, [prompt for prompt, _ in pairs], max_new_tokens=tokens, desc="continuing")
    same = sum(text == rest for text, (_, rest) in zip(written, pairs, strict=True))
    return {"documents": len(pairs), "verbatim": same, "tokens": tokens}


# %% [markdown]
# - Of each model: bits per byte of held-out targets, texts for held-out prompts, the canaries' exposure, and the
#   documents continued. Texts stay in data/runs.


# %%
def measure(mixed: memorise.Mixed, run, drawn: list[memorise.Canary], seed: int) -> dict:
    task, tokenizer, model = collection().task, base.tokenizer, run.model if run else base.model
    test = tasks.head(task["test"], max(budget.eval_documents, budget.probe_documents))
    probes = {"train": mixed.documents[: budget.probe_documents], "test": test[: budget.probe_documents]}

    def made() -> dict:
        prompts = [row["prompt"] for row in test[: budget.generate_documents]]
        return {
            "scores": metrics.score(model, tokenizer, test[: budget.eval_documents], "scoring").to_dict("records"),
            "texts": generate(model, tokenizer, prompts, budget.max_new_tokens, batch_size=64),
            "canaries": memorise.audit(model, tokenizer, drawn),
            "verbatim": [{"split": s, **verbatim(model, rows)} for s, rows in probes.items()],
        }

    folder = run.path if run else profile.output_root() / "data" / "runs" / f"{task.name}-before-seed{seed}"
    settings = [task.sha256, mixed.task.sha256, base.name, base.revision, vars(budget)]
    return kept(folder / "audited", settings, made)


# %% [markdown]
# - Per seed: the base model with that seed's canaries, then each of the four conditions.


# %%
@functools.cache
def audited() -> list[tuple[dict, dict]]:
    """(stage, method, deduplicated, seed) and what was measured."""
    out = []
    for seed in budget.seeds:
        drawn = memorise.canaries(seed, budget.canaries, budget.controls)
        for method, clean in ((m, d) for m in METHODS for d in (False, True)):
            mixed = memorise.mix(base, collection().task, drawn, clean, budget.train_tokens)
            if (method, clean) == ("full", False):
                before = {"stage": "before", "method": "none", "deduplicated": "none", "seed": seed}
                found = measure(mixed, None, drawn, seed)
                out.append((before, {**found, "copies": {}, "passes": 0}))
            after = {"stage": "after", "method": method, "deduplicated": "yes" if clean else "no", "seed": seed}
            found = measure(mixed, train(mixed, method, seed), drawn, seed)
            out.append((after, {**found, "copies": mixed.copies, "passes": mixed.passes}))
    return out


# %% [markdown]
# ## Before and after
#
# - Bits per byte of held-out targets: $\sum \text{nats} / (\ln 2 \cdot \sum \text{bytes})$, EOS a token and no byte.
# - `deduplicated`: whether duplicates were removed. The same documents are scored and generated for everywhere.


# %%
def before_after() -> list[dict]:
    task, rows = collection().task, []
    references = [row["references"] for row in tasks.head(task["test"], budget.generate_documents)]
    for who, found in audited():
        written = [text.strip() for text in found["texts"]]
        measures = {"chrf": texts.chrf(written, references), "rouge_l": texts.rouge_l(written, references)}
        scores = metrics.describe(pd.DataFrame(found["scores"]))
        rows.append({"task": task.name, **who, **scores, "generated": len(written), **measures})
    return rows


table = results.table("before_after", before_after)
measures = ["bits_per_byte", "perplexity", "chrf", "rouge_l"]
table.groupby(["method", "deduplicated"], sort=False)[measures].mean().round(3)

# %% [markdown]
# ## What the model remembers
#
# - Exposure by how often the canary was inserted: a row per canary and model.


# %%
def memorised() -> list[dict]:
    rows = []
    for who, found in audited():
        for row in found["canaries"]:
            rows.append({**who, **row, "copies": found["copies"].get(row["canary"], 0), "passes": found["passes"]})
    return rows


# %% [markdown]
# - Exposure against copies, and at the left what removing duplicates leaves of it: each secret then stands once.

# %%
memory = results.table("memorisation", memorised)
after = memory[(memory["stage"] == "after") & (memory["repetitions"] > 0)]
per_model = after.groupby(["method", "deduplicated", "repetitions", "seed"], as_index=False)["exposure"].mean()
left_in = per_model[per_model["deduplicated"] == "no"].replace({"method": METHODS})
look = {"ylabel": "exposure (bits)", "xlabel": "times inserted", "height": 2.2}
figure = plots.lines(left_in, "repetitions", "exposure", "method", **look)
(ax,) = figure.axes
for i, method in enumerate(METHODS):
    alone = per_model[(per_model["method"] == method) & (per_model["deduplicated"] == "yes")]
    mean, low, high = metrics.mean_interval(alone.groupby("seed")["exposure"].mean())
    at, reach = 0.55 + 0.13 * i, [[mean - low], [high - mean]]
    ax.errorbar(at, mean, reach, color=plots.COLORS[i], marker=plots.MARKERS[i], markerfacecolor="white", capsize=2)
plots.note(ax, "duplicates\nremoved", (0.61, 3.2), (0, 2), ha="center", va="bottom")
ax.axhline(memorise.UNSEEN, color=plots.GREY, linestyle=":", linewidth=1)
ax.set_ylim(0, memorise.exposure(1) + 0.5)
text = (
    "Exposure of invented secrets by how often they were inserted. With all weights moving it climbs to the most "
    f"that {memorise.CANDIDATES:,} codes allow, {memorise.exposure(1):.1f} bits; bands: lowest to highest of "
    f"{len(budget.seeds)} models, {budget.canaries} canaries a point in each. Hollow: duplicates removed, all secrets "
    f"of a model stand once; 95 % t interval over the models. Dotted: {memorise.UNSEEN:.2f} bits, a code never seen."
)
results.figure(figure, "08_exposure", text, tokens=budget.train_tokens)

# %% [markdown]
# - The test. Ranks of codes without a trace in the model are uniform, so the sum of their exposures times $2 \ln 2$ is
#   chi-squared distributed, with two degrees of freedom for each canary. Beside it the interval over canaries and
#   models: a t interval of the models' means, whose canaries are all different.


# %%
def above_chance(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per group of `by`: canaries, exposure (mean, bits), low and high (95 % over models), extracted (how many),
    p_value: how often codes without a trace would reach this mean."""
    rows = []
    for key, part in table.groupby(by, sort=False):
        total, count = part["exposure"].sum(), len(part)
        _, low, high = metrics.mean_interval(part.groupby("seed")["exposure"].mean())
        row = {"canaries": count, "exposure": total / count, "low": low, "high": high}
        row |= {"extracted": int(part["extracted"].sum()), "p_value": stats.chi2.sf(2 * math.log(2) * total, 2 * count)}
        rows.append(dict(zip(by, key, strict=True)) | row)
    return pd.DataFrame(rows)


# %% [markdown]
# - Per condition and number of copies (0: controls, and before training all): canaries, mean exposure with its
#   interval, how many greedy decoding writes out, and the probability of such a mean without a trace. `trace`:
#   significant after Holm's correction over all numbers and conditions, and the interval above 1.44 bits.


# %%
def traces(tests: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """`tests` with `trace`: whether copies (more than 0) of a condition are told from chance by both."""
    inserted, sure = tests["copies"] > 0, pd.Series(False, index=tests.index)
    sure[inserted] = multipletests(tests.loc[inserted, "p_value"], level, method="holm")[0]
    return tests.assign(trace=sure & (tests["low"] > memorise.UNSEEN))


keys = ["method", "deduplicated", "copies"]
evidence = results.table("evidence", lambda: traces(above_chance(memory, keys)))
indexed = evidence.set_index(keys)
indexed.assign(p_value=indexed["p_value"].map("{:.1e}".format)).round(2)

# %% [markdown]
# - Real documents, too: the share that greedy decoding continues word for word for ten tokens from their first
#   half. Training documents against held-out ones: both hold text that is easy to guess or was known before.

# %%
continuing = results.table(
    "verbatim",
    lambda: [
        {**who, **row, "share": row["verbatim"] / row["documents"]}
        for who, found in audited()
        for row in found["verbatim"]
    ],
)
groups = continuing.groupby(["method", "deduplicated", "split"], sort=False)
groups[["verbatim", "documents"]].sum().assign(share=groups["share"].mean()).round(3)

# %% [markdown]
# ## One copy, two, four: a second experiment
#
# - Few canaries of each number decide little about one copy. So further models, full and LoRA, with more canaries of
#   each number; what is found is told together with what could have been found.

# %% [markdown]
# - Power, computed before anything is trained: a number of copies counts as leaving a trace where the exact test is
#   significant (the strictest of Holm's levels) and the interval over models lies above 1.44 bits. `detectable` is the
#   smallest mean exposure found so in 80 % of simulated experiments; `by the test` that of the exact test alone.


# %%
def detectable(canaries: int, models: int, tests: int, wanted: float = 0.8) -> tuple[float, float]:
    """The smallest mean exposure (bits, exponentially distributed over `canaries` in each model) that `wanted` of the
    experiments find, by both conditions and by the test alone; infinite where too few models make the interval wide."""
    drawn = np.random.default_rng(8).exponential(size=(4_000, models, canaries))
    critical, means = stats.chi2.isf(0.05 / tests, 2 * models * canaries) / (2 * math.log(2)), drawn.mean(axis=2)
    spread = np.sqrt(((means - means.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / max(models - 1, 1) / models)
    low = means.mean(axis=1) - stats.t.isf(0.025, models - 1) * spread if models > 1 else np.zeros(len(means))
    test = critical / drawn.sum(axis=(1, 2))
    both = np.where(low > 0, np.maximum(test, memorise.UNSEEN / np.where(low > 0, low, 1)), math.inf)
    return tuple(float(np.quantile(needed, wanted, method="higher")) for needed in (both, test))


design = {"canaries": budget.copied_canaries, "models": len(budget.asked_seeds)}
design["tests"] = len(METHODS) * len(budget.copies)
least = detectable(**design)
about = ", ".join(f"{number} {name}" for name, number in design.items())
print(f"{about}: detectable {least[0]:.2f} bits, by the test {least[1]:.2f} bits")

# %% [markdown]
# - Trained and asked: full fine-tuning and LoRA, the duplicates left in. Each seed begins elsewhere in the documents:
#   as far as there are enough, no document counts twice. A canary is ranked among the 1,000 codes with its own first
#   symbol, which is ten times cheaper; without a trace that rank is uniform as well.


# %%
def turned(split: str, step: int, seed: int) -> list[dict]:
    rows = tasks.head(collection().task[split])
    at = step * seed % len(rows)
    return rows[at:] + rows[:at]


KINDS = ("trained", "same file", "held out")


def asked_of(trained: list[dict], train: list[dict], test: list[dict]) -> tuple[list[str], list[dict]]:
    """The documents asked for membership, and the kind of each."""
    members, known = trained[: budget.members], {row["id"] for row in trained}
    left = [row for row in train if row["id"] not in known]
    files = dict.fromkeys(row["group"] for row in members)
    beside = [row for file in files for row in [r for r in left if r["group"] == file][: budget.beside]]
    rows = dict(zip(KINDS, (members, beside, test[: budget.others]), strict=True))
    return [kind for kind in KINDS for _ in rows[kind]], [row for some in rows.values() for row in some]


# %% [markdown]
# - One seed of it.


# %%
@functools.cache
def copied(seed: int) -> tuple[list[str], list[tuple[dict, dict]]]:
    """The kind of each document asked, and (method, seed) with what was measured, the base model first."""
    drawn = memorise.canaries(seed, budget.copied_canaries, budget.copied_canaries, budget.copies)
    task = collection().task.replace(train=turned("train", 200, seed))
    mixed = memorise.mix(base, task, drawn, False, budget.copied_tokens)
    kinds, rows = asked_of(mixed.documents, task["train"], turned("test", budget.others, seed))
    encoded, out = tasks.encode(base.tokenizer, rows, base.context), []

    def asked(model, canaries) -> dict:
        found = metrics.token_scores(model, encoded)
        rows = [{"nats": nats.tolist(), "first": first.tolist()} for nats, first in found]
        return {"asked": rows, "canaries": memorise.audit(model, base.tokenizer, canaries, whole=False)}

    # the text is in the run's name
    settings = [base.name, base.revision, seed, budget.members, budget.beside, budget.others]
    for method in METHODS:
        run = train(mixed, method, seed)
        if not out:
            found = kept(run.path / "asked-base", settings, lambda: asked(base.model, drawn[:0]))
            out.append(({"method": "none", "seed": seed}, found))
        found = kept(run.path / "asked", settings, functools.partial(asked, run.model, drawn))
        out.append(({"method": method, "seed": seed}, found))
    return kinds, out


# %% [markdown]
# - Exposure by copies, and which documents are members: the base model's nats against each tuned model's.


# %%
def copies_rows() -> list[dict]:
    return [
        {"stage": "after", **who, "deduplicated": "no", **row, "copies": row["repetitions"]}
        for seed in budget.asked_seeds
        for who, found in copied(seed)[1]
        for row in found["canaries"]
    ]


copies = results.table("copies", copies_rows)
second = traces(above_chance(copies, keys))
second.assign(p_value=second["p_value"].map("{:.1e}".format)).round(3)

# %% [markdown]
# ## The same secrets in much more text
#
# - Above, the canaries fill a large part of the text. Here full fine-tuning sees so much more of it that all of them
#   together are one or two hundredths; the duplicates are left in; rows, tokens in a step and rate are those of above.

# %%
much = profile.budget(seeds=((0,), (), (0, 1, 2)), copies=((4,), (64,), (64,)), tokens=(10_000, 0, 150_000))


def tokens_of(drawn: list[memorise.Canary]) -> int:
    """What the copies of these take in the training text."""
    rows = [c.row(i) for c in drawn for i in range(c.repetitions)]
    return sum(len(d.input_ids) for d in tasks.encode(base.tokenizer, rows, base.context))


def sparse_rows():
    for seed in much.seeds:
        drawn = memorise.canaries(seed, budget.canaries, budget.controls, much.copies)
        mixed = memorise.mix(base, collection().task, drawn, False, much.tokens)
        run = train(mixed, "full", seed)
        about = {"method": "full", "seed": seed, "train_tokens": mixed.tokens * mixed.passes, "passes": mixed.passes}
        about["share"] = tokens_of(drawn) / mixed.tokens
        found = memorise.audit(run.model, base.tokenizer, drawn)
        yield from (about | row | {"copies": row["repetitions"]} for row in found)


sparse = results.table("sparse", sparse_rows, optional=True)
third = above_chance(sparse, ["copies"]) if len(sparse) else sparse
third.round(3)

# %% [markdown]
# ## Was this document in the training?
#
# - Training documents (members), held-out ones of other files, and ones of the members' own files that were not trained
#   on, asked in the models of the second experiment: the score above. A model may only recognise a file: the last kind
#   tells. Groups are split by a hash, so all come from the same packages. A document stands once in the text, whether
#   duplicates are left in or removed, so that there is one condition.


# %%
def error_zone(before: list[float], after: list[float], first: list[bool]) -> float:
    """How much a document looks trained on, 0 to 1: over the tokens that the tuned model does not rank first (`first`),
    rises of log-probability by all shifts, P / (P + N), the order of the paper's P / N but finite; 1 where none fell.
    `before`, `after`: nats of each token under base and tuned model."""
    shifts = np.subtract(before, after)[~np.asarray(first, dtype=bool)]
    up, down = shifts.clip(min=0).sum(), -shifts.clip(max=0).sum()
    return float(up / (up + down)) if down else 1.0


# %% [markdown]
# - For every document that was asked.


# %%
def asked_rows() -> list[dict]:
    """A row per document: seed, kind, its score after full fine-tuning and LoRA, and as a control ("none") its mean
    log-probability under the base model, which has seen no kind."""
    rows = []
    for seed in budget.asked_seeds:
        kinds, ((_, before), *tuned) = copied(seed)
        for i, old in enumerate(before["asked"]):
            zones = {"none": round(-float(np.mean(old["nats"])), 4)}
            for who, found in tuned:
                new = found["asked"][i]
                zones[who["method"]] = round(error_zone(old["nats"], new["nats"], new["first"]), 4)
            rows.append({"seed": seed, "member": kinds[i] == "trained", "kind": kinds[i], **zones})
    return rows


scores = results.table("membership_scores", asked_rows)
scores.groupby("kind")[["none", *METHODS]].mean().round(3)

# %% [markdown]
# - AUC: how often a member's score lies above a held-out document's, or above one's of the same file. And what an
#   auditor reads: the members found where at most 1 % of the held-out documents are taken for members. With fewer than
#   100 of them 1 % is less than one document, and nothing is told.


# %%
def separation(members: np.ndarray, others: np.ndarray, level: float = 0.01) -> dict:
    """auc (ties count half); found: members above the lowest threshold that at most `level` of the others exceed;
    false: how many do. None where `level` is less than one of the others."""
    auc = stats.mannwhitneyu(members, others).statistic / (len(members) * len(others))
    row = {"members": len(members), "others": len(others), "auc": float(auc), "found": None, "false": None}
    if (allowed := math.floor(level * len(others))) < 1:
        return row
    threshold = np.sort(others)[-1 - allowed]
    return row | {"found": int((members > threshold).sum()), "false": int((others > threshold).sum())}


def scored(method: str, seed: int) -> list[np.ndarray]:
    """The scores by kind."""
    part = scores[scores["seed"] == seed]
    return [part.loc[part["kind"] == kind, method].to_numpy(dtype=float) for kind in KINDS]


def separated() -> list[dict]:
    rows = []
    for method, seed in itertools.product(("none", *METHODS), scores["seed"].unique()):
        members, beside, others = scored(method, seed)
        row = {"method": method, "seed": seed, **separation(members, others), "same_file": len(beside)}
        rows.append(row | {"auc_same_file": separation(members, beside)["auc"] if len(beside) else math.nan})
    return rows


# %% [markdown]
# - How sure is an AUC? Each seed has documents and a training of its own, so that an interval over seeds holds both.

# %%
membership = results.table("membership", separated)
display(membership.round(3))
aucs, same = (membership.pivot(index="seed", columns="method", values=f"auc{which}") for which in ("", "_same_file"))
against = {"full": aucs["full"] - 0.5, "lora": aucs["lora"] - 0.5, "gap": aucs["full"] - aucs["lora"]}
against |= {f"{method}.same": same[method] - 0.5 for method in METHODS}
recognised = shown(against)
for name, gap in against.items():
    print(f"{name}: {interval(gap, sign=True)}, {'shown' if recognised[name] else 'not shown'}")

# %% [markdown]
# - The curve: true positives at each share of false positives, a mean over seeds; on the dotted line is a guess.


# %%
def curves() -> pd.DataFrame:
    rows = []
    for method, seed in ((m, seed) for m in METHODS for seed in scores["seed"].unique()):
        members, _, others = scored(method, seed)
        for share in np.linspace(0, 1, 41):
            limit = np.quantile(others, 1 - share, method="inverted_cdf")
            rows.append({"method": METHODS[method], "seed": seed, "false": share, "found": (members > limit).mean()})
    return pd.DataFrame(rows)


labels = {"xlabel": "share of held-out documents taken for members", "ylabel": "share of members found", "logx": False}
figure = plots.lines(curves(), "false", "found", "method", **labels)
figure.axes[0].plot([0, 1], [0, 1], color=plots.GREY, linestyle=":", linewidth=1)
counted = membership.groupby("seed")[["members", "others"]].first().sum()
text = f"Which documents were trained on, told by the error-zone score: {counted.members} training and "
text += f"{counted.others} held-out documents; a guess is on the dotted line."
text += " Bands: lowest to highest seed." * (len(budget.asked_seeds) > 1)
results.figure(figure, "08_membership", text, tokens=budget.copied_tokens, seeds=budget.asked_seeds)

# %% [markdown]
# ## What may be published
#
# - From these numbers, by a rule: secrets that come out word for word; copies that leave a trace. The collected text
#   itself: only if everyone in it agreed.


# %%
def leaks(evidence: pd.DataFrame) -> pd.DataFrame:
    """Per method and deduplicated: canaries (inserted ones), extracted, leaks_from (the fewest copies that leave a
    trace; nan: none)."""
    condition, rows = ["method", "deduplicated"], []
    for key, part in evidence[evidence["copies"] > 0].groupby(condition, sort=False):
        row = {**dict(zip(condition, key, strict=True)), **part[["canaries", "extracted"]].sum()}
        rows.append({**row, "leaks_from": part.loc[part["trace"], "copies"].min()})
    return pd.DataFrame(rows)


# %% [markdown]
# - The advice in words, for each condition.


# %%
def advised() -> pd.DataFrame:
    def advice(row) -> str:
        if row.extracted:
            return f"Keep the weights private: {row.extracted} of {row.canaries} secrets come out word for word."
        if row.leaks_from == row.leaks_from:  # not nan
            return f"Keep the weights private: a trace is left from {row.leaks_from:.0f} copies of a secret on."
        return (
            f"Nothing found against sharing with people who may see the data: none of {row.canaries} secrets came out "
            "and no number of copies is above chance. That is no proof for other secrets."
        )

    found = leaks(evidence)
    return found.assign(advice=[advice(row) for row in found.itertuples()])


advice = results.table("recommendation", advised)
for row in advice.itertuples():
    print(f"{NAMED[row.method, row.deduplicated]}. {row.advice}")

# %% [markdown]
# ## What we saw
#
# - The anonymiser over all categories: how much of the labelled it finds, and how much of the found is right.

# %%
whole = by_category.set_index("category").loc["all"]
recall, precision = (span(whole[m], whole[f"{m}_low"], whole[f"{m}_high"]) for m in ("recall", "precision"))
missed = f"{whole.labelled - whole.correct:.0f}"
print(f"Anonymiser: recall {recall}, precision {precision}; missed {missed} of {whole.labelled:.0f}.")

# %% [markdown]
# - Does exposure rise with the times inserted? With the duplicates left in, Spearman's correlation over canaries; and
#   in each condition the canaries that were inserted most often.


# %%
def probability(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


condition, often = ["method", "deduplicated"], memory["repetitions"].max()
most = above_chance(after[after["repetitions"] == often], condition).set_index(condition)
rises = {
    key: stats.spearmanr(part["repetitions"], part["exposure"], alternative="greater")
    for key, part in after[after["deduplicated"] == "no"].groupby(condition, sort=False)
}
display(pd.DataFrame(rises, index=["Spearman", "p"]).T, most.round(2))

# %% [markdown]
# - One copy: does it leave a trace? Duplicates removed, all inserted canaries; in the second experiment, those of one.
# - What was not inserted should lie at chance: canaries before training, and controls after it.

# %%
once = evidence[(evidence["copies"] == 1) & (evidence["deduplicated"] == "yes")]
once = pd.concat([once, second[second["copies"] == 1]]).set_index(condition)
unseen = memory[(memory["stage"] == "before") | (memory["repetitions"] == 0)]
controls = above_chance(unseen, ["stage", *condition]).set_index(["stage", *condition])
display(once.round(3), controls.round(3))

# %% [markdown]
# ## What it does not show
#
# - Membership is asked of models that saw a document once, and few documents. The paper's AUC of 0.98 is another
#   model's on another text, after another training: a yardstick, no rival.
# - With the duplicates left in, the copies fill two fifths of the training text, so that these models saw fewer real
#   documents: their quality and the others' differ by that too.
# - Exposure is a lower bound on what an attacker learns: one kind of secret, one attack, a known prefix. Nothing found
#   is no proof of nothing there; a guarantee needs differentially private training.
# - Duplicate removal is tested on exact copies. A secret that is told in other words each time stays repeated.
# - The rules and each of the labelled set's two parts have one author. Names outside the list, nicknames, streets,
#   and whatever tells who someone is by what it says are not found.
# - Little text at one learning rate per method: more passes act like more repetitions. Full fine-tuning and LoRA
#   run at different rates, each its usual one, so their gap is not the method's alone.

# %% [markdown]
# ## For the report
#
# - Numbers for `report.md`, each under the name that its mark has there: the data card's documents, and the model.

# %%
counted = card.set_index(["what", "key"])["value"]
for name, key in {"exact": "exact duplicates removed", "near": "near-duplicates removed", "kept": "kept"}.items():
    results.value(f"card.{name}", f"{counted['documents', key]:,.0f}")
for split in ("train", "validation", "test"):
    results.value(f"card.{split}", f"{counted['split', split]:,.0f}")
results.value("card.replaced", f"{card[card['what'] == 'replaced']['value'].sum():,.0f}")
made = results.provenance()
stand_in = f"the stand-in {made['base_model'].removesuffix(' (stand-in)')}"
results.value("model", stand_in if made["stand_in"] else "GPT-2 117M")

# %% [markdown]
# - The inserted canaries: the rise, those inserted most often, and those that stand once. Shares that come out have an
#   exact bound, as if secrets were independent.

# %%
results.value("often", often)
results.value("models", len(budget.seeds))
results.value("tests", int((evidence["copies"] > 0).sum()))
drawn = memorise.canaries(budget.asked_seeds[0], budget.copied_canaries, budget.copied_canaries, budget.copies)
for name, secrets, tokens in (("insertions", canaries, budget.train_tokens), ("copies", drawn, budget.copied_tokens)):
    results.value(f"{name}.share", f"{tokens_of(secrets) / tokens:.0%}")
for key, (_, p) in rises.items():
    results.claim(f"exposure rises, {'.'.join(key)}", p < 0.05 / len(rises))
for key, row in most.iterrows():
    results.value(f"out.{'.'.join(key)}", f"{row.extracted:.0f} of {row.canaries:.0f}")
    results.value(f"fraction.{'.'.join(key)}", f"{row.extracted:.0f}/{row.canaries:.0f}")
row = once.loc["full", "yes"]
results.value("once.full.yes", f"{span(row.exposure, row.low, row.high, 2)} bits, {probability(row.p_value)}")
results.value("once.canaries.full.yes", row.canaries)
results.value("once.most.full.yes", f"{proportion_confint(row.extracted, row.canaries, method='beta')[1]:.1%}")
results.claim("one copy is not shown to leave a trace", not once["trace"].any())

# %% [markdown]
# - The second experiment.

# %%
results.value("copies.canaries", second.loc[second["copies"] == 1, "canaries"].iloc[0])
results.value("copies.models", copies["seed"].nunique())
results.value("copies.tests", design["tests"])
results.value("copies.tokens", f"{budget.copied_tokens:,}")
results.value("copies.power", f"{least[0]:.1f}" if least[0] < math.inf else "no mean")
for row in second.itertuples():
    bits = f"{span(row.exposure, row.low, row.high, 2)} bits, {probability(row.p_value)}"
    results.value(f"copies.{row.method}.{row.copies}", bits)
    results.value(f"copies.out.{row.method}.{row.copies}", f"{row.extracted} of {row.canaries}")
    results.value(f"copies.fraction.{row.method}.{row.copies}", f"{row.extracted}/{row.canaries}")
    results.claim(f"{row.copies} copies leave a trace, {row.method}", row.trace)
    results.claim(f"{row.copies} copies are not shown to leave a trace, {row.method}", not row.trace)
for row in leaks(second).itertuples():
    results.value(f"copies.from.{row.method}", "none" if math.isnan(row.leaks_from) else f"{row.leaks_from:.0f}")
# What was not inserted. Below 0.01 is told as above chance: with these 5 tests, 5 % in all.
for (stage, *key), row in controls.iterrows():
    name = stage if stage == "before" else ".".join(key)
    results.value(f"unseen.{name}", f"{row.exposure:.2f} bits, {probability(row.p_value)}")
results.value("unseen.before.canaries", f"{controls.loc['before'].canaries.sum():.0f}")
results.value("unseen.controls", f"{controls.loc['after'].canaries.iloc[0]:.0f}")
results.claim("what was not inserted is as by chance", controls["p_value"].min() >= 0.01)

# %% [markdown]
# - The third: those inserted, and the controls.

# %%
results.value("sparse.tokens", f"{sparse['train_tokens'].mean():,.0f}" if len(sparse) else "-")
results.value("sparse.share", f"{sparse['share'].mean():.1%}" if len(sparse) else "-")
for count in (0, *much.copies):
    results.value(f"sparse.{count}", "-")
    results.value(f"sparse.out.{count}", "-")
    results.value(f"sparse.fraction.{count}", "-")
for r in third.itertuples():
    bits = f"{span(r.exposure, r.low, r.high, 1)} bits, {probability(r.p_value)}"
    results.value(f"sparse.{r.copies}", bits)
    results.value(f"sparse.out.{r.copies}", f"{r.extracted} of {r.canaries}")
    results.value(f"sparse.fraction.{r.copies}", f"{r.extracted}/{r.canaries}")
often_read = sparse[sparse["copies"] == max(much.copies)] if len(sparse) else sparse
seen_once = len(sparse) > 0 and sparse["passes"].max() == 1  # the text, so that a copy is seen once
results.claim("most secrets come out among much more text", seen_once and often_read["extracted"].mean() > 0.5)

# %% [markdown]
# - Documents continued word for word: in each condition the fewest and the most of a model.

# %%
trained_on = continuing[continuing["split"] == "train"]
for (stage, method, dedup), part in trained_on.groupby(["stage", *condition], sort=False):
    name = "before" if stage == "before" else f"{method}.{dedup}"
    low, high = part["verbatim"].min(), part["verbatim"].max()
    count = f"{low}" if low == high else f"{low} to {high}"
    results.value(f"verbatim.{name}", f"{count} of {part['documents'].iloc[0]}")
# Membership: AUC with its interval over seeds; against 0.5 (twice) and full against LoRA: five comparisons (Holm).
# Members found at 1 % false positives, in all models together.
counts = membership.groupby("method").sum()
results.value("auc.none", interval(aucs["none"], 2))
results.value("auc.gap", interval(against["gap"], 2, sign=True))
for method, row in counts.loc[[*METHODS]].iterrows():
    results.value(f"auc.{method}", interval(aucs[method], 2))
    results.claim(f"training documents are recognised, {method}", recognised[method] > 0)
    results.value(f"auc.{method}.same", interval(same[method], 2) if same[method].notna().any() else "-")
    results.claim(f"training documents are recognised among their files', {method}", recognised[f"{method}.same"] > 0)
    if membership["found"].notna().all():
        results.value(f"found.{method}", f"{row['found']:.0f} of {row['members']:.0f}")
results.value("members", f"{counts['members'].iloc[0]:.0f}")
results.value("same_file", f"{counts['same_file'].iloc[0]:.0f}")
results.value("asked.models", membership["seed"].nunique())
parts = [membership[membership["method"] == method] for method in METHODS]
found_in = {tuple(part.loc[part["found"].astype(float) > 0, "seed"]) for part in parts}
results.claim("members are found in the same two models", [len(x) for x in found_in] == [2])
results.claim("full fine-tuning lets more documents be recognised than LoRA", recognised["gap"] > 0)

# %% [markdown]
# - The advice: from how many copies on a trace is told, which conditions let secrets out, and which show nothing.

# %%
for row in advice.itertuples():
    name = f"{row.method}.{row.deduplicated}"
    results.value(f"trace.from.{name}", f"{row.leaks_from:.0f}" if row.leaks_from == row.leaks_from else "none")
    results.claim(f"more copies leave a trace, {name}", row.leaks_from > 1)
    results.claim(f"secrets come out, {name}", row.extracted > 0)
    results.claim(f"no secret comes out, {name}", row.extracted == 0)

# %% [markdown]
# - What training did to chrF and ROUGE-L of the same texts (Holm over both measures and all conditions).

# %%
results.value("unseen", f"{memorise.UNSEEN:.2f}")
start, trained = table[table["method"] == "none"].iloc[0], table[table["method"] != "none"]
gaps = {
    (measure, *key): part[measure] - start[measure]
    for measure in ("chrf", "rouge_l")
    for key, part in trained.groupby(condition, sort=False)
}
rose = pd.Series(shown(gaps))
results.claim("chrF is shown to rise nowhere", rose["chrf"].max() <= 0)
results.claim("ROUGE-L is shown to rise somewhere", rose["rouge_l"].max() > 0)
results.value("rouge_l.rose", f"{(rose['rouge_l'] > 0).sum()} of {len(rose) // 2}")
results.value("generated", start["generated"])
results.value("tokens", f"{budget.train_tokens:,}")
results.value("row", budget.pack_length)
for method in METHODS:
    results.value(f"rate.{method}", f"{LEARNING_RATES[method]:g}")

# %% [markdown]
# - Its tables: the anonymiser, by category; before and after.

# %%
rows = []
for r in by_category.itertuples():
    precise = span(r.precision, r.precision_low, r.precision_high, 2)
    complete = span(r.recall, r.recall_low, r.recall_high, 2)
    rows.append([r.category, f"{r.labelled:.0f}", f"{r.found:.0f}", f"{r.correct:.0f}", precise, complete])
header = ["category", "labelled", "found", "correct", "precision", "recall"]
text = "The anonymiser on the labelled half that its rules were not tuned on; exact Clopper-Pearson 95 % intervals."
results.markdown("anonymiser", header, rows, text, scratch=True, seeds=())
rows, out = [], advice.set_index(condition)
for key, part in table.groupby(condition, sort=False):
    part = part.head(1) if key[0] == "none" else part  # one base model, no spread
    cells = [interval(part[column], n) for column, n in (("bits_per_byte", 3), ("chrf", 1), ("rouge_l", 2))]
    came = f"{out.loc[key].extracted} of {out.loc[key].canaries}" if key in NAMED else "-"
    rows.append([NAMED.get(key, "before"), *cells, came])
header = ["training", "bits per byte", "chrF", "ROUGE-L", "secrets that come out"]
text = (
    f"Quality of held-out text and what comes out. Bits per byte of {table['documents'].iloc[0]} documents, chrF and "
    f"ROUGE-L of {table['generated'].iloc[0]} texts, mean and 95 % t interval over seeds; secrets that greedy decoding "
    "completes, of all that were inserted."
)
results.markdown("before_after", header, rows, text, tokens=budget.train_tokens)

# %% [markdown]
# - The second experiment, and the file with everything: `data/results/08_private_domain.json`.

# %%
rows = []
for r in second.sort_values(["method", "copies"]).itertuples():
    p = probability(r.p_value).removeprefix("p ").removeprefix("= ")
    cells = [r.copies or "none", r.canaries, span(r.exposure, r.low, r.high, 1), p, r.extracted]
    rows.append([METHODS[r.method], *cells, "yes" if r.trace else ""])
text = (
    f"The second experiment: {budget.copied_canaries} canaries of each number of copies in each of "
    f"{len(budget.asked_seeds)} models of each method, ranked among the 1,000 codes with their own first symbol; "
    "exposure in bits, mean and 95 % t interval of the models' means; p: such a mean without a trace, uncorrected; "
    f"trace: significant after Holm over the {design['tests']} with copies, interval above {memorise.UNSEEN:.2f} bits."
)
header = ["training", "copies", "canaries", "exposure", "p", "come out", "trace"]
results.markdown("copies", header, rows, text, tokens=budget.copied_tokens, seeds=budget.asked_seeds)

results.save(data={} if results.stored else {collection().task.name: collection().task.sha256})

# %% [markdown]
# ## Sources
#
# - Exposure and canaries: Carlini et al. 2019, arXiv:1802.08232. Extraction: Carlini et al. 2021, arXiv:2012.07805.
#   Repetition and extraction: Carlini et al. 2023, arXiv:2202.07646. Deduplication: Lee et al. 2022,
#   arXiv:2107.06499; Kandpal et al. 2022, arXiv:2202.06539. LoRA: Hu et al. 2021, arXiv:2106.09685.
# - Membership by the error zone: Ilic, Stanojevic, Cvejoski 2026, arXiv:2601.12104.
# - Documentation addresses: RFC 5737, RFC 3849. Checksums: ISO/IEC 7812-1, ISO 13616, GB 11643.
