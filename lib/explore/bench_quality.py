"""Does what is faster learn the same? This project's step against a plain float32 loop, on equal documents.

Without dropout in either: the two draw other random numbers for it, which after so few steps moves a loss by more than
arithmetic does (with dropout: -0.7 % to +0.1 % over three seeds). Its distribution is what tests/test_fast.py checks.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lib import profile
from lib.explore.bench_systems import LEARNING_RATE
from lib.explore.scaling import Stepper
from lib.fast import fuse_dropout
from lib.metrics import score_encoded
from lib.packing import Encoded, document_attention, draw, rows
from lib.tasks import encode, load_task

ROW = 2_048  # tokens behind a step, as in the profile `cpu`


def without_dropout(model: nn.Module) -> nn.Module:
    """`model` with every dropout at 0, attention's included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def ours(folder: str, base, steps: Sequence[list[Encoded]]) -> nn.Module:
    """Packed rows, this machine's half precision, the loss in pieces, GELU in one kernel."""
    model = without_dropout(fuse_dropout(copy.deepcopy(base.model)))
    step = Stepper(model, LEARNING_RATE)
    with document_attention(model):
        for row in tqdm(steps, desc="ours", leave=False):
            step([row])
    return model


def plain(folder: str, base, steps: Sequence[list[Encoded]]) -> nn.Module:
    """transformers' model as it comes, one document at a time, float32 throughout."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    model = without_dropout(model.to(profile.device()).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for row in tqdm(steps, desc="plain", leave=False):
        targets = sum(len(d.input_ids) - max(d.prompt_length, 1) for d in row)
        for d in row:
            ids = torch.tensor([d.input_ids], device=model.device)
            first = max(d.prompt_length, 1)
            logits = model(ids).logits[0, first - 1 : -1]
            nn.functional.cross_entropy(logits, ids[0, first:], reduction="sum").div(targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


LOOPS: dict[str, Callable] = {"plain": plain, "ours": ours}


def quality(folder: str, base, seeds: Sequence[int], tokens: int) -> list[dict]:
    """After `tokens` tokens in steps of ROW: system, seed, steps, held_out_loss (nats per target token).

    Both start at the weights in `folder` and see the same documents in the same steps; held-out text is scored in
    float32 for both.
    """
    task, out = load_task("debian"), []
    train = encode(base.tokenizer, task.train, base.context)
    held_out = encode(base.tokenizer, task.validation[:32], base.context)
    for seed in seeds:
        steps = rows(draw(train, tokens, seed), ROW, 1)
        for name, loop in LOOPS.items():
            torch.manual_seed(seed)
            scores = score_encoded(loop(folder, base, steps), held_out)
            loss = float(scores["nats"].sum() / scores["tokens"].sum())
            out.append({"system": name, "seed": seed, "steps": len(steps), "held_out_loss": loss})
    return out
