"""Notebook 07's experiments: the trainings on poems and idioms, what is measured of them.

Trainings are lib.train.finetune's; what is measured of a model is kept beside its run, so that an
interrupted notebook goes on where it stopped.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from lib import benchmarks, metrics, profile
from lib.evaluate import out_of_reach
from lib.explore.planning import plan_of, unrhymed_plans, with_plan, without_plan
from lib.generate import DECODING, generate
from lib.models import Base
from lib.packing import draw
from lib.results import write_json
from lib.tasks import Task, encode, load_task
from lib.train import Finetuned, finetune

# Eight times lib.train's, which is for English: the base model knows little Chinese, so more has to move.
# Set after one short trial each of 3e-4, 5e-4 and 1e-3, whose poems for test titles were looked at.
LEARNING_RATE = 8e-4


def settings(train_tokens: int, pack_tokens: int) -> dict:
    """The overrides of lib.train.Settings that this notebook's runs share. One packed row is one step, so
    that no drawn document is left out and a small budget still makes a hundred steps or more."""
    b = profile.current().chinese
    return {
        "train_tokens": train_tokens,
        "learning_rate": LEARNING_RATE,
        "pack_length": pack_tokens,
        "batch_tokens": pack_tokens,
        "evaluations": b.evaluations,
        "validation_documents": b.validation_documents,
    }


def train_task(base: Base, task: Task, seed: int) -> Finetuned:
    """`base` on the poems or the idioms, at the profile's budget."""
    b = profile.current().chinese
    tokens = {"tang": b.poem_tokens, "idioms": b.idiom_tokens}[task.name]
    return finetune(base, task, "full", seed, **settings(tokens, b.pack_tokens))


def documents_drawn(base: Base, task: Task, seed: int, tokens: int) -> int:
    """How many documents a run of `base` with this seed and budget sees."""
    return len(draw(encode(base.tokenizer, task.train, base.context), tokens, seed))


def same_documents(base: Base, extended: Base, task: Task, seed: int, tokens: int) -> int:
    """How many tokens of `extended` the documents hold that `base` draws with `tokens` of its own: with
    that budget and seed, both train on the same documents in the same order."""
    drawn = draw(encode(base.tokenizer, task.train, base.context), tokens, seed)
    length = {d.id: len(d.input_ids) for d in encode(extended.tokenizer, task.train, base.context)}
    return sum(length[d.id] for d in drawn)


def train_extended(base: Base, extended: Base, task: Task, seed: int) -> Finetuned:
    """`extended` on the documents that `train_task` gives `base`; the row is shortened like the text, so
    that a step holds about as many documents and the number of steps is the same up to packing."""
    b = profile.current().chinese
    tokens = same_documents(base, extended, task, seed, b.poem_tokens)
    row = round(b.pack_tokens * tokens / b.poem_tokens)
    return finetune(extended, task, "full", seed, **settings(tokens, row))


def train_planned(extended: Base, task: Task, seed: int) -> Finetuned:
    """`extended` on the poems of `task` with their plans (lib.explore.planning), at a budget of its own."""
    b = profile.current().chinese
    overrides = settings(b.plan_tokens, b.pack_tokens)
    return finetune(extended, with_plan(task), "full", seed, **overrides)


# --- what is measured of one model


@dataclass
class Measured:
    """One model on one task. `samples`: one text per leading test prompt, by DECODING["sample"] with the
    run's seed; `seconds`: what they took; `english`: flat, bits per byte of English held-out text."""

    task: str
    stage: str  # before or after
    method: str  # none; for an extended vocabulary, how its rows started; plan
    seed: int
    scores: pd.DataFrame  # id, group, nats, tokens, bytes per test document; a plan has nats, no bytes
    samples: list[str]  # of "plan": with their plans
    forced: dict[str, list[str]]  # of "plan": what follows plans that were given, those before them
    seconds: float
    english: dict
    summary: dict  # of the run, or empty
    history: pd.DataFrame | None  # of the run: step, tokens, train_loss, held_out_loss, bits_per_byte

    @property
    def poems(self) -> list[str]:
        """The samples without their plans."""
        return [without_plan(t) for t in self.samples] if self.method == "plan" else self.samples


