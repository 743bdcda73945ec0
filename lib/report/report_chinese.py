"""Blocks of report.md, section 6.4: Chinese (notebook 07). The sentences are those of its last cells."""

import pandas as pd

from lib.explore.chinese_tables import differences, over_seeds, percent, rate
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, interval, number, quoted, table

NAME = "07_chinese"
METHODS = {"none": "after", "pieces": "after, pieces", "random": "after, random", "plan": "after, plan"}
FORM = {
    "exact_form": "exact form",
    "rhyme": "rhyme",
    "copied_line": "copied line",
    "alternation": "alternation",
    "opposition": "opposition",
    "repeated": "repeated",
}


@block("chinese.tokens", NAME)
def tokens(n: Notebook) -> str:
    rows = [
        [
            r.corpus,
            r.tokenizer if r.tokenizer != "base" else f"base ({n.model})",
            f"{r.tokens_per_character:.2f}",
            f"{r.invalid_percent:.1f}",
        ]
        for r in n["tokenisation"].itertuples()
    ]
    header = ["text", "tokenizer", "tokens per character", "not UTF-8 alone, %"]
    return f"{table(header, rows, 2)}\n\nTable: Held-out texts under three tokenizers; no training."


@block("chinese.before_after", NAME)
def before_after(n: Notebook) -> str:
    df, rows = n["before_after"], []
    for (task, stage, method), part in df.groupby(["task", "stage", "method"], sort=False):
        label = "before" if stage == "before" else METHODS[method]
        start = df[(df["task"] == task) & (df["stage"] == "before")]["bits_per_character"].iloc[0]
        change = "" if stage == "before" else interval(part["bits_per_character"] - start, sign=True)
        rows.append(
            [
                task,
                label,
                str(len(part)),
                interval(part["bits_per_character"]),
                change,
                f"{part['train_tokens'].mean():,.0f}",
            ]
        )
    header = ["task", "model", "runs", "bits per character", "minus before", "training tokens"]
    text = "Bits per character of held-out targets (a plan's bits are paid as well); mean, 95 % t interval."
    return n.table(header, rows, text, 2)


@block("chinese.form", NAME)
def form(n: Notebook) -> str:
    df = _labelled(n["form"])
    values = {key: part["value"].dropna() for key, part in df.groupby(["label", "measure"])}
    rows = []
    for label in ("people", "chance", "before", *METHODS.values()):
        if label in set(df["label"]):
            known = {m: v for m in FORM if len(v := values.get((label, m), ()))}
            # two intervals are what a row has room for
            spread = {m: interval(100 * known[m], 0) for m in ("exact_form", "rhyme") if m in known}
            means = {m: number(100 * v.mean(), 1) for m, v in known.items()}
            rows.append([label, *((means | spread).get(m, "-") for m in FORM)])
    text = "Form of the poems, percent of sampled texts (people: of the test split); mean over seeds, 95 % t interval."
    return n.table(["", *FORM.values()], rows, text)


def _labelled(form: pd.DataFrame) -> pd.DataFrame:
    suffix = form["method"].map({m: f", {m}" for m in METHODS if m != "none"}).fillna("")
    return form.assign(label=form["source"] + suffix)


@block("chinese.vocabulary", NAME)
def vocabulary(n: Notebook) -> str:
    rows = [
        [
            m,
            f"{p['new_tokens'].iloc[0]:,}",
            interval(p["bits_per_character"]),
            number(p["tokens_per_poem"].mean(), 1),
            number(p["train_seconds"].mean(), 0),
            number(p["seconds_per_sample"].mean(), 2),
        ]
        for m, p in n["vocabulary"].groupby("method", sort=False)
        if m in ("none", "pieces", "random")
    ]
    header = ["new rows", "tokens", "bits per character", "tokens per poem", "training, s", "sampling, s per poem"]
    text = "Vocabulary extension at equal text; mean over seeds with 95 % t interval."
    return n.table(header, rows, text)


@block("chinese.plans", NAME)
def plans(n: Notebook) -> str:
    df = n["plans"]
    rows = [
        [source, *(percent(rate(df, m, source)) for m in ("exact_form", "ends_kept", "rhyme"))]
        for source in df["source"].unique()
    ]
    header = ["plan", "exact form", "both ends kept", "lines 2 and 4 rhyme"]
    return n.table(header, rows, "Poems behind a plan of their own or a given one; Wilson 95 % intervals.")


@block("chinese.figure", NAME)
def figure(n: Notebook) -> str:
    return n.figure("07_form")


