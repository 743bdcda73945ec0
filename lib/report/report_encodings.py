"""Blocks of report.md, section 6.1: token encodings (notebook 04)."""

from itertools import combinations

import pandas as pd

from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, by_seed, interval, seeds, shown

ENCODED = "04_token_encoding"


def _encodings(n: Notebook, corpus: str, kind: str = "bytes") -> pd.DataFrame:
    df = n["encodings"]
    size = df["vocab_size"].map("{:,.0f}".format)
    named = df["encoding"].isin(["bytes", "characters", "gpt2"])
    df = df.assign(label=df["encoding"].where(named, df["encoding"] + " " + size), size=size)
    return df[(df["corpus"] == corpus) & (df["budget"] == kind)]


@block("encodings.english", ENCODED)
def english(n: Notebook) -> str:
    return _encoding_table(n, "debian", "English (Debian descriptions)")


@block("encodings.chinese", ENCODED)
def chinese(n: Notebook) -> str:
    return _encoding_table(n, "tang", "Chinese (Tang quatrains)")


def _encoding_table(n: Notebook, corpus: str, name: str) -> str:
    df = _encodings(n, corpus)
    wide = by_seed(df, "label")
    rows = []
    for label, part in df.groupby("label", sort=False):
        gap = "" if label == "bytes" else interval(wide[label] - wide["bytes"], sign=True)
        first = part.iloc[0]
        rows.append(
            [
                first["encoding"],
                first["size"],
                f"{first['parameters'] / 1e6:.2f} M",
                f"{first['bytes_per_token']:.2f}",
                interval(part["bits_per_byte"]),
                gap,
            ]
        )
    header = ["encoding", "vocabulary", "parameters", "bytes per token", "bits per byte", "minus bytes, by seed"]
    text = f"{name}, {df['train_bytes'].iloc[0]:,} bytes per run, held-out bits per byte; mean, 95 % t interval."
    return n.table(header, rows, text, scratch=True)


@block("encodings.figure", ENCODED)
def encodings_figure(n: Notebook) -> str:
    return n.figure("04_encodings")


def against_bytes(n: Notebook, corpus: str) -> dict[str, pd.Series]:
    """Bits per byte of each encoding but bytes minus those of bytes, by seed."""
    wide = by_seed(_encodings(n, corpus), "label")
    return {label: wide[label] - wide["bytes"] for label in wide.columns.drop("bytes")}


@value("encodings.headline", ENCODED)
def encodings_headline(n: Notebook) -> str:
    df = _encodings(n, "debian")
    wide = by_seed(df, "label")
    learned = wide.drop(columns=["gpt2"], errors="ignore")
    best = learned.mean().idxmin()
    gap = wide[best] - wide["bytes"]
    verdict = {-1: "fewer than bytes", 0: "not shown to differ from bytes", 1: "more than bytes"}[shown(gap)]
    return (
        f"In English, at equal bytes of text, {best} has the lowest mean of the encodings trained here, "
        f"{wide[best].mean():.3f} bits per byte against {wide['bytes'].mean():.3f} for bytes (paired by seed "
        f"{interval(gap, sign=True)}, {seeds(len(wide))}: {verdict})."
    )


def misjudged(n: Notebook, corpus: str) -> tuple[int, int]:
    """How many pairs of encodings token perplexity orders otherwise than bits per byte, and how many there are."""
    means = _encodings(n, corpus).groupby("label")[["perplexity", "bits_per_byte"]].mean().to_numpy()
    pairs = list(combinations(means, 2))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs), len(pairs)


@block("encodings.findings", ENCODED)
def encodings_findings(n: Notebook) -> str:
    said = [encodings_headline(n)]
    sweep = n["encodings"].query("corpus == 'debian' and encoding == 'bpe'")
    for kind, part in sweep.groupby("budget", sort=False):
        best = part.groupby("vocab_size")["bits_per_byte"].mean().idxmin()
        height = interval(part.loc[part["vocab_size"] == best, "bits_per_byte"])
        turn = (
            "the largest tried, so no turning point" if best == sweep["vocab_size"].max() else "larger ones lose again"
        )
        said.append(
            f"BPE in English at equal {kind}: {best:,.0f} entries have the lowest mean ({height} bits per byte), "
            f"{turn}."
        )
    parts = [f"{x} {interval(gap, sign=True)}" for x, gap in against_bytes(n, "tang").items()]
    said.append(f"In Chinese, against bytes, bits per byte, paired by seed: {'; '.join(parts)}.")
    for r in n["statistics"].query("unknown_percent > 0").itertuples():
        said.append(
            f"{r.encoding} {r.vocab_size:,.0f} on {r.corpus}: {r.unknown_percent:.2f} % of the characters "
            "become UNK, priced at "
            f"{r.unknown_bits_per_byte:.3f} bits per byte."
        )
    for corpus in ("debian", "tang"):
        wrong, pairs = misjudged(n, corpus)
        said.append(f"Token perplexity orders {wrong} of {pairs} pairs of encodings on {corpus} the wrong way round.")
    for r in n["learned_positions"].itertuples():
        gap = r.bits_per_byte - r.with_rope
        said.append(
            f"Control, one seed, no interval: {r.label} with GPT-2's learned positions instead of RoPE "
            f"{r.bits_per_byte:.3f}, "
            f"{abs(gap):.3f} bits per byte {'more' if gap > 0 else 'fewer'}."
        )
    return bullets(said)


@value("scratch.shape", ENCODED)
def scratch_shape(n: Notebook) -> str:
    s = n.budget.scratch
    blocks = int(n["encodings"]["non_embedding_parameters"].iloc[0])
    return f"{s.n_layer} layers, {s.n_embd} wide, {blocks:,} parameters without the embeddings"
