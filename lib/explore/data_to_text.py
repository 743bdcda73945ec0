"""E2E NLG in notebook 10: examples in the prompt against fine-tuning, beside published rows.

Few-shot prompting after Brown et al. 2020, arXiv:2005.14165. Every system writes for the same test inputs,
greedily; what follows the first line break is cut, since a model that was not fine-tuned goes on with
the next example. BLEU and NIST follow mteval-v13a, slot errors lib.explore.slots.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lib import profile, results
from lib.evaluate import longest_text
from lib.explore.slots import slot_check, slot_errors
from lib.generate import generate
from lib.metrics import mean_interval
from lib.results import write_json
from lib.tasks import Example, Task
from lib.texts import bleu, chrf, nist, rouge_l
from lib.train import Finetuned

HU = "Hu et al. 2021, arXiv:2106.09685, table 3"
LI = f"{HU}, there from Li and Liang 2021, arXiv:2101.00190"
# Other models and budgets than ours: GPT-2 medium has 355 M parameters, large 774 M. BLEU, NIST and ROUGE-L
# (0-1; coco-caption's, not ours) on all 630 inputs, with beam search, after five passes over 42,061 rows.
# Small: a user's comment of July 2025 in github.com/microsoft/LoRA/issues/165, with all five metrics.
PUBLISHED = (
    {"system": "GPT-2 medium, full", "bleu": 68.2, "nist": 8.62, "rouge_l": 0.710, "source": LI},
    {"system": "GPT-2 medium, LoRA", "bleu": 70.4, "nist": 8.85, "rouge_l": 0.718, "source": HU},
    {"system": "GPT-2 large, full", "bleu": 68.5, "nist": 8.78, "rouge_l": 0.699, "source": LI},
    {"system": "GPT-2 large, LoRA", "bleu": 70.4, "nist": 8.89, "rouge_l": 0.720, "source": HU},
    {"system": "GPT-2 small, LoRA", "bleu": 67.27, "nist": 8.60, "rouge_l": 0.681, "source": "user report"},
)


MAX_NEW_TOKENS = 64  # as the published rows: eval_len in microsoft/LoRA, examples/NLG/README.md


@dataclass(frozen=True)
class Written:
    """What one system wrote. `shots`: examples in the prompt; `n_train_tokens`: seen in fine-tuning."""

    system: str
    shots: int
    seed: int
    n_train_tokens: int
    texts: list[str]


def draw_examples(task: Task, shots: int, seed: int) -> list[Example]:
    """`shots` training rows of different inputs; the first ones of a seed's order, so that more shots
    add to fewer. Raises ValueError for more than there are inputs."""
    drawn: dict[str, Example] = {}
    for i in np.random.default_rng(seed).permutation(len(task.train)):
        if len(drawn) == shots:
            break
        drawn.setdefault(task.train[i].group, task.train[i])
    if len(drawn) < shots:
        raise ValueError(f"{shots} examples of {len(drawn)} different inputs: ask for fewer.")
    return list(drawn.values())


def few_shot_prompt(examples: Sequence[Example], prompt: str) -> str:
    """The examples, a line each, and the input in the same form. What exceeds the context with the text to
    be written is refused by `lib.generate.generate`."""
    return "".join(f"{e.prompt}{e.target}\n" for e in examples) + prompt


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def write_texts(base, task: Task, inputs: int, run: Finetuned | None = None, shots: int = 0, seed: int = 0) -> Written:
    """Texts for the leading `inputs` of the test split, by `run` or by the base model with `shots` examples
    drawn by `seed`. What was written before under the same settings is read back from data/runs."""
    examples = draw_examples(task, shots, seed)
    prompts = [few_shot_prompt(examples, e.prompt) for e in task.test[:inputs]]
    longest = min(longest_text(base.tokenizer, task), MAX_NEW_TOKENS)
    about = [task.sha256, base.name, base.revision, base.parameters, prompts, longest]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]
    folder = run.path if run else profile.output_root() / "data" / "runs" / "e2e-few-shot"
    path = folder / f"written-{shots}-shot-seed{seed}-{key}.json"
    if not path.exists():
        label = f"{run.summary['method'] if run else f'{shots}-shot'}, seed {seed}"
        texts = generate((run or base).model, base.tokenizer, prompts, longest, 64, seed, desc=label)
        write_json(path, {"texts": [first_line(t) for t in texts]})
    texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
    system = f"fine-tuned, {run.summary['method']}" if run else f"{shots}-shot"
    tokens = run.summary["tokens"] if run else 0
    return Written(system, shots, run.summary["seed"] if run else seed, tokens, texts)


# --- tables


def e2e_table(base, task: Task, written: Sequence[Written]) -> pd.DataFrame:
    """The contract's table `e2e`, a row per system and seed. `kind`: ours, longer (the run of notebook
    03, shipped), human (slots alone: the floor of the check) or published."""
    examples = task.test[: len(written[0].texts)]
    rows = [
        {
            "system": w.system,
            "kind": "ours",
            "base_model": base.name,
            "shots": w.shots,
            "seed": w.seed,
            "n_train_tokens": w.n_train_tokens,
            "inputs": len(examples),
            **_scores(examples, w.texts),
        }
        for w in written
    ]
    people = [(e.prompt, r) for e in examples for r in e.references]
    human = slot_errors(*map(list, zip(*people, strict=True)))
    rows.append({"system": "people", "kind": "human", "inputs": len(examples), **human})
    rows += [{"kind": "published", "inputs": 630, **row} for row in PUBLISHED]
    return pd.DataFrame(rows + _longer(base))


def _scores(examples: Sequence[Example], texts: Sequence[str]) -> dict[str, float]:
    references = [list(e.references) for e in examples]
    return {
        "bleu": bleu(texts, references, lowercase=True),
        "nist": nist(texts, references),
        "rouge_l": rouge_l(texts, references),
        "chrf": chrf(texts, references),
        **slot_errors([e.prompt for e in examples], texts),
    }


def _longer(base) -> list[dict]:
    """Notebook 03's run on all inputs, from the shipped results; none for another base model."""
    try:
        shipped = results.load("03_evaluate", profile.DATA / "results")
    except (FileNotFoundError, ValueError):
        return []
    if shipped["provenance"]["base_model"] != base.name:
        return []
    keys = ("bleu", "nist", "rouge_l", "chrf", "missing", "wrong", "added", "slots", "ser", "perfect", "seed")
    tokens = profile.PROFILES[shipped["provenance"]["profile"]].e2e_train_tokens
    return [
        {
            "system": f"fine-tuned, {row['method']}, longer",
            "kind": "longer",
            "base_model": base.name,
            "shots": 0,
            "n_train_tokens": tokens,
            "inputs": row["generated"],
            "source": "03_evaluate",
            **{k: row[k] for k in keys},
        }
        for row in shipped["tables"]["before_after"]
        if row["task"] == "e2e" and row["stage"] == "after"
    ]


