"""Blocks of report.md, section 6.8: speed and faults (notebook 11)."""

import pandas as pd

from lib.explore import bench_findings
from lib.explore.bench import SPEED
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, number

PERFORMANCE = "11_performance"


@block("speed.table", PERFORMANCE)
def speed(n: Notebook) -> str:
    ratios = n["ratios"].set_index(["kind", "system", "setting"])
    rows = []
    for kind, column in SPEED.items():
        for (system, setting), p in n[kind].groupby(["system", "setting"], sort=False):
            row = [
                kind,
                system,
                setting,
                number(p[column].median(), 0),
                number(p["peak_megabytes"].median() / 1_000, 2),
            ]
            if (kind, system, setting) in ratios.index:
                r = ratios.loc[(kind, system, setting)]
                row += [
                    f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
                    "" if pd.isna(r["mark"]) else f"{r['mark']:g}",
                ]
            else:
                row += ["", ""]
            rows.append(row)
    header = ["", "system", "setting", "tokens per second", "peak memory, GB", "ours, times as fast", "mark"]
    runs = n["training"]["run"].nunique()
    text = (
        f"Medians of {runs} runs and, in brackets, the range of the ratios within a run, on {n.provenance['device']}. "
        "“Times as fast” is the median of the runs' ratios. Tokens: targets learned from, targets scored, new tokens. "
        "GPT-2 117M's configuration with random weights."
    )
    return n.table(header, rows, text, 3, scratch=True)


@block("speed.figure", PERFORMANCE)
def speed_figure(n: Notebook) -> str:
    return n.figure("11_speed")


@block("speed.findings", PERFORMANCE)
def speed_sentences(n: Notebook) -> str:
    said = bench_findings.speed_findings(n) + bench_findings.equal_findings(n)
    return bullets(said + bench_findings.cost_findings(n["fits"]))


@block("faults.table", PERFORMANCE)
def faults(n: Notebook) -> str:
    rows = [[r.fault, number(r.injected, 0), number(r.lost, 0)] for r in n["faults"].itertuples()]
    text = "Faults injected and what was lost: a damaged file, a result off by a bit, an error without a way out."
    return n.table(["fault", "injected", "lost"], rows, text, scratch=True)


@value("performance.headline", PERFORMANCE)
def headline(n: Notebook) -> str:
    trained = [s for s in bench_findings.speed_findings(n) if s.startswith("training, ")]
    faults = n["faults"][n["faults"]["fault"] != "long run (steps)"]  # whose steps are no faults
    done = faults.groupby(faults["fault"].str.startswith("fuzzed"))[["injected", "lost"]].sum()
    told = f"{done['injected'].get(False, 0):,} injected faults and {done['injected'].get(True, 0):,} fuzzed inputs"
    return f"{' '.join(s[0].upper() + s[1:] for s in trained)} Of {told}, {done['lost'].sum()} lost something."
