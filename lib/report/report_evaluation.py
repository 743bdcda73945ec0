"""Blocks of report.md, section 5: fine-tuning (notebook 02) and before against after (notebook 03)."""

import pandas as pd

from lib.explore.data_to_text import PUBLISHED
from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, interval, listed, number, quoted, seeds, table
from lib.report.report_model import MEASURED, METHODS, TRAINED, main_task

ROWS = {"none": "before", "full": "after, full", "lora": "after, LoRA"}
TEXTS = {"bits_per_byte": 3, "perplexity": 1, "bleu": 1, "chrf": 1, "rouge_l": 2}  # column -> digits
CHECKS = {
    "synopsis_form": "synopsis in form",
    "has_long_description": "long description",
    "tags_reflected": "tags reflected",
}
GENERAL = {  # measure -> name, digits, whether lower is better
    "wikitext2_token_perplexity": ("WikiText-2, perplexity per token", 2, True),
    "wikitext2_word_perplexity": ("WikiText-2, perplexity per word", 2, True),
    "lambada_word_perplexity": ("LAMBADA, perplexity of the last word", 2, True),
    "lambada_word_accuracy": ("LAMBADA, accuracy of the last word", 3, False),
    "blimp_accuracy": ("BLiMP, accuracy", 3, False),
}


# --- training


@block("training.runs", TRAINED)
def runs(n: Notebook) -> str:
    df, history = n["runs"], n["curves"].dropna(subset="bits_per_byte")
    rows = []
    for (task, method), part in df.groupby(["task", "method"], sort=False):
        curve = history[(history["task"] == task) & (history["method"] == method)].groupby("seed")["bits_per_byte"]
        rows.append(
            [
                task,
                method,
                f"{part['trainable_parameters'].iloc[0]:,}",
                f"{part['learning_rate'].iloc[0]:g}",
                str(len(part)),
                f"{part['tokens'].mean():,.0f}",
                f"{part['steps'].mean():.0f}",
                f"{curve.first().mean():.3f}",
                interval(curve.min()),
            ]
        )
    header = ["task", "method", "trained", "rate", "seeds", "tokens", "steps", "start", "best"]
    text = "Fine-tuning runs; “start” and “best” are validation bits per byte, mean over seeds with 95 % t interval."
    return n.table(header, rows, text, 2)


@block("training.figure", TRAINED)
def training_figure(n: Notebook) -> str:
    return n.figure("02_curves")


@value("training.recipe", TRAINED)
def recipe(n: Notebook) -> str:
    r = n["runs"].iloc[0]
    return (
        f"AdamW, weight decay {r['weight_decay']:g}, warm-up over {r['warmup_share']:.0%} of the steps and then "
        "a cosine, "
        f"gradients clipped at {r['max_grad_norm']:g}, at most {int(r['batch_tokens']):,} tokens behind each step"
    )


@value("training.share", TRAINED)
def share(n: Notebook) -> str:
    train = n["statistics"].set_index("split").loc["train"]
    own = n["runs"].query("task == @train.task")["tokens"]
    part = own.mean() / train["tokens"]
    passes = f"{part:.0%} of" if part < 1 else f"{part:.1f} times"
    return f"A run sees {own.mean():,.0f} tokens, {passes} the {train['tokens']:,} of the training split"


@value("training.cost", TRAINED)
def cost(n: Notebook) -> str:
    df = n["runs"]
    longest = df["seconds"].max() / 60
    main = df[df["task"] != "e2e"]["seconds"] / 60
    return (
        f"A run of the main task took {main.min():.0f} to {main.max():.0f} minutes on {n.provenance['device']}, "
        f"the longest of all runs {longest:.0f} minutes"
    )


# --- before and after


def _groups(n: Notebook, task: str) -> dict[str, pd.DataFrame]:
    df = n["before_after"]
    df = df[df["task"] == task]
    return {m: df[df["method"] == m] for m in dict.fromkeys(df["method"])}


