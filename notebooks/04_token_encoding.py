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
# # 04 Token encoding
#
# The same GPT-2, the same text, the same budget; only the cut into tokens changes. Bytes, characters, BPE,
# WordPiece and Unigram, in English and in Chinese, each trained from scratch and compared in bits per byte.
#
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
import json, math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations, islice, pairwise

import pandas as pd
import torch
from IPython.display import display

from lib import plots, profile, tasks
from lib.explore import costs, encodings, gpt2_bpe, scratch
from lib.metrics import mean_interval
from lib.results import Results, by_seed, interval, listed, number, shown

pd.set_option("display.max_colwidth", 160, "display.max_rows", 80)

# %% [markdown]
# - The budget: (fast, cpu, full). Text in UTF-8 bytes. In `cpu` GPT-2's own 50,257 tokens are not trained: its output
#   layer makes that run several times as long as any other. `fast` only shows that the notebook runs.

# %%
budget = profile.budget(
    seeds=((0, 1), (0, 1), (0, 1, 2)),
    train_bytes=(12_000, 150_000, 500_000),  # that a run sees
    eval_bytes=(4_000, 30_000, 50_000),  # leading held-out text
    vocab_sizes=((300, 400), (512, 1_024, 4_096), (512, 1_024, 2_048, 4_096, 8_192)),  # of the BPEs
    gpt2=(False, False, True),  # train with GPT-2's tokens, too
    rates=((2e-3,), (), (8e-3, 2e-3, 1e-3)),  # other learning rates, of bytes, the middle and the largest BPE
    equal_rates=((2e-3,), (), (4e-3, 2e-3)),  # of bytes with as many parameters as the largest BPE
    n_layer=(1, 4, 4),
    n_embd=(32, 128, 128),
)
results = Results("04_token_encoding", seeds=budget.seeds)

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
plots.source(encodings.Encoding.unknown_bits, encodings.Encoding.lost)

# %% [markdown]
# - The conditions, as data: (encoding, vocabulary size); None where the encoding has its own.

# %%
sizes = budget.vocab_sizes
learned = [(name, 4_096) for name in ("wordpiece", "unigram") if 4_096 in sizes]
fixed = [("bytes", None), ("characters", None)]
CONDITIONS = {
    "debian": [*fixed, *(("bpe", v) for v in sizes), *learned, *[("gpt2", None)] * budget.gpt2],
    "tang": [*fixed, *(("bpe", v) for v in (1_024, 4_096) if v in sizes), *learned],
}
LANGUAGES = {"debian": "English (debian)", "tang": "Chinese (tang)"}


NAMES = {"bpe": "BPE", "wordpiece": "WordPiece", "unigram": "Unigram", "gpt2": "GPT-2's BPE"}


def label(name: str, size: int | None) -> str:
    return NAMES.get(name, name) + ("" if name in encodings.OWN_SIZE else f" {size:,}")


pd.Series({corpus: ", ".join(label(*c) for c in conditions) for corpus, conditions in CONDITIONS.items()}).to_frame("")

# %% [markdown]
# - One held-out line in each language, cut by each encoding. The number counts tokens; an outlined box is part
#   of a character. All but `gpt2` and `bytes` learned their pieces from the training split of that language.


# %%
def piece_text(piece: bytes) -> str:
    """A piece as text, or, where it is not valid UTF-8 alone, its bytes as <E6 98>."""
    valid = piece.decode("utf-8", errors="ignore")
    return valid if valid.encode("utf-8") == piece else f"<{piece.hex(' ').upper()}>"


def tokens(encoding: encodings.Encoding, text: str) -> list[str]:
    """The pieces of `text` as a reader can see them."""
    ids = encoding.encode(text)
    return [encodings.UNK if i == encoding.unk_token_id else piece_text(encoding.pieces[i]) for i in ids]


EXAMPLES = {"debian": "file transfer utility for devices", "tang": "欲住村西日日慵，"}
every = [(corpus, *c) for corpus in CONDITIONS for c in dict.fromkeys([*CONDITIONS[corpus], ("gpt2", None)])]
cut = {name: {} for name in LANGUAGES.values()}
for corpus, *c in every:
    cut[LANGUAGES[corpus]][label(*c)] = tokens(scratch.encoding_of(corpus, *c), EXAMPLES[corpus])
