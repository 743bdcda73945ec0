"""Blocks of report.md, section 6.7: data to text and compression (notebook 10)."""

import pandas as pd

from lib.explore import compressors, data_to_text
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, number

SCENARIO = "10_new_scenario"


@block("text.table", SCENARIO)
def text_table(n: Notebook) -> str:
    if "e2e" not in n.tables:
        return "E2E NLG was not within reach of the machine, so this half was not measured."
    columns = {"bleu": 1, "nist": 2, "rouge_l": 3, "ser": 3}
    rows = []
    for (kind, system), p in n["e2e"].groupby(["kind", "system"], sort=False):
        inputs = number(p["inputs"].iloc[0], 0)
        rows.append([system, kind, str(len(p)), inputs, *(_mean(p[c], d) for c, d in columns.items())])
    header = ["system", "kind", "runs", "inputs", "BLEU", "NIST", "ROUGE-L", "slot errors"]
    text = "E2E NLG, means; rows of kind “published” are other models and budgets."
    return n.table(header, rows, text, 2)


def _mean(values: pd.Series, digits: int) -> str:
    return number(values.astype(float).mean(), digits)


@block("text.figure", SCENARIO)
def text_figure(n: Notebook) -> str:
    return n.figure("10_few_shot") if "e2e" in n.tables else "Without E2E NLG there is no figure."


def _text(n: Notebook) -> list[str]:
    if "e2e" not in n.tables:
        return ["E2E NLG was not within reach of the machine: no statement."]
    return data_to_text.findings(n["e2e"], n["e2e_by_slots"])


@block("text.findings", SCENARIO)
def text_sentences(n: Notebook) -> str:
    return bullets(_text(n))


@block("compression.table", SCENARIO)
def compression(n: Notebook) -> str:
    df = n["compression"]
    domains = list(df["domain"].unique())
    rows = []
    for (name, packaging), p in df.groupby(["compressor", "packaging"], sort=False):
        cells = [_mean(p[p["domain"] == d]["bits_per_byte"], 3) for d in domains]
        rows.append([name, packaging, str(p["seed"].nunique()), *cells])
    text = "Compressed bits per byte in real bytes, headers and all, by domain; plain text is 8; mean over seeds."
    return n.table(["compressor", "packaging", "seeds", *domains], rows, text, 2)


@block("compression.figure", SCENARIO)
def compression_figure(n: Notebook) -> str:
    return n.figure("10_compression")


def compression_findings(n: Notebook) -> list[str]:
    """Those of lib.explore.compressors, on the tables of a results file."""
    breaks = n["break_even"]
    breaks["megabytes"] = breaks["megabytes"].astype(float).fillna(float("inf"))  # JSON has no infinity
    return compressors.findings(n["compression"], breaks, n["compression_by_document"])


@block("compression.findings", SCENARIO)
def compression_sentences(n: Notebook) -> str:
    checks = [
        f"Predictions computed twice, {r.arrangement}: {r.identical:.0%} of {r.positions} distributions equal in every "
        "bit."
        for r in n["bit_identity"].itertuples()
    ]
    return bullets([*compression_findings(n), *checks])


@value("scenario.headline", SCENARIO)
def scenario_headline(n: Notebook) -> str:
    compressed = compression_findings(n)
    kept = next((s for s in _text(n) if s.startswith("Fewest")), _text(n)[0])
    return f"Data to text, {n.model}: {kept} Compression: {compressed[0]} {compressed[2]}"
