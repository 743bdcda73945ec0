"""lib.explore.diagnose: every fault has its name, and a sound run has none."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from lib import tasks
from lib.explore import diagnose


def collated(tokenizer, rows):
    documents = tasks.encode(tokenizer, rows, 10**9)
    batch = {name: [] for name in ("input_ids", "labels", "attention_mask")}
    for d in documents:
        fill = [tokenizer.eos_token_id] * (max(len(other.input_ids) for other in documents) - len(d.input_ids))
        batch["input_ids"].append(d.input_ids + fill)
        batch["labels"].append([-100] * d.prompt_length + d.input_ids[d.prompt_length :] + [-100] * len(fill))
        batch["attention_mask"].append([1] * len(d.input_ids) + [0] * len(fill))
    return {name: torch.tensor(lists) for name, lists in batch.items()}


class Sure:
    """A base model that knows the next token, at three nats or so."""

    device = "cpu"

    def __init__(self, size):
        self.size = size

    def __call__(self, ids, **_):
        return SimpleNamespace(logits=4.0 * torch.nn.functional.one_hot(ids.roll(-1, 1), self.size))


def named(base, task, batch, losses=(2.9, 2.0), gradients=(1.0,), sums=(1.0,), dtype=torch.float32):
    watch = SimpleNamespace(batch=batch, latest=batch, losses=list(losses), gradients=gradients, dtype=dtype)
    watch._start, watch._sums = [0.0], lambda: list(sums)
    sure = SimpleNamespace(tokenizer=base.tokenizer, model=Sure(len(base.tokenizer)))
    name, sentence = diagnose.diagnose(watch, sure, task)
    assert sentence.split(":")[0] in diagnose.FAULTS[name] or "{" in diagnose.FAULTS[name]
    return name


def one_early(batch, _):
    batch["labels"] = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)


def on_padding(batch, tokenizer):
    batch["labels"][batch["attention_mask"] == 0] = tokenizer.eos_token_id


def no_end(batch, tokenizer):
    ends = (batch["input_ids"] == tokenizer.eos_token_id) & (batch["labels"] != -100)
    batch["labels"][ends], batch["attention_mask"][ends] = -100, 0


def in_one_row(batch, _):
    real = batch["attention_mask"] == 1
    batch.update({name: x[real][None] for name, x in batch.items()})


def in_one_row_anew(batch, tokenizer):
    batch["position_ids"] = batch["attention_mask"].cumsum(1) - 1
    in_one_row(batch, tokenizer)


def other_ids(batch, tokenizer):
    kept = batch["input_ids"] != tokenizer.eos_token_id
    batch["input_ids"][kept] = (batch["input_ids"][kept] + 7) % (len(tokenizer) - 1) + 1
    batch["labels"][batch["labels"] != -100] = batch["input_ids"][batch["labels"] != -100]


def all_tokens(batch, _):
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)


def cut(batch, _):
    batch.update({name: x[:, :60] for name, x in batch.items()})


SHOWN = {one_early: "labels", on_padding: "padding", no_end: "end", in_one_row: "positions", other_ids: "tokenizer"}
SHOWN |= {in_one_row_anew: "", all_tokens: "", cut: "end"}


@pytest.mark.parametrize(("change", "fault"), SHOWN.items())
def test_what_the_batch_shows(base, task, change, fault):
    batch = collated(base.tokenizer, tasks.head(task["train"], 4))
    change(batch, base.tokenizer)
    assert named(base, task, batch) == fault


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
