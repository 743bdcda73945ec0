"""The experiment of notebook 08: fine-tuning on one's own documents with canaries in them.

A condition is a method, with or without duplicates, and a seed. Runs are lib.train's, kept in data/runs;
what is measured of a model is kept beside its run, so that an interrupted notebook goes on where it stopped.
Generated text stays there; tables hold numbers.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from lib import metrics, profile
from lib.explore import memorise
from lib.explore.collect import deduplicate
from lib.explore.memorise import Canary
from lib.generate import generate
from lib.metrics import mean_interval
from lib.results import write_json
from lib.tasks import Example, Task, encode
from lib.texts import chrf, rouge_l
from lib.train import Finetuned, finetune


@dataclass(frozen=True)
class Condition:
    method: str
    deduplicated: bool
    seed: int


@dataclass(frozen=True)
class Mixed:
    """The documents of one training run: `task.train` holds canaries and real documents."""

    task: Task
    documents: list[Example]  # the real ones of task.train
    canaries: list[Canary]
    copies: dict[str, int]  # canary id -> how often it stands in the training text
    tokens: int  # prompt + target + EOS of one pass
    passes: int  # over the training text; 1 unless the text is shorter than the budget


@dataclass
class Audited:
    """One model. `scores` and `texts` are of the first test documents."""

    condition: Condition | None  # None: the base model
    seed: int
    scores: pd.DataFrame  # id, group, nats, tokens, bytes
    texts: list[str]
    canaries: list[dict]  # lib.explore.memorise.audit, with copies and passes
    verbatim: list[dict]  # lib.explore.memorise.verbatim of training and of held-out documents


def conditions() -> list[Condition]:
    """Every method with and without duplicates, each with every seed of the profile."""
    p = profile.current()
    return [Condition(m, d, s) for s in p.seeds for m in p.methods for d in (False, True)]


def drawn(seed: int) -> list[Canary]:
    b = profile.current().private
    return memorise.canaries(seed, b.canaries, b.controls)


def mix(base, task: Task, condition: Condition) -> Mixed:
    """Canaries and then documents of `task.train` up to the profile's training tokens, so that every
    condition sees equally much text. Duplicates are removed as the collection removes them.

    Raises ValueError where the canaries alone fill the budget.
    """
    budget = profile.current().private.train_tokens
    secrets = drawn(condition.seed)
    repeated = [c.example(i) for c in secrets for i in range(c.repetitions)]
    pool = [*repeated, *_up_to(base, task.train, budget)]
    if condition.deduplicated:
        pool = deduplicate(pool)
    inserted = {c.id for c in secrets}
    kept = [e for e in pool if e.group in inserted]
    used = _tokens(base, kept)
    if used >= budget:
        raise ValueError(f"The canaries fill {used:,} of {budget:,} training tokens: raise the budget or insert fewer.")
    documents = _up_to(base, [e for e in pool if e.group not in inserted], budget - used)
    train = [*kept, *documents]
    tokens = _tokens(base, train)
    content = json.dumps([task.sha256, [asdict(e) for e in train]], ensure_ascii=False)
    sha256 = hashlib.sha256(content.encode("utf-8")).hexdigest()
    mixed = replace(task, name=f"{task.name}-canaries", train=train, sha256=sha256)
    copies = Counter(e.group for e in kept)
    return Mixed(mixed, documents, secrets, copies, tokens, max(1, round(budget / tokens)))


def _tokens(base, examples: Sequence[Example]) -> int:
    return sum(len(d.input_ids) for d in encode(base.tokenizer, examples, base.context))


def _up_to(base, examples: Sequence[Example], tokens: int) -> list[Example]:
    """Leading examples of together at most `tokens` tokens."""
    taken, total = [], 0
    for e in examples:
        total += _tokens(base, [e])
        if total > tokens:
            break
        taken.append(e)
    return taken


def train_on(base, mixed: Mixed, condition: Condition, **overrides) -> Finetuned:
    """A run over whole passes of the mixed text, to its end: one evaluation, no early stop, no row left
    out, so that every canary is seen exactly copies * passes times."""
    b = profile.current().private
    settings = {
        "train_tokens": mixed.tokens * mixed.passes,
        "pack_length": b.pack_length,
        "batch_tokens": b.pack_length,
        "evaluations": 1,
        "validation_documents": b.validation_documents,
    } | overrides
    return finetune(base, mixed.task, condition.method, condition.seed, **settings)


def measure(base, task: Task, mixed: Mixed, run: Finetuned | None, condition: Condition) -> Audited:
    """Score, generate and audit one model; None as `run`: the base model, with the condition's seed."""
    b = profile.current().private
    who = {"condition": asdict(condition) if run else None, "seed": condition.seed}
    seen = mixed.documents[: b.probe_documents]
    settings = [
        task.sha256,
        [asdict(c) for c in mixed.canaries],
        [e.id for e in seen],
        base.name,
        base.revision,
        asdict(b),
        memorise.CANDIDATES,
    ]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    before = profile.output_root() / "data" / "runs" / f"{task.name}-before-seed{condition.seed}"
    path = (run.path if run else before) / f"audited-{key}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        return _audited({**record, "scores": pd.DataFrame(record["scores"])})
    model, tokenizer = (run.model if run else base.model), base.tokenizer
    test = task.test[: b.eval_documents]
    prompts = [e.prompt for e in test[: b.generate_documents]]
    found = memorise.audit(model, tokenizer, mixed.canaries)
    copies = {"copies": 0, "passes": 0} if run is None else {"passes": mixed.passes}
    record = {
        **who,
        "scores": metrics.score(model, tokenizer, test, "scoring"),
        "texts": generate(model, tokenizer, prompts, b.max_new_tokens, batch_size=64),
        "canaries": [{**row, "copies": mixed.copies.get(row["canary"], 0), **copies} for row in found],
        "verbatim": [
            {"split": split, **memorise.verbatim(model, tokenizer, examples)}
            for split, examples in (("train", seen), ("test", task.test[: b.probe_documents]))
        ],
    }
    write_json(path, {**record, "scores": record["scores"].to_dict("records")})
    return _audited(record)


