"""lib.explore.frontier: pull, replay, Muon and interpolation; general text; the free control."""

import copy
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainingArguments

from lib import models, packing
from lib.explore import frontier
from lib.explore.frontier import Muon, PullToStart, against_interpolation, general_text, interpolate, replay

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brings Muon")


def gpt2():
    return models.small_gpt2(61, 2, 2, 16, 32)


def test_the_pull_adds_the_gradient_of_the_penalty_to_tied_weights_once():
    model, ids = gpt2(), torch.arange(12)[None]
    pull, start = PullToStart(copy.deepcopy(model), 0.7), [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    model(ids, labels=ids).loss.backward()
    pull.on_pre_optimizer_step(None, None, None, model)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    penalty = sum((p - s).square().sum() for p, s in zip(model.parameters(), start, strict=True))
    (model(ids, labels=ids).loss + 0.35 * penalty).backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()], atol=1e-5, rtol=1e-4)


def test_replay_takes_its_share_of_the_tokens():
    own = [packing.Encoded([1] * 10, 2, 8, f"own {i}") for i in range(50)]
    general = [packing.Encoded([2] * 7, 1, 6, f"general {i}") for i in range(50)]
    draw = replay(general, 0.25)
    mixed = draw(own, 400, 3)
    count = sum(len(d.input_ids) for d in mixed if d.id.startswith("general"))
    assert 100 <= count < 107 and 300 <= sum(len(d.input_ids) for d in mixed) - count < 310
    assert {d.id.split()[0] for d in mixed[:20]} == {"own", "general"}  # shuffled together
    assert mixed == draw(own, 400, 3) != draw(own, 400, 4)


@needs_muon
def test_muon_takes_matrices_of_the_blocks_and_decays_what_trainers_adamw_decays(tmp_path):
    model = gpt2()
    optimizer = Muon(model, SimpleNamespace(learning_rate=1e-3, weight_decay=0.1))
    groups, names = optimizer.param_groups, {id(p): n for n, p in model.named_parameters()}  # tied: the first name
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    matrices = {names[id(p)] for g in optimizer.parts[0].param_groups for p in g["params"]}
    assert matrices == {n for n, p in model.transformer.named_parameters("transformer") if ".h." in n and p.ndim == 2}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    trainer = Trainer(model, TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    assert decayed == set(trainer.get_decay_parameter_names(model)) & set(names.values())


@needs_muon
def test_muon_hears_the_schedule_and_goes_on_from_a_checkpoint():
    def start():
        model = gpt2()
        optimizer = Muon(model, SimpleNamespace(learning_rate=1e-2, weight_decay=0.01))
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + s))

    def steps(parts, *seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in parts[0].parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            parts[1].step()
            parts[2].step()

    straight, resumed = start(), start()
    steps(straight, 0, 1)
    for part, other in zip(resumed, straight, strict=True):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    steps(straight, 2, 3)
    steps(resumed, 2, 3)
    assert {g["lr"] for p in resumed[1].parts for g in p.param_groups} == {1e-2 / 5}
    torch.testing.assert_close(*(list(part[0].parameters()) for part in (straight, resumed)), atol=1e-7, rtol=1e-6)


def test_interpolation_goes_from_before_to_after_and_moves_tied_weights_once():
    before, after = gpt2(), gpt2()
    with torch.no_grad():
        for p in after.parameters():
            p.add_(torch.randn_like(p))
    start, end = (copy.deepcopy(model.state_dict()) for model in (before, after))
    for alpha in (0.0, 0.25, 1.0):
        mixed = interpolate(before, after, alpha)
        for k, v in mixed.state_dict().items():
            torch.testing.assert_close(v, (1 - alpha) * start[k] + alpha * end[k], atol=1e-6, rtol=1e-5)
    assert mixed.lm_head.weight is mixed.transformer.wte.weight
    assert all(torch.equal(v, end[k]) for k, v in after.state_dict().items())


def test_general_text_comes_from_the_base_model_once(base, monkeypatch):
    first, end = general_text(base, 300, 0), base.tokenizer.eos_token_id
    assert sum(len(d.input_ids) for d in first) >= 300
    for document in first:
        ids = document.input_ids
        assert ids[0] == end and end not in ids[1:-1]
        assert document.target_bytes == len(base.tokenizer.decode(ids, skip_special_tokens=True).encode())
    assert general_text(base, 300, 1) != first
    monkeypatch.setattr(frontier, "generate", lambda *_, **__: ["short", "long " * frontier.SAMPLE_LENGTH])
    assert [d.input_ids[-1] == end for d in general_text(base, 50, 2)] == [True, False], "one was cut"
    monkeypatch.delattr(frontier, "generate")  # nothing is sampled again
    assert general_text(base, 300, 0) == first


def row(*values):
    return dict(zip(("method", "setting", "seed", "bits_per_byte", "wikitext2_bits_per_byte"), values, strict=True))


def test_the_control_is_read_off_at_the_same_gain_of_the_same_seed():
    rows = [row("none", "before", 0, 2.0, 1.0)]
    for seed in range(3):  # full at (1.0, 2.0), the interpolation bowed towards the corner
        shift = 0.01 * seed
        rows.append(row("full", "lr 1e-4", seed, 1.0 + shift, 2.0))
        rows += [row("interpolation", f"alpha {a}", seed, 2 - a + shift * a, 1 + a**2) for a in (0.25, 0.5, 0.75)]
    rows += [row("LoRA", "rank 4", s, 1.75 + 0.0025 * s, 1.0 + 0.25**2 + 0.2) for s in range(3)]  # at alpha 0.25
    rows += [row("Muon", "y", s, 0.5, 1.0) for s in range(3)]  # gains more than the way goes
    rows += [row("replay", "x", 0, 1.625, 1.0)]  # half-way between alpha 0.25 and 0.5
    found = against_interpolation(pd.DataFrame(rows), "wikitext2_bits_per_byte").set_index("method")
    assert found.loc["LoRA", ["difference", "low", "seeds"]].tolist() == pytest.approx([0.2, 0.2, 3])
    assert found.loc["Muon", "seeds"] == 0 and math.isnan(found.loc["Muon", "difference"])
    assert found.loc["replay", "difference"] == pytest.approx(1.0 - (1.0625 + 1.25) / 2)
    assert "full" not in found.index and "none" not in found.index
    assert found["beyond"].to_dict() == {"LoRA": 0, "Muon": 3, "replay": 0}
