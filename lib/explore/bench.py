"""`python -m lib bench`: this project's training, evaluation and generation against what a user would take instead.

Every measurement is a process of its own; the systems take turns, run by run, so that a slow minute meets all of them,
and a ratio is taken within a run. All get the same weights, documents in token ids, and labels: the target and its EOS
count, prompts and padding do not. Sources of the peers' settings: trl, docs/source/sft_trainer.md;
transformers, docs/source/en/perplexity.md and pipeline_tutorial.md; lm-evaluation-harness, docs/interface.md."""

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lib import fast, hub, metrics, models, profile, results, train
from lib.explore import gpt2_bpe
from lib.generate import generate
from lib.packing import Encoded, draw
from lib.tasks import encode, head, load_task

BUDGET = {  # (fast, cpu, full); the weights are random, speed does not depend on them
    "runs": (1, 5, 5),  # of each measurement
    "n_layer": (2, 12, 12),
    "n_embd": (64, 768, 768),
    "train_tokens": (12_000, 24_000, 24_000),  # drawn for a training; more than any run reaches
    "seconds": (0.2, 10.0, 10.0),  # a training run ends with the step in which they are over
    "padded": (512, 512, 512),  # tokens that the tutorial pads every document to
    "documents": (8, 500, 500),  # scored, a share of them in each run
    "continuations": (8, 256, 256),  # written, a share of them in each run
    "new_tokens": (4, 6, 6),  # of each of them
}
SPEED = {"training": "useful_tokens_per_second", "evaluation": "tokens_per_second", "generation": "tokens_per_second"}
MARKS = {  # what ours is to be, times the other: set before measuring, but the last, which came after
    ("training", "trl", "default"): 2.0,
    ("training", "trl", "best"): 1.1,
    ("training", "tutorial", "default"): 4.0,
    ("generation", "pipeline", "default"): 2.0,
    ("generation", "pipeline", "best"): 2.0,
}
PEERS = {"trl": "trl==1.16.0", "lm_eval": "lm-eval==0.4.13"}  # released October and August 2026
LEARNING_RATE = 5e-4  # for random weights, in every system
SHARED = {"learning_rate": LEARNING_RATE, "num_train_epochs": 1, "report_to": "none", "save_strategy": "no"}
SHARED |= {"use_cpu": profile.device().type == "cpu", "disable_tqdm": True}
STEPS = 3  # at least: the first sets up and is not timed


def model_folder() -> Path:
    """What all load: GPT-2 117M's configuration, random weights, GPT-2's tokenizer (`fast`: small ones); made once."""
    b = profile.budget(**BUDGET)
    folder = profile.output_root() / "data" / "runs" / f"bench-{b.n_layer}x{b.n_embd}"
    if not (folder / "config.json").exists():
        tokenizer = models.tiny_base().tokenizer if profile.name() == "fast" else gpt2_bpe.tokenizer()
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
        model = models.small_gpt2(len(tokenizer), b.n_layer, b.n_embd // 64, b.n_embd, 1_024, **ends)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hub.quiet(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as new:
            tokenizer.save_pretrained(f"{new}/model")
            model.save_pretrained(f"{new}/model")
            profile.replace(Path(new) / "model", folder)
    return folder


def random_base():
    """`model_folder` as lib.models loads it."""
    with mock.patch.dict(os.environ, BASE_MODEL=str(model_folder())), hub.quiet():
        return models.load_base()


class Enough(Exception):
    """Ends a training that was measured: saving its weights would tell nothing."""


class Clock(TrainerCallback):
    """Wall seconds and target tokens at the end of each step; ends the training when `seconds` are over."""

    def __init__(self, seconds: float):
        self.limit, self.tokens, self.begin, self.steps = seconds, 0, None, []

    def on_train_begin(self, args, state, control, model=None, **_):
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, given) -> None:
        if module.training:  # ours passes the positions of the targets, the others labels
            kept, labels = given.get("logits_to_keep"), given.get("labels")
            self.tokens += int((labels != -100).sum()) if labels is not None else len(kept)

    def on_step_begin(self, args, state, control, **_):
        self.begin = self.begin or time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if control:
            control.should_save = False  # the others save nothing
        self.steps.append((time.perf_counter() - self.begin, self.tokens))
        if len(self.steps) >= STEPS and self.steps[-1][0] >= self.limit:
            raise Enough


