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
# # 08 Private-domain data
#
# Data that one collects alone, cleaned of personal data as far as a program can, and a model fine-tuned on it.
# Then the question that decides what may be published: what does the model remember of it?

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

from lib import plots, profile, results
from lib.explore import anonymise, collect, detectors, memorise, private
from lib.models import load_base

started, budget = results.start(), profile.current().private
base = load_base()

# %% [markdown]
# ## The principle
#
# **Collecting.** Every kind of file becomes pairs of prompt and target, so that one loss and one metric fit all:
#
# | kind | prompt | target | never split |
# |--|--|--|--|
# | text `.txt .rst .tex` | first line, or the end of the piece before | the rest, in pieces | file |
# | Markdown | heading | what stands below it | file |
# | code | signature | docstring or comment | file |
# | chat export `[time] name: message`, WhatsApp, JSON | up to three turns before | reply | day, or 20 turns of it |
# | mail `.eml .mbox` | subject | body without quotes and signature | thread |
#
# **Remembering.** A canary is an invented secret, inserted a known number of times. After training, all
# $|R|$ codes of its form are ranked by the model's probability; the canary's exposure is
#
# $$\text{exposure} = \log_2 |R| - \log_2 \text{rank} \quad \text{bits.}$$
#
# - Rank 1 of 10,000 is 13.3 bits. A code that the model never saw has a uniform rank: 1.44 bits in the mean.

# %%
ranks = [1, 2, 10, 100, 1_000, 5_000, memorise.CANDIDATES]
pd.DataFrame({"rank": ranks, "exposure": [round(memorise.bits(r), 2) for r in ranks]}).T

# %% [markdown]
# ## Collect
#
# - `PRIVATE_DATA=/path/to/folder` takes a folder of one's own; without it the docstrings of Python packages that
#   are installed anyway serve: text by many hands, with some of their authors' addresses in it.

# %%
collection = collect.collect(budget.packages)
task = collection.task
print(collect.CONSENT if collection.own else "Public docstrings: nobody has to be asked.")

# %% [markdown]
# - The data card, written from what was found: what was read and skipped, in which encodings, what was replaced,
#   what was removed as a duplicate, how the rest was split. No text, no names of files.

# %%
display(collection.card.set_index(["what", "key"])["value"].map("{:,.0f}".format).to_frame())

# %% [markdown]
# - Near-duplicates are removed before the split, by the similarity of word 3-shingles; what the last column above
#   names is in one split only.

# %%
display(Code(inspect.getsource(collect.near), language="python"))

# %% [markdown]
# - What a document looks like. Of a folder of one's own nothing is shown.

# %%
for example in [] if collection.own else task.test[:2]:
    print(example.prompt + example.target, end="\n" + "-" * 80 + "\n")

# %% [markdown]
# ## Anonymise
#
# - Rules that a program can check. One of them, and what it does to invented text:

# %%
display(Code(inspect.getsource(detectors.resident_id), language="python"))
text = "Mira Holm (mira@holm.example, +1 202-555-0143) logged in from 10.3.44.7, not from version 10.3.44.7."
names = anonymise.read_names(anonymise.LABELLED / "names.txt")
print(anonymise.anonymise(text, names)[0])

# %% [markdown]
# - How well? `data/anonymiser` is a labelled set: invented people and addresses, English and Chinese, with version
#   numbers, hashes, dates, ISBNs and documentation addresses as traps. The rules were written while looking at one
#   half; this is the other half. An item counts if category and characters are exactly right.

# %%
labelled = anonymise.labelled("test")
quality = anonymise.evaluate(labelled, names)
quality.set_index("category").round(3)

# %%
bars = quality.melt("category", ["precision", "recall"], "measure", "share")
figure = plots.bars(bars.dropna(), "category", "share", panel="measure", columns=2)
provenance = results.provenance(base, profile.current().seeds)
text = f"The anonymiser on {len(labelled)} labelled texts that its rules were not tuned on. No model."
path = plots.save_figure(figure, "08_anonymiser", text)

# %% [markdown]
# - Every mistake on that half: what was missed, what was taken wrongly.

# %%
mistakes = anonymise.mistakes(labelled, names)
with pd.option_context("display.max_colwidth", None):
    display(mistakes[["kind", "category", "item", "text"]])

# %% [markdown]
# ## The experiment
#
# - Canaries of each number of repetitions go into the training text. Four conditions: full fine-tuning or LoRA, with
#   the duplicates or after the collection's own duplicate removal. All see equally much text, once where
#   there is enough of it: what the removal frees is filled with further documents. Controls are never inserted.

# %%
canaries = private.drawn(seed=0)
shown = pd.DataFrame([(c.repetitions, c.example().target) for c in canaries], columns=["repetitions", "text"])
shown.groupby("repetitions").first()

# %% [markdown]
# - Names, things and codes are drawn anew for every seed. The code that scores all 10,000 codes of one canary in one
#   batch; a test compares it with reading each code alone.

# %%
display(Code(inspect.getsource(memorise.code_log_probabilities), language="python"))

# %%
audited = private.run_all(base, task)
tokens = budget.train_tokens
passes = audited[-1].canaries[0]["passes"]
print(f"{len(private.conditions())} runs of about {tokens:,} training tokens, {passes} pass(es) over the text.")

