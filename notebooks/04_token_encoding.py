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
# # 04 Token encoding
#
# The same GPT-2, the same text, the same budget; only the cut into tokens changes. Bytes, characters, BPE,
# WordPiece and Unigram, in English and in Chinese, each trained from scratch and compared in bits per byte.

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
import json
import math
from dataclasses import replace
from itertools import combinations

import pandas as pd
from IPython.display import Markdown, display

from lib import plots, profile, results, tasks
from lib.explore import curves, encodings, scratch
from lib.metrics import mean_interval

started = results.start()
settings, budget = profile.current(), profile.current().scratch
pd.set_option("display.max_colwidth", 160, "display.max_rows", 80)


# %%
def show(*functions) -> None:
    code = "\n\n".join(inspect.getsource(f) for f in functions)
    display(Markdown(f"```python\n{code}```"))


def keep(figure, name: str, text: str) -> None:
    plots.save_figure(figure, name, plots.caption(text, results.provenance(seeds=budget.seeds)))


def label(name: str, size: int | None) -> str:
    return f"{name} {size:,}" if size else name


# %% [markdown]
# ## 1 The principle
#
# An encoding is a pair of functions: text to ids $x_1 \dots x_n$ out of $V$, and back. Everything behind it is
# the same model. The smaller the vocabulary, the longer the sequence, and the smaller the embedding table
# ($V \times 128$ here), which is also the output layer.
#
# - Runs are compared in **bits per byte** of the text, which no encoding can change:
#   $\displaystyle \mathrm{bpb} = \frac{-\sum_t \ln p(x_t \mid x_{<t})}{\ln 2 \cdot \mathrm{bytes}}$
# - **Token perplexity** $P = \exp(-\frac{1}{n} \sum_t \ln p)$ cannot do that. The two differ by
#   $P = 2^{\,\mathrm{bpb} \,\cdot\, \mathrm{bytes} / n}$: at 2 bits per byte it is 4 for bytes and 256 for
#   tokens of four bytes, from models that know the text equally well.
# - **UNK** must cost something, else the encoding that drops the hard characters wins. Here each lost stretch is
#   spelled out at 8 bits a byte and 8 for its end, and the bits are added to the model's.

# %%
show(encodings.Encoding.unknown_bits, encodings.Encoding.lost)

# %% [markdown]
# - The conditions, as data. In profile `cpu` GPT-2's own 50,257 tokens are not trained: its output layer makes
#   that run several times as long as any other. `fast` only shows that the notebook runs.

# %%
sizes = budget.vocab_sizes
learned = [(name, 4_096) for name in ("wordpiece", "unigram") if 4_096 in sizes]
CONDITIONS = {
    "debian": [("bytes", None), ("characters", None), *(("bpe", v) for v in sizes), *learned],
    "tang": [("bytes", None), ("characters", None), *(("bpe", v) for v in (1_024, 4_096))],
}
CONDITIONS["tang"] = [c for c in CONDITIONS["tang"] if c[1] in (None, *sizes)] + learned
if settings.name == "full":
    CONDITIONS["debian"].append(("gpt2", None))
LANGUAGES = {"debian": "English (debian)", "tang": "Chinese (tang)"}
{corpus: [label(*c) for c in conditions] for corpus, conditions in CONDITIONS.items()}

# %% [markdown]
# - One held-out line in each language, cut by each encoding. The number counts tokens; an outlined box is part
#   of a character. All but `gpt2` and `bytes` learned their pieces from the training split of that language.

# %%
EXAMPLES = {"debian": "file transfer utility for devices", "tang": "欲住村西日日慵，"}
SHOWN = {corpus: dict.fromkeys([*CONDITIONS[corpus], ("gpt2", None)]) for corpus in CONDITIONS}
cut = {
    LANGUAGES[corpus]: {label(*c): scratch.encoding_of(corpus, *c).tokens(EXAMPLES[corpus]) for c in SHOWN[corpus]}
    for corpus in CONDITIONS
}
keep(plots.strips(cut), "04_tokens", "A line of a package description and a verse, as tokens.")

# %% [markdown]
# ## 2 BPE, step by step
#
# Byte-pair encoding (Sennrich et al. 2016) counts neighbours. **Train**: take the most frequent pair of
# symbols, make it one symbol, count again, until the vocabulary is full. **Encode**: cut the text into words,
# spell each in bytes, and apply the merges in the order in which they were learned. **Decode**: join the bytes.
#
# - The training that runs below. Words are cut by GPT-2's pattern first, so no merge crosses a word's edge.

# %%
show(encodings.bpe_steps)

