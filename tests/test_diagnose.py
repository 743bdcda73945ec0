"""lib.explore.diagnose: every fault has its name, and a sound run has none."""

import copy
import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

from lib import tasks
from lib.explore import diagnose


def collated(tokenizer, rows):
    documents = [(torch.tensor(d.input_ids), d.prompt_length) for d in tasks.encode(tokenizer, rows, 10**9)]
    ids, masks = [x for x, _ in documents], [torch.ones_like(x) for x, _ in documents]
    labels = [torch.where(torch.arange(len(x)) < n, -100, x) for x, n in documents]
    fill = {"input_ids": (ids, tokenizer.eos_token_id), "labels": (labels, -100), "attention_mask": (masks, 0)}
    return {name: pad_sequence(rows, True, value) for name, (rows, value) in fill.items()}


def named(base, task, batch, losses=(2.9, 2.0), gradients=(1.0,), sums=(1.0,), dtype=torch.float32):
    watch = SimpleNamespace(batch=batch, latest=batch, losses=list(losses), gradients=gradients, dtype=dtype)
    watch._start, watch._sums = [0.0], lambda: list(sums)
    n = len(base.tokenizer)  # of a base model that knows the next token, at three nats or so
    model = Mock(device="cpu", side_effect=lambda ids, **_: SimpleNamespace(logits=4.0 * F.one_hot(ids.roll(-1, 1), n)))
    name, sentence = diagnose.diagnose(watch, SimpleNamespace(tokenizer=base.tokenizer, model=model), task)
    assert sentence.split(":")[0] in diagnose.FAULTS[name] or "{" in diagnose.FAULTS[name]
    return name


def no_end(b, end, n):
    ends = (b["input_ids"] == end) & (b["labels"] != -100)
    return {"labels": b["labels"].masked_fill(ends, -100), "attention_mask": b["attention_mask"].masked_fill(ends, 0)}


def in_one_row(b, end, n):
    return {name: x[b["attention_mask"] == 1][None] for name, x in b.items()}


def other_ids(b, end, n):
    ids = torch.where(b["input_ids"] == end, end, (b["input_ids"] + 7) % (n - 1) + 1)
    return {"input_ids": ids, "labels": torch.where(b["labels"] == -100, -100, ids)}


SHOWN = {  # the fault that is named, and what makes it of a batch, the end token and the vocabulary's size
    "labels one early": ("labels", lambda b, end, n: {"labels": F.pad(b["labels"][:, 1:], (0, 1), value=-100)}),
    "on padding": ("padding", lambda b, end, n: {"labels": b["labels"].masked_fill(b["attention_mask"] == 0, end)}),
    "no end": ("end", no_end),
    "in one row": ("positions", in_one_row),
    "in one row anew": ("", lambda b, *of: in_one_row(b | {"position_ids": b["attention_mask"].cumsum(1) - 1}, *of)),
    "other ids": ("tokenizer", other_ids),
    "all tokens": ("", lambda b, *_: {"labels": torch.where(b["attention_mask"] == 1, b["input_ids"], -100)}),
    "cut": ("end", lambda b, *_: {name: x[:, :60] for name, x in b.items()}),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_batch_shows(base, task, name):
    (fault, change), batch = SHOWN[name], collated(base.tokenizer, tasks.head(task["train"], 4))
    assert named(base, task, batch | change(batch, base.tokenizer.eos_token_id, len(base.tokenizer))) == fault


def test_whose_texts_they_are(base, task):
    rows = tasks.head(task["train"], 4)
    swapped = [r | {"target": other["target"]} for r, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    found = [named(base, task, collated(base.tokenizer, part)) for part in (rows, tasks.head(task["test"], 4), swapped)]
    assert found == ["", "leak", "shuffled"]


def test_what_the_losses_show(base, task):
    batch, nan = collated(base.tokenizer, tasks.head(task["train"], 4)), math.nan
    assert named(base, task, batch, [nan, nan], dtype=torch.float16) == "half"
    assert named(base, task, batch, [2.9, nan]) == "rate"
    assert named(base, task, batch, [math.log(len(base.tokenizer)), 5.0]) == "weights"
    assert named(base, task, batch, gradients=(0.0, 0.0)) == "adapter"
    assert named(base, task, batch, sums=[0.0]) == "frozen"
    assert named(base, task, batch, gradients=()) == ""  # a loop that logs no norm
    assert named(base, task, batch, [2.5, 3.5]) == "rate"


def test_watch_keeps_what_the_loop_saw(base, task, tmp_path):
    rows = tasks.head(task["train"], 4)
    batches = [collated(base.tokenizer, rows[:2]), collated(base.tokenizer, rows[2:])]
    options = {"max_steps": 2, "per_device_train_batch_size": 1, "logging_steps": 1, "learning_rate": 1e-3}
    options |= {"use_cpu": True, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    given = {"train_dataset": batches, "data_collator": lambda rows: rows[0]}
    trainer = Trainer(copy.deepcopy(base.model), TrainingArguments(str(tmp_path), **options), **given)
    watch = diagnose.Watch(trainer)
    trainer.train()
    seen = [[torch.equal(kept["input_ids"], b["input_ids"]) for b in batches] for kept in (watch.batch, watch.latest)]
    assert sorted(seen) == [[False, True], [True, False]]  # each of the two once
    assert (len(watch.losses), len(watch.gradients)) == (2, 2) and watch._sums() != watch._start
    assert diagnose.diagnose(watch, base, task)[0] == ""
