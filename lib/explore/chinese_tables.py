"""The tables of notebook 07, made of what lib.explore.chinese_runs measured, and what its sentences say of them."""

import math
from collections.abc import Sequence
from functools import cache

import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

from lib import metrics, profile
from lib.explore import chinese, planning
from lib.explore.chinese_runs import Measured, documents_drawn
from lib.models import Base
from lib.tasks import Task, encode, load_task
from lib.texts import chrf


@cache
def _characters(name: str) -> dict[str, int]:
    return {e.id: len(e.target) for e in load_task(name).test}


def bits_per_character(task: str, scores: pd.DataFrame) -> float:
    """Sum of nats / (ln 2 * sum of the targets' characters). EOS has nats and no character; punctuation
    and line breaks are characters, as in the text."""
    known = _characters(task)
    return float(scores["nats"].sum() / (math.log(2) * sum(known[i] for i in scores["id"])))


def before_after(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per model and task: task, stage, method, seed, bits_per_character, then lib.metrics.describe
    and, of the samples, chrf against the human text (idioms only: a title has no one right poem)."""
    rows = []
    for m in measured:
        row = {
            "task": m.task,
            "stage": m.stage,
            "method": m.method,
            "seed": m.seed,
            "bits_per_character": bits_per_character(m.task, m.scores),
            **metrics.describe(m.scores),
            "sampled": len(m.samples),
        }
        if m.task == "idioms":
            wanted = [e.target for e in load_task("idioms").test[: len(m.samples)]]
            row["chrf"] = chrf(m.samples, wanted)
        rows.append(row | {"train_tokens": m.summary.get("tokens", 0)})
    return pd.DataFrame(rows)


def form(task: Task, measured: Sequence[Measured]) -> pd.DataFrame:
    """The measures of people's poems (the whole test split), of chance and of each model's samples: task,
    stage, method, seed, source, measure, value, texts.

    source: people; chance (rhyme: people's line ends in other pairs; tones: people's characters shuffled
    inside each poem); before and after; and for rhyme "after, chance", the model's own line ends in other
    pairs. chinese.form_table has the measures.
    """
    people, train = ([e.target for e in split] for split in (task.test, task.train))
    human = {"task": task.name, "stage": "", "method": "none", "seed": 0}
    tables = [_chance(people, human), chinese.form_table(people, train).assign(**human, source="people")]
    for m in tqdm(measured, desc="form"):
        head = {"task": m.task, "stage": m.stage, "method": m.method, "seed": m.seed}
        tables.append(chinese.form_table(m.poems, train).assign(**head, source=m.stage))
        poems = [text for text in m.poems if chinese.is_quatrain(text)]
        own = {"measure": "rhyme", "value": chinese.rhyme_by_chance(poems), "texts": len(poems)}
        if m.stage == "after":
            tables.append(pd.DataFrame([head | {"source": "after, chance"} | own]))
    columns = [*human, "source", "measure", "value", "texts"]
    return pd.concat(tables, ignore_index=True)[columns]


def _chance(people: Sequence[str], head: dict) -> pd.DataFrame:
    shuffled = pd.DataFrame([chinese.form(t) for t in chinese.characters_mixed(people)]).mean()
    values = {
        "rhyme": chinese.rhyme_by_chance(people),
        "alternation": shuffled["alternation"],
        "opposition": shuffled["opposition"],
    }
    return pd.DataFrame(
        [{**head, "source": "chance", "measure": k, "value": float(v), "texts": len(people)} for k, v in values.items()]
    )


def rate(table: pd.DataFrame, measure: str, source: str, method: str = "none") -> dict:
    """A rate of `form`'s table, or without its column method of `plans`', with its 95 % Wilson interval
    over all texts of all seeds together, and their number: mean, low, high, texts. Raises ValueError where
    the table has no such row."""
    part = table[(table["measure"] == measure) & (table["source"] == source)]
    if "method" in table:
        part = part[part["method"] == method]
    if part.empty:
        raise ValueError(f"The table has no {measure} of {source}, {method}.")
    texts = int(part["texts"].sum())
    hits = round(float((part["value"] * part["texts"]).sum()))
    low, high = stats.binomtest(hits, texts).proportion_ci(method="wilson")
    return {"mean": hits / texts, "low": float(low), "high": float(high), "texts": texts}


def percent(found: dict) -> str:
    """What `rate` gives, for a sentence: 82.1 % [80.0, 84.0]."""
    mean, low, high = (100 * found[k] for k in ("mean", "low", "high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def over_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % t interval over seeds, for a sentence; what one seed cannot have is said."""
    mean, low, high = metrics.mean_interval(values)
    if math.isnan(low):
        return f"{mean:+.3f} (one seed: no interval)"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]{'' if low * high > 0 else ', which includes 0'}"


