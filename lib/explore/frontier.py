"""What is gained on a task against what is forgotten of general text, for many ways to fine-tune one model.

Every variant is lib.train's one loop with other settings, at one budget of tokens; weight interpolation comes free
from the full runs. Measurements are kept beside each run.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lib import benchmarks, metrics, profile, train
from lib.evaluate import out_of_reach
from lib.explore.continual import PullToStart, interpolate, muon, no_muon, with_replay
from lib.generate import generate
from lib.packing import Encoded
from lib.results import write_json
from lib.tasks import Task

ALPHAS = (0.25, 0.5, 0.75)  # of the way from before to after
GENERAL = {  # measure of general text -> what an axis calls it
    "wikitext2_bits_per_byte": "WikiText-2, bits per byte",
    "base_samples_bits_per_byte": "the base model's own text, bits per byte",
}
SAMPLE_LENGTH = 96  # new tokens of a text sampled from the base model
VALIDATION = 4  # documents of lib.train's held-out curve, which decides nothing here: a run ends with its last step


@dataclass(frozen=True)
class Variant:
    """A way to fine-tune: `method` and `setting` name it in tables, `run` is one of lib.train.METHODS."""

    method: str
    setting: str
    run: str
    overrides: dict = field(default_factory=dict)
    change: Callable | None = None  # base -> what train.finetune takes beside settings: draw, optimizer, callbacks


def replayed(base) -> dict:
    """A quarter of the tokens from the base model's own text."""
    general = general_text(base, profile.current().innovation.general_tokens, 0)
    return {"draw": lambda documents, tokens, seed: with_replay(documents, general, tokens, 0.25, seed)}


VARIANTS = (
    Variant("full", "lr 1e-4", "full"),
    Variant("LoRA", "rank 4", "lora", {"lora_rank": 4}),
    Variant("LoRA", "rank 16", "lora"),
    Variant("LoRA", "rank 64", "lora", {"lora_rank": 64}),
    Variant("last blocks", "last quarter", "last_blocks"),
    # the loss's gradient, clipped to norm 1, is 1e-4 per weight and a run moves a weight by some 3e-4: the pull is
    # then as strong as the loss
    Variant("L2-SP", "strength 0.3", "full", change=lambda base: {"callbacks": [PullToStart(base.model, 0.3)]}),
    Variant("replay", "25 % general", "full", change=replayed),
    Variant(
        "Muon",
        "lr 1e-4",
        "full",
        change=lambda base: {"optimizer": lambda m, s: muon(m, s.learning_rate, s.weight_decay)},
    ),
)


def possible(variants: Sequence[Variant] = VARIANTS) -> list[Variant]:
    """The variants that this torch can run; one line says which it cannot."""
    if not (reason := no_muon()):
        return list(variants)
    print(f"Skipped: {reason}")
    return [v for v in variants if v.method != "Muon"]


def general_text(base, tokens: int, seed: int) -> list[Encoded]:
    """Texts that the base model itself samples after EOS, at temperature 1: at least `tokens` tokens of what it
    knew before. EOS stands behind those that it ended itself, not behind those cut at SAMPLE_LENGTH. Kept in
    data/runs. (Rehearsal without the old data: Sun et al. 2020, arXiv:1909.03329; Huang et al. 2024,
    arXiv:2403.01244.)
    """
    identity = [base.name, base.revision, base.parameters, tokens, seed, SAMPLE_LENGTH]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:10]
    path = profile.output_root() / "data" / "runs" / f"general-seed{seed}-{digest}.json"
    if not path.exists():
        found, total, part = [], 0, 0
        while total < tokens:
            texts = generate(
                base.model,
                base.tokenizer,
                [""] * 32,
                SAMPLE_LENGTH,
                32,
                1_000 * seed + part,
                "sampling general text",
                do_sample=True,
                temperature=1.0,
            )
            found += (kept := [t for t in texts if t.strip()])
            total += sum(len(base.tokenizer(t).input_ids) for t in kept)
            part += 1
            if not kept:
                raise ValueError("The base model ends every text at once: there is nothing to replay.")
        write_json(path, {"texts": found})
    end = base.tokenizer.eos_token_id
    documents, options = [], {"add_special_tokens": False, "split_special_tokens": True}
    for i, text in enumerate(json.loads(path.read_text(encoding="utf-8"))["texts"]):
        ids = base.tokenizer(text, **options).input_ids
        ended = [end] if len(ids) < SAMPLE_LENGTH else []
        documents.append(Encoded([end, *ids, *ended], 1, len(text.encode("utf-8")), f"general {i}"))
    return documents


# --- one model


def measure(base, task: Task, model) -> dict:
    """task: bits_per_byte; general text: wikitext2_bits_per_byte where it is within reach, and
    base_samples_bits_per_byte always. The last one is the base model's own text under `model`: what it exceeds the
    base model's value by is an estimate, from these samples, of KL(base || model) per byte of a text's first
    SAMPLE_LENGTH tokens (empty texts left out, tokens as the tokenizer writes them).
    """
    p = profile.current().innovation
    scores = metrics.score(model, base.tokenizer, task.test[: p.documents], "task")
    own = metrics.score_encoded(model, general_text(base, p.general_tokens, 1), desc="general text")
    out = {"bits_per_byte": metrics.bits_per_byte(scores), "base_samples_bits_per_byte": metrics.bits_per_byte(own)}
    if out_of_reach("wikitext2") is None:
        found = benchmarks.wikitext2(model, base.tokenizer, p.wikitext_tokens, articles=False)
        out["wikitext2_bits_per_byte"] = found["token_bits_per_byte"]
    return out


