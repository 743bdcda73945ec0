"""Blocks of report.md, sections 6.5 to 6.7: private data, innovation, new scenarios (notebooks 08 to 10)."""

import pandas as pd

from lib.report_blocks import Notebook, block, bullets, interval, number, table, value

PRIVATE, OWN, SCENARIO = "08_private_domain", "09_innovation", "10_new_scenario"


# --- 6.5 Private-domain data


def _card(n: Notebook) -> pd.Series:
    return n["card"].set_index(["what", "key"])["value"]


@value("private.card", PRIVATE)
def card(n: Notebook) -> str:
    c = _card(n)
    replaced = c["replaced"].sum() if "replaced" in c.index.get_level_values(0) else 0
    return (
        f"This run collected {c['documents', 'found']:,.0f} documents, removed {c['documents', 'exact duplicates removed']:,.0f} "
        f"exact and {c['documents', 'near-duplicates removed']:,.0f} near duplicates, replaced {replaced:,.0f} personal items and "
        f"kept {c['documents', 'kept']:,.0f} documents: {c['split', 'train']:,.0f} to train on, {c['split', 'validation']:,.0f} to "
        f"validate and {c['split', 'test']:,.0f} to test"
    )


@block("private.anonymiser", PRIVATE)
def anonymiser(n: Notebook) -> str:
    rows = []
    for r in n["anonymiser"].itertuples():
        precision, recall = (
            f"{number(getattr(r, m), 2)} [{number(getattr(r, f'{m}_low'), 2)}, {number(getattr(r, f'{m}_high'), 2)}]"
            for m in ("precision", "recall")
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
        [method, dedup, *(interval(p[c], d) for c, d in (("bits_per_byte", 3), ("perplexity", 2), ("chrf", 1)))]
        for (method, dedup), p in n["before_after"].groupby(["method", "deduplicated"], sort=False)
    ]
    header = ["method", "duplicates removed", "bits per byte", "token perplexity", "chrF"]
    return f"{table(header, rows, 2)}\n\n{n.caption('Held-out documents before (none) and after; mean, 95 % t interval.')}"


@block("private.exposure", PRIVATE)
def exposure(n: Notebook) -> str:
    rows = [
        [r.method, r.deduplicated, str(r.repetitions), str(r.canaries), f"{r.exposure:.2f}", str(r.extracted), f"{r.p_value:.1g}"]
        for r in n["evidence"].itertuples()
    ]
    header = ["method", "duplicates removed", "inserted", "canaries", "exposure, bits", "extracted", "p"]
    text = "Mean exposure of canaries by how often they were inserted (0: controls); p of such a mean without a trace."
    return f"{table(header, rows, 2)}\n\n{n.caption(text)}"


@block("private.figure", PRIVATE)
def private_figure(n: Notebook) -> str:
    return n.figure("08_exposure")


def _private(n: Notebook) -> list[str]:
    from lib import private

    return private.findings(n["before_after"], n["memorisation"], n["verbatim"])


@block("private.findings", PRIVATE)
def private_findings(n: Notebook) -> str:
    whole = n["anonymiser"].set_index("category").loc["all"]
    head = (
        f"Anonymiser: recall {whole.recall:.3f} [{whole.recall_low:.3f}, {whole.recall_high:.3f}], precision "
        f"{whole.precision:.3f} [{whole.precision_low:.3f}, {whole.precision_high:.3f}]; of {whole.labelled:.0f} labelled items "
        f"it missed {whole.labelled - whole.correct:.0f}."
    )
    return bullets([head, *_private(n)])


@block("private.advice", PRIVATE)
def advice(n: Notebook) -> str:
    from lib.private import named

    return bullets([f"{named(r.method, r.deduplicated)}. {r.advice}" for r in n["recommendation"].itertuples()])


@value("private.headline", PRIVATE)
def private_headline(n: Notebook) -> str:
    said = _private(n)
    trained = [s for s in said if "exposure" in s]
    return f"On {n.model}: {trained[0]}"


# --- 6.6 Innovation


