"""lib.explore.continual, and the settings of lib.train that came with it."""

import copy
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import train
from lib.explore import continual
from lib.explore.continual import Muon, PullToStart, interpolate, with_replay
from lib.models import load_base, small_gpt2
from lib.packing import Encoded
from lib.tasks import encode, load_task

Base = namedtuple("Base", "name revision parameters")
needs_muon = pytest.mark.skipif(bool(continual.no_muon()), reason=continual.no_muon())


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.fixture(scope="module")
def task():
    whole = load_task("debian")
    return replace(whole, train=whole.train[:60], validation=whole.validation[:4])


BUDGET = {"train_tokens": 2_600, "batch_tokens": 640, "pack_length": 640, "evaluations": 1, "quiet": True}


def gpt2():
    return small_gpt2(61, 2, 2, 16, 32)


def test_published_runs_keep_their_names():
    """The hash of lib.train before these settings existed, recomputed here in full."""
    import hashlib
    import json

    task = load_task("debian")
    base = Base("SmolLM2-135M-Instruct (stand-in)", "pin", 134_515_008)
    for method in train.METHODS:
        settings = train.settings_for(method, 1, task)
        old = {
            k: getattr(settings, k)
            for k in (
                "method",
                "seed",
                "train_tokens",
                "learning_rate",
                "pack_length",
                "batch_tokens",
                "evaluations",
                "validation_documents",
                "weight_decay",
                "warmup_share",
                "max_grad_norm",
                "patience",
                "gradient_checkpointing",
            )
        }
        identity = json.dumps([old, task.sha256, *base], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        assert train.run_path(base, task, settings).name == f"debian-{method}-seed1-{digest}"


def test_every_new_setting_is_another_run():
    task, base = load_task("debian"), Base("any", None, 1)
    changes = ({}, {"lora_rank": 4})
    names = {train.run_path(base, task, train.settings_for("full", 0, task, **c)) for c in changes}
    names |= {train.run_path(base, task, train.settings_for("full", 0, task), v) for v in ("replay", "Muon")}
    assert len(names) == len(changes) + 2


@pytest.mark.parametrize(
    ("change", "says"),
    [({"lora_rank": 0}, "lora_rank=0 must be 1 or more"), ({"draw": with_replay}, "name the change in variant")],
)
def test_settings_that_make_no_sense_are_refused(base, task, change, says):
    with pytest.raises(ValueError, match=says):
        train.finetune(base, task, "full", 0, **BUDGET, **change)


def test_the_pull_adds_the_gradient_of_the_penalty_to_tied_weights_once():
    model = gpt2()
    pull = PullToStart(copy.deepcopy(model), 0.7)
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ids = torch.arange(12)[None]
    model(ids, labels=ids).loss.backward()
    pull.on_pre_optimizer_step(None, None, None, model)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    for p, s in zip(model.parameters(), start, strict=True):
        loss = loss + 0.35 * (p - s).square().sum()
    loss.backward()
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, atol=1e-5, rtol=1e-4)


def distance(a, b):
    return sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_run_with_the_pull_stays_nearer_to_its_start(base, task):
    far = train.finetune(base, task, "full", 0, learning_rate=3e-3, **BUDGET).model
    pull = {"variant": "pull 30", "callbacks": [PullToStart(base.model, 30.0)]}
    near = train.finetune(base, task, "full", 0, learning_rate=3e-3, **pull, **BUDGET).model
    assert distance(near, base.model) < 0.7 * distance(far, base.model)


def test_replay_takes_its_share_of_the_tokens():
    own = [Encoded([1] * 10, 2, 8, f"own {i}") for i in range(50)]
    general = [Encoded([2] * 7, 1, 6, f"general {i}") for i in range(50)]
    mixed = with_replay(own, general, 400, 0.25, seed=3)
    count = sum(len(d.input_ids) for d in mixed if d.id.startswith("general"))
    assert 100 <= count < 107 and 300 <= sum(len(d.input_ids) for d in mixed) - count < 310
    first = [d.id.split()[0] for d in mixed[:20]]
    assert set(first) == {"own", "general"}  # shuffled together
    assert mixed == with_replay(own, general, 400, 0.25, seed=3) != with_replay(own, general, 400, 0.25, 4)
    assert all(d.id.startswith("own") for d in with_replay(own, general, 400, 0.0, 3))


def test_a_run_with_replay_keeps_more_of_what_it_replays(base, task):
    """The base model never saw this text: a run learns it only if it is really in the batches."""
    from lib.metrics import bits_per_byte, score_encoded

    examples = [replace(e, prompt="x\n", target="abc abc abc " * 12) for e in task.train[:40]]
    general = encode(base.tokenizer, examples, base.context)
    replay = {"variant": "replay", "draw": lambda d, tokens, seed: with_replay(d, general, tokens, 0.5, seed)}
    runs = [
        train.finetune(base, task, "full", 0, learning_rate=3e-3, **BUDGET),
        train.finetune(base, task, "full", 0, learning_rate=3e-3, **replay, **BUDGET),
    ]
    plain, mixed = (bits_per_byte(score_encoded(r.model, general[:2])) for r in runs)
    assert mixed < plain - 0.2


