"""Blocks of report.md, section 6.6: three experiments of our own (notebook 09)."""

import pandas as pd

from lib.report_blocks import Notebook, block, value
from lib.report_forms import bullets, interval, number

OWN = "09_innovation"


@block("conversion.table", OWN)
def conversion(n: Notebook) -> str:
    df = n["conversion"]
    df = df[(df["stage"] == "fine_tuned") & (df["order"] == "least_damage")]
    rows = [
        [
            form,
            "yes" if matched else "no",
            f"{share:.0%}",
            str(len(p)),
            interval(p["bits_per_byte"]),
        ]
        for (form, matched, share), p in df.groupby(["form", "matched", "share"], sort=False)
    ]
    header = ["form", "matched first", "layers converted", "seeds", "bits per byte"]
    text = "Test text after conversion and the same short fine-tuning (share 0: not converted); mean, 95 % t interval."
    return n.table(header, rows, text)


@block("conversion.figure", OWN)
def conversion_figure(n: Notebook) -> str:
    return n.figure("09_conversion")


def _conversion(n: Notebook) -> list[str]:
    from lib.findings import conversion_findings

    return conversion_findings(n["conversion"], n["layer_damage"], n["decoding"])


def _frontier(n: Notebook) -> list[str]:
    from lib.findings import frontier_findings
    from lib.frontier import general_measure

    df = n["frontier"]
    return frontier_findings(df, n["front"], n["against_interpolation"], general_measure(df))


def _traps(n: Notebook) -> list[str]:
    from lib.findings import trap_findings

    return trap_findings(n["traps"])


@block("conversion.findings", OWN)
def conversion_sentences(n: Notebook) -> str:
    return bullets(_conversion(n))


@block("frontier.table", OWN)
def front(n: Notebook) -> str:
    from lib.frontier import GENERAL, general_measure

    rows = [
        [r.method, r.setting, str(r.seeds), _span(r.task, r.task_low, r.task_high),
         _span(r.general, r.general_low, r.general_high),
         "yes" if r.front else ""]
        for r in n["front"].itertuples()
    ]  # fmt: skip
    header = ["method", "setting", "seeds", "task", "general text", "front"]
    general = GENERAL[general_measure(n["frontier"])]
    text = f"Bits per byte of the task and of general text ({general}); mean over seeds with 95 % t interval."
    return n.table(header, rows, text, 2)


def _span(mean: float, low: float, high: float) -> str:
    return number(mean) if pd.isna(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


@block("frontier.figure", OWN)
def frontier_figure(n: Notebook) -> str:
    return n.figure("09_frontier")


@block("frontier.findings", OWN)
def frontier_sentences(n: Notebook) -> str:
    return bullets(_frontier(n))


@block("traps.table", OWN)
def traps(n: Notebook) -> str:
    rows = [
        [
            r.trap,
            str(r.models),
            str(r.seeds),
            str(r.pairs),
            str(r.flips),
            str(r.shown_pairs),
            str(r.shown_flips),
            "yes" if r.best_changes else "no",
        ]
        for r in n["traps"].itertuples()
    ]
    header = [
        "mistake",
        "models",
        "seeds",
        "pairs",
        "flips",
        "told apart",
        "of these flipped",
        "best changes",
    ]
    return n.table(
        header, rows, "Pairs of small models that a mistake orders differently.", scratch=True
    )


@block("traps.figure", OWN)
def traps_figure(n: Notebook) -> str:
    return n.figure("09_traps")


@block("traps.findings", OWN)
def trap_sentences(n: Notebook) -> str:
    audited = n["audit"]
    found = int((audited["trap"] != "none").sum())
    tables = len(audited[["notebook", "table"]].drop_duplicates())
    return bullets(
        [
            *_traps(n),
            f"The audit of this project's own {tables} shipped tables makes {found} findings; notebook 09 lists them.",
        ]
    )


@value("innovation.headline", OWN)
def innovation_headline(n: Notebook) -> str:
    firsts = [
        said[0].removeprefix("Finding: ") for said in (_conversion(n), _frontier(n), _traps(n))
    ]
    return " ".join(
        f"({letter}) {s[0].upper()}{s[1:]}" for letter, s in zip("abc", firsts, strict=True)
    )