@block("conversion.table", OWN)
def conversion(n: Notebook) -> str:
    df = n["conversion"]
    df = df[(df["stage"] == "fine_tuned") & (df["order"] == "least_damage")]
    rows = [
        [form, "yes" if matched else "no", f"{share:.0%}", str(len(p)), interval(p["bits_per_byte"])]
        for (form, matched, share), p in df.groupby(["form", "matched", "share"], sort=False)
    ]
    header = ["form", "matched first", "layers converted", "seeds", "bits per byte"]
    text = "Test text after conversion and the same short fine-tuning (share 0: not converted); mean, 95 % t interval."
    return f"{table(header, rows)}\n\n{n.caption(text)}"


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
        [r.method, r.setting, str(r.seeds), _span(r.task, r.task_low, r.task_high), _span(r.general, r.general_low, r.general_high),
         "yes" if r.front else ""]
        for r in n["front"].itertuples()
    ]  # fmt: skip
    header = ["method", "setting", "seeds", "task", "general text", "front"]
    text = f"Bits per byte of the task and of general text ({GENERAL[general_measure(n['frontier'])]}); 95 % t intervals."
    return f"{table(header, rows, 2)}\n\n{n.caption(text)}"


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
        [r.trap, str(r.models), str(r.seeds), str(r.pairs), str(r.flips), str(r.shown_pairs), str(r.shown_flips), "yes" if r.best_changes else "no"]
        for r in n["traps"].itertuples()
    ]
    header = ["mistake", "models", "seeds", "pairs", "flips", "told apart", "of these flipped", "best changes"]
    return f"{table(header, rows)}\n\n{n.caption('Pairs of small models that a mistake orders differently.', scratch=True)}"


@block("traps.figure", OWN)
def traps_figure(n: Notebook) -> str:
    return n.figure("09_traps")


@block("traps.findings", OWN)
def trap_sentences(n: Notebook) -> str:
    audited = n["audit"]
    found = int((audited["trap"] != "none").sum())
    tables = len(audited[["notebook", "table"]].drop_duplicates())
    return bullets([*_traps(n), f"The audit of this project's own {tables} shipped tables makes {found} findings; notebook 09 lists them."])


@value("innovation.headline", OWN)
def innovation_headline(n: Notebook) -> str:
    firsts = [said[0].removeprefix("Finding: ") for said in (_conversion(n), _frontier(n), _traps(n))]
    return " ".join(f"({letter}) {s[0].upper()}{s[1:]}" for letter, s in zip("abc", firsts, strict=True))


# --- 6.7 New scenarios


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
    return f"{table(header, rows, 2)}\n\n{n.caption(text)}"


def _mean(values: pd.Series, digits: int) -> str:
    return number(values.astype(float).mean(), digits)


@block("text.figure", SCENARIO)
def text_figure(n: Notebook) -> str:
    return n.figure("10_few_shot") if "e2e" in n.tables else "Without E2E NLG there is no figure."


def _text(n: Notebook) -> list[str]:
    from lib.data_to_text import findings

    if "e2e" not in n.tables:
        return ["E2E NLG was not within reach of the machine: no statement."]
    return findings(n["e2e"], n["e2e_by_slots"])


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
    return f"{table(['compressor', 'packaging', 'seeds', *domains], rows, 2)}\n\n{n.caption(text)}"


@block("compression.figure", SCENARIO)
def compression_figure(n: Notebook) -> str:
    return n.figure("10_compression")


def _compression(n: Notebook) -> list[str]:
    from lib.compressors import findings

    breaks = n["break_even"]
    breaks["megabytes"] = breaks["megabytes"].astype(float).fillna(float("inf"))  # JSON has no infinity
    return findings(n["compression"], breaks, n["compression_by_document"])


@block("compression.findings", SCENARIO)
def compression_sentences(n: Notebook) -> str:
    checks = [
        f"{r.arrangement}: {r.identical:.0%} of {r.positions} distributions equal in every bit." for r in n["bit_identity"].itertuples()
    ]
    return bullets([*_compression(n), *checks])


@value("scenario.headline", SCENARIO)
def scenario_headline(n: Notebook) -> str:
    compressed = _compression(n)
    kept = next((s for s in _text(n) if s.startswith("Fewest")), _text(n)[0])
    return f"Data to text, {n.model}: {kept} Compression: {compressed[0]} {compressed[2]}"