@block("evaluation.table", MEASURED)
def before_after(n: Notebook) -> str:
    groups = _groups(n, main_task(n))
    rows = [[ROWS.get(m, m), *(interval(part[c], digits) for c, digits in TEXTS.items())] for m, part in groups.items()]
    first = groups["none"].iloc[0]
    text = (
        f"{main_task(n)}, test split: the first {int(first['documents'])} documents scored in bits per byte and token "
        "perplexity, "
        f"{int(first['generated'])} texts generated greedily; mean over seeds with 95 % t interval."
    )
    header = ["", "bits per byte", "token perplexity", "BLEU", "chrF", "ROUGE-L"]
    return n.table(header, rows, text)


def compared(n: Notebook) -> list[tuple[str, str]]:
    """What was compared before and after, and the verdict: better, worse, or "" where the interval holds 0."""
    out = []
    for r in n["significance"].itertuples():
        better = (r.difference < 0) == (r.measure == "bits_per_byte")
        name = {"bits_per_byte": "bits per byte", "chrf": "chrF"}.get(r.measure, r.measure)
        sure = "better" if better else "worse"
        verdict = sure if r.low * r.high > 0 else ""
        out.append((f"{r.task}, {METHODS.get(r.method, r.method)}, {name}", verdict))
    return out


@block("evaluation.tests", MEASURED)
def tests(n: Notebook) -> str:
    said = []
    for r, (what, verdict) in zip(n["significance"].itertuples(), compared(n), strict=True):
        verdict = f"shown to be {verdict}" if verdict else "no difference shown"
        said.append(
            f"{what}: {r.before:.3f} to {r.after:.3f}, difference "
            f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}] over {r.documents} documents, {seeds(r.seeds)}, "
            f"Wilcoxon p = {r.p_value:.1g}: {verdict}."
        )
    return bullets(said)


@block("evaluation.figure", MEASURED)
def figure(n: Notebook) -> str:
    return n.figure("03_before_after")


@block("evaluation.checks", MEASURED)
def checks(n: Notebook) -> str:
    kept = {c: name for c, name in CHECKS.items() if c in n["human"]}
    if not kept:
        return f"The task {main_task(n)} brings no checks of its own."
    rows = [[ROWS.get(m, m), *(interval(part[c]) for c in kept)] for m, part in _groups(n, main_task(n)).items()]
    rows.append(["people", *(number(n["human"][c].iloc[0]) for c in kept)])
    text = "Shares of generated texts with the form that Debian asks for, and of the prompt's tags reflected."
    return n.table(["", *kept.values()], rows, text)


@block("evaluation.e2e", MEASURED)
def e2e(n: Notebook) -> str:
    groups = _groups(n, "e2e")
    if not groups:
        return "E2E NLG was not within reach of the machine, so it was not measured."
    columns = {"bleu": 2, "nist": 2, "rouge_l": 3, "ser": 3}
    rows = [
        [f"{ROWS.get(m, m)} ({seeds(len(part))})", *(number(part[c].mean(), d) for c, d in columns.items()), n.model]
        for m, part in groups.items()
    ]
    rows += [
        [f"published: {p['system']}", *(number(p.get(c), d) for c, d in columns.items()), p["source"].split(",")[0]]
        for p in PUBLISHED
    ]
    tuned = next(part for m, part in groups.items() if m != "none")
    best = next(p for p in PUBLISHED if "small" in p["system"])
    gap = tuned["bleu"].mean() - best["bleu"]
    where = "below" if gap < 0 else "above"
    header = ["E2E NLG", "BLEU", "NIST", "ROUGE-L", "slot errors", "model or source"]
    text = (
        f"E2E NLG, {int(tuned['generated'].iloc[0])} test inputs, greedy decoding; published rows are of other "
        "models and "
        "budgets (five passes, beam search)."
    )
    return (
        f"{table(header, rows)}\n\n{n.caption(text, seeds=sorted(tuned['seed'].tolist()))}\n\nOur run saw "
        f"{n.budget.e2e_train_tokens:,} training tokens and ends "
        f"{abs(gap):.1f} BLEU {where} the best documented {best['system']} ({best['bleu']}, a {best['source']})."
    )