figure = plots.strips(cut)

# %% [markdown]
# ## 2 BPE, step by step
#
# Byte-pair encoding (Sennrich et al. 2016) counts neighbours. **Train**: take the most frequent pair of
# symbols, make it one symbol, count again, until the vocabulary is full. **Encode**: cut the text into words,
# spell each in bytes, and apply the merges in the order in which they were learned. **Decode**: join the bytes.
#
# - A symbol is a byte string, a merge a pair of symbols, in GPT-2's order: the 256 bytes, printable ones first, then
#   what the merges make. Words are cut by GPT-2's pattern first, so no merge crosses a word's edge.

# %%
Symbol, Merge = bytes, tuple[bytes, bytes]


def split_words(text: str) -> list[str]:
    return [word for word, _ in encodings.PATTERN.pre_tokenize_str(text)]


def bpe_vocabulary(merges: list[Merge]) -> dict[Symbol, int]:
    """Symbol -> id."""
    symbols = [bytes([b]) for b in encodings.BYTE_CHARACTERS] + [a + b for a, b in merges]
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}


def merged(pieces: list[Symbol], pair: Merge) -> list[Symbol]:
    """`pieces` with every `pair` of neighbours joined, from the left."""
    out, i = [], 0
    while i < len(pieces):
        found = (*pieces[i : i + 2],) == pair
        out.append(b"".join(pair) if found else pieces[i])
        i += 2 if found else 1
    return out


# %% [markdown]
# - The training: merge after merge, until no pair stands in the text twice. Only the words that a merge changed are
#   counted again.


# %%
def bpe_steps(texts: list[str]) -> Iterator[tuple[Merge, int]]:
    """(pair that becomes a symbol, how often it stood there); of equally frequent pairs the one of older symbols."""
    frequency = Counter(word for text in texts for word in split_words(text))
    spelled = {word: [bytes([b]) for b in word.encode("utf-8")] for word in frequency}
    age, counts, where = bpe_vocabulary([]), Counter(), defaultdict(set)  # where: pair -> words it stood in

    def count(word: str, sign: int) -> None:
        for pair in pairwise(spelled[word]):
            counts[pair] += sign * frequency[word]
            where[pair].add(word)

    for word in spelled:
        count(word, +1)
    while counts and (most := max(counts.values())) >= 2:
        pair = min((p for p, n in counts.items() if n == most), key=lambda p: (age[p[0]], age[p[1]]))
        age.setdefault(b"".join(pair), len(age))
        yield pair, most
        for word in where.pop(pair):
            count(word, -1)
            spelled[word] = merged(spelled[word], pair)
            count(word, +1)
        del counts[pair]


# %% [markdown]
# - The paper's own example, with GPT-2's blank (␣) in front of a word: every merge until no pair is left twice.


# %%
def seen(piece: Symbol) -> str:
    return piece_text(piece).replace(" ", "␣")