def differences(table: pd.DataFrame, measure: str = "bits_per_character") -> pd.DataFrame:
    """Of `vocabulary_table`, every pair of methods with the same seed: pair ("a - b"), seed, difference.
    The same seed means the same poems in the same order."""
    wide = table.pivot(index="seed", columns="method", values=measure)
    pairs = (("pieces", "none"), ("random", "none"), ("pieces", "random"))
    return pd.DataFrame(
        [
            {"pair": f"{a} - {b}", "seed": seed, "difference": float(row[a] - row[b])}
            for a, b in pairs
            for seed, row in wide.iterrows()
        ]
    )


def vocabulary_table(task: Task, measured: Sequence[Measured], bases: dict[str, Base]) -> pd.DataFrame:
    """One row per run: method (none, pieces, random), seed, bits_per_character, tokens_per_second,
    characters_per_second of training text, tokens_per_poem (title, poem and EOS of the test split),
    seconds_per_sample, new_tokens, and the training's tokens, steps and seconds. `bases` by method;
    other methods are left out.
    """
    old = len(bases["none"].tokenizer)
    rows = []
    for m in (m for m in measured if m.stage == "after" and m.method in bases):
        base = bases[m.method]
        encoded = encode(base.tokenizer, task.test, base.context)
        tokens = sum(len(d.input_ids) for d in encoded)
        characters = sum(len(e.prompt + e.target) for e in task.test)
        speed = m.summary["tokens_per_second"]
        rows.append(
            {
                "method": m.method,
                "seed": m.seed,
                "bits_per_character": bits_per_character(task.name, m.scores),
                "bits_per_byte": metrics.bits_per_byte(m.scores),
                "tokens_per_poem": tokens / len(task.test),
                "tokens_per_second": speed,
                "characters_per_second": speed * characters / tokens,
                "seconds_per_sample": m.seconds / len(m.samples),
                "new_tokens": len(base.tokenizer) - old,
                "train_tokens": m.summary["tokens"],
                "train_steps": m.summary["steps"],
                "train_seconds": m.summary["seconds"],
            }
        )
    return pd.DataFrame(rows)


def learning(base: Base, task: Task, measured: Sequence[Measured]) -> pd.DataFrame:
    """Held-out bits per character during training, without the plans' runs: method, seed, poems (seen so
    far), bits_per_character. The first row of a run is before its first step. `base`: the one without an
    extended vocabulary.
    """
    b = profile.current().chinese
    held_out = "".join(e.target for e in task.validation[: b.validation_documents])
    ratio = len(held_out.encode("utf-8")) / len(held_out)  # bytes per character
    poems = {seed: documents_drawn(base, task, seed, b.poem_tokens) for seed in {m.seed for m in measured}}
    tables = []
    for m in (m for m in measured if m.history is not None and m.method != "plan"):
        history = m.history.dropna(subset=["bits_per_byte"])
        seen = (history["step"] / m.summary["steps"] * poems[m.seed]).round()
        tables.append(
            pd.DataFrame(
                {
                    "method": m.method,
                    "seed": m.seed,
                    "poems": seen,
                    "bits_per_character": history["bits_per_byte"] * ratio,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def plans(measured: Sequence[Measured]) -> pd.DataFrame:
    """How planned poems keep to their first line: seed, source (own plan, or the given ones of
    lib.explore.chinese_runs), measure (those of lib.explore.planning.follows, exact_form, rhyme), value, texts."""
    rows = []
    for m in (m for m in measured if m.method == "plan"):
        for source, texts in {"own plan": m.samples, **m.forced}.items():
            forms = (chinese.form(planning.without_plan(t)) for t in texts)
            keys = ("exact_form", "rhyme")
            found = pd.DataFrame(
                [planning.follows(t) | {k: f[k] for k in keys} for t, f in zip(texts, forms, strict=True)]
            )
            rows += [
                {"seed": m.seed, "source": source, "measure": k, "value": float(v), "texts": len(texts)}
                for k, v in found.mean().items()
            ]
    return pd.DataFrame(rows)


def forgetting(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per model and number of its English: task, stage, method, seed, measure, value."""
    return pd.DataFrame(
        [
            {"task": m.task, "stage": m.stage, "method": m.method, "seed": m.seed, "measure": k, "value": v}
            for m in measured
            for k, v in m.english.items()
        ]
    )


def samples(task: Task, measured: Sequence[Measured], count: int = 3) -> pd.DataFrame:
    """The leading sampled test prompts (their order is a hash's: a random choice) with the human text and
    that of each method's first seed: task, id, prompt, source, text."""
    first: dict[str, Measured] = {}
    for m in (m for m in measured if m.task == task.name):
        first.setdefault(m.stage if m.method == "none" else m.method, m)
    return pd.DataFrame(
        [
            {"task": task.name, "id": e.id, "prompt": e.prompt.strip(), "source": source, "text": text}
            for i, e in enumerate(task.test[:count])
            for source, text in [("people", e.target), *((k, m.samples[i]) for k, m in first.items())]
        ]
    )
