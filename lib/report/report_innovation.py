"""Blocks of report.md, section 6.6: three experiments of our own (notebook 09)."""

from lib.explore.findings import conversion_findings, frontier_findings, trap_findings
from lib.explore.frontier import GENERAL, general_measure
from lib.explore.hybrid import FORMS
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, interval, listed, span

OWN = "09_innovation"
WHAT = {  # findings of lib.explore.audit that are no mistake unless a claim rests on them
    "no interval": "pairs of rows that seeds do not tell apart (no order of them may be claimed)",
    "one seed": "rows with one seed (no difference of theirs may be claimed)",
}


@block("conversion.table", OWN)
def conversion(n: Notebook) -> str:
    df = n["conversion"]
    df = df[(df["stage"] == "fine_tuned") & (df["order"] == "least_damage")]
    rows = [
        [
            form,
            ("yes" if matched else "no") if FORMS[form]["far"] else "-",  # the window has no maps
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


def conversion_said(n: Notebook) -> list[str]:
    return conversion_findings(n["conversion"], n["layer_damage"], n["decoding"])


def frontier_said(n: Notebook) -> list[str]:
    df = n["frontier"]
    text = GENERAL[general_measure(df)].split(",")[0]
    said = frontier_findings(df, n["front"], n["against_interpolation"], general_measure(df))
    return [s.replace("no forgetting shown", f"no forgetting of {text} shown") for s in said]


def traps_said(n: Notebook) -> list[str]:
    return trap_findings(n["traps"])


@block("conversion.findings", OWN)
def conversion_sentences(n: Notebook) -> str:
    return bullets(conversion_said(n))


@block("frontier.table", OWN)
def front(n: Notebook) -> str:
    rows = [
        [
            r.method,
            r.setting,
            str(r.seeds),
            span(r.task, r.task_low, r.task_high),
            span(r.general, r.general_low, r.general_high),
            "yes" if r.front else "",
        ]
        for r in n["front"].itertuples()
    ]
    header = ["method", "setting", "seeds", "task", "general text", "front"]
    general = GENERAL[general_measure(n["frontier"])]
    text = f"Bits per byte of the task and of general text ({general}); mean over seeds with 95 % t interval."
    return n.table(header, rows, text, 2)


@block("frontier.figure", OWN)
def frontier_figure(n: Notebook) -> str:
    return n.figure("09_frontier")


@block("frontier.findings", OWN)
def frontier_sentences(n: Notebook) -> str:
    return bullets(frontier_said(n))


@block("traps.table", OWN)
def traps_table(n: Notebook) -> str:
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
    header = ["mistake", "models", "seeds", "pairs", "flips", "told apart", "of these flipped", "best changes"]
    return n.table(header, rows, "Pairs of small models that a mistake orders differently.", scratch=True)


@block("traps.figure", OWN)
def traps_figure(n: Notebook) -> str:
    return n.figure("09_traps")


@block("traps.findings", OWN)
def trap_sentences(n: Notebook) -> str:
    audited = n["audit"]
    found = audited.loc[audited["trap"] != "none", "trap"].value_counts()
    tables = len(audited[["notebook", "table"]].drop_duplicates())
    kinds = listed([f"{count} {WHAT.get(trap, f'of “{trap}”')}" for trap, count in found.items()])
    return bullets([*traps_said(n), f"The audit of {tables} of this project's own tables found: {kinds}."])


@value("innovation.headline", OWN)
def innovation_headline(n: Notebook) -> str:
    frontier = frontier_said(n)
    # without it, a lead over the control reads as something that was lost and kept
    premise = [s.partition(". ")[0] + "." for s in frontier if "no forgetting of" in s]
    firsts = [
        said[0].removeprefix("Finding: ")
        for said in (conversion_said(n), [" ".join([frontier[0], *premise])], traps_said(n))
    ]
    return " ".join(f"({letter}) {s[0].upper()}{s[1:]}" for letter, s in zip("abc", firsts, strict=True))