def by_slots(task: Task, written: Sequence[Written]) -> pd.DataFrame:
    """Errors by the number of slots in the input, people's references too: system, seed, slots, texts,
    missing, wrong, added (per text), ser, perfect (share without error)."""
    examples = task.test[: len(written[0].texts)]
    systems = [(w.system, w.seed, [[t] for t in w.texts]) for w in written]
    systems.append(("people", 0, [list(e.references) for e in examples]))
    rows = []
    for system, seed, lists in systems:
        checks = pd.DataFrame(
            [slot_check(e.prompt, t) for e, texts in zip(examples, lists, strict=True) for t in texts]
        )
        errors = checks[["missing", "wrong", "added"]].sum(axis=1)
        checks = checks.assign(errors=errors, perfect=errors == 0)
        for slots, part in checks.groupby("slots"):
            rows.append(
                {
                    "system": system,
                    "seed": seed,
                    "slots": int(slots),
                    "texts": len(part),
                    **part[["missing", "wrong", "added"]].mean().to_dict(),
                    "ser": float(part["errors"].sum() / part["slots"].sum()),
                    "perfect": float(part["perfect"].mean()),
                }
            )
    return pd.DataFrame(rows)


def distance(table: pd.DataFrame, measure: str = "bleu") -> pd.DataFrame:
    """How far our systems' means lie from each published row: system, published, difference (ours less
    theirs, in the measure's points)."""
    means = table[table["kind"].isin(["ours", "longer"])].groupby("system", sort=False)[measure].mean()
    theirs = table[table["kind"] == "published"].dropna(subset=[measure])
    rows = [
        {
            "system": system,
            "published": row["system"],
            "ours": mean,
            "theirs": row[measure],
            "difference": mean - row[measure],
        }
        for system, mean in means.items()
        for _, row in theirs.iterrows()
    ]
    return pd.DataFrame(rows)


