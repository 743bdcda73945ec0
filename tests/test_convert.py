"""lib.explore.convert: linear attention with learned feature maps and a softmax window, in GPT-2 and Llama."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import close, llama, padded, row, sharpened

from lib import models, tasks
from lib.explore import attention, convert, costs
from lib.explore.convert import FORMS, FeatureMaps, converted, hybrid, hybrid_naive, hybrid_step, new_maps

WINDOW = 6  # several blocks in a short row
SHORT = {name: o | {"window": min(o["window"], WINDOW)} for name, o in FORMS.items()}


def random_maps(maps, seed=0, size=0.5):
    """Maps away from their start, where query and key maps would be alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return maps


def heads(length):
    """q of four heads, k and v of two."""
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(2, n, length, 8, generator=generator, dtype=torch.float64) * 2 for n in (4, 2, 2)]


def repeated(q, k, v):
    return q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)


MODELS = {"gpt2": lambda: sharpened(models.small_gpt2(97, 3, 2, 32, 160)), "llama": llama}
both = pytest.mark.parametrize("family", MODELS)
each = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    for name, options in SHORT.items():
        monkeypatch.setitem(FORMS, name, options)


@each
@pytest.mark.parametrize("length", [1, 5, 6, 7, 13, 40])
def test_the_blocks_equal_the_naive_form_in_outputs_and_gradients(form, length):
    maps, found = random_maps(FeatureMaps(4, 2, 8)).double(), []
    for run in (hybrid, hybrid_naive):
        leaves = [x.requires_grad_() for x in heads(length)]
        out = run(*repeated(*leaves), 8**-0.5, maps=maps, **SHORT[form])
        wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        (out * wanted).sum().backward()
        learned = [torch.zeros_like(p) if p.grad is None else p.grad for p in maps.parameters()]
        found.append([out, *(x.grad for x in leaves), *learned])
        maps.zero_grad()
    torch.testing.assert_close(*found, atol=1e-9, rtol=1e-9)


@each
def test_the_step_equals_the_naive_form_with_shared_key_heads(form):
    maps = random_maps(FeatureMaps(4, 2, 8)).double()
    q, k, v = heads(21)
    whole = hybrid_naive(*repeated(q, k, v), 8**-0.5, maps=maps, **SHORT[form])
    state, out = None, []
    for t in range(21):
        one = (x[:, :, t : t + 1] for x in (q, k, v))
        o, state = hybrid_step(state, *one, 8**-0.5, maps=maps, **SHORT[form])
        out.append(o)
    torch.testing.assert_close(torch.cat(out, 2), whole, atol=1e-9, rtol=1e-9)
    assert state[0].shape[2] == SHORT[form]["window"]  # the state does not grow


@both
@each
def test_no_layer_sees_the_future_and_padding_changes_nothing(family, form):
    model, ids = MODELS[family](), row(25)
    maps = {i: random_maps(m, i) for i, m in new_maps(model).items() if i != 1}  # a mixed model
    with converted(model, maps, form), torch.no_grad():
        alone = model(ids[None]).logits
        assert costs.leak(model, 40) < 1e-5 * float(alone.abs().max())
        close(model(**padded([ids], 34)).logits[:, 9:], alone, 1e-4)


@both
@each
def test_a_whole_model_decodes_step_by_step_as_it_reads(family, form):
    model = MODELS[family]()
    maps = {i: random_maps(m, i) for i, m in new_maps(model).items() if i != 0}
    ids = row(22)[None]
    with torch.no_grad():
        with converted(model, maps, form):
            whole = model(ids, use_cache=False).logits
        with converted(model, maps, form, "hybrid_step"):
            one = [{"input_ids": ids[:, [t]], "position_ids": torch.tensor([[t]])} for t in range(22)]
            steps = [model(**inputs, use_cache=False).logits for inputs in one]
    close(torch.cat(steps, 1), whole, 1e-4)


@both
@torch.no_grad()
def test_without_maps_it_is_the_model_itself_and_afterwards_too(family):
    model, ids = MODELS[family](), row(30)[None]
    before = model(ids).logits
    with converted(model, {}, "linear"):
        close(model(ids).logits, before, 1e-4)
    with converted(model, new_maps(model), "linear"):
        assert (model(ids).logits - before).abs().max() > 1e-2 * before.abs().max()
    assert torch.equal(model(ids).logits, before)


@pytest.fixture(scope="module")
def base(base):
    return replace(base, model=sharpened(copy.deepcopy(base.model)), name="sharpened")


def rows(base, *arguments):
    return convert.rows(base, tasks.load_task("debian"), *arguments)


def test_rows_hold_whole_documents_and_bits_per_byte_counts_each_token_once(base):
    text = rows(base, "validation", 150, 48)
    stream = torch.cat([r[0, :-1] for r in text.ids] + [text.ids[-1][0, -1:]])
    end = base.tokenizer.eos_token_id
    assert stream[0] == end and stream[-1] == end and len(stream) > 150
    documents = base.tokenizer.decode(stream[1:-1]).split(base.tokenizer.eos_token)
    wanted = [e["prompt"] + e["target"] for e in tasks.head(tasks.load_task("debian")["validation"], len(documents))]
    assert documents == wanted and text.n_bytes == sum(len(t.encode()) for t in wanted)
    assert torch.equal(torch.cat([r[0, 1:] for r in text.ids]), stream[1:])
    with torch.no_grad():
        nats = sum(float(F.cross_entropy(base.model(r[:, :-1]).logits[0], r[0, 1:], reduction="sum")) for r in text.ids)
    bits = convert.bits_per_byte(base.model, text)
    assert bits == pytest.approx(nats / math.log(2) / text.n_bytes, rel=5e-3)  # autocast
    with pytest.raises(ValueError, match=r"validation split holds .* not 100,000,000"):
        rows(base, "validation", 10**8, 48)
    one, two = (rows(base, "train", 150, 48, seed).ids[0] for seed in (1, 2))
    assert not torch.equal(one, two)