def _audited(record: dict) -> Audited:
    condition = Condition(**record["condition"]) if record["condition"] else None
    return Audited(**{**record, "condition": condition})


def run_all(base, task: Task) -> list[Audited]:
    """The base model with each seed's canaries, then every condition: trained, or loaded if it was."""
    out = []
    for condition in conditions():
        mixed = mix(base, task, condition)
        if all(a.seed != condition.seed for a in out):
            out.append(measure(base, task, mixed, None, condition))
        run = train_on(base, mixed, condition)
        out.append(measure(base, task, mixed, run, condition))
    return out


# --- tables


def _who(a: Audited) -> dict:
    if a.condition is None:
        return {"stage": "before", "method": "none", "deduplicated": "none", "seed": a.seed}
    dedup = "yes" if a.condition.deduplicated else "no"
    return {"stage": "after", "method": a.condition.method, "deduplicated": dedup, "seed": a.seed}


def before_after(task: Task, audited: Sequence[Audited]) -> pd.DataFrame:
    """One row per model: bits per byte and perplexity of held-out targets, chrF and ROUGE-L of texts."""
    rows = []
    for a in audited:
        references = [list(e.references) for e in task.test[: len(a.texts)]]
        texts = [t.strip() for t in a.texts]
        rows.append(
            {
                "task": task.name,
                **_who(a),
                **metrics.describe(a.scores),
                "generated": len(texts),
                "chrf": chrf(texts, references),
                "rouge_l": rouge_l(texts, references),
            }
        )
    return pd.DataFrame(rows)


def memorisation(audited: Sequence[Audited]) -> pd.DataFrame:
    """One row per model and canary; repetitions: inserted, copies: left to train on, times passes."""
    return pd.DataFrame([{**_who(a), **row} for a in audited for row in a.canaries])


def verbatim(audited: Sequence[Audited]) -> pd.DataFrame:
    """One row per model and split: documents, and how many are continued word for word."""
    rows = [{**_who(a), **row} for a in audited for row in a.verbatim]
    table = pd.DataFrame(rows)
    return table.assign(share=table["verbatim"] / table["documents"])


# --- sentences

CHANCE = 0.01  # p-values below are told as above chance: with 5 such sentences, 5 % in all


def named(method: str, deduplicated: str) -> str:
    """A condition of the tables in words."""
    return f"{'LoRA' if method == 'lora' else method}, duplicates {'removed' if deduplicated == 'yes' else 'left in'}"


def findings(scores: pd.DataFrame, memory: pd.DataFrame, continued: pd.DataFrame) -> list[str]:
    """What the tables of `before_after`, `memorisation` and `verbatim` say, with conditions computed: true
    for whatever numbers a run gave."""
    out, keys = [], ["method", "deduplicated"]
    before = scores.loc[scores["stage"] == "before", "bits_per_byte"].mean()
    for who, part in scores[scores["stage"] == "after"].groupby(keys, sort=False):
        mean, low, high = mean_interval(part["bits_per_byte"])
        interval = "one seed" if math.isnan(low) else f"95 % interval {low:.3f} to {high:.3f}"
        shown = "" if not low <= before <= high else ": no difference shown"
        out.append(f"{named(*who)}: {before:.3f} -> {mean:.3f} bits per byte ({interval}){shown}.")
    inserted = memory[(memory["stage"] == "after") & (memory["repetitions"] > 0)]
    for who, part in inserted.groupby(keys, sort=False):
        rho, p = memorise.rises(part)
        verdict = "rises" if p < 0.05 else "is not shown to rise"
        most = memorise.evidence(part, ["repetitions"]).sort_values("repetitions").iloc[-1]
        out.append(
            f"{named(*who)}: exposure {verdict} with the times inserted (Spearman {rho:+.2f}, {_p(p)}). "
            f"Inserted {most['repetitions']:.0f} times: {most['exposure']:.2f} bits ({_p(most['p_value'])}), "
            f"{most['extracted']:.0f} of {most['canaries']:.0f} come out word for word."
        )
    unseen = memory[(memory["stage"] == "before") | (memory["repetitions"] == 0)]
    for row in memorise.evidence(unseen, ["stage", *keys]).itertuples():
        who = "Before training" if row.stage == "before" else f"Controls, {named(*row[2:4])}"
        odd = "above chance: look for a leak in the audit" if row.p_value < CHANCE else "as by chance"
        out.append(f"{who}: {row.exposure:.2f} bits over {row.canaries} canaries ({_p(row.p_value)}), {odd}.")
    for who, part in continued.groupby(["stage", *keys], sort=False):
        told = part.groupby("split")[["verbatim", "documents"]].sum()
        train, test = (f"{r.verbatim} of {r.documents}" for r in told.loc[["train", "test"]].itertuples())
        name = "Before training" if who[0] == "before" else named(*who[1:])
        out.append(
            f"{name}: {train} training documents are continued word for word, {test} held-out ones, seeds together."
        )
    return out


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
