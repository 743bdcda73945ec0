"""Before and after: everything that notebook 03 measures of one model, and the tables made of it.

`measure` does the expensive part (scoring, generating, benchmarks) once per model and keeps it beside
the run, so that an interrupted evaluation goes on where it stopped and a metric can be added without
generating again. Texts stay in data/runs, which git ignores; tables hold numbers.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from lib import benchmarks, metrics, profile
from lib import texts as text_measures
from lib.explore.slots import slot_errors
from lib.generate import DECODING, generate
from lib.hub import Unavailable, outside
from lib.results import write_json
from lib.tasks import Task, encode
from lib.texts import debian_summary
from lib.train import Finetuned


@dataclass
class Measured:
    """One model on one task. `texts` are greedy, `sampled` drawn with the run's seed for half as many; both
    for the first test documents, in order. `forgetting` is flat: benchmark_measure."""

    task: str
    stage: str  # before or after
    method: str  # none before
    seed: int
    scores: pd.DataFrame  # id, group, nats, tokens, bytes per test document
    texts: list[str]
    sampled: list[str]
    forgetting: dict
    seconds: float


def longest_text(tokenizer, task: Task) -> int:
    """How many tokens a generation may have: the longest validation target's, at most the profile's."""
    encoded = encode(tokenizer, task.validation, 10**9)
    longest = max(len(d.input_ids) - d.prompt_length for d in encoded)
    return min(longest, profile.current().max_new_tokens)


def generated_examples(task: Task) -> list:
    """The test documents that are generated for: all of E2E under `full`, as its published rows do."""
    p = profile.current()
    whole = task.name == "e2e" and p.name == "full"
    return task.test if whole else task.test[: p.generate_documents]


def measure(base, task: Task, run: Finetuned | None = None, seed: int = 0, forgetting: bool = True) -> Measured:
    """Score, generate and benchmark `run`'s model, or without one the base model itself.

    What was measured before under the same settings is read back from the run's folder.
    """
    p = profile.current()
    who = (
        {"stage": "after", "method": run.summary["method"], "seed": run.summary["seed"]}
        if run
        else {"stage": "before", "method": "none", "seed": seed}
    )
    model = run.model if run else base.model
    settings = [
        task.sha256,
        base.name,
        base.revision,
        p.eval_documents,
        p.generate_documents,
        p.max_new_tokens,
        DECODING,
        forgetting and _benchmark_sizes(),
    ]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    folder = run.path if run else profile.output_root() / "data" / "runs" / f"{task.name}-before-seed{seed}"
    path = folder / f"measured-{key}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        return Measured(**{**record, "scores": pd.DataFrame(record["scores"])})
    began = time.monotonic()
    label = f"{task.name}, {who['method']}, seed {who['seed']}"
    examples = generated_examples(task)
    prompts = [e.prompt for e in examples]
    budget = {"max_new_tokens": longest_text(base.tokenizer, task), "seed": who["seed"], "batch_size": 64}
    measured = Measured(
        task=task.name,
        **who,
        scores=metrics.score(model, base.tokenizer, task.test[: p.eval_documents], f"{label}: scoring"),
        texts=generate(model, base.tokenizer, prompts, **budget, desc=f"{label}: generating", **DECODING["greedy"]),
        sampled=generate(
            model,
            base.tokenizer,
            prompts[: p.generate_documents // 2],
            **budget,
            desc=f"{label}: sampling",
            **DECODING["sample"],
        ),
        forgetting=_forgetting(model, base.tokenizer) if forgetting else {},
        seconds=0.0,
    )
    measured.seconds = round(time.monotonic() - began, 1)
    write_json(path, {**asdict(measured), "scores": measured.scores.to_dict("records")})
    return measured


def _benchmark_sizes() -> dict:
    p = profile.current()
    sizes = {"wikitext2": p.wikitext_tokens, "lambada": p.lambada_documents, "blimp": p.blimp_pairs}
    return {name: size for name, size in sizes.items() if out_of_reach(name) is None}


@cache
def out_of_reach(benchmark: str) -> str | None:
    """Why a benchmark's text cannot be had here; None if it can. Asked once per process."""
    try:
        outside(benchmark)
    except Unavailable as reason:
        return str(reason)
    return None


def _forgetting(model, tokenizer) -> dict:
    """General text after the training on something else, from the benchmarks within reach."""
    out = {}
    for name, size in _benchmark_sizes().items():
        found = getattr(benchmarks, name)(model, tokenizer, size)
        out |= {f"{name}_{k.removeprefix(name + '_')}": v for k, v in found.items() if np.isscalar(v)}
    return out


# --- tables


def before_after(task: Task, measured: Sequence[Measured]) -> pd.DataFrame:
    """The contract's table: one row per model, every number computed by the same functions.

    What people reach on the task's own checks stands in a table of its own (`human_checks`).
    """
    return pd.DataFrame([_row(task, m) for m in measured])