class FromBack(torch.nn.Module):
    """Writes what stood `distance` tokens before what comes next."""

    def __init__(self, distance, size):
        super().__init__()
        self.distance, self.size = distance, size
        self.get_output_embeddings = torch.nn.Identity

    def forward(self, ids, use_cache=False):
        logits = torch.zeros(*ids.shape, self.size)
        logits[:, self.distance - 1 :] = 10.0 * F.one_hot(ids[:, : 1 - self.distance or None], self.size)
        return SimpleNamespace(logits=logits)


NAMES = ["survex", "rancid", "obexftp", "anymeal"]


def test_a_name_is_copied_from_exactly_the_distance(base):
    text, size = rows(base, "test", 400, 48), len(base.tokenizer)
    for distance, copies in ((60, True), (59, False), (61, False)):
        found = convert.copied(FromBack(distance, size), base.tokenizer, NAMES, text, 60)
        assert found["copied"] == [copies] * 4
        if copies:
            tokens = [len(x) for x in base.tokenizer([f" {name}" for name in NAMES])["input_ids"]]
            assert found["bits"] == pytest.approx([10 / math.log(2) * n for n in tokens])  # no token at its place


def test_windows_know_no_name_from_beyond_their_reach_and_delta_does(base):
    text, reach = rows(base, "test", 400, 48), len(new_maps(base.model)) * (WINDOW - 1)
    for form, knows in (("window", False), ("delta+window", True), ("linear+window", True)):
        with converted(base.model, new_maps(base.model), form):
            bits = convert.copied(base.model, base.tokenizer, NAMES, text, reach + 20)["bits"]
        assert all(abs(x) > 1e-4 for x in bits) if knows else bits == pytest.approx([0.0] * 4, abs=1e-9)


def test_a_matching_error_is_the_relative_square_of_the_outputs(base, monkeypatch):
    text, maps = rows(base, "validation", 40, 48), new_maps(base.model)
    monkeypatch.setitem(FORMS, "exact", {"window": 10_000, "far": True})  # a window over everything
    assert max(convert.matching_errors(base.model, maps, "exact", text)) < 1e-6
    monkeypatch.setattr(convert, "hybrid", lambda q, k, v, *_, **__: torch.zeros_like(v))
    assert convert.matching_errors(base.model, maps, "linear", text) == pytest.approx([1.0] * len(maps))


@pytest.mark.parametrize("form", ["linear", "linear+window"])
def test_matching_lowers_every_layers_error_and_moves_nothing_else(base, form):
    before = copy.deepcopy(base.model.state_dict())
    held_out, text = rows(base, "validation", 100, 48), rows(base, "train", 2_000, 48, 0)
    maps = convert.match(base.model, text, form, 1e-2, "matching")
    start, end = (convert.matching_errors(base.model, m, form, held_out) for m in (new_maps(base.model), maps))
    assert all(b < 0.95 * a for a, b in zip(start, end, strict=True)), (start, end)
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    assert all(p.requires_grad for p in base.model.parameters())


def test_tuning_learns_in_a_copy(base):
    before = copy.deepcopy(base.model.state_dict())
    maps, held_out = new_maps(base.model), rows(base, "validation", 100, 48)
    model, moved = convert.tune(base.model, maps, "linear+window", rows(base, "train", 1_500, 48, 0), 3e-3, "tuning")
    bits = []
    for one, its in ((base.model, maps), (model, moved)):
        with converted(one, its, "linear+window"):
            bits.append(convert.bits_per_byte(one, held_out))
    assert bits[1] < bits[0] - 0.05
    assert all(torch.equal(v, base.model.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(moved[0].query, maps[0].query)  # the feature maps move as well


def test_the_state_has_the_size_of_its_formula_and_only_the_caches_grows(base):
    def numbers(form, layers, context):
        maps = {i: m for i, m in new_maps(base.model).items() if i < layers}
        with converted(base.model, maps, form, "hybrid_step"), torch.no_grad():
            for t in range(context):
                base.model(torch.tensor([[t]]), position_ids=torch.tensor([[t]]), use_cache=False)
            return sum(x.numel() for m in modules for x in m.recurrent_state if x is not None)

    config, modules = base.model.config, attention.attention_modules(base.model)
    layers, width = config.n_layer, config.n_embd // config.n_head
    token = layers * config.n_head * 2 * width  # keys and values
    for context in (40, 80):
        cache, state = token * context, token * (width + 1)
        assert numbers("linear", 0, context) == cache and numbers("linear", layers, context) == state
        assert numbers("linear+window", layers, context) == state + WINDOW * token
        assert numbers("linear", layers // 2, context) == (cache + state) / 2