def training_of(system: Callable, base, b: SimpleNamespace, run: int) -> dict:
    """Target tokens learned from a second, but for the first step, which sets up, until the clock raises Enough."""
    documents = draw(encode(base.tokenizer, load_task("debian")["train"], base.context), b.train_tokens, seed=0)
    clock = Clock(b.seconds)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.suppress(Enough):
        system(base, documents, clock, b, folder)
    if len(clock.steps) < STEPS:
        raise RuntimeError(f"{len(clock.steps)} steps are too few to measure: raise train_tokens.")
    (began, first), (ended, last) = clock.steps[0], clock.steps[-1]
    return {"useful_tokens_per_second": (last - first) / (ended - began)}


def train_ours(base, documents, clock, b, folder) -> None:
    """lib.train.finetune with its own packing; it draws the same documents itself, with seed 0."""
    settings = {"train_tokens": b.train_tokens, "evaluations": 1, "validation_documents": 1, "quiet": True}
    settings |= {"learning_rate": LEARNING_RATE, "callbacks": (clock,)}
    with mock.patch.object(profile, "output_root", return_value=Path(folder)):  # the run goes with the folder
        train.finetune(base, load_task("debian"), "full", 0, **settings)


def labelled(document: Encoded) -> dict:
    """input_ids and labels of a document, -100 on its prompt."""
    ids, n = document.input_ids, max(document.prompt_length, 1)
    return {"input_ids": ids, "labels": [-100] * n + ids[n:]}


def train_trl(base, documents, clock, b, folder, **options) -> None:
    """trl's SFTTrainer; what is not named is its default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Counted(SFTTrainer):  # it takes the labels out before the model sees them
        def compute_loss(self, model, inputs, *args, **kwargs):
            clock.tokens += int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    clock.count = lambda *_: None  # counted above instead
    data, arguments = Dataset.from_list(list(map(labelled, documents))), SFTConfig(folder, **SHARED | options)
    given = {"train_dataset": data, "processing_class": base.tokenizer, "callbacks": [clock]}
    Counted(model=base.model, args=arguments, **given).train()


def train_tutorial(base, documents, clock, b, folder, **options) -> None:
    """transformers' Trainer as its tutorials use it: every document padded to one length, float32."""

    def padded(document: Encoded) -> dict:
        row, n = labelled(document), b.padded - len(document.input_ids)
        pads = {"input_ids": base.tokenizer.pad_token_id, "labels": -100}
        mask = [1] * len(document.input_ids) + [0] * n
        return {"attention_mask": mask} | {key: row[key] + [pad] * n for key, pad in pads.items()}

    data, given = [padded(d) for d in documents if len(d.input_ids) <= b.padded], SHARED | options
    Trainer(base.model, TrainingArguments(folder, **given), train_dataset=data, callbacks=[clock]).train()


# In evaluation and generation a system is prepared and gives the function that is timed
def evaluation_of(system: Callable, base, b: SimpleNamespace, run: int) -> dict:
    """Tokens (targets and EOS) a second over this run's share of the held-out documents, and their bits per byte."""
    examples = head(load_task("debian")["test"], b.documents)[run :: b.runs]
    documents, score = encode(base.tokenizer, examples, base.context), system(base)
    score(documents[:2])
    begin = time.perf_counter()
    nats = sum(score(documents))
    seconds = time.perf_counter() - begin
    tokens = sum(len(d.input_ids) - d.prompt_length for d in documents)
    bits_per_byte = nats / math.log(2) / sum(d.target_bytes for d in documents)
    return {"bits_per_byte": bits_per_byte, "tokens_per_second": tokens / seconds}