def _row(task: Task, m: Measured) -> dict:
    examples = generated_examples(task)
    references = [list(e.references) for e in examples]
    texts = [t.strip() for t in m.texts]
    train = [e.target for e in task.train]
    overlap = text_measures.longest_overlap(texts, train)
    row = {
        "task": m.task,
        "stage": m.stage,
        "method": m.method,
        "seed": m.seed,
        **metrics.describe(m.scores),
        "decoding": "greedy",
        "generated": len(texts),
        "bleu": text_measures.bleu(texts, references, lowercase=task.name == "e2e"),
        "chrf": text_measures.chrf(texts, references),
        "rouge_l": text_measures.rouge_l(texts, references),
        "overlap_words_median": float(np.median(overlap)),
        "overlap_words_max": int(max(overlap)),
        "copied_share": text_measures.copied(texts, train),
    }
    return row | own_checks(task, [e.prompt for e in examples], texts)


def own_checks(task: Task, prompts: Sequence[str], texts: Sequence[str]) -> dict:
    """The task's own measures: Debian's form and tags, E2E's NIST and slot errors, none for others."""
    if task.name == "debian":
        return debian_summary(prompts, texts)
    if task.name == "e2e":
        references = [list(e.references) for e in generated_examples(task)]
        return {"nist": text_measures.nist(texts, references)} | slot_errors(prompts, texts)
    return {}


def human_checks(task: Task) -> dict:
    """The task's own measures of the human references: the ceiling that a model can be held against."""
    examples = generated_examples(task)
    if task.name == "e2e":  # NIST of a reference against itself says nothing
        pairs = [(e.prompt, r) for e in examples for r in e.references]
        return slot_errors([p for p, _ in pairs], [r for _, r in pairs])
    return own_checks(task, [e.prompt for e in examples], [e.references[0] for e in examples])


def diversity(measured: Sequence[Measured]) -> pd.DataFrame:
    """distinct-n, rep-4 and self-BLEU of the sampled texts, and of the greedy ones beside them."""
    rows = []
    for m in measured:
        for decoding, texts in (("greedy", m.texts), ("sample", m.sampled)):
            who = {"task": m.task, "stage": m.stage, "method": m.method, "seed": m.seed}
            rows.append({**who, "decoding": decoding, **text_measures.diversity(texts)})
    return pd.DataFrame(rows)


def forgetting(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row per model and benchmark number, long form: measure, value."""
    rows = [
        {"task": m.task, "stage": m.stage, "method": m.method, "seed": m.seed, "measure": k, "value": v}
        for m in measured
        for k, v in m.forgetting.items()
        if isinstance(v, int | float)
    ]
    return pd.DataFrame(rows)


def skipped() -> list[str]:
    """Why benchmarks were left out."""
    reasons = [out_of_reach(name) for name in ("wikitext2", "lambada", "blimp")]
    return [r for r in reasons if r]


def significance(task: Task, measured: Sequence[Measured]) -> pd.DataFrame:
    """After against before by document, per method: bits per byte, and chrF of each text.

    Documents are resampled, seeds averaged first: `low` to `high` is a 95 % interval of the difference.
    """
    before = [m for m in measured if m.stage == "before"]
    rows = []
    for method in dict.fromkeys(m.method for m in measured if m.stage == "after"):
        after = [m for m in measured if m.method == method]
        for name, frame, options in (
            ("bits_per_byte", lambda m: m.scores, {}),
            ("chrf", lambda m: _chrf(task, m), {"numerator": "chrf", "denominator": None}),
        ):
            found = metrics.paired([frame(m) for m in before], [frame(m) for m in after], **options)
            rows.append({"task": task.name, "method": method, "seeds": len(after), "measure": name} | asdict(found))
    return pd.DataFrame(rows)


def _chrf(task: Task, m: Measured) -> pd.DataFrame:
    examples = generated_examples(task)
    values = text_measures.chrf_per_document([t.strip() for t in m.texts], [list(e.references) for e in examples])
    return pd.DataFrame({"id": [e.id for e in examples], "group": [e.group for e in examples], "chrf": values})


def seed_summary(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % interval over seeds of each measure, per task, stage and method; long form."""
    rows = []
    for (task, stage, method), part in table.groupby(["task", "stage", "method"], sort=False):
        for measure in (m for m in measures if m in part and part[m].notna().any()):
            mean, low, high = metrics.mean_interval(part[measure].dropna())
            rows.append(
                {
                    "task": task,
                    "stage": stage,
                    "method": method,
                    "measure": measure,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "seeds": len(part),
                }
            )
    return pd.DataFrame(rows)


def samples(task: Task, measured: Sequence[Measured], count: int = 3, seed: int = 0) -> list[dict]:
    """Prompts drawn by `seed`, each with the human target and every method's text of the first seed."""
    examples = generated_examples(task)
    chosen = np.random.default_rng(seed).choice(len(examples), min(count, len(examples)), replace=False)
    first: dict[str, Measured] = {}
    for m in measured:
        first.setdefault(m.method, m)
    return [
        {"task": task.name, "id": examples[i].id, "prompt": examples[i].prompt, "human": examples[i].references[0]}
        | {("before" if k == "none" else k): m.texts[i].strip() for k, m in first.items()}
        for i in sorted(chosen.tolist())
    ]


def path_of_ratings(task: Task) -> Path:
    """Where the blind A/B ratings of a task are kept; git ignores it, since raters' names are in it."""
    return profile.kept_root() / "data" / "runs" / f"ratings-{task.name}.jsonl"
