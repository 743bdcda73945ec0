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
import math
import re

import pandas as pd
from IPython.display import Code, display
from scipy import stats

from lib import metrics, plots, profile, tasks, texts
from lib.explore import anonymise, memorise, private
from lib.generate import generate
from lib.models import load_base
from lib.results import Results, interval, kept, listed, shown, span
from lib.train import finetune

# %% [markdown]
# - The budget: (fast, cpu, full). The packages' docstrings are the default documents.

# %%
# pure Python, documented by many hands, and installed anyway
DOCUMENTED = ("accelerate", "datasets", "huggingface_hub", "matplotlib", "nltk", "peft", "sacrebleu")
budget = profile.budget(
    seeds=((0, 1), (0,), (0, 1, 2)),
    packages=(("datasketch", "sacrebleu", "tqdm"), DOCUMENTED, DOCUMENTED),
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
)

# %% [markdown]
# - The model, the results file, and the two methods of fine-tuning that are compared.

# %%
METHODS = ("full", "lora")
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

# %%
ranks = [1, 2, 10, 100, 1_000, 5_000, memorise.CANDIDATES]
pd.DataFrame({"rank": ranks, "exposure": [round(memorise.exposure(r), 2) for r in ranks]}).T

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
#   what was removed as a duplicate, how the rest was split. No text, no names of files.

# %%
card = results.table("card", lambda: collection().card)
display(card.set_index(["what", "key"])["value"].map("{:,.0f}".format).to_frame())

# %% [markdown]
# - In short, before anything is trained on it. A file that was read wrongly shows here: a chat that gives no messages,
#   an encoding that nobody used, characters that could not be read (such documents are left out).

# %%
for what in ("files", "messages", "speakers", "encoding", "replaced", "left out", "skipped"):
    counted = [f"{row.key} {row.value:,.0f}" for row in card[card["what"] == what].itertuples()]
    print(f"{what}: {', '.join(counted) or 'none'}")

# %% [markdown]
# - Near-duplicates are removed before the split, by the similarity of word 3-shingles; what the last column above
#   names is in one split only.

# %%
display(Code(inspect.getsource(private.without_near_duplicates), language="python"))

# %% [markdown]
# - What a document looks like. Of a folder of one's own nothing is shown.

# %%
for row in [] if results.stored or collection().own else tasks.head(collection().task["test"], 2):
    print(row["prompt"] + row["target"], end="\n" + "-" * 80 + "\n")

# %% [markdown]
# ## Anonymise
#
# - Rules that a program can check: a pattern, and for most a check of what it finds. One check, and what the rules do
#   to invented text:

# %%
display(Code(inspect.getsource(anonymise.resident_id), language="python"))
text = "Mira Holm (mira@holm.example, +1 202-555-0143) logged in from 10.3.44.7, not from version 10.3.44.7."
names = anonymise.read_names(anonymise.LABELLED / "names.txt")
print(anonymise.anonymise(text, names)[0])

# %% [markdown]
# - How well? `data/anonymiser` is a labelled set: invented people and addresses, English and Chinese, in ordinary forms
#   and in odd ones (full-width letters, escapes, an address torn over two lines), with version numbers, hashes, dates,
#   ISBNs and documentation addresses as traps. The rules were written while looking at one half, "tune".


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


# %% [markdown]
# - This is the other half. An item counts if category and characters are exactly right.

# %%
texts_of_test, items = labelled("test"), []
for text, wanted, kind, speakers in texts_of_test:
    found = anonymise.find(text, names, speakers)
    for item in sorted({*found, *wanted}):
        about = {"category": item.category, "kind": kind, "item": text[item.start : item.end], "text": text}
        items.append({**about, "found": item in found, "labelled": item in wanted})
items = pd.DataFrame(items)

# %% [markdown]
# - Precision and recall by category, and by the kind of text. No model and no seed; the rows were made when the results
#   file says, under `tables_made`, and a test compares them with what the rules find.