def against_shots(table: pd.DataFrame, measures: Mapping[str, str]) -> pd.DataFrame:
    """The table `e2e` for a figure over the number of examples: shots, series, seed, measure, value. What
    has no examples in its prompt is a level line. `measures`: column -> title."""
    own = table[table["kind"].isin(["ours", "human"])].copy()
    shown = sorted(own["shots"].dropna().astype(int).unique())
    rows = []
    for row in own.to_dict("records"):
        few = str(row["system"]).endswith("-shot")
        for measure, title in ((m, t) for m, t in measures.items() if not pd.isna(row[m])):
            for shots in [int(row["shots"])] if few else shown:
                rows.append(
                    {
                        "shots": shots,
                        "series": "few-shot" if few else row["system"],
                        "seed": row["seed"],
                        "measure": title,
                        "value": row[measure],
                    }
                )
    return pd.DataFrame(rows)


def _fewer(tuned: pd.Series, few: pd.Series) -> str:
    """Whether trainings and draws of examples, which are not paired, differ by Welch's 95 % interval."""
    if max(tuned.nunique(), few.nunique()) < 2 or min(len(tuned), len(few)) < 2:
        return "no interval from one run or equal runs, so no difference is shown"
    with warnings.catch_warnings():
        # One side of equal runs has variance 0, as it should; scipy warns of lost precision all the same.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = stats.ttest_ind(tuned, few, equal_var=False).confidence_interval(0.95)
    verdict = "no difference is shown"
    if high < 0 or low > 0:
        verdict = f"{'fine-tuning' if high < 0 else 'prompting'} keeps more of the facts"
    return f"difference {tuned.mean() - few.mean():+.1f} [{low:+.1f}, {high:+.1f}] points, {verdict}"


def findings(table: pd.DataFrame, slots: pd.DataFrame) -> list[str]:
    """Sentences from this run's own numbers; the conditions in them are computed."""
    ours, lines = table[table["kind"] == "ours"], []
    for system, rows in ours.groupby("system", sort=False):
        parts = []
        for measure, scale, unit in (("bleu", 1, " BLEU"), ("ser", 100, " % slot errors")):
            mean, low, high = (scale * x for x in mean_interval(rows[measure]))
            interval = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
            parts.append(f"{mean:.1f}{interval}{unit}")
        lines.append(f"{system}: {', '.join(parts)} ({len(rows)} run{'s' * (len(rows) > 1)}).")
    means = ours.groupby("system", sort=False)[["bleu", "ser"]].mean()
    few = means[means.index.str.endswith("-shot")]
    tuned = means.drop(few.index)
    best = {"tuned": tuned["ser"].idxmin(), "few": few["ser"].idxmin()}
    errors = [100 * ours.loc[ours["system"] == best[who], "ser"] for who in ("tuned", "few")]
    people = 100 * table.loc[table["kind"] == "human", "ser"].iloc[0]
    lines.append(
        f"Fewest slot errors, means: {best['tuned']} {errors[0].mean():.1f} %, {best['few']} {errors[1].mean():.1f} %: "
        f"{_fewer(*errors)}. People: {people:.1f} % by the same check."
    )
    own = slots[slots["system"] == best["tuned"]].groupby("slots")[["ser", "texts"]].mean()
    fewest, most = own.iloc[0], own.iloc[-1]
    rise = "rise" if most["ser"] > fewest["ser"] else "do not rise"
    lines.append(
        f"{best['tuned']}: {fewest['ser']:.1%} slot errors at {own.index[0]} slots (inputs: {fewest['texts']:.0f}), "
        f"{most['ser']:.1%} at {own.index[-1]} ({most['texts']:.0f}): errors per slot {rise} from the fewest to the "
        "most facts."
    )
    best_and_longer = (tuned["bleu"].idxmax(), *table.loc[table["kind"] == "longer", "system"])
    for system, rows in distance(table).groupby("system", sort=False):
        if system in best_and_longer:
            inputs = int(table.loc[table["system"] == system, "inputs"].iloc[0])
            apart = "; ".join(f"{row.difference:+.1f} from {row.published} ({row.theirs})" for row in rows.itertuples())
            lines.append(
                f"{system}, {inputs} of 630 inputs: {rows['ours'].iloc[0]:.1f} BLEU; to the published rows, "
                f"other models and budgets: {apart}."
            )
    return lines