def _kept(base, task: Task, folder: Path, name: str, model: Callable[[], object]) -> dict:
    """`measure`, once per run and size of what is measured."""
    p = profile.current().innovation
    sizes = [
        p.documents,
        p.general_tokens,
        p.wikitext_tokens,
        task.sha256,
        out_of_reach("wikitext2") is None,
        base.name,
        base.revision,
    ]
    key = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:10]
    path = folder / f"frontier-{name}-{key}.json"
    if not path.exists():
        write_json(path, measure(base, task, model()))
    return json.loads(path.read_text(encoding="utf-8"))


def _overrides(variant: Variant) -> dict:
    p = profile.current().innovation
    return {
        "train_tokens": p.frontier_tokens,
        "batch_tokens": p.batch_tokens,
        "pack_length": p.batch_tokens,
        "evaluations": 1,
        "validation_documents": VALIDATION,
    } | variant.overrides


def run(base, task: Task, variant: Variant, seed: int) -> list[dict]:
    """Fine-tune (or find the run), measure, and for plain full fine-tuning measure the interpolations as well."""
    overrides = _overrides(variant)
    change = variant.change(base) | {"variant": f"{variant.method}, {variant.setting}"} if variant.change else {}
    settings = train.settings_for(variant.run, seed, task, **overrides)
    folder = train.run_path(base, task, settings, change.get("variant", ""))
    loaded: list = []

    def tuned():
        if not loaded:
            loaded.append(train.finetune(base, task, variant.run, seed, quiet=True, **change, **overrides))
        return loaded[0]

    if not (folder / "run.json").exists():
        tuned()
    summary = json.loads((folder / "run.json").read_text(encoding="utf-8"))["summary"]
    about = {
        "seed": seed,
        "learning_rate": settings.learning_rate,
        "tokens": summary["tokens"],
        "trainable_parameters": summary["trainable_parameters"],
    }
    who = {"method": variant.method, "setting": variant.setting}
    rows = [who | about | _kept(base, task, folder, "after", lambda: tuned().model)]
    for alpha in ALPHAS if variant == VARIANTS[0] else ():
        found = _kept(base, task, folder, f"alpha{alpha}", lambda a=alpha: interpolate(base.model, tuned().model, a))
        rows.append({"method": "interpolation", "setting": f"alpha {alpha}"} | about | found)
    return rows


def table(base, task: Task, variants: Sequence[Variant], seeds: Sequence[int]) -> pd.DataFrame:
    """One row per model: method, setting, seed, learning_rate, tokens, trainable_parameters and `measure`'s columns.
    The first row is the base model, which has no seed of its own and stands under the first.
    """
    folder = profile.output_root() / "data" / "runs" / f"{task.name}-before-seed{seeds[0]}"
    before = _kept(base, task, folder, "before", lambda: base.model)
    rows = [
        {
            "method": "none",
            "setting": "before",
            "seed": seeds[0],
            "learning_rate": 0.0,
            "tokens": 0,
            "trainable_parameters": 0,
        }
        | before
    ]
    for seed in seeds:
        for variant in tqdm(variants, desc=f"seed {seed}: ways to fine-tune"):
            rows += run(base, task, variant, seed)
    return pd.DataFrame(rows)


# --- what the table says


def general_measure(df: pd.DataFrame) -> str:
    """The column that stands for general text: WikiText-2 where it was measured, else the base model's samples."""
    has = "wikitext2_bits_per_byte" in df and df["wikitext2_bits_per_byte"].notna().any()
    return "wikitext2_bits_per_byte" if has else "base_samples_bits_per_byte"


def summary(df: pd.DataFrame, general: str) -> pd.DataFrame:
    """Per method and setting: means, 95 % t interval bounds, and `front`: no other setting's means are at least as
    good in both and better in one.
    """
    rows = []
    for (method, setting), part in df.groupby(["method", "setting"], sort=False):
        row = {"method": method, "setting": setting, "seeds": len(part)}
        for name, column in (("task", "bits_per_byte"), ("general", general)):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = metrics.mean_interval(part[column])
        rows.append(row)
    points = np.array([[r["task"], r["general"]] for r in rows])
    for row, point in zip(rows, points, strict=True):
        better = (points <= point).all(1) & (points < point).any(1)
        row["front"] = bool(not better.any())
    return pd.DataFrame(rows)


def against_interpolation(df: pd.DataFrame, general: str) -> pd.DataFrame:
    """The control that costs nothing: at the same task score, general text under a setting minus under the
    interpolation between before and full fine-tuning, seed by seed. method, setting, difference, low, high; below 0:
    less forgotten than interpolation forgets. `seeds` counts those behind it, `beyond` those that gain more than full
    fine-tuning, where this way has ended; nan where no seed is left.
    """
    before = df[df["method"] == "none"].iloc[0]
    full = VARIANTS[0]
    rows = []
    for (method, setting), part in df.groupby(["method", "setting"], sort=False):
        if method in ("none", "interpolation") or (method, setting) == (full.method, full.setting):
            continue
        gaps, beyond = [], 0
        for row in part.itertuples():
            same = df["seed"] == row.seed
            ends = (df["method"] == full.method) & (df["setting"] == full.setting)
            path = df[same & (ends | (df["method"] == "interpolation"))]
            xy = [(before["bits_per_byte"], before[general])]
            xy += list(path[["bits_per_byte", general]].itertuples(index=False, name=None))
            x, y = np.array(sorted(xy)).T
            beyond += int(row.bits_per_byte < x[0])
            if x[0] <= row.bits_per_byte <= x[-1]:
                gaps.append(getattr(row, general) - np.interp(row.bits_per_byte, x, y))
        mean, low, high = metrics.mean_interval(gaps) if gaps else (math.nan,) * 3
        rows.append(
            {
                "method": method,
                "setting": setting,
                "seeds": len(gaps),
                "beyond": beyond,
                "difference": mean,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)
