"""What is gained on a task against what is forgotten of general text: ways to fine-tune, and how they are compared.

Each way is lib.train's one loop with a callback, an optimizer, a `draw` or another setting of its own; interpolating
the weights between before and after costs nothing and is the control."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import TrainerCallback

from lib import metrics, profile, results
from lib.generate import generate
from lib.packing import Encoded, draw

SAMPLE_LENGTH = 96  # new tokens of a text sampled from the base model


class PullToStart(TrainerCallback):
    """L2-SP: the loss plus strength / 2 |theta - theta_0|^2, theta_0 the weights of `start` (Li, Grandvalet, Davoine
    2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", arXiv:1802.01483). The penalty's
    gradient is added right before the optimizer's step, behind the clipping of the loss's own."""

    def __init__(self, start: nn.Module, strength: float) -> None:
        self.start, self.strength = dict(start.named_parameters()), strength

    @torch.no_grad()
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.start[name].to(parameter), alpha=self.strength)


def replay(general: Sequence[Encoded], share: float) -> Callable[[Sequence[Encoded], int, int], list[Encoded]]:
    """A `draw` for lib.train.finetune: a `share` of the tokens is of `general`, the rest of the task, shuffled together
    (experience replay: Rolnick et al. 2019, arXiv:1811.11682)."""

    def mixed(documents: Sequence[Encoded], tokens: int, seed: int) -> list[Encoded]:
        both = draw(documents, round(tokens * (1 - share)), seed) + draw(general, round(tokens * share), seed)
        return draw(both, len(both), seed, size=lambda _: 1)  # each once

    return mixed


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for all else (Jordan et al. 2024; the split is theirs). Muon
    replaces a matrix's Nesterov momentum (0.95) by a nearly orthogonal matrix, through 5 Newton-Schulz steps. Its step
    is scaled to the size of AdamW's, 0.2 sqrt(longer side), so that a learning rate means the same for both (Liu et al.
    2025, arXiv:2502.16982). GPT-2's query, key and value are one matrix here, as they are stored. As in Trainer's
    AdamW, weights of one dimension do not decay. A schedule and a checkpoint reach both parts. `settings` are
    lib.train's: learning_rate, weight_decay. Needs torch 2.9."""

    def __init__(self, model: nn.Module, settings) -> None:
        blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        inside = {id(p) for p in blocks.parameters() if p.ndim == 2}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in inside]
        tables = [p for p in trained if id(p) not in inside and p.ndim > 1]
        vectors = [p for p in trained if p.ndim == 1]
        at = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        others = [{"params": tables}, {"params": vectors, "weight_decay": 0.0}]
        self.parts = [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **at), torch.optim.AdamW(others, **at)]
        # the parts' own groups are this optimizer's: what a schedule writes here, they read
        super().__init__([g for part in self.parts for g in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)  # into new groups
        self.param_groups = [g for part in self.parts for g in part.param_groups]


@torch.no_grad()
def interpolate(before: nn.Module, after: nn.Module, alpha: float) -> nn.Module:
    """A copy of `after` with weights (1 - alpha) before + alpha after (WiSE-FT: Wortsman et al. 2022,
    arXiv:2109.01903). Tied weights are one parameter, and move once."""
    model = copy.deepcopy(after)
    for start, weight in zip(before.parameters(), model.parameters(), strict=True):
        weight.lerp_(start.to(weight), 1 - alpha)
    return model


def general_text(base, tokens: int, seed: int) -> list[Encoded]:
    """Texts that the base model itself samples after EOS, at temperature 1: at least `tokens` tokens of what it
    knew before. EOS stands behind those of fewer than SAMPLE_LENGTH tokens. Kept in data/runs. (Rehearsal
    without the old data: Sun et al. 2020, arXiv:1909.03329; Huang et al. 2024, arXiv:2403.01244.) Raises ValueError
    for a model that ends every text at once."""

    def sample() -> dict:
        found, total, part = [], 0, 0
        while total < tokens:
            how = {"seed": 1_000 * seed + part, "desc": "sampling general text", "do_sample": True, "temperature": 1.0}
            texts = generate(base.model, base.tokenizer, [""] * 32, SAMPLE_LENGTH, 32, **how)
            if not (new := [t for t in texts if t.strip()]):
                raise ValueError("The base model ends every text at once: there is nothing to replay.")
            found += new
            total += sum(len(base.tokenizer(t).input_ids) for t in new)
            part += 1
        return {"texts": found}

    path = profile.output_root() / "data" / "runs" / f"general-seed{seed}"
    identity = [base.name, base.revision, base.parameters, tokens, seed, SAMPLE_LENGTH]
    end, documents = base.tokenizer.eos_token_id, []
    for i, text in enumerate(results.kept(path, identity, sample)["texts"]):
        ids = base.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ended = [end] if len(ids) < SAMPLE_LENGTH else []
        documents.append(Encoded([end, *ids, *ended], 1, len(text.encode("utf-8")), f"general {i}"))
    return documents


def against_interpolation(df: pd.DataFrame, general: str) -> pd.DataFrame:
    """The control that costs nothing: at the same task score, general text under a setting minus under the
    interpolation between before ("none") and full fine-tuning, seed by seed. method, setting, difference, low, high;
    below 0: less forgotten than interpolation forgets. `seeds` counts those behind it, `beyond` those that gain more
    than full fine-tuning, where this way has ended; nan where no seed is left."""
    start = df.loc[df["method"] == "none", ["bits_per_byte", general]].iloc[0]
    rows, others = [], df[~df["method"].isin(["none", "interpolation", "full"])]
    for (method, setting), part in others.groupby(["method", "setting"], sort=False):
        gaps, beyond = [], 0
        for row in part.itertuples():
            path = df[(df["seed"] == row.seed) & df["method"].isin(["full", "interpolation"])]
            x, y = np.array(sorted([tuple(start), *path[["bits_per_byte", general]].itertuples(index=False)])).T
            beyond += int(row.bits_per_byte < x[0])
            if x[0] <= row.bits_per_byte <= x[-1]:
                gaps.append(getattr(row, general) - np.interp(row.bits_per_byte, x, y))
        mean, low, high = metrics.mean_interval(gaps) if gaps else (math.nan,) * 3
        row = {"method": method, "setting": setting, "seeds": len(gaps), "beyond": beyond}
        rows.append(row | {"difference": mean, "low": low, "high": high})
    return pd.DataFrame(rows)