def measure(base: Base, task: Task, run: Finetuned | None = None, method: str = "none") -> Measured:
    """Score, sample and test the English of `run`'s model, or without one of `base` itself.

    `base` brings the tokenizer: for a run of an extended vocabulary, pass the extended one. With `method`
    "plan" the run is `train_planned`'s and `task` the one without plans. What was measured before under
    the same settings is read back from the run's folder.
    """
    b = profile.current().chinese
    seed = run.summary["seed"] if run else 0
    kept = [
        task.sha256,
        load_task("debian").sha256,
        base.name,
        base.revision,
        base.parameters,
        b.score_documents,
        sampled(task),
        b.english_documents,
        _wikitext_tokens(),
        DECODING["sample"],
        method == "plan",
    ]
    key = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
    runs = profile.output_root() / "data" / "runs"
    path = (run.path if run else runs / f"{task.name}-before") / f"chinese-{key}.json"
    if not path.exists():
        model = run.model if run else base.model
        write_json(path, _measured(base, task, model, seed, method == "plan"))
    record = json.loads(path.read_text(encoding="utf-8"))
    scores = pd.DataFrame(record.pop("scores"))
    stage, summary, history = ("after", run.summary, run.history) if run else ("before", {}, None)
    return Measured(task.name, stage, method, seed, scores, **record, summary=summary, history=history)


def _measured(base: Base, task: Task, model, seed: int, planned: bool) -> dict:
    b = profile.current().chinese
    shown = with_plan(task) if planned else task
    scores = metrics.score(model, base.tokenizer, shown.test[: b.score_documents], "scoring")
    scores["bytes"] = [len(e.target.encode("utf-8")) for e in task.test[: b.score_documents]]
    wanted = task.test[: sampled(task)]
    sample = partial(
        generate,
        model,
        base.tokenizer,
        max_new_tokens=longest_target(base, shown),
        batch_size=64,
        seed=seed,
        desc=f"{shown.name}: sampling",
        **DECODING["sample"],
    )
    began = time.perf_counter()
    samples = sample([e.prompt for e in wanted])
    seconds = time.perf_counter() - began
    forced = {}
    for source, plans in given_plans([e.target for e in wanted]).items() if planned else ():
        prompts = [f"{e.prompt}{plan}\n" for e, plan in zip(wanted, plans, strict=True)]
        poems = sample(prompts)
        forced[source] = [f"{plan}\n{poem}" for plan, poem in zip(plans, poems, strict=True)]
    return {
        "scores": scores.to_dict("records"),
        "samples": samples,
        "seconds": seconds,
        "forced": forced,
        "english": _english(model, base),
    }


def given_plans(poems: Sequence[str]) -> dict[str, list[str]]:
    """The plans that are put in place of a model's own, by their name in the tables."""
    return {"people's plan": [plan_of(t) for t in poems], "unrhymed plan": unrhymed_plans(poems)}


def sampled(task: Task) -> int:
    """How many test prompts a text is sampled for: rates need the poems, the idioms are only looked at."""
    samples = profile.current().chinese.samples
    return samples if task.name == "tang" else samples // 2


def longest_target(base: Base, task: Task) -> int:
    """Tokens of the longest validation target, EOS included: room for every honest answer."""
    return max(len(d.input_ids) - d.prompt_length for d in encode(base.tokenizer, task.validation, base.context))


def _wikitext_tokens() -> int:
    """0 where WikiText-2 cannot be had."""
    return 0 if out_of_reach("wikitext2") else profile.current().chinese.wikitext_tokens


def _english(model, base: Base) -> dict:
    """What fine-tuning on Chinese did to English: bits per byte of Debian's held-out descriptions and,
    where it can be had, of WikiText-2."""
    documents = load_task("debian").test[: profile.current().chinese.english_documents]
    scores = metrics.score(model, base.tokenizer, documents, "English")
    out = {"debian_bits_per_byte": metrics.bits_per_byte(scores)}
    if tokens := _wikitext_tokens():
        found = benchmarks.wikitext2(model, base.tokenizer, tokens)
        out |= {f"wikitext2_{k.removeprefix('wikitext2_')}": v for k, v in found.items() if isinstance(v, int | float)}
    return out