# %%
def measured_anonymiser(by: str) -> list[dict]:
    parts = [(name, part) for name, part in items.groupby(by, sort=False)]
    rows = []
    for name, part in [*parts, *[("all", items)] * (by == "category")]:
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

# %% [markdown]
# - Where a bar is short, read the text yourself before you share it.

# %%
shares = by_category.melt("category", ["precision", "recall"], "measure", "share")
figure = plots.bars(shares.dropna(), "category", "share", panel="measure", columns=2)
text = f"The anonymiser on {len(texts_of_test)} labelled texts that its rules were not tuned on. No model."
results.figure(figure, "08_anonymiser", text, scratch=True, seeds=())

# %% [markdown]
# - Every mistake on that half: what was missed, what was taken wrongly.

# %%
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

# %%
canaries = memorise.canaries(0, budget.canaries, budget.controls)
example = pd.DataFrame([(c.repetitions, c.row()["target"]) for c in canaries], columns=["repetitions", "text"])
example.groupby("repetitions").first()

# %% [markdown]
# - Names, things and codes are drawn anew for every seed. The code that scores all 10,000 codes of one canary in one
#   batch; a test compares it with reading each code alone.

# %%
display(Code(inspect.getsource(memorise.code_log_probabilities), language="python"))

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
# - Open dot: before. Filled dot: after, with duplicates removed and the interval over seeds.

# %%
axes = {"bits_per_byte": "bits per byte (lower is better)", "chrf": "chrF (higher is better)"}
figure = plots.before_after(table[table["deduplicated"] != "no"], axes)
first = table.iloc[0]
text = f"{first.task}, duplicates removed: {first.documents} held-out documents scored, {first.generated} generated."
results.figure(figure, "08_before_after", text, tokens=budget.train_tokens)

# %% [markdown]
# ## What the model remembers
#
# - Exposure by how often the canary was inserted, a mean per seed; the band goes from the lowest to the highest
#   seed. The dotted line is a code without a trace in the model. After duplicate removal every canary stands
#   once, whatever it was inserted.


# %%
def memorised() -> list[dict]:
    rows = []
    for who, found in audited():
        for row in found["canaries"]:
            rows.append({**who, **row, "copies": found["copies"].get(row["canary"], 0), "passes": found["passes"]})
    return rows


memory = results.table("memorisation", memorised)
after = memory[(memory["stage"] == "after") & (memory["repetitions"] > 0)]
curve = after.groupby(["method", "deduplicated", "repetitions", "seed"], sort=False)["exposure"].mean().reset_index()
curve["duplicates"] = curve["deduplicated"].map({"no": "duplicates left in", "yes": "duplicates removed"})
labels = {"ylabel": "exposure (bits)", "xlabel": "times inserted"}
figure = plots.lines(curve, "repetitions", "exposure", "method", panel="duplicates", **labels)
for ax in figure.axes:
    ax.axhline(memorise.UNSEEN, color=plots.GREY, linestyle=":", linewidth=1)
    ax.set_ylim(0, memorise.exposure(1) + 0.5)
text = (
    f"Exposure of canaries among {memorise.CANDIDATES:,} codes (at most {memorise.exposure(1):.1f} bits); dotted: "
    f"{memorise.UNSEEN:.2f} bits, never seen."
)
results.figure(figure, "08_exposure", text, tokens=budget.train_tokens)

# %% [markdown]
# - The test. Ranks of codes without a trace in the model are uniform, so the sum of their exposures times $2 \ln 2$ is
#   chi-squared distributed, with two degrees of freedom for each canary.