# %% [markdown]
# - The paper's own example, with GPT-2's blank (␣) in front of a word: every merge until no pair is left twice.

# %%
TOY = [" low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3]


def seen(piece: bytes) -> str:
    return encodings.piece_text(piece).replace(" ", "␣")


steps = list(encodings.bpe_steps(TOY))
merges = pd.DataFrame([(s.step, *map(seen, s.pair), s.count, seen(s.symbol)) for s in steps])
merges.columns = ["step", "left", "right", "count", "symbol"]
merges

# %% [markdown]
# - A word that the text did not hold, encoded with those merges, and decoded again.

# %%
show(encodings._encode_steps, encodings._merged, encodings.bpe_decode)
pairs = [s.pair for s in steps]
for pieces in encodings.bpe_encode_steps(" lowest", pairs):
    print(" | ".join(map(seen, pieces)))
assert encodings.bpe_decode(pieces) == " lowest"

# %% [markdown]
# - Is it right? On the same text the `tokenizers` library must learn the same merges in the same order and
#   give the same ids.

# %%
sample, other = (scratch.documents("debian", split, 20_000) for split in ("train", "test"))
pairs = encodings.bpe_train(sample, 150)
library = encodings.train_encoding("bpe", sample, 257 + len(pairs))  # 256 bytes, the merges, EOS
theirs = json.loads(library.tokenizer.to_str())["model"]["merges"]
ours = [["".join(encodings.BYTE_CHARACTERS[b] for b in part) for part in pair] for pair in pairs]
ids = encodings.bpe_vocabulary(pairs)
assert ours == [list(merge) for merge in theirs]
for text in other:
    assert [ids[p] for p in encodings.bpe_encode(text, pairs)] == library.encode(text)
print(f"{len(pairs)} merges and the ids of {len(other)} held-out documents are the library's.")

# %% [markdown]
# - With GPT-2's 50,000 merges the same few lines are GPT-2's tokenizer, in English and in Chinese.

# %%
gpt2, pairs = scratch.encoding_of("tang", "gpt2", None), encodings.gpt2_merges()
ids = encodings.bpe_vocabulary(pairs)
for corpus in CONDITIONS:
    text = "\n".join(scratch.held_out(corpus, 8_000))
    pieces = encodings.bpe_encode(text, pairs)
    assert [ids[p] for p in pieces] == gpt2.encode(text) and encodings.bpe_decode(pieces) == text
    print(f"{corpus}: {len(pieces):,} tokens, the same as GPT-2's.")

# %% [markdown]
# ## 3 What an encoding does to text
#
# - Learned on the training split, measured on held-out text. `lossless_percent`: documents that come back as
#   they were; `unknown_percent`: characters lost; `invalid_percent`: tokens that are not valid UTF-8 alone.
# - WordPiece spends two entries on a character, alone and inside a word, and at most half of its table on
#   them: of 4,096 entries that is 1,024 characters. In Chinese the price of UNK decides its result.


# %%
def statistics(corpus: str, name: str, size: int | None) -> dict:
    encoding = scratch.encoding_of(corpus, name, size)
    row = encodings.encoding_statistics(encoding, scratch.held_out(corpus, budget.eval_bytes))
    return {"corpus": corpus, "encoding": name, "label": label(name, size), **row}


facts = pd.DataFrame([statistics(corpus, *c) for corpus in SHOWN for c in SHOWN[corpus]])
columns = [c for c in facts if c.endswith(("_token", "_percent", "_per_byte"))]
facts.set_index(["corpus", "label"])[["vocab_size", *columns]].round(2)

# %% [markdown]
# - A Tang poem under GPT-2's BPE, whose merges come from English web text: most characters fall into two or
#   three pieces, and the model must write the bytes in the right order before a character appears.

# %%
verses = scratch.held_out("tang", 1)[0].splitlines()
poem = pd.DataFrame({"verse": verses, "tokens": [" ".join(gpt2.tokens(v)) for v in verses]})
poem["characters_per_token"] = [len(v) / len(gpt2.encode(v)) for v in verses]
row = facts[(facts.corpus == "tang") & (facts.encoding == "gpt2")].iloc[0]
print(f"Held-out poems: {row.characters_per_token:.2f} characters per token, {row.invalid_percent:.0f} % of the")
print("tokens not valid UTF-8 alone. Counted elsewhere on Tang poems: 0.46 and 90 %.")
poem.round(2)

# %% [markdown]
# ## 4 The experiment: equal bytes
#
# One recipe, from which only the encoding differs: the same blocks (equal non-embedding parameters), the same
# documents in the same order for a seed, the same optimizer and schedule.
#
# - A row holds 512 bytes of text on average, whatever that is in tokens (`length_for`), and a step two rows: runs
#   of equal bytes see equally far back, and have the same number of steps within 3 % (EOS, one a document,
#   weighs more in a short sequence).
# - Positions are RoPE in all. GPT-2's learned table would be a second variable: a row for each of the 500 tokens
#   that 512 bytes are, a fifth of that for a large vocabulary. Section 6 shows what it does.

# %%
show(scratch.length_for, scratch.stream)

# %% [markdown]
# - How two of the encodings are made; the library does the work. The other four are beside them in
#   `lib/explore/encodings.py`, and one name in the recipe chooses.

# %%
show(encodings._bpe, encodings._unigram)


# %%
def recipe(seed: int, corpus: str, name: str, size: int | None) -> scratch.Recipe:
    n = scratch.length_for(scratch.encoding_of(corpus, name, size), corpus, 512)
    what = {"seed": seed, "corpus": corpus, "encoding": name, "vocab_size": size}
    shape = {"position": "rope", "n_layer": budget.n_layer, "n_embd": budget.n_embd}
    amount = {"train_length": n, "rows": 2, "train_bytes": budget.encoding_bytes}
    return scratch.Recipe(**what, **shape, **amount)


conditions = [(corpus, *c) for corpus in CONDITIONS for c in CONDITIONS[corpus]]
recipes = [recipe(seed, *c) for seed in budget.seeds for c in conditions]
runs = scratch.train_all(recipes)

# %% [markdown]
# ## 5 The same at equal compute
#
# At equal bytes the longer sequence also gets more compute. Per token, training costs about
# $6 N + 6 V d + 6 L d T$ floating-point operations: $N$ parameters in the blocks, the output layer, and causal
# attention over rows of $T$ tokens ($L$ layers of width $d$; Kaplan et al. 2020).
#
# - The cost of BPE near 1,024 at full bytes is what everybody gets; the amount of text follows.

# %%
show(scratch.flops, scratch.at_equal_compute)

# %%
middle = min(sizes, key=lambda v: abs(v - 1_024))
reference = recipe(budget.seeds[0], "debian", "bpe", middle)
cost = scratch.flops(reference, scratch.expected_tokens(reference))
swept = [r for r in recipes if r.corpus == "debian" and r.encoding in ("bytes", "bpe")]
scaled = [scratch.at_equal_compute(r, cost) for r in swept]
scaled_runs = scratch.train_all(scaled, desc="equal compute")
print(f"{cost:.2e} floating-point operations per run.")

# %% [markdown]
# ## 6 Bits per byte
#
# - The same held-out text for all, in blocks of 512 bytes on average, UNK priced in.

# %%
KEPT = ["corpus", "seed", "train_bytes", "tokens", "parameters", "non_embedding_parameters"]


def measure(run: scratch.Trained, kind: str) -> dict:
    r, texts = run.recipe, scratch.held_out(run.recipe.corpus, budget.eval_bytes)
    score = scratch.score_stream(run.model, run.encoding, texts, r.train_length, batch_tokens=2_048)
    row = {"label": label(r.encoding, r.vocab_size), "budget": kind}
    row |= {"bits_per_byte": score.bits_per_byte, "perplexity": math.exp(score.nats.mean())}
    return row | {k: run.summary[k] for k in KEPT}


# %%
rows = [measure(r, "bytes") for r in runs] + [measure(r, "compute") for r in scaled_runs]
for row, run in zip(rows, [*runs, *scaled_runs], strict=True):
    row["flops"] = scratch.flops(run.recipe, run.summary["tokens"])
about = ["encoding", "vocab_size", "bytes_per_token", "lossless_percent", "unknown_bits_per_byte"]
table = pd.DataFrame(rows).merge(facts[["corpus", "label", *about]], on=["corpus", "label"])
assert table[table.budget == "bytes"].non_embedding_parameters.nunique() == 1

# %% [markdown]
# - Mean over seeds; `interval` is half the width of the 95 % t interval.

# %%
groups = table.groupby(["budget", "corpus", "label"], sort=False)
summary = groups[["train_bytes", "tokens", "bytes_per_token", "perplexity", "bits_per_byte"]].mean()
summary["interval"] = groups["bits_per_byte"].agg(lambda x: mean_interval(x)[2] - x.mean())
summary.round(3)

# %% [markdown]
# - Every seed as a dot, the mean with its interval.

# %%
equal = table[table.budget == "bytes"]
amount = f"Small GPT-2s from scratch, {budget.encoding_bytes:,} bytes of text per run"
text = f"Bits per byte of held-out text by encoding. {amount}; 95 % t intervals over seeds."
axis = "bits per byte (lower is better)"
figure = plots.dots(equal, "bits_per_byte", "label", "corpus", LANGUAGES, family="encoding", xlabel=axis)
keep(figure, "04_encodings", text)

# %% [markdown]
# - Against the size of the vocabulary, English, bytes at the left. Equal bytes favours whoever takes more
#   tokens for them, equal compute whoever takes fewer.

# %%
sweep = table[(table.corpus == "debian") & table.encoding.isin(["bytes", "bpe"])]
names = {"bytes": "equal bytes", "compute": "equal compute"}
text = f"BPE in English: bits per byte against vocabulary size. {amount}, or the compute of BPE {middle:,}."
keep(curves.by_vocabulary(sweep, names), "04_vocabulary", text)

# %% [markdown]
# - Against bytes, paired by seed: the same seed draws the same documents. Below 0: better than bytes.


# %%
def against_bytes(corpus: str, kind: str) -> pd.DataFrame:
    part = table[(table.corpus == corpus) & (table.budget == kind)]
    wide = part.pivot(index="seed", columns="label", values="bits_per_byte")[part.label.unique()]
    gaps = {name: mean_interval(wide[name] - wide["bytes"]) for name in wide.columns[1:]}
    frame = pd.DataFrame(gaps, index=["difference", "low", "high"]).T.rename_axis("label")
    return frame.reset_index().assign(corpus=corpus, budget=kind)


cases = [("debian", "bytes"), ("tang", "bytes"), ("debian", "compute")]
differences = pd.concat([against_bytes(*case) for case in cases], ignore_index=True)
differences.round(3)

# %% [markdown]
# - The control that decided for RoPE: the same runs with GPT-2's learned positions, one seed. What lies between the
#   two columns is not the encoding's: at this budget the position table is still being learned.

# %%
tabled = [
    replace(r, position="learned", n_positions=r.train_length)
    for r in swept
    if r.seed == budget.seeds[0] and r.vocab_size in (None, middle)
]
control = pd.DataFrame([measure(r, "bytes") for r in scratch.train_all(tabled, "learned")])
same = equal[equal.seed == budget.seeds[0]].set_index(["corpus", "label"]).bits_per_byte
control["with_rope"] = [same[c.corpus, c.label] for c in control.itertuples()]
control[["label", "seed", "bits_per_byte", "with_rope"]].round(3)

# %% [markdown]
# ## 7 The trap of token perplexity
#
# - The same runs in two orders. A pair of encodings is misjudged where the one with the lower perplexity has
#   the higher bits per byte.

# %%
trap = equal.groupby(["corpus", "label"], sort=False)[["perplexity", "bits_per_byte"]].mean()
misjudged = {}
for corpus, part in trap.groupby("corpus", sort=False):
    both = list(combinations(part.itertuples(index=False), 2))
    wrong = sum((a.perplexity - b.perplexity) * (a.bits_per_byte - b.bits_per_byte) < 0 for a, b in both)
    misjudged[corpus] = (wrong, len(both))
    print(f"{corpus}: perplexity misjudges {wrong} of {len(both)} pairs of encodings.")
trap.sort_values(["corpus", "perplexity"]).round(3)

# %% [markdown]
# ## 8 Training speed
#
# - Timed here, not taken from the runs, which may have shared the machine. The conditions take turns; medians.
#   Tokens per second is the wrong unit for the same reason as perplexity: bytes per second is what text costs.

# %%
one_seed = [r for r in recipes if r.seed == budget.seeds[0]]
speed = scratch.training_speed(one_seed)
speed["label"] = [label(r.encoding, r.vocab_size) for r in one_seed]
timed = ["corpus", "label", "vocab_size", "train_length", "tokens_per_second", "bytes_per_second"]
speed[timed].round(0)

# %% [markdown]
# ## 9 Results

# %%
final = table.merge(speed[["corpus", "label", "tokens_per_second"]], on=["corpus", "label"])
final = final.rename(columns={"lossless_percent": "lossless"}).drop(columns="label")
first = ["corpus", "encoding", "vocab_size", "seed", "budget", "bytes_per_token", "lossless"]
tables = {
    "encodings": final[[*first, *(c for c in final if c not in first)]],
    "against_bytes": differences,
    "learned_positions": control,
    "statistics": facts.drop(columns="label"),
    "speed": speed.drop(columns=["label", "position", "attention"]),
    "merges": merges,
}
data = {corpus: tasks.load_task(corpus).sha256 for corpus in CONDITIONS}
path = results.save("04_token_encoding", tables, seeds=budget.seeds, data=data, started=started)

# %% [markdown]
# ## What we saw
#
# The next cell states it from this run's own numbers, with the conditions computed.

# %%
for d in differences.itertuples():
    sure = "excludes 0" if d.low * d.high > 0 else "includes 0: not shown"
    side = "fewer" if d.difference < 0 else "more"
    print(
        f"{d.corpus}, equal {d.budget}: {d.label} needs {abs(d.difference):.3f} bits per byte {side} "
        f"than bytes, difference [{d.low:+.3f}, {d.high:+.3f}], {len(budget.seeds)} seeds: {sure}"
    )

# %%
lines = []
for (kind, corpus), part in summary.groupby(["budget", "corpus"], sort=False):
    best, of_bytes = part.bits_per_byte.idxmin()[2], part.bits_per_byte[kind, corpus, "bytes"]
    lead = f"{part.bits_per_byte.min():.3f} bits per byte against {of_bytes:.3f} for bytes"
    verdict = "bytes win" if best == "bytes" else f"bytes lose at this budget: {lead}"
    lines.append(f"- {corpus}, equal {kind}: the lowest mean is that of {best}; {verdict}.")
for kind, part in sweep[sweep.encoding == "bpe"].groupby("budget"):
    best = part.groupby("vocab_size")["bits_per_byte"].mean().idxmin()
    turn = "the largest tried: no turning point" if best == max(sizes) else "larger ones lose again"
    lines.append(f"- BPE in English, equal {kind}: {best:,} entries are best, {turn}.")
for corpus, (wrong, count) in misjudged.items():
    lines.append(f"- {corpus}: token perplexity misjudges {wrong} of {count} pairs of encodings.")
for f in facts[facts.unknown_percent > 0].itertuples():
    lines.append(
        f"- {f.corpus}, {f.label}: {f.unknown_percent:.2f} % of the characters become UNK, which costs "
        f"{f.unknown_bits_per_byte:.3f} bits per byte."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# - Nothing is missing from bytes: a model of them can in principle be as good as any. Where they lose above, the
#   budget is too small for them. At equal bytes they even get more compute than BPE up to 8,192, and lose it to
#   spelling: their blocks must first learn what a learned vocabulary has in its table from the start.
# - A larger vocabulary must stop helping where its entries are seen too rarely to be learned: every row of the table
#   needs examples of its own. The best size grows with the budget (Tao et al. 2024); whether it lies inside the sweep
#   is said above. `gpt2` also brings knowledge from outside: its pieces were learned on far more text.
# - In Chinese three bytes are one character. Merges beyond a character need phrases that come back, and poems of
#   20 or 28 characters have few.

# %% [markdown]
# ## What it does not show
#
# - One small model and a short budget. Byte models that match subword models saw far more text (ByT5, Xue et al.
#   2022) and spend more of their depth on reading; whether bytes would catch up here is open.
# - Equal non-embedding parameters is not equal parameters: a larger vocabulary has a larger table, and one of
#   50,257 rows is most of its model. The table's parameters are in the results.
# - The learning rate is one for all, chosen with BPE 1,024; at equal compute the schedule is shorter for some.
# - WordPiece and Unigram here follow GPT-2's cut into words and keep blanks as text, so that only the algorithm
#   differs: they are not BERT's or T5's tokenizers. The `tokenizers` trainer picks WordPiece's pieces by count.
# - The price of UNK is an upper bound by an escape code, not what a model would pay.
# - The encodings learned on the whole training split, also where the model saw a part of it. `gpt2` learned on
#   other text. Downstream quality was not measured: bits per byte is about prediction alone.
#
# ## Sources
#
# - BPE: Sennrich et al. 2016, arXiv:1508.07909; on bytes, and the pattern: Radford et al. 2019, *Language Models
#   are Unsupervised Multitask Learners*. WordPiece: Schuster and Nakajima 2012; Wu et al. 2016, arXiv:1609.08144.
# - Unigram: Kudo 2018, arXiv:1804.10959; SentencePiece: Kudo and Richardson 2018, arXiv:1808.06226; bytes: Xue et
#   al. 2022 (ByT5), arXiv:2105.13626. Compute: Kaplan et al. 2020, arXiv:2001.08361. Vocabulary
#   and budget: Tao et al. 2024, arXiv:2407.13623.
# - Text: Debian package descriptions and Tang quatrains, cards in `data/README.md`. Code: Hugging Face
#   `tokenizers` and transformers' GPT2LMHeadModel and Trainer.