@block("evaluation.diversity", MEASURED)
def diversity(n: Notebook) -> str:
    df = n["diversity"]
    df = df[df["task"] == main_task(n)]
    rows = [
        [
            ROWS.get(m, m),
            decoding,
            *(interval(part[c], d) for c, d in (("distinct_2", 3), ("rep_4", 3), ("self_bleu", 1))),
        ]
        for (m, decoding), part in df.groupby(["method", "decoding"], sort=False)
    ]
    copied = n["before_after"].query("task == @task", local_dict={"task": main_task(n)})
    text = "distinct-2: share of different word pairs; rep-4: share of repeated 4-grams in a text; self-BLEU: likeness."
    return (
        f"{table(['', 'decoding', 'distinct-2', 'rep-4', 'self-BLEU'], rows, 2)}\n\n{n.caption(text)}\n\n"
        f"The longest run of words that a generated text shares with a training target is "
        f"{int(copied['overlap_words_max'].max())} words; {copied['copied_share'].max():.0%} of the outputs of "
        "any run are "
        "a training target word for word."
    )


def worse_than_before(n: Notebook) -> tuple[list[str], int]:
    """Which measures of general text got worse under which method, and how many comparisons there are."""
    df = n["forgetting"]
    means = df[df["task"] == main_task(n)].pivot_table(index="measure", columns="method", values="value")
    pairs = [(k, m) for k in GENERAL if k in means.index for m in METHODS if m in means]
    sign = {k: 1 if lower else -1 for k, (_, _, lower) in GENERAL.items()}
    worse = [(k, m) for k, m in pairs if sign[k] * (means.loc[k, m] - means.loc[k, "none"]) > 0]
    return [f"{GENERAL[k][0]} ({METHODS[m]})" for k, m in worse], len(pairs)


@block("evaluation.forgetting", MEASURED)
def forgetting(n: Notebook) -> str:
    df = n["forgetting"]
    if df.empty:
        return "WikiText-2, LAMBADA and BLiMP were not within reach of the machine, so forgetting was not measured."
    df = df[df["task"] == main_task(n)]
    means = df.pivot_table(index="measure", columns="method", values="value")
    names = [m for m in ("none", "full", "lora") if m in means]
    kept = {k: v for k, v in GENERAL.items() if k in means.index}
    rows = [[name, *(number(means.loc[k, m], d) for m in names)] for k, (name, d, _) in kept.items()]
    worse, _ = worse_than_before(n)
    verdict = f"Worse than before: {listed(worse)}." if worse else "None of these got worse."
    hedge = (
        f" {n.model[0].upper()}{n.model[1:]} is not GPT-2, so the same need not hold for GPT-2." if n.stand_in else ""
    )
    seen = sorted(df["seed"].unique().tolist())
    p = n.budget
    text = (
        f"General text before and after, leading parts: {p.wikitext_tokens:,} tokens of WikiText-2, "
        f"{p.lambada_documents} passages of LAMBADA, {p.blimp_pairs} pairs of each of BLiMP's paradigms."
    )
    return (
        f"{table(['general text', *(ROWS[m] for m in names)], rows)}\n\n{n.caption(text, seeds=seen)}\n\n{verdict} "
        f"With {seeds(len(seen))} and without an interval this is enough to see a collapse, not to rank the "
        f"methods.{hedge}"
    )


@block("evaluation.sample", MEASURED)
def sample(n: Notebook) -> str:
    df = n["samples"]
    row = df[df["task"] == main_task(n)].iloc[0]
    names = {"human": "People", "before": "Before", "full": "After, full", "lora": "After, LoRA"}
    parts = [f"Prompt:\n\n{quoted(row['prompt'])}"]
    parts += [f"{name}:\n\n{quoted(row[key])}" for key, name in names.items() if isinstance(row.get(key), str)]
    return "\n\n".join([*parts, f"The model is {n.model}; the document was drawn by a seed, not chosen."])