# %%
def above_chance(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per group of `by`: canaries, exposure (mean, bits), extracted (how many), p_value: how often codes without a
    trace would reach this mean."""
    rows = []
    for key, part in table.groupby(by, sort=False):
        total, count = part["exposure"].sum(), len(part)
        row = {"canaries": count, "exposure": total / count, "extracted": int(part["extracted"].sum())}
        p_value = float(stats.chi2.sf(2 * math.log(2) * total, 2 * count))
        rows.append({**dict(zip(by, key, strict=True)), **row, "p_value": p_value})
    return pd.DataFrame(rows)


# %% [markdown]
# - Per condition and number of repetitions (0: controls): canaries, mean exposure, how many come out word for word by
#   greedy decoding from their prefix, and the probability of such a mean for codes without a trace.

# %%
keys = ["method", "deduplicated", "repetitions"]
evidence = results.table("evidence", lambda: above_chance(memory, keys))
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
# ## What may be published
#
# - From these numbers, by a rule: a number of copies leaves a trace where its p-value stays significant after
#   Bonferroni's correction for how many numbers were tried. The collected text itself: only if everyone in it agreed.


# %%
def leaks(table: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """Per method and deduplicated, of trained models: canaries (inserted ones), extracted, leaks_from (the fewest
    copies in the training text with exposure above chance; nan: none)."""
    trained, rows = table[(table["copies"] > 0) & (table["stage"] == "after")], []
    for (method, dedup), part in trained.groupby(["method", "deduplicated"], sort=False):
        tests = above_chance(part, ["copies"])
        row = {"method": method, "deduplicated": dedup, **tests[["canaries", "extracted"]].sum()}
        rows.append({**row, "leaks_from": tests.loc[tests["p_value"] < level / len(tests), "copies"].min()})
    return pd.DataFrame(rows)


# %% [markdown]
# - The advice in words, for each condition.


# %%
def advised() -> pd.DataFrame:
    def advice(row) -> str:
        if row.extracted:
            return f"Keep the weights private: {row.extracted} of {row.canaries} secrets come out word for word."
        if row.leaks_from == row.leaks_from:  # not nan
            copies = f"{row.leaks_from:.0f} copies of a secret in the text leave"
            one = "one copy of a secret in the text leaves"
            return f"Keep the weights private: {one if row.leaks_from == 1 else copies} a trace."
        return (
            f"Nothing found against sharing with people who may see the data: none of {row.canaries} secrets came out "
            "and no number of copies is above chance. That is no proof for other secrets."
        )

    found = leaks(memory)
    return found.assign(advice=[advice(row) for row in found.itertuples()])


NAMED = {
    (method, dedup): f"{'LoRA' if method == 'lora' else method}, duplicates {left}"
    for method in METHODS
    for dedup, left in (("no", "left in"), ("yes", "removed"))
}
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
# - Does exposure rise with the times inserted? Per condition Spearman's correlation over canaries, and the canaries
#   inserted most often.


# %%
def probability(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


condition, often = ["method", "deduplicated"], memory["repetitions"].max()
most = above_chance(after[after["repetitions"] == often], condition).set_index(condition)
rises = {
    key: stats.spearmanr(part["repetitions"], part["exposure"], alternative="greater")
    for key, part in after.groupby(condition, sort=False)
}
for key, (rho, p) in rises.items():
    row = most.loc[key]
    print(f"{NAMED[key]}: exposure and times inserted, Spearman {rho:+.2f} ({probability(p)}); ", end="")
    print(f"inserted {often} times: {row.exposure:.2f} bits ({probability(row.p_value)}), ", end="")
    print(f"{row.extracted:.0f} of {row.canaries:.0f} come out.")

# %% [markdown]
# - What was not inserted should lie at chance: canaries before training, and controls after it.

# %%
unseen = memory[(memory["stage"] == "before") | (memory["repetitions"] == 0)]
controls = above_chance(unseen, ["stage", *condition]).set_index(["stage", *condition])
for (stage, *key), row in controls.iterrows():
    what = "before training" if stage == "before" else f"controls, {NAMED[tuple(key)]}"
    print(f"{what}: {row.exposure:.2f} bits over {row.canaries:.0f} canaries ({probability(row.p_value)})")

# %% [markdown]
# ## What it does not show
#
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
# - Numbers for `report.md`, each under the name that its mark has there: the documents of the data card.

# %%
counted = card.set_index(["what", "key"])["value"]
removed = {"exact": "exact duplicates removed", "near": "near-duplicates removed"}
for name, key in {"found": "found", **removed, "kept": "kept"}.items():
    results.value(f"card.{name}", f"{counted['documents', key]:,.0f}")
for split in ("train", "validation", "test"):
    results.value(f"card.{split}", f"{counted['split', split]:,.0f}")
results.value("card.replaced", f"{card[card['what'] == 'replaced']['value'].sum():,.0f}")

# %% [markdown]
# - The model, and the anonymiser.

# %%
made = results.provenance()
stand_in = f"the stand-in {made['base_model'].removesuffix(' (stand-in)')}"
results.value("model", stand_in if made["stand_in"] else "GPT-2 117M")
results.value("anonymiser.recall", recall)
results.value("anonymiser.precision", precision)
results.value("anonymiser.labelled", f"{whole.labelled:.0f}")
results.value("anonymiser.missed", missed)
forms = by_kind[by_kind["labelled"] > 0]
results.value("anonymiser.kinds", len(forms))
results.value("anonymiser.lowest", f"{forms['recall'].min():.2f}")
results.claim("the anonymiser reaches 0.95 in each kind", forms["recall"].min() >= 0.95)

# %% [markdown]
# - The inserted canaries, per condition: the rise, and those inserted most often.

# %%
results.value("often", often)
for key, (rho, p) in rises.items():
    name, row = ".".join(key), most.loc[key]
    results.value(f"rises.{name}", f"{rho:+.2f}, {probability(p)}")
    results.value(f"most.{name}", f"{row.exposure:.2f} bits, {probability(row.p_value)}")
    results.value(f"out.{name}", f"{row.extracted:.0f} of {row.canaries:.0f}")
    results.claim(f"exposure rises, {name}", p < 0.05)
    results.claim(f"exposure is not shown to rise, {name}", p >= 0.05)

# %% [markdown]
# - What was not inserted. Below 0.01 is told as above chance: with these 5 tests, 5 % in all.

# %%
for (stage, *key), row in controls.iterrows():
    name = stage if stage == "before" else ".".join(key)
    results.value(f"unseen.{name}", f"{row.exposure:.2f} bits, {probability(row.p_value)}")
results.value("unseen.before.canaries", f"{controls.loc['before'].canaries.sum():.0f}")
results.value("unseen.controls", f"{controls.loc['after'].canaries.iloc[0]:.0f}")
results.claim("what was not inserted is as by chance", controls["p_value"].min() >= 0.01)

# %% [markdown]
# - Documents continued word for word: is any condition's share of training documents above the base model's?

# %%
continued = continuing.groupby(["stage", *condition, "split"], sort=False)[["verbatim", "documents"]].sum()
for (stage, method, dedup, split), row in continued.iterrows():
    name = "before" if stage == "before" else f"{method}.{dedup}"
    results.value(f"verbatim.{name}.{split}", f"{row.verbatim} of {row.documents}")
seen = continued.xs("train", level="split")
most_seen = (seen["verbatim"] / seen["documents"]).groupby("stage").max()
results.claim("no more documents continued than before", most_seen["after"] <= most_seen["before"])

# %% [markdown]
# - The advice: which conditions let secrets out, show only a trace of one copy, or show nothing.

# %%
for row in advice.itertuples():
    name = f"{row.method}.{row.deduplicated}"
    results.value(f"secrets.{name}", f"{row.extracted} of {row.canaries}")
    results.claim(f"secrets come out, {name}", row.extracted > 0)
    trace = row.extracted == 0 and row.leaks_from == 1
    results.claim(f"no secret comes out but one copy leaves a trace, {name}", trace)
    results.claim(f"nothing found, {name}", row.extracted == 0 and row.leaks_from != row.leaks_from)
closed = [NAMED[row.method, row.deduplicated] for row in advice.itertuples() if row.advice.startswith("Keep")]
results.value("closed", listed(f"“{name}”" for name in closed))

# %% [markdown]
# - Exposure with the duplicates left in, both methods together, and what training did to chrF.

# %%
trained = memory[(memory["stage"] == "after") & (memory["deduplicated"] == "no")]
left_in = trained.groupby("repetitions")["exposure"].mean()
results.value("left_in.most", f"{left_in[often]:.1f}")
results.value("left_in.controls", f"{left_in[0]:.1f}")
results.value("unseen", f"{memorise.UNSEEN:.2f}")
start = table[table["method"] == "none"]["chrf"].iloc[0]
gaps = [part - start for _, part in table[table["method"] != "none"].groupby(condition, sort=False)["chrf"]]
results.claim("chrF is shown to rise nowhere", max(map(shown, gaps)) <= 0)
results.value("chrf.fell", f"{sum(gap.mean() < 0 for gap in gaps)} of {len(gaps)}")

# %% [markdown]
# - Its tables: the anonymiser, by category and by kind.

# %%
header = ["labelled", "found", "correct", "precision", "recall"]
of_half = "The anonymiser on the labelled half that its rules were not tuned on"
tables = {
    "anonymiser": ("category", by_category, of_half),
    "anonymiser_by_kind": ("kind", by_kind, f"{of_half}, by kind"),
}
for block, (by, part, text) in tables.items():
    rows = []
    for r in part.rename(columns={by: "name"}).itertuples():
        precise = span(r.precision, r.precision_low, r.precision_high, 2)
        complete = span(r.recall, r.recall_low, r.recall_high, 2)
        rows.append([r.name, f"{r.labelled:.0f}", f"{r.found:.0f}", f"{r.correct:.0f}", precise, complete])
    text = f"{text}; exact Clopper-Pearson 95 % intervals."
    results.markdown(block, [by, *header], rows, text, scratch=True, seeds=())

# %% [markdown]
# - Held-out documents before and after.

# %%
rows = []
for (method, dedup), part in table.groupby(condition, sort=False):
    part = part.head(1) if method == "none" else part  # one base model, no spread
    digits = {"bits_per_byte": 3, "perplexity": 2, "chrf": 1}
    cells = [interval(part[column], n) for column, n in digits.items()]
    rows.append([method, dedup, *cells])
header = ["method", "duplicates removed", "bits per byte", "token perplexity", "chrF"]
text = "Held-out documents before (none) and after; mean, 95 % t interval."
results.markdown("before_after", header, rows, text, left=2)

# %% [markdown]
# - Exposure, and the file with everything: `data/results/08_private_domain.json`.

# %%
rows, inserted = [], sorted(evidence["repetitions"].unique())
for key, part in evidence.groupby(condition, sort=False):
    cells = []
    for r in part.set_index("repetitions").loc[inserted].itertuples():
        out = f" ({r.extracted} of {r.canaries})" if r.extracted else ""
        cells.append(f"{r.exposure:.1f}{'*' if r.p_value < 0.001 else ''}{out}")
    rows.append([*key, *cells])
text = "Mean exposure in bits by how often a canary was inserted (0: controls); \\*: such a mean without a trace has "
text += "p < 0.001; in brackets, how many come out word for word."
results.markdown("exposure", ["method", "duplicates removed", *map(str, inserted)], rows, text, left=2)

results.save(data={} if results.stored else {collection().task.name: collection().task.sha256})

# %% [markdown]
# ## Sources
#
# - Exposure and canaries: Carlini et al. 2019, arXiv:1802.08232. Extraction: Carlini et al. 2021, arXiv:2012.07805.
#   Repetition and extraction: Carlini et al. 2023, arXiv:2202.07646. Deduplication: Lee et al. 2022,
#   arXiv:2107.06499; Kandpal et al. 2022, arXiv:2202.06539. LoRA: Hu et al. 2021, arXiv:2106.09685.
# - MinHash: Broder 1997. Documentation addresses: RFC 5737, RFC 3849. Checksums: ISO/IEC 7812-1, ISO 13616, GB 11643.