def evaluate_tutorial(base) -> Callable:
    """One document at a time through the model's own loss, float32."""

    @torch.no_grad()
    def nats(document: Encoded) -> float:
        ids, labels = (torch.tensor([x], device=base.model.device) for x in labelled(document).values())
        return float(base.model(ids, labels=labels).loss) * int((labels != -100).sum())

    return lambda documents: [nats(d) for d in documents]


def evaluate_harness(base, **options) -> Callable:
    """lm-evaluation-harness' HFLM on the same token ids; the default is one document at a time."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(os.environ["BASE_MODEL"], tokenizer=base.tokenizer, device=str(profile.device()), **options)

    def score(documents: list[Encoded]) -> list[float]:
        asked = [(("", ""), d.input_ids[: d.prompt_length], d.input_ids[d.prompt_length :]) for d in documents]
        return [-x for x, _ in model._loglikelihood_tokens(asked, disable_tqdm=True)]

    return score


def generation_of(system: Callable, base, b: SimpleNamespace, run: int) -> dict:
    """New tokens a second for this run's share of the prompts, every continuation of one length."""
    prompts = [row["prompt"] for row in head(load_task("debian")["test"], b.continuations)][run :: b.runs]
    write = system(base)
    write(prompts[:2], 2)
    begin = time.perf_counter()
    write(prompts, b.new_tokens)
    return {"tokens_per_second": len(prompts) * b.new_tokens / (time.perf_counter() - begin)}


def generate_pipeline(base, dtype: str = "float32", **options) -> Callable:
    """transformers' pipeline("text-generation"), greedy; the default is one prompt at a time, float32."""
    from transformers import pipeline

    model = base.model.to(getattr(torch, dtype))
    pipe = pipeline("text-generation", model=model, tokenizer=base.tokenizer, device=profile.device(), **options)
    return lambda prompts, n: pipe(prompts, max_new_tokens=n, min_new_tokens=n, do_sample=False)


OURS = {"evaluation": lambda base: lambda documents: metrics.score_encoded(base.model, documents)["nats"]}
OURS["generation"] = lambda base: lambda texts, n: generate(base.model, base.tokenizer, texts, n, min_new_tokens=n)
# The fastest of ten settings tried here: batches of 1 to 16, grouped by length or not, packed, without padding
BEST_TRL = {"bf16": True, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
SYSTEMS: dict[tuple[str, str, str], tuple] = {  # (kind, system, setting) -> what runs, its options, the peer it needs
    ("training", "ours", "default"): (train_ours, {}, ""),
    ("training", "trl", "default"): (train_trl, {}, "trl"),
    ("training", "trl", "best"): (train_trl, BEST_TRL, "trl"),
    # 2 rows of 512 tokens, not Trainer's 8, which take half of a minute a step on two cores
    ("training", "tutorial", "default"): (train_tutorial, {"per_device_train_batch_size": 2}, ""),
    ("evaluation", "ours", "default"): (OURS["evaluation"], {}, ""),
    ("evaluation", "tutorial", "default"): (evaluate_tutorial, {}, ""),
    ("evaluation", "lm-eval", "default"): (evaluate_harness, {}, "lm_eval"),
    ("evaluation", "lm-eval", "best"): (evaluate_harness, {"batch_size": 16, "dtype": "bfloat16"}, "lm_eval"),
    ("generation", "ours", "default"): (OURS["generation"], {}, ""),
    ("generation", "pipeline", "default"): (generate_pipeline, {}, ""),
    ("generation", "pipeline", "best"): (generate_pipeline, {"batch_size": 32, "dtype": "bfloat16"}, ""),
}
KIND = {"training": training_of, "evaluation": evaluation_of, "generation": generation_of}


def measured(kind: str, system: str, setting: str, run: int, **changes) -> dict:
    """One measurement, in this process; `changes` of the budget are for tests."""
    function, options, _ = SYSTEMS[kind, system, setting]
    b, base = SimpleNamespace(**vars(profile.budget(**BUDGET)) | changes), random_base()
    with mock.patch.dict(os.environ, BASE_MODEL=str(model_folder())), hub.quiet(True), fast.peak_memory() as peak:
        if system != "ours":  # the others get transformers' model as it comes
            model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32, use_safetensors=True)
            base = replace(base, model=model.eval().to(profile.device()))
        return KIND[kind](partial(function, **options), base, b, run) | {"peak_megabytes": peak()}