def test_lora_has_the_rank_that_was_asked_for(base, task):
    small, large = (train.finetune(base, task, "lora", 0, lora_rank=r, **BUDGET).summary for r in (2, 8))
    assert large["trainable_parameters"] == 4 * small["trainable_parameters"]


@needs_muon
def test_muon_moves_matrices_of_the_blocks_along_an_orthogonal_matrix_and_the_rest_by_adamw():
    torch.manual_seed(0)
    model = gpt2()
    before = copy.deepcopy(model.state_dict())
    optimizer = Muon(model, 1e-2, 0.0)
    ids = torch.randint(61, (4, 20))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {k: (v - before[k]) for k, v in model.state_dict().items()}
    matrix = moved["transformer.h.1.mlp.c_fc.weight"] / 1e-2  # (16, 64)
    values = torch.linalg.svdvals(matrix)
    scale = 0.2 * 64**0.5  # Liu et al. 2025: RMS of the step 0.2, as AdamW's
    assert 0.6 * scale < values.median() and values.max() < 1.3 * scale
    assert values.min() > 0.2 * values.max()  # a gradient's own are orders of magnitude apart
    table = moved["transformer.wte.weight"]  # AdamW's first step: the rate, with the gradient's sign
    assert float(table.abs().max()) == pytest.approx(1e-2, rel=1e-3)
    vector = moved["transformer.h.0.ln_1.weight"]
    assert float(vector.abs().max()) == pytest.approx(1e-2, rel=1e-3)


@needs_muon
def test_muon_takes_every_weight_once_and_decays_what_trainers_adamw_decays(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = gpt2()
    groups = Muon(model, 1e-3, 0.1).param_groups
    names = {id(p): n for n, p in model.named_parameters()}  # a tied weight under its first name
    found = [names[id(p)] for g in groups for p in g["params"]]
    assert sorted(found) == sorted(names.values())
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    trainer = Trainer(model, TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    assert decayed == set(trainer.get_decay_parameter_names(model)) & set(names.values())


@needs_muon
def test_muon_hears_the_schedule_and_goes_on_from_a_checkpoint():
    def gradients(model, step):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)

    straight = gpt2()
    optimizer = Muon(straight, 1e-2, 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + s))
    for step in range(4):
        gradients(straight, step)
        optimizer.step()
        schedule.step()
        if step == 1:
            kept = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    resumed = gpt2()
    resumed.load_state_dict(kept[0])
    second = Muon(resumed, 1e-2, 0.01)
    again = torch.optim.lr_scheduler.LambdaLR(second, lambda s: 1 / (1 + s))
    second.load_state_dict(kept[1])
    again.load_state_dict(kept[2])
    for step in (2, 3):
        gradients(resumed, step)
        second.step()
        again.step()
    assert {g["lr"] for p in second.parts for g in p.param_groups} == {1e-2 / 5}
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    assert distance(straight, gpt2()) > 0


@needs_muon
def test_a_run_with_muon_learns(base, task):
    run = train.finetune(
        base, task, variant="Muon", optimizer=lambda m, s: Muon(m, s.learning_rate, 0.01), learning_rate=3e-3, **BUDGET
    )
    curve = run.history["held_out_loss"].dropna()
    assert curve.iloc[-1] < curve.iloc[0] - 0.05


def test_without_muon_the_sentence_says_what_to_do(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"optimizer='muon' needs torch 2.9 or newer .* update torch"):
        continual.muon(nn.Linear(2, 2), 1e-3, 0.0)


def test_interpolation_goes_from_before_to_after_and_moves_tied_weights_once():
    before, after = gpt2(), gpt2()
    assert after.lm_head.weight is after.transformer.wte.weight  # in GPT-2, and in the stand-in
    with torch.no_grad():
        for p in after.parameters():
            p.add_(torch.randn_like(p))
    kept = copy.deepcopy(after.state_dict())
    for alpha in (0.0, 0.25, 1.0):
        mixed = interpolate(before, after, alpha).state_dict()
        for k, v in mixed.items():
            wanted = (1 - alpha) * before.state_dict()[k] + alpha * kept[k]
            torch.testing.assert_close(v, wanted, atol=1e-6, rtol=1e-5)
    mixed = interpolate(before, after, 0.5)
    assert mixed.lm_head.weight is mixed.transformer.wte.weight
    assert all(torch.equal(v, kept[k]) for k, v in after.state_dict().items())
    with pytest.raises(ValueError, match="two architectures"):
        interpolate(small_gpt2(61, 1, 2, 16, 32), after, 0.5)