# %% [markdown]
# ## Before and after
#
# - Bits per byte of held-out targets: $\sum \text{nats} / (\ln 2 \cdot \sum \text{bytes})$, EOS a token and no byte.
# - `deduplicated`: whether duplicates were removed. The same documents are scored and generated for everywhere.

# %%
table = private.before_after(task, audited)
measures = ["bits_per_byte", "perplexity", "chrf", "rouge_l"]
table.groupby(["method", "deduplicated"], sort=False)[measures].mean().round(3)

# %%
clean = table[table["deduplicated"] != "no"]
axes = {"bits_per_byte": "bits per byte (lower is better)", "chrf": "chrF (higher is better)"}
figure = plots.before_after(clean, axes)
scored, written = len(audited[0].scores), len(audited[0].texts)
text = f"{task.name}, duplicates removed: {scored} held-out documents scored, {written} generated."
path = plots.save_figure(figure, "08_before_after", plots.caption(text, provenance, tokens))

# %% [markdown]
# ## What the model remembers
#
# - Exposure by how often the canary was inserted, a mean per seed; the band goes from the lowest to the highest
#   seed. The dotted line is a code without a trace in the model. After duplicate removal every canary stands
#   once, whatever it was inserted.

# %%
memory = private.memorisation(audited)
after = memory[(memory["stage"] == "after") & (memory["repetitions"] > 0)]
keys = ["method", "deduplicated", "repetitions", "seed"]
curve = after.groupby(keys, sort=False)["exposure"].mean().reset_index()
curve["duplicates"] = curve["deduplicated"].map({"no": "duplicates left in", "yes": "duplicates removed"})
figure = plots.lines(
    curve, "repetitions", "exposure", "method", panel="duplicates", ylabel="exposure (bits)", xlabel="times inserted"
)
for ax in figure.axes:
    ax.axhline(memorise.UNSEEN, color=plots.GREY, linestyle=":", linewidth=1)
    ax.set_ylim(0, memorise.bits(1) + 0.5)
text = "Exposure of canaries among 10,000 codes (at most 13.3 bits); dotted: 1.44 bits, never seen."
path = plots.save_figure(figure, "08_exposure", plots.caption(text, provenance, tokens))

# %% [markdown]
# - Per condition and number of repetitions (0: controls): canaries, mean exposure, how many come out word for word by
#   greedy decoding from their prefix, and the probability of such a mean for codes without a trace.

# %%
evidence = memorise.evidence(memory, ["method", "deduplicated", "repetitions"])
shown = evidence.set_index(["method", "deduplicated", "repetitions"])
shown.assign(p_value=shown["p_value"].map("{:.1e}".format)).round(2)

# %% [markdown]
# - Real documents, too: the share that greedy decoding continues word for word for ten tokens from their first
#   half. Training documents against held-out ones: both hold text that is easy to guess or was known before.

# %%
verbatim = private.verbatim(audited)
groups = verbatim.groupby(["method", "deduplicated", "split"], sort=False)
groups[["verbatim", "documents"]].sum().assign(share=groups["share"].mean()).round(3)

# %%
advice = memorise.recommendation(memory)
tables = {
    "before_after": table,
    "anonymiser": quality,
    "memorisation": memory,
    "evidence": evidence,
    "verbatim": verbatim,
    "recommendation": advice,
    "card": collection.card,
}
seeds, data = profile.current().seeds, {task.name: task.sha256}
path = results.save("08_private_domain", tables, base=base, seeds=seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# - Sentences from this run's own numbers, with the conditions computed.

# %%
whole = quality.set_index("category").loc["all"]
print(
    f"Anonymiser: recall {whole.recall:.3f} [{whole.recall_low:.3f}, {whole.recall_high:.3f}], precision "
    f"{whole.precision:.3f} [{whole.precision_low:.3f}, {whole.precision_high:.3f}]."
)
print(*private.findings(table, memory, verbatim), sep="\n")

# %% [markdown]
# - What may be published, from these numbers:

# %%
for row in advice.itertuples():
    print(f"{private.named(row.method, row.deduplicated)}. {row.advice}")
print(
    f"The collected text itself: only if everyone in it agreed; of {whole.labelled:.0f} labelled items the "
    f"anonymiser missed {whole.labelled - whole.correct:.0f}."
)

# %% [markdown]
# ## What it does not show
#
# - Exposure is a lower bound on what an attacker learns: one kind of secret, one attack, a known prefix. Nothing found
#   is no proof of nothing there; a guarantee needs differentially private training.
# - Duplicate removal is tested on exact copies. A secret that is told in other words each time stays repeated.
# - The anonymiser and its labelled set have one author. Names outside the list, nicknames, addresses of houses,
#   and whatever tells who someone is by what it says are not found.
# - Little text at one learning rate per method: more passes act like more repetitions. Full fine-tuning and LoRA
#   run at different rates, each its usual one, so their gap is not the method's alone.
#
# ## Sources
#
# - Exposure and canaries: Carlini et al. 2019, arXiv:1802.08232. Extraction: Carlini et al. 2021, arXiv:2012.07805.
#   Repetition and extraction: Carlini et al. 2023, arXiv:2202.07646. Deduplication: Lee et al. 2022,
#   arXiv:2107.06499; Kandpal et al. 2022, arXiv:2202.06539. LoRA: Hu et al. 2021, arXiv:2106.09685.
# - MinHash: Broder 1997. Documentation addresses: RFC 5737, RFC 3849. Checksums: ISO/IEC 7812-1, ISO 13616, GB 11643.