steps = list(bpe_steps([" low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3]))
assert [pair for pair, _ in steps[:4]] == [(b"e", b"s"), (b"es", b"t"), (b"l", b"o"), (b" ", b"lo")]
named = [{"left": seen(a), "right": seen(b), "count": n, "symbol": seen(a + b)} for (a, b), n in steps]
results.table("merges", lambda: [{"step": i} | row for i, row in enumerate(named, 1)])

# %% [markdown]
# - The encoding of one word, as it goes: its bytes first, then after each merge, the earliest learned first. Below a
#   word that the text did not hold, and decoded again.


# %%
def bpe_encode_steps(word: str, ranks: dict[Merge, int]) -> Iterator[list[Symbol]]:
    pieces = [bytes([b]) for b in word.encode("utf-8")]
    yield pieces
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        pieces = merged(pieces, min(known, key=ranks.get))
        yield pieces


def bpe_encode(text: str, merges: list[Merge]) -> list[Symbol]:
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return [piece for word in split_words(text) for piece in [*bpe_encode_steps(word, ranks)][-1]]


for pieces in bpe_encode_steps(" lowest", {pair: rank for rank, (pair, _) in enumerate(steps)}):
    print(" | ".join(map(seen, pieces)))
assert b"".join(pieces).decode() == " lowest"

# %% [markdown]
# - Is it right? On the same text the `tokenizers` library must learn the same merges in the same order and
#   give the same ids, in English and in Chinese. It writes a byte as a letter.
# - With GPT-2's 50,000 merges the same few lines are GPT-2's tokenizer, in both languages.


# %%
def in_bytes(letters) -> list[Merge]:
    """Merges of the library."""
    return [tuple(bytes(encodings.CHARACTER_BYTES[c] for c in part) for part in pair) for pair in letters]


gpt2 = in_bytes(gpt2_bpe.merges()), scratch.encoding_of("tang", "gpt2", None)
for corpus in CONDITIONS:
    sample, held_out = (scratch.documents(corpus, split, 20_000) for split in ("train", "test"))
    pairs = [pair for pair, _ in islice(bpe_steps(sample), 150)]
    library = encodings.train_encoding("bpe", sample, 257 + len(pairs))  # 256 bytes, the merges, EOS
    assert pairs == in_bytes(json.loads(library.tokenizer.to_str())["model"]["merges"])
    other = "\n".join(held_out)
    for merges, known in ((pairs, library), gpt2):
        ids, pieces = bpe_vocabulary(merges), bpe_encode(other, merges)
        assert [ids[p] for p in pieces] == known.encode(other) and b"".join(pieces).decode() == other
    print(f"{corpus}: {len(pairs)} merges, and the ids of {len(held_out)} held-out texts, as the library and GPT-2.")

# %% [markdown]
# ## 3 What an encoding does to text
#
# - Learned on the training split, measured on held-out text. `lossless_percent`: documents that come back as
#   they were; `unknown_percent`: characters lost; `invalid_percent`: tokens that are not valid UTF-8 alone.

# %%
texts = {corpus: scratch.documents(corpus, "test", budget.eval_bytes) for corpus in CONDITIONS}


def statistics(corpus: str, name: str, size: int | None) -> dict:
    """EOS is not counted."""
    encoding, written = scratch.encoding_of(corpus, name, size), texts[corpus]
    batch = encoding.encode_batch(written)
    pieces = [encoding.pieces[i] for ids in batch for i in ids]
    n_bytes, n_characters, tokens = len("".join(written).encode("utf-8")), sum(map(len, written)), len(pieces)
    same = sum(encoding.decode(ids) == t for t, ids in zip(written, batch, strict=True))
    lost = sum(len(stretch) for t in written for stretch in encoding.lost(t))
    invalid = sum(p.decode("utf-8", errors="ignore").encode("utf-8") != p for p in pieces)
    row = {"corpus": corpus, "encoding": name, "vocab_size": encoding.vocab_size, "bytes": n_bytes}
    row |= {"characters": n_characters, "tokens": tokens, "bytes_per_token": n_bytes / tokens}
    row |= {"characters_per_token": n_characters / tokens, "lossless_percent": 100 * same / len(written)}
    row |= {"unknown_percent": 100 * lost / n_characters, "invalid_percent": 100 * invalid / tokens}
    return row | {"unknown_bits_per_byte": sum(map(encoding.unknown_bits, written)) / n_bytes}


# %% [markdown]
# - WordPiece spends two entries on a character, alone and inside a word, and at most half of its table on
#   them: of 4,096 entries that is 1,024 characters. In Chinese the price of UNK decides its result.


# %%
def labelled(df: pd.DataFrame) -> pd.DataFrame:
    return df.assign(label=[label(r.encoding, r.vocab_size) for r in df.itertuples()])


facts = labelled(results.table("statistics", lambda: [statistics(*c) for c in every]))
columns = [c for c in facts if c.endswith(("_token", "_percent", "_per_byte"))]
facts.set_index(["corpus", "label"])[["vocab_size", *columns]].round(2)

# %% [markdown]
# ## 4 The experiment: equal bytes
#
# One recipe, from which only the encoding differs: the same blocks (equal non-embedding parameters), the same
# documents for a seed, joined in the same order, the same optimizer and schedule. The rows cut from them are shuffled
# by the Trainer, so encodings with other numbers of rows see the same text in another order.
#
# - A row holds 512 bytes of text on average, whatever that is in tokens, and a step two rows: runs
#   of equal bytes see equally far back, and have the same number of steps within 3 % (EOS, one a document,
#   weighs more in a short sequence).
# - Positions are RoPE in all. GPT-2's learned table would be a second variable: a row for each of the 512 places
#   of bytes, for some 135 of a large vocabulary. Section 6 shows what it does.
# - How an encoding is made; the library does the work. The others are beside it in `lib/explore/encodings.py`, and one
#   name in the recipe chooses.

# %%
plots.source(scratch.stream, encodings.bpe)


# %% [markdown]
# - A run per seed, corpus and encoding: rows of 512 bytes on average, equal text, everything else equal.


# %%
def recipe(seed: int, corpus: str, name: str, size: int | None) -> scratch.Recipe:
    written = scratch.documents(corpus, "validation")
    tokens = sum(map(len, scratch.encoding_of(corpus, name, size).encode_batch(written)))
    n = max(round(512 * tokens / sum(len(t.encode("utf-8")) for t in written)), 2)  # hold 512 bytes on average
    what = {"seed": seed, "corpus": corpus, "encoding": name, "vocab_size": size}
    shape = {"position": "rope", "n_layer": budget.n_layer, "n_embd": budget.n_embd}
    return scratch.Recipe(**what, **shape, train_length=n, rows=2, train_bytes=budget.train_bytes)


@cache
def recipes() -> list[scratch.Recipe]:
    return [recipe(seed, corpus, *c) for seed in budget.seeds for corpus in CONDITIONS for c in CONDITIONS[corpus]]


@cache
def runs() -> list[scratch.Trained]:
    return scratch.train_all(recipes())


# %% [markdown]
# ## 5 The same at equal compute
#
# At equal bytes the longer sequence also gets more compute. Per token, training costs about
# $6 N + 6 V d + 6 L d T$ floating-point operations: $N$ parameters in the blocks, the output layer, and causal
# attention over rows of $T$ tokens ($L$ layers of width $d$; Kaplan et al. 2020): 2 per weight forward and 4 backward.
#
# - What a recipe costs, and how many tokens its bytes are.


# %%
def encoding_of(r: scratch.Recipe) -> encodings.Encoding:
    return scratch.encoding_of(r.corpus, r.encoding, r.vocab_size)


def flops(r: scratch.Recipe, tokens: int) -> float:
    """Floating-point operations of training on `tokens` tokens, a multiplication and an addition as two."""
    blocks = r.n_layer * (12 * r.n_embd**2 + 13 * r.n_embd)  # GPT-2's: weights, then biases and norms
    return 6.0 * tokens * (blocks + encoding_of(r).vocab_size * r.n_embd + r.n_layer * r.n_embd * r.train_length)


def expected_tokens(r: scratch.Recipe) -> int:
    """Tokens, EOS included, of `train_bytes` of text; a run's own count differs a little, by its documents."""
    drawn = scratch.documents(r.corpus, "train", r.train_bytes)
    n_bytes = sum(len(t.encode("utf-8")) for t in drawn)
    return round(r.train_bytes * (len(scratch.stream(encoding_of(r), drawn)) - 1) / n_bytes)


# %% [markdown]
# - The cost of BPE near 1,024 at full bytes is what everybody gets; the amount of text follows. Bytes and the BPEs in
#   English only.

# %%
middle = min(sizes, key=lambda v: abs(v - 1_024))


@cache
def scaled_runs() -> list[scratch.Trained]:
    reference = recipe(budget.seeds[0], "debian", "bpe", middle)
    cost = flops(reference, expected_tokens(reference))
    print(f"{cost:.2e} floating-point operations per run.")
    swept = [r for r in recipes() if r.corpus == "debian" and r.encoding in ("bytes", "bpe")]
    amounts = [r.train_bytes * cost / flops(r, expected_tokens(r)) for r in swept]  # in whole 1,000 bytes
    scaled = [replace(r, train_bytes=1_000 * max(round(n / 1_000), 1)) for r, n in zip(swept, amounts, strict=True)]
    return scratch.train_all(scaled, desc="equal compute")


# %% [markdown]
# ## 6 Bits per byte
#
# - Training speed is timed here, not taken from the runs, which may have shared the machine: random ids, since a step
#   takes as long for any text, and the first steps are not counted.


# %%
def timer(r: scratch.Recipe):
    """A function that trains n steps of the recipe."""
    model = scratch.model_of(r).train()
    optimizer = torch.optim.AdamW(model.parameters(), r.learning_rate, fused=True)
    ids = torch.randint(model.config.vocab_size, (r.rows, r.train_length + 1), device=model.device)

    def steps(n: int = 8) -> None:
        for _ in range(n):
            scratch.shifted_loss(model(ids[:, :-1], use_cache=False), ids[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    steps(2)  # first steps allocate and are slower
    return steps


# %% [markdown]
# - The conditions take turns; medians. Tokens per second is the wrong unit: bytes per second is what text costs.


# %%
def training_speed() -> list[dict]:
    one_seed = [r for r in recipes() if r.seed == budget.seeds[0]]
    rows = []
    for r, taken in costs.by_turns({r: timer(r) for r in one_seed}, rounds=3).items():
        speed = 8 * r.rows * r.train_length / pd.Series(taken).median()
        row = {"corpus": r.corpus, "encoding": r.encoding, "vocab_size": encoding_of(r).vocab_size}
        row |= {"train_length": r.train_length, "tokens_per_second": speed}
        rows.append(row | {"bytes_per_second": speed * r.train_bytes / expected_tokens(r)})
    return rows


speed = labelled(results.table("speed", training_speed))
speed[["corpus", "label", "train_length", "tokens_per_second", "bytes_per_second"]].round(0)


# %% [markdown]
# - The same held-out text for all, in blocks of 512 bytes on average, UNK priced in. All runs have equally many
#   parameters in their blocks.


# %%
def measure(run: scratch.Trained, kind: str) -> dict:
    r = run.recipe
    score = scratch.score_stream(run.model, run.encoding, texts[r.corpus], r.train_length, batch_tokens=2_048)
    found = {"corpus": r.corpus, "encoding": r.encoding, "vocab_size": run.encoding.vocab_size, "seed": r.seed}
    found |= {"budget": kind, "bits_per_byte": score.bits_per_byte, "perplexity": math.exp(score.nats.mean())}
    kept = ["train_bytes", "tokens", "parameters", "non_embedding_parameters"]
    return found | {k: run.summary[k] for k in kept} | {"flops": flops(r, run.summary["tokens"])}


def measured() -> pd.DataFrame:
    df = pd.DataFrame([measure(r, "bytes") for r in runs()] + [measure(r, "compute") for r in scaled_runs()])
    keys = ["corpus", "encoding", "vocab_size"]
    known = facts.rename(columns={"lossless_percent": "lossless"})
    known = known[[*keys, "bytes_per_token", "lossless", "unknown_bits_per_byte"]]
    return df.merge(known, on=keys).merge(speed[[*keys, "tokens_per_second"]], on=keys)


table = labelled(results.table("encodings", measured))
equal = table[table.budget == "bytes"]
assert (equal.non_embedding_parameters == budget.n_layer * (12 * budget.n_embd**2 + 13 * budget.n_embd)).all()

# %% [markdown]
# - Mean over seeds with its 95 % t interval; in the figure every seed is a dot.
# - Then against the size of the vocabulary, English, bytes at the left. Equal bytes favours whoever takes more tokens
#   for them, equal compute whoever takes fewer.

# %%
groups = table.groupby(["budget", "corpus", "label"], sort=False)
means = groups[["train_bytes", "tokens", "bytes_per_token", "perplexity"]].mean().round(1)
display(means.assign(bits_per_byte=groups["bits_per_byte"].agg(interval)))
amount = f"Small GPT-2s from scratch, {budget.train_bytes:,} bytes of text per run"
look = {"family": "encoding", "xlabel": "bits per byte (lower is better)"}
figure = plots.dots(equal, "bits_per_byte", "label", "corpus", LANGUAGES, **look)
least, most = (f"{count / 1e6:.2f}" for count in (equal.parameters.min(), equal.parameters.max()))
text = f"Learned pieces beat bytes in English; in Chinese only some do. {amount}, with {least} to {most} million "
text += "parameters, token table included; dots are seeds, bars 95 % t intervals."
results.figure(figure, "04_encodings", text)
sweep = table[(table.corpus == "debian") & table.encoding.isin(["bytes", "bpe"])]
look = {"xlabel": "vocabulary size", "ylabel": "held-out bits per byte"}
figure = plots.lines(sweep.assign(budget="equal " + sweep.budget), "vocab_size", "bits_per_byte", "budget", **look)

# %% [markdown]
# - Against bytes, paired by seed: the same seed draws the same documents. Below 0: better than bytes.


# %%
def gaps(corpus: str, kind: str = "bytes") -> dict[str, pd.Series]:
    wide = by_seed(table[(table.corpus == corpus) & (table.budget == kind)], "label")
    return {name: wide[name] - wide["bytes"] for name in wide.columns.drop("bytes")}


def against_bytes() -> list[dict]:
    rows = []
    for corpus, kind in (("debian", "bytes"), ("tang", "bytes"), ("debian", "compute")):
        for name, gap in gaps(corpus, kind).items():
            found = dict(zip(("difference", "low", "high"), mean_interval(gap), strict=True))
            rows.append({"label": name, **found, "corpus": corpus, "budget": kind})
    return rows


differences = results.table("against_bytes", against_bytes)
differences.round(3)

# %% [markdown]
# - The control that decided for RoPE: the same runs with GPT-2's learned positions, one seed. What lies between the
#   two columns is not the encoding's: at this budget the position table is still being learned.


# %%
def learned_positions() -> pd.DataFrame:
    plain = [recipe(budget.seeds[0], "debian", *c) for c in (("bytes", None), ("bpe", middle))]
    tabled = [replace(r, position="learned", n_positions=r.train_length) for r in plain]
    rope = equal[equal.seed == budget.seeds[0]].set_index(["corpus", "label"]).bits_per_byte
    df = labelled(pd.DataFrame([measure(run, "bytes") for run in scratch.train_all(tabled, "learned")]))
    df["with_rope"] = [rope["debian", name] for name in df["label"]]
    return df[["label", *df.columns.drop(["label", "encoding", "vocab_size", "flops"])]]


control = results.table("learned_positions", learned_positions)
control[["label", "seed", "bits_per_byte", "with_rope"]].round(3)

# %% [markdown]
# - One rate for all was chosen with a BPE. Do bytes lose by it? Three encodings of English at other rates, equal bytes.


# %%
def rate_rows() -> pd.DataFrame:
    rated = dict.fromkeys([("bytes", None), ("bpe", middle), ("bpe", max(sizes))])  # in `fast` the last two are one
    plain = [recipe(seed, "debian", *c) for c in rated for seed in budget.seeds]
    trained = scratch.train_all([replace(r, learning_rate=x) for r in plain for x in budget.rates], "rates")
    df = labelled(pd.DataFrame([measure(run, "bytes") for run in trained]))
    df["learning_rate"] = [run.recipe.learning_rate for run in trained]
    return df[["label", "seed", "learning_rate", "bits_per_byte", "train_bytes", "tokens"]]


rates = results.table("rates", lambda: rate_rows() if budget.rates else [], optional=True)
if len(rates):
    usual = equal[(equal.corpus == "debian") & equal.label.isin(rates["label"])].assign(
        learning_rate=scratch.Recipe.learning_rate
    )
    rates = pd.concat([usual, rates])[["label", "seed", "learning_rate", "bits_per_byte"]]
    display(rates.pivot_table("bits_per_byte", "label", "learning_rate", sort=False).round(3))
at_best = {}  # each at the best of its rates by the same text
for name, part in rates.groupby("label", sort=False) if len(rates) else ():
    chosen = part.groupby("learning_rate")["bits_per_byte"].mean().idxmin()
    at_best[name] = part[part["learning_rate"] == chosen].set_index("seed")["bits_per_byte"]

# %% [markdown]
# - Of the encodings learned here the largest BPE has the largest table. Bytes in a model of as many parameters: the
#   same blocks, wider.


# %%
def equal_parameter_rows() -> list[dict]:
    of = equal[(equal.corpus == "debian") & (equal.encoding == "bpe")].parameters.max()
    r = recipe(0, "debian", "bytes", None)
    size = encoding_of(r).vocab_size  # below: GPT-2's blocks, the final norm, the table
    wide = min(range(8, 1_024, 8), key=lambda d: abs(r.n_layer * (12 * d**2 + 13 * d) + 2 * d + size * d - of))
    several = [replace(r, seed=s, n_embd=wide, learning_rate=x) for x in budget.equal_rates for s in budget.seeds]
    trained = scratch.train_all(several, "equal parameters")
    return [measure(run, "bytes") | {k: run.summary[k] for k in ("n_embd", "learning_rate")} for run in trained]


wider = results.table("equal_parameters", lambda: equal_parameter_rows() if budget.equal_rates else [], optional=True)
of_wide = pd.Series(dtype=float)  # at the better of its rates
if len(wider):
    display(wider.groupby(["n_embd", "parameters", "learning_rate"])["bits_per_byte"].agg(interval))
    bits = by_seed(wider, "learning_rate")
    of_wide = bits[bits.mean().idxmin()]

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
# ## What we saw
#
# - Nothing is missing from bytes: a model of them can in principle be as good as any. That they lose above for want of
#   text, since their blocks must first learn what a learned vocabulary has in its table, is a guess: no run here has
#   more text.
# - A larger vocabulary must stop helping where its entries are seen too rarely to be learned. The best size grows with
#   the budget (Tao et al. 2024). `gpt2` also brings knowledge from outside: its pieces come from far more text.
# - In Chinese three bytes are one character. Merges beyond a character need phrases that come back, and poems of
#   20 or 28 characters have few.
#
# ## What it does not show
#
# - One small model and a short budget. Byte models that match subword models saw far more text than ours (ByT5, Xue
#   et al. 2022) and spend more of their depth on reading; whether bytes would catch up here is open.
# - Equal non-embedding parameters is not equal parameters: a table of 50,257 rows is most of its model.
# - The learning rate is one for all, chosen with BPE 1,024, but for the check on three of them; at equal compute the
#   schedule is shorter for some.
# - WordPiece and Unigram here follow GPT-2's cut into words and keep blanks as text, so that only the algorithm
#   differs: they are not BERT's or T5's tokenizers. The price of UNK is an upper bound, not what a model would pay.
# - The encodings learned on the whole training split, `gpt2` on other text. Downstream quality was not measured.

# %% [markdown]
# ## For the report
#
# - The tables of section 6.1: one row per encoding, of English with the two controls.

# %%
header = ["encoding (vocabulary)", "parameters", "bytes per token", "bits per byte", "minus bytes, by seed"]
sets = sweep[sweep.budget == "compute"].groupby("label")["bits_per_byte"].mean().map(number)
controls = {"best rate": {name: number(bits.mean()) for name, bits in at_best.items()}, "equal compute": sets}
TEXTS = {"debian": ("english", "English (Debian descriptions)"), "tang": ("chinese", "Chinese (Tang quatrains)")}
for corpus, (language, text) in TEXTS.items():
    gap, rows = gaps(corpus), []
    for key, part in equal[equal.corpus == corpus].groupby("label", sort=False):
        r = part.iloc[0]
        cells = [f"{NAMES.get(r.encoding, r.encoding)} ({r.vocab_size:,})", f"{r.parameters / 1e6:.2f} M"]
        cells += [number(r.bytes_per_token, 2), interval(part.bits_per_byte)]
        rows.append([*cells, interval(gap[key], sign=True) if key in gap else ""])
        rows[-1] += [found.get(key, "-") for found in controls.values()] if language == "english" else []
    text += f", {budget.train_bytes:,} bytes a run, held-out bits per byte; mean, 95 % t interval."
    if language == "english":
        text += " Controls, means: the best of four rates (wider bytes: of two) and, at the common rate, as much "
        text += f"compute as BPE {middle:,} has here."
        for r in wider.head(1).itertuples():
            size = f"{r.parameters / 1e6:.2f} M"
            rows.append([f"bytes, wider ({r.vocab_size})", size, "1.00", "-", "-", number(of_wide.mean()), "-"])
    results.markdown(language, header + [*controls] * (language == "english"), rows, text, scratch=True)

# %%
wide = by_seed(equal[equal.corpus == "debian"], "label")
best = wide.drop(columns=NAMES["gpt2"], errors="ignore").mean().idxmin()
said = {"best": best, "best.bits": number(wide[best].mean()), "bytes.bits": number(wide["bytes"].mean())}
r = recipes()[0]
setup = f"{r.n_layer} layers, {r.n_embd} wide, {r.n_head} heads, RoPE; rows of 512 bytes on average, {r.rows} in a "
setup += f"step; AdamW, cosine from {r.learning_rate:g}; {r.train_bytes:,} bytes of text, seeds {listed(budget.seeds)}"
said["setup"] = setup
for name, said_value in said.items():
    results.value(name, said_value)
results.claim("the best needs fewer bits than bytes", shown(gaps("debian"))[best] < 0)

# %% [markdown]
# - Whether the largest vocabulary is best at each budget, and per language which encodings need fewer bits than bytes.

# %%
for kind, part in sweep[sweep.encoding == "bpe"].groupby("budget"):
    size = part.groupby("vocab_size")["bits_per_byte"].mean().idxmin()
    results.claim(f"the largest vocabulary is best at equal {kind}", size == max(sizes))

told = {corpus: shown(gaps(corpus)) for corpus in CONDITIONS}  # a family of comparisons each
sides = {(c, s): [n for n, side in told[c].items() if side == s] for c in CONDITIONS for s in (-1, 0, 1)}
for corpus, (language, _) in TEXTS.items():
    for side, name in ((-1, "fewer"), (0, "level"), (1, "more")):
        results.value(f"{language}.{name}", listed(sides[corpus, side]))
    results.value(f"{language}.misjudged", misjudged[corpus][0])
    results.value(f"{language}.pairs", misjudged[corpus][1])
results.claim("in English none needs more bits than bytes", not sides["debian", 1])

# %% [markdown]
# - What UNK costs in Chinese; the controls.

# %%
for r in facts[(facts.corpus == "tang") & (facts.unknown_percent > 0)].itertuples():
    results.value(f"unknown.{r.encoding}", number(r.unknown_percent, 2))
    results.value(f"unknown.{r.encoding}.price", number(r.unknown_bits_per_byte))
# Bytes and the BPEs, each at the best of its rates, paired by seed and corrected for two.
ahead = shown({name: bits - at_best["bytes"] for name, bits in at_best.items() if name != "bytes"})
results.claim("at their best rates the BPEs are ahead of bytes", len(ahead) > 0 and max(ahead.values()) < 0)
# Bytes in as many parameters against the largest BPE, each at the best of its rates.
largest = label("bpe", max(sizes))
results.value("bytes.wide.bits", interval(of_wide))
results.value("bytes.wide.parameters", f"{wider['parameters'].iloc[0] / 1e6:.2f}" if len(wider) else "-")
ahead = shown(at_best.get(largest, wide[largest]) - of_wide) < 0
results.claim("the largest BPE is ahead of bytes in as many parameters", ahead)
results.save(data={corpus: tasks.load_task(corpus).sha256 for corpus in CONDITIONS})

# %% [markdown]
# ## Sources
#
# - BPE: Sennrich et al. 2016, arXiv:1508.07909; on bytes, and the pattern: Radford et al. 2019, *Language Models
#   are Unsupervised Multitask Learners*. WordPiece: Schuster and Nakajima 2012; Wu et al. 2016, arXiv:1609.08144.
# - Unigram: Kudo 2018, arXiv:1804.10959; SentencePiece: Kudo and Richardson 2018, arXiv:1808.06226; bytes: Xue et
#   al. 2022 (ByT5), arXiv:2105.13626. Compute: Kaplan et al. 2020, arXiv:2001.08361. Vocabulary
#   and budget: Tao et al. 2024, arXiv:2407.13623.
# - Text: Debian package descriptions and Tang quatrains, cards in `data/README.md`. Code: Hugging Face
#   `tokenizers` and transformers' GPT2LMHeadModel and Trainer.
