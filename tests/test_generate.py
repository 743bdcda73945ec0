"""Batched generation equals one at a time; seeds, stops and errors."""

import re

import pytest
import torch
from small_llama import small_llama
from transformers import GenerationConfig

from lib import generate as g
from lib import models, profile
from lib.__main__ import main

pytestmark = pytest.mark.usefixtures("float32")  # bfloat16 rounds differently for each batch shape
PROMPTS = ["The tool", "a", "Package: apt\nSection: admin\n", "", "床前明月光", "one two three four five six"]


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer(["The tool reads one two three four five six files.", *PROMPTS] * 4, 300)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tokenizer):
    """Random weights, wide enough apart that greedy text varies."""
    if request.param == "gpt2":
        return models.small_gpt2(len(tokenizer), n_positions=96, initializer_range=0.3, seed=3)
    return small_llama(len(tokenizer), max_position_embeddings=96, initializer_range=0.3, eos_token_id=None)


def one_at_a_time(model, tokenizer, prompt, steps):
    """Greedy decoding in four lines: no batch, no padding, no cache."""
    ids = tokenizer(prompt).input_ids or [tokenizer.eos_token_id]
    new = []
    with torch.no_grad():
        while len(new) < steps and tokenizer.eos_token_id not in new:
            new.append(model(torch.tensor([ids + new])).logits[0, -1].argmax().item())
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batch_equals_one_at_a_time(model, tokenizer, batch_size):
    texts = g.generate(model, tokenizer, PROMPTS, 24, batch_size=batch_size)
    assert texts == [one_at_a_time(model, tokenizer, p, 24) for p in PROMPTS]
    assert len(set(texts)) > 3  # or equality would say little


def test_a_llama_writes_in_bfloat16_but_chooses_by_float32_logits(tokenizer, monkeypatch):
    # values in bfloat16, keys float32 by RoPE
    monkeypatch.setattr(profile, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    model, seen = small_llama(len(tokenizer)), []
    model.model.layers[0].mlp.register_forward_hook(lambda *x: seen.append(x[2].dtype))
    model.register_forward_hook(lambda *x: seen.append(x[2].logits.dtype))
    assert len(g.generate(model, tokenizer, PROMPTS, 4)) == len(PROMPTS)
    assert seen[:2] == [torch.bfloat16, torch.float32]


def test_a_processor_knows_where_the_new_tokens_begin(model, tokenizer):
    ids = [tokenizer(p).input_ids for p in PROMPTS]
    widths, wanted = [], tokenizer("z").input_ids[0]

    def make(width):
        widths.append(width)
        return lambda input_ids, scores: scores.index_fill(1, torch.tensor(wanted), 1e9)

    assert g.generate(model, tokenizer, PROMPTS, 3, batch_size=4, processors=[make]) == ["zzz"] * len(PROMPTS)
    assert widths == [max(map(len, ids)), sorted(map(len, ids))[1]]  # in batches of four, the longest first


def test_stops_at_eos_and_keeps_white_space(tokenizer, monkeypatch):
    model = models.small_gpt2(len(tokenizer), n_positions=96)
    planned = [*tokenizer("  two\n").input_ids, tokenizer.eos_token_id, *tokenizer("six").input_ids]
    forward, length = model.forward, len(tokenizer("one two").input_ids)

    def scripted(input_ids, **kwargs):
        out = forward(input_ids=input_ids, **kwargs)
        out.logits[:, -1, planned[kwargs["past_key_values"].get_seq_length() - length]] = 1e4
        return out

    monkeypatch.setattr(model, "forward", scripted)
    assert g.generate(model, tokenizer, ["one two"], len(planned)) == ["  two\n"]


def test_seed_decides_the_samples_and_nothing_else_changes(model, tokenizer):
    before = torch.get_rng_state()
    first, other = (g.generate(model, tokenizer, PROMPTS, 12, seed=s, **g.DECODING["sample"]) for s in (1, 2))
    assert first != other and torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert g.generate(model, tokenizer, PROMPTS, 12, seed=1, **g.DECODING["sample"]) == first


def test_own_generation_config_is_set_aside_and_restored(model, tokenizer, monkeypatch):
    greedy = g.generate(model, tokenizer, PROMPTS, 8)
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2)
    monkeypatch.setattr(model, "generation_config", own)
    assert g.generate(model, tokenizer, PROMPTS, 8) == greedy and model.generation_config is own
    # almost uniform sampling reaches far more than the 50 tokens of transformers' default top_k
    model = models.small_gpt2(len(tokenizer), n_positions=96)
    texts = g.generate(model, tokenizer, ["a"] * 400, 1, batch_size=400, do_sample=True, temperature=100.0)
    assert len(set(texts)) > 80


def test_errors_name_the_prompt_and_the_setting(model, tokenizer):
    with pytest.raises(ValueError, match=r"Prompt 1 \('a a a.*context of 96.*max_new_tokens"):
        g.generate(model, tokenizer, ["a", "a " * 90], 24)
    for setting, message in (("temprature", "temprature"), ("top_p", "top_p.*do_sample=True")):
        with pytest.raises(ValueError, match=message):
            g.generate(model, tokenizer, ["a"], 4, **{setting: 0.5})
    with pytest.raises(ValueError, match="list of prompts"):
        g.generate(model, tokenizer, "one string", 4)
    assert g.generate(model, tokenizer, [], 4) == []


def test_the_command_prints_text_alone_from_the_base_model_or_a_run(capsys):
    assert main(["generate", "--prompt", r"Package: x\nDescription:", "--tokens", "8"]) == 0
    said, base = capsys.readouterr(), models.tiny_base()
    assert said.out == g.generate(base.model, base.tokenizer, ["Package: x\nDescription:"], 8)[0] + "\n"
    assert "Base model: tiny" in said.err
    assert main(["finetune", "--set", "train_tokens=1300", "--set", "evaluations=1"]) == 0
    run = re.search(r"generate --run (\S+) --prompt TEXT\n$", capsys.readouterr().out)[1]
    assert main(["generate", "--prompt", "a", "--run", run, "--samples", "3", "--tokens", "8"]) == 0
    assert capsys.readouterr().out.count("\n---\n") == 2
    assert main(["generate", "--prompt", "a", "--run", "gone"]) == 1
    assert re.search(rf"gone holds no finished run: .* Finished: .*{run}", capsys.readouterr().err)
