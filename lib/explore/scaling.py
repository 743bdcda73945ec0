"""How the cost of a training grows: with the documents, the length of a row, the rows behind a step, the processes.

One row per measurement: axis, value, measure, result. Seconds are medians of `REPEATS`, after one that is not
counted; `fits` gives the exponent of each, `estimates` what a user should expect elsewhere.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from lib import profile
from lib.fast import peak_megabytes, reset_peak_memory
from lib.packing import Encoded, document_attention, draw, rows
from lib.tasks import encode, load_task
from lib.train import collate, completion_loss

REPEATS = 3


def _median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        work()
        if profile.device().type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def _row(axis: str, value: float, measure: str, result: float) -> dict:
    return {"axis": axis, "value": value, "measure": measure, "result": result}


def documents_of(length: int, tokens: int, vocabulary: int) -> list[Encoded]:
    """Random documents of one length, `tokens` in all, a quarter of each its prompt."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (max(tokens // length, 1), length), generator=generator)
    return [Encoded(row.tolist(), length // 4, 4 * length) for row in ids]


class Stepper:
    """lib.train's step on a model, without Trainer around it: forward, backward, clipping, fused AdamW."""

    def __init__(self, model: nn.Module, learning_rate: float = 1e-5) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

    def __call__(self, batches: Sequence[list[Encoded]]) -> float:
        """One optimizer step over packed rows; the loss in nats per target token, summed over the rows."""
        total = 0.0
        for row in batches:
            inputs = {k: v.to(profile.device()) for k, v in collate([row]).items()}
            labels = inputs.pop("labels")
            with profile.autocast():
                loss = completion_loss(self.model(**inputs), labels)
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


def by_data(tokenizer, sizes: Sequence[int]) -> list[dict]:
    """Documents against the seconds that tokenising, drawing and packing them takes."""
    examples, out = load_task("debian").train, []

    def prepare(n: int) -> None:
        encoded = encode(tokenizer, examples[:n], 1_024)
        rows(draw(encoded, sum(len(d.input_ids) for d in encoded), 0), 2_048, 1)

    for n in sizes:
        out.append(_row("documents", n, "preparation_seconds", _median(lambda n=n: prepare(n))))
    return out


def by_context(model: nn.Module, lengths: Sequence[int]) -> list[dict]:
    """The length of a document against a step over one of it: seconds, and what it adds to memory at its peak."""
    step, out = Stepper(model), []
    vocabulary = model.config.vocab_size
    with document_attention(model):
        for n in tqdm(lengths, desc="lengths"):
            batch = [documents_of(n, n, vocabulary)]
            out.append(_row("context", n, "step_seconds", _median(lambda b=batch: step(b))))
            reset_peak_memory()
            before = peak_megabytes()
            step(batch)
            out.append(_row("context", n, "added_megabytes", peak_megabytes() - before))
    return out


def by_batch(model: nn.Module, batches: Sequence[int], length: int) -> list[dict]:
    """Rows of `length` tokens behind a step against its seconds: what is left at no row is the optimizer's."""
    step, out = Stepper(model), []
    with document_attention(model):
        for n in tqdm(batches, desc="batches"):
            batch = [documents_of(length // 4, length, model.config.vocab_size)] * n
            out.append(_row("batch", n, "step_seconds", _median(lambda b=batch: step(b))))
    return out


LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "lib/accelerate_ddp.yaml")


def by_processes(model: str, tokens: int, threads: int = 2) -> list[dict]:
    """One process on `threads` threads against two that share them: tokens per second and held-out loss.

    `model` is a folder. Two rows of 640 tokens are a step in both; without a GPU the processes speak gloo.
    """
    out = []
    settings = (
        f"train_tokens={tokens}",
        "pack_length=640",
        "batch_tokens=1280",
        "evaluations=1",
        "validation_documents=8",
        "learning_rate=5e-4",
    )
    for n, how in ((1, ("-m", "lib")), (2, (*LAUNCH, "-m", "lib"))):
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "BASE_MODEL": model,
                "PROFILE": "fast",
                "FAST_OUTPUT": folder,
                "OMP_NUM_THREADS": str(max(threads // n, 1)),
            }
            command = [sys.executable, *how, "finetune", "--task", "debian"]
            for setting in settings:
                command += ["--set", setting]
            done = subprocess.run(command, cwd=profile.ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{n} process(es): {done.stderr[-1000:]}")
        for measure in ("tokens_per_second", "held_out_loss"):
            (text,) = re.findall(rf"^{measure} +([\d.,]+)$", done.stdout, re.MULTILINE)
            out.append(_row("processes", n, measure, float(text.replace(",", ""))))
    return out


def fits(table: pd.DataFrame) -> pd.DataFrame:
    """Per axis and measure: the exponent (slope of the logarithms), and for `batch` the seconds of a step that no
    row explains (the straight line's value at 0) and of each row: axis, measure, exponent, fixed, each.
    """
    out = []
    for (axis, measure), part in table.groupby(["axis", "measure"], sort=False):
        if len(part) < 3:
            continue
        x, y = part["value"].to_numpy(float), part["result"].to_numpy(float)
        each, fixed = np.polyfit(x, y, 1)
        slope = np.polyfit(np.log(x), np.log(np.clip(y, 1e-9, None)), 1)[0]
        line = axis == "batch"
        out.append(
            {
                "axis": axis,
                "measure": measure,
                "exponent": float(slope),
                "fixed": float(fixed) if line else None,
                "each": float(each) if line else None,
            }
        )
    return pd.DataFrame(out)


# What others reach is between a third and a half of a GPU's peak for this model (nanoGPT on an A100: 37 %).
DEVICES = {  # name -> (peak TFLOP/s of half precision, share expected of it, GPUs); NVIDIA's data sheets, dense
    "one T4, float16": (65.0, 0.25, 1),
    "one A100, bfloat16": (312.0, 0.35, 1),
    "eight A100, bfloat16": (312.0, 0.30, 8),
}


def estimates(flop_per_token: float, tokens: int) -> pd.DataFrame:
    """Expected, not measured: device, useful_tokens_per_second, seconds for `tokens` useful tokens."""
    out = []
    for device, (peak, share, gpus) in DEVICES.items():
        rate = peak * 1e12 * share * gpus / flop_per_token
        out.append({"device": device, "useful_tokens_per_second": rate, "seconds": tokens / rate})
    return pd.DataFrame(out)
