"""Blocks of report.md, section 6.5: private-domain data (notebook 08)."""

import pandas as pd

from lib.explore import private
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, interval, span, table

PRIVATE = "08_private_domain"


def _card(n: Notebook) -> pd.Series:
    return n["card"].set_index(["what", "key"])["value"]


@value("private.card", PRIVATE)
def card(n: Notebook) -> str:
    c = _card(n)
    replaced = c["replaced"].sum() if "replaced" in c.index.get_level_values(0) else 0
    return (
        f"This run collected {c['documents', 'found']:,.0f} documents, removed "
        f"{c['documents', 'exact duplicates removed']:,.0f} "
        f"exact and {c['documents', 'near-duplicates removed']:,.0f} near duplicates, replaced {replaced:,.0f} "
        "personal items and "
        f"kept {c['documents', 'kept']:,.0f} documents: {c['split', 'train']:,.0f} to train on, "
        f"{c['split', 'validation']:,.0f} to "
        f"validate and {c['split', 'test']:,.0f} to test"
    )


@block("private.anonymiser", PRIVATE)
def anonymiser(n: Notebook) -> str:
    rows = []
    for r in n["anonymiser"].itertuples():
        precision, recall = (
            span(*bounds, 2)
            for bounds in ((r.precision, r.precision_low, r.precision_high), (r.recall, r.recall_low, r.recall_high))
        )
        rows.append([r.category, str(r.labelled), str(r.found), str(r.correct), precision, recall])
    header = ["category", "labelled", "found", "correct", "precision", "recall"]
    return (
        f"{table(header, rows)}\n\nTable: The anonymiser on the labelled half that its rules were not tuned on; exact "
        "Clopper-Pearson 95 % intervals; no model."
    )


@block("private.before_after", PRIVATE)
def private_before_after(n: Notebook) -> str:
    rows = [
        [
            method,
            dedup,
            *(
                interval(p[c] if method != "none" else p[c].head(1), d)  # one base model, no spread
                for c, d in (("bits_per_byte", 3), ("perplexity", 2), ("chrf", 1))
            ),
        ]
        for (method, dedup), p in n["before_after"].groupby(["method", "deduplicated"], sort=False)
    ]
    header = ["method", "duplicates removed", "bits per byte", "token perplexity", "chrF"]
    return n.table(header, rows, "Held-out documents before (none) and after; mean, 95 % t interval.", 2)


@block("private.exposure", PRIVATE)
def exposure(n: Notebook) -> str:
    df, rows = n["evidence"], []
    inserted = sorted(df["repetitions"].unique())
    for (method, dedup), p in df.groupby(["method", "deduplicated"], sort=False):
        p = p.set_index("repetitions")
        cells = [
            f"{p.exposure[r]:.1f}{'*' if p.p_value[r] < 0.001 else ''}"
            + (f" ({p.extracted[r]} of {p.canaries[r]})" if p.extracted[r] else "")
            for r in inserted
        ]
        rows.append([method, dedup, *cells])
    header = ["method", "duplicates removed", *(f"{r}" for r in inserted)]
    text = (
        "Mean exposure in bits by how often a canary was inserted (0: controls); \\*: such a mean without a trace has "
        "p < 0.001; in brackets, how many come out word for word."
    )
    return n.table(header, rows, text, 2)


@block("private.figure", PRIVATE)
def private_figure(n: Notebook) -> str:
    return n.figure("08_exposure")


def _private(n: Notebook) -> list[str]:
    return private.findings(n["before_after"], n["memorisation"], n["verbatim"])


@block("private.findings", PRIVATE)
def private_findings(n: Notebook) -> str:
    whole = n["anonymiser"].set_index("category").loc["all"]
    head = (
        f"Anonymiser: recall {whole.recall:.3f} [{whole.recall_low:.3f}, {whole.recall_high:.3f}], precision "
        f"{whole.precision:.3f} [{whole.precision_low:.3f}, {whole.precision_high:.3f}]; of "
        f"{whole.labelled:.0f} labelled items "
        f"it missed {whole.labelled - whole.correct:.0f}."
    )
    said = _private(n)
    return bullets([head, *(s for s in said if "bits per byte" not in s)])  # which stand in a table


@block("private.advice", PRIVATE)
def advice(n: Notebook) -> str:
    return bullets([f"{private.named(r.method, r.deduplicated)}. {r.advice}" for r in n["recommendation"].itertuples()])


@value("private.headline", PRIVATE)
def private_headline(n: Notebook) -> str:
    said = _private(n)
    trained = [s for s in said if "exposure" in s]
    return (
        f"On {n.model}, invented secrets (canaries) are inserted into the training text, and their exposure says how "
        f"far above chance the model ranks them. {trained[0][0].upper()}{trained[0][1:]}"
    )
