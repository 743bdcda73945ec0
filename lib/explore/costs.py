"""What an attention costs, and whether it is causal: time and memory against length, and the future-leak test."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lib import fast, profile
from lib.explore.attention import ATTENTIONS

HEADS, HEAD_DIM = 4, 64  # GPT-2's head size; a third of its heads, so that 8,192 naive scores fit a laptop
PASSES = ("forward", "forward+backward")


def seconds(run: Callable[[], object]) -> float:
    """Wall time of run(), a GPU's queue emptied before and after."""
    wait = torch.cuda.synchronize if profile.device().type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def by_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; they take turns, so that whatever else the machine does meets them all."""
    turns = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: [taken[name] for taken in turns] for name in runs}


def inputs(name: str, length: int) -> tuple[list[Tensor], dict]:
    """Random q, k, v (1, HEADS, length, HEAD_DIM) with gradients, and the variant's options (delta: beta)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, length, HEAD_DIM)
    qkv = [torch.randn(shape, generator=generator).to(profile.device()) for _ in range(3)]
    given = dict(ATTENTIONS[name].options)
    if ATTENTIONS[name].gated:
        given["beta"] = torch.rand(shape[:3], generator=generator).to(profile.device())
    return [x.requires_grad_() for x in qkv], given


def one_pass(name: str, kind: str, length: int) -> Callable[[], object]:
    """A function that runs the attention once on `inputs`; kind is one of PASSES."""
    qkv, given = inputs(name, length)
    form = partial(ATTENTIONS[name].form, *qkv, HEAD_DIM**-0.5, **given)
    return torch.no_grad()(form) if kind == "forward" else lambda: torch.autograd.grad(form().sum(), qkv)


def scaling(names: Sequence[str], lengths: Sequence[int], repeats: int = 5) -> pd.DataFrame:
    """One attention operation: attention, length, pass, milliseconds (median of `repeats` >= 2 rounds by turns), spread
    (half the distance of its quartiles), peak_megabytes: what the pass adds to its inputs, allocated on a GPU, resident
    on a CPU, where less than a megabyte is noise. A variant that could outgrow the free memory is left out from there
    on, with a printed line."""
    rows, peaks = [], {}  # peaks: (name, pass) -> (length, MB) of the longest length that was run
    for length in tqdm(lengths, desc="lengths"):
        for kind in PASSES:
            runs = {}
            for name in names:
                shorter, megabytes = peaks.get((name, kind), (length, 0.0))
                needed = megabytes * (length / shorter) ** 2  # at worst: the scores of softmax are T^2 numbers
                on_gpu = profile.device().type == "cuda"
                free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
                if needed > free / 1e6:
                    problem = f"left out, could need {needed:,.0f} MB of {free / 1e6:,.0f}"
                    tqdm.write(f"{name}, {kind}, {length:,} tokens: {problem}.")
                    continue
                runs[name] = one_pass(name, kind, length)
                with fast.peak_memory(seconds=0.001) as peak:
                    runs[name]()  # also warms up
                    peaks[name, kind] = (length, peak(above=True))
            for name, taken in by_turns(runs, repeats).items():
                low, middle, high = statistics.quantiles([1_000 * s for s in taken], n=4, method="inclusive")
                row = {"attention": name, "length": length, "pass": kind, "milliseconds": middle}
                rows.append(row | {"spread": (high - low) / 2, "peak_megabytes": peaks[name, kind][1]})
    return pd.DataFrame(rows)


def crossover(df: pd.DataFrame, name: str, against: str) -> float:
    """The length from which a step of `name` is faster than one of `against` on to the longest one measured,
    interpolated in logarithms; nan where it is not faster at the longest that both were measured at."""
    table = df[df["pass"] == "forward+backward"].pivot(index="length", columns="attention", values="milliseconds")
    gap = np.log(table[name] / table[against]).dropna()  # below 0: faster
    slower = np.flatnonzero(gap >= 0)
    if gap.empty or gap.iloc[-1] >= 0 or not len(slower):
        return float(gap.index[0]) if len(gap) and not len(slower) else math.nan
    i = slower[-1]
    x, y = np.log(gap.index[i : i + 2].to_numpy(float)), gap.iloc[i : i + 2].to_numpy()
    return float(np.exp(x[0] + (x[1] - x[0]) * y[0] / (y[0] - y[1])))


@torch.no_grad()
def leak(model: PreTrainedModel, length: int, cuts: Sequence[int] = ()) -> float:
    """The future-leak test: the largest change of a logit up to token t when all tokens after t change; 0 is causal.
    `cuts` are the values of t (default: around the edges of chunks and windows), for `length` of 3 or more. Each is
    tried on a whole row and with 5 padding tokens on the left or right (inputs as `generate` passes them)."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(model.config.vocab_size, (2, 1, length), generator=generator).to(model.device)
    edges = {1, 31, 32, 33, 63, 64, 65, length // 2, length - 2}
    changes = [torch.zeros((), device=model.device)]
    for left, right in ((0, 0), (5, 0), (0, 5)):
        before = _logits(model, one, left, right)
        for t in cuts or sorted(e for e in edges if 0 < e < length - 1):
            changed = torch.cat([one[:, : t + 1], other[:, t + 1 :]], dim=1)
            changes.append((_logits(model, changed, left, right) - before)[:, : t + 1].abs().max())
    return float(torch.stack(changes).max())  # unlike Python's max it keeps a nan


def _logits(model: PreTrainedModel, ids: Tensor, left: int, right: int) -> Tensor:
    """Logits of the real tokens of `ids` (1, T) between `left` and `right` padding tokens."""
    mask = F.pad(torch.ones_like(ids), (left, right))
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(F.pad(ids, (left, right)), attention_mask=mask, position_ids=places, use_cache=False).logits
    return logits[:, left : left + ids.shape[1]]
