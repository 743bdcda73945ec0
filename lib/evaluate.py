"""Before and after: what notebook 03 measures of one model.

The expensive part (scoring, generating, benchmarks) is done once per model and kept beside the run, so that an
interrupted evaluation goes on and a metric can be added. Texts stay in data/runs, which git ignores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from lib import benchmarks, metrics, profile
from lib.generate import DECODING, generate
from lib.hub import Unavailable, outside
from lib.results import kept
from lib.tasks import encode, head
from lib.texts import debian_checks

# A task's own measures, by its name: rows of the task and a text for each -> flat numbers.
CHECKS: dict[str, Callable[[Sequence[Mapping], Sequence[str]], dict]] = {
    "debian": lambda rows, texts: pd.DataFrame(map(debian_checks, [r["prompt"] for r in rows], texts)).mean().to_dict()
}


@dataclass
class Measured:
    """One model on one task. `texts` are greedy, `sampled` drawn with the run's seed; both for the first test rows."""

    task: str
    stage: str  # before or after
    method: str  # none before
    seed: int
    scores: pd.DataFrame  # id, group, nats, tokens, bytes per test document
    texts: list[str]
    sampled: list[str]
    forgetting: dict  # benchmark_measure -> value


def measure(base, task, run=None, seed=0, *, documents, generated, sampled, max_new_tokens, general=None) -> Measured:
    """Score the first `documents` test rows and write for the first `generated` and `sampled` of them with the model of
    `run` (a Finetuned), or without one the base model itself; a text has as many tokens as the longest validation
    target, or at most `max_new_tokens`. `general`: benchmark (a function of lib.benchmarks) -> its size.

    What was measured before under the same settings is read back from the run's folder."""
    model, who = base.model, {"stage": "before", "method": "none", "seed": seed}
    if run:
        model, who = run.model, {"stage": "after", "method": run.summary["method"], "seed": run.summary["seed"]}
    sizes = {name: size for name, size in (general or {}).items() if out_of_reach(name) is None}
    label = f"{task.name}, {who['method']}, seed {who['seed']}"
    encoded = encode(base.tokenizer, task["validation"], 10**9)
    longest = min(max_new_tokens, max(len(d.input_ids) - d.prompt_length for d in encoded))

    def write(count: int, decoding: str) -> list[str]:
        prompts = [row["prompt"] for row in head(task["test"], count)]
        options = {"seed": who["seed"], "desc": f"{label}: {decoding}", **DECODING[decoding]}
        return generate(model, base.tokenizer, prompts, longest, batch_size=64, **options)

    def measured() -> dict:
        scores = metrics.score(model, base.tokenizer, head(task["test"], documents), f"{label}: scoring")
        texts, drawn, found = write(generated, "greedy"), write(sampled, "sample"), {}
        for name, size in sizes.items():  # general text, after training on something else
            result = getattr(benchmarks, name)(model, base.tokenizer, size)
            numbers = {k.removeprefix(name + "_"): v for k, v in result.items() if isinstance(v, int | float)}
            found |= {f"{name}_{k}": v for k, v in numbers.items()}
        return {"scores": scores.to_dict("records"), "texts": texts, "sampled": drawn, "forgetting": found}

    settings = [task.sha256, base.name, base.revision, documents, generated, sampled, max_new_tokens, DECODING, sizes]
    folder = run.path if run else profile.output_root() / "data" / "runs" / f"{task.name}-before-seed{seed}"
    record = kept(folder / "measured", settings, measured)
    return Measured(task.name, **who, **record | {"scores": pd.DataFrame(record["scores"])})


@cache
def out_of_reach(benchmark: str) -> str | None:
    """Why a benchmark's text cannot be had here; None if it can. Asked once per process."""
    try:
        outside(benchmark)
    except Unavailable as reason:
        return str(reason)
    return None