def measured_apart(kind: str, system: str, setting: str, run: int) -> dict:
    """`measured`, in a process of its own. Raises RuntimeError with the end of what it wrote when it fails."""
    if profile.name() == "fast" and (system, kind) != ("ours", "training"):  # speeds mean nothing there
        return measured(kind, system, setting, run)
    settings = {"PYTHONPATH": str(profile.ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    request = [sys.executable, "-m", "lib.explore.bench", kind, system, setting, str(run)]
    given = {"cwd": profile.ROOT, "env": {**os.environ, **settings}, "capture_output": True, "timeout": 900}
    done = subprocess.run(request, **given, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"{system} ({setting}), {kind}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(kinds: Iterable[str] = SPEED) -> dict[str, pd.DataFrame]:
    """A table per kind, a row per system, setting and run, and `ratios`. A peer that is not installed or fails is left
    out with its reason; ours failing raises, and an unknown kind (ValueError)."""
    if unknown := set(kinds) - set(SPEED):
        raise ValueError(f"Nothing is called {min(unknown)!r}: choose one of {', '.join(SPEED)}.")
    model_folder()
    for name in (name for module, name in PEERS.items() if not find_spec(module)):
        print(f"Left out: `pip install {name}` brings it.")
    todo = [key for key, (*_, peer) in SYSTEMS.items() if key[0] in kinds and (not peer or find_spec(peer))]
    made = {kind: [] for kind in kinds}
    for run, key in tqdm([(r, k) for r in range(profile.budget(**BUDGET).runs) for k in todo], desc="measurements"):
        try:
            got = measured_apart(*key, run)
        except (RuntimeError, subprocess.TimeoutExpired) as reason:
            if key[1] == "ours":
                raise
            tqdm.write(f"Left out: {reason}")
            continue
        made[key[0]].append({"system": key[1], "setting": key[2], "device": results.device_name(), "run": run, **got})
    made = {kind: pd.DataFrame(found) for kind, found in made.items()}
    return made | {"ratios": ratios(made)}


def ratios(made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Ours over each other system, run by run: kind, system, setting, ratio (median), low, high (range), mark."""
    out = []
    for kind in (k for k in SPEED if k in made):
        wide = made[kind].pivot(index="run", columns=["system", "setting"], values=SPEED[kind])
        for system, setting in (c for c in wide if c[0] != "ours"):
            ratio = (wide["ours", "default"] / wide[system, setting]).dropna()
            row = {"kind": kind, "system": system, "setting": setting, "ratio": ratio.median()}
            out.append(row | {"low": ratio.min(), "high": ratio.max(), "mark": MARKS.get((kind, system, setting))})
    return pd.DataFrame(out)


def summary(made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Medians over runs: kind, system, setting, tokens per second, peak GB, ours over it [range], the mark."""
    parts = []
    for kind in (k for k in SPEED if k in made):
        part = made[kind].groupby(["system", "setting"], sort=False)[[SPEED[kind], "peak_megabytes"]].median()
        part.columns = ["tokens_per_second", "peak_gigabytes"]
        parts.append(part.assign(kind=kind, peak_gigabytes=part["peak_gigabytes"] / 1_000).reset_index())
    return pd.concat(parts).merge(made["ratios"], on=["kind", "system", "setting"], how="left")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(json.dumps(measured(*sys.argv[1:4], run=int(sys.argv[4]))), flush=True)