@value("chinese.headline", NAME)
def headline(n: Notebook) -> str:
    df = n["before_after"].query("task == 'tang'")
    start = df[df["stage"] == "before"]["bits_per_character"].iloc[0]
    after = df[(df["stage"] == "after") & (df["method"] == "none")]["bits_per_character"]
    planned = n["form"].query("source == 'after' and method == 'plan'").set_index("measure")["value"]
    exact, rhyme = (interval(100 * planned.loc[[m]], 0) for m in ("exact_form", "rhyme"))
    tokens = n["before_after"].query("stage == 'after' and task == 'tang'").groupby("method")["train_tokens"].mean()
    return (
        f"Fine-tuning {n.model} on Tang quatrains takes {start:.2f} bits per character to {after.mean():.2f} "
        "(difference "
        f"{over_seeds(after - start)}); with a plan in front, and {tokens['plan'] / tokens['none']:.1f} times the "
        f"training tokens, {exact} % of the sampled poems have the exact form and {rhyme} % rhyme, by seed."
    )


@block("chinese.findings", NAME)
def findings(n: Notebook) -> str:
    return bullets(
        [*_changes(n), *_form(n), *_plans(n["plans"]), *_vocabulary(n["vocabulary"]), *_forgotten(n["forgetting"])]
    )


def _changes(n: Notebook) -> list[str]:
    df, said = n["before_after"], []
    for (task, method), part in df[df["stage"] == "after"].groupby(["task", "method"], sort=False):
        start = df[(df["task"] == task) & (df["stage"] == "before")]["bits_per_character"].iloc[0]
        said.append(f"{task}, {METHODS[method]}: {over_seeds(part['bits_per_character'] - start)} bits per character.")
    return said


def _form(n: Notebook) -> list[str]:
    df = n["form"]
    mean = _labelled(df).groupby(["label", "measure"])["value"].mean()
    said = [f"Rhyme: people {percent(rate(df, 'rhyme', 'people'))}, by chance {100 * mean['chance', 'rhyme']:.1f} %."]
    for method, label in METHODS.items():
        exact, rhyme, copied = (rate(df, m, "after", method) for m in ("exact_form", "rhyme", "copied_line"))
        own = mean.get((label.replace("after", "after, chance"), "rhyme"))
        own = own if own is not None and own == own else 0
        chance = max(mean["chance", "rhyme"], own)
        verdict = "above chance" if rhyme["low"] > chance else "not shown to be above chance"
        if rhyme["high"] < mean["chance", "rhyme"]:
            verdict = "below people's line ends at random, since what is no quatrain does not rhyme"
        goal = "is reached" if exact["low"] >= 0.9 else "is reached by the mean, not by the interval"
        said.append(
            f"{label}: exact form {percent(exact)}, the goal of 90 % "
            f"{goal if exact['mean'] >= 0.9 else 'is missed'}; rhyme "
            f"{percent(rhyme)}, {verdict}; a training line in "
            f"{percent(copied)} of "
            f"the poems, {'within' if copied['mean'] <= 0.01 else 'over'} the limit of 1 %."
        )
    return said


def _plans(df: pd.DataFrame) -> list[str]:
    own, without = (rate(df, "rhyme", s) for s in ("own plan", "unrhymed plan"))
    decides = "decides" if without["high"] < own["low"] else "is not shown to decide"
    return [
        f"Rhyme behind the model's own plan {percent(own)}, behind a given plan that does not rhyme "
        f"{percent(without)}: the plan "
        f"{decides} the rhyme."
    ]


def _vocabulary(df: pd.DataFrame) -> list[str]:
    said = [
        f"New tokens, {pair}: {over_seeds(rows['difference'])} bits per character, paired by seed."
        for pair, rows in differences(df).groupby("pair", sort=False)
    ]
    columns = ["tokens_per_poem", "train_seconds", "seconds_per_sample"]
    means = df.groupby("method")[columns].mean()
    ratio = means.loc["pieces"] / means.loc["none"]
    return [
        *said,
        f"With new tokens a poem takes {ratio['tokens_per_poem']:.2f} times the tokens, training "
        f"{ratio['train_seconds']:.2f} "
        f"times the seconds and sampling {ratio['seconds_per_sample']:.2f} times.",
    ]


def _forgotten(df: pd.DataFrame) -> list[str]:
    english = df[df["measure"] == "debian_bits_per_byte"]
    start = english[english["stage"] == "before"]["value"].mean()
    return [
        f"English after {task}, {METHODS[method]}: {over_seeds(rows['value'] - start)} bits per byte of Debian "
        "descriptions."
        for (task, method), rows in english[english["stage"] == "after"].groupby(["task", "method"], sort=False)
    ]


@block("chinese.samples", NAME)
def samples(n: Notebook) -> str:
    df = n["samples"].query("task == 'tang'")
    first = df[df["id"] == df["id"].iloc[0]]
    parts = [f"{first['prompt'].iloc[0]}, first held-out title, by {n.model} and by people; not chosen:"]
    parts += [f"{r.source}:\n\n{quoted(r.text, 5)}" for r in first.itertuples()]
    return "\n\n".join(parts)
