"""lib.explore.convert: linear attention with learned feature maps and a softmax window, in GPT-2 and Llama."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_models import close, llama, padded, row, sharpened

from lib.explore import convert
from lib.explore.attention import ATTENTIONS, attention_modules
from lib.explore.convert import FORMS, FeatureMaps, converted, hybrid, hybrid_naive, hybrid_step, new_maps, rows
from lib.explore.costs import leak
from lib.models import load_base, small_gpt2
from lib.packing import Encoded, document_attention, flatten
from lib.tasks import head, load_task

WINDOW = 6  # several blocks in a short row
SHORT = {name: o | {"window": min(o["window"], WINDOW)} for name, o in FORMS.items()}


def random_maps(maps, seed=0, size=0.5):
    """Maps away from their start, where query and key maps would be alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return maps


def heads(length, n_kv=2, width=8):
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, 4, length, width), (2, n_kv, length, width), (2, n_kv, length, width))
    return [torch.randn(s, generator=generator, dtype=torch.float64) * 2 for s in shapes]


def repeated(q, k, v):
    return q, *(x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))


MODELS = {"gpt2": lambda: sharpened(small_gpt2(97, 3, 2, 32, 160)), "llama": llama}
both = pytest.mark.parametrize("family", MODELS)
each = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    for name, options in SHORT.items():
        monkeypatch.setitem(FORMS, name, options)


@each
@pytest.mark.parametrize("length", [1, 5, 6, 7, 13, 40])
def test_the_blocks_equal_the_naive_form_in_outputs_and_gradients(form, length):
    maps = random_maps(FeatureMaps(4, 2, 8)).double()
    found = []
    for run in (hybrid, hybrid_naive):
        leaves = [x.requires_grad_() for x in heads(length)]
        out = run(*repeated(*leaves), 8**-0.5, maps=maps, **SHORT[form])
        wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        leaves += list(maps.parameters())
        found.append(
            [out, *torch.autograd.grad((out * wanted).sum(), leaves, materialize_grads=True, allow_unused=True)]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


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
def test_no_layer_sees_the_future_with_and_without_padding(family, form):
    model = MODELS[family]()
    maps = {i: random_maps(m, i) for i, m in new_maps(model).items() if i != 1}  # a mixed model
    with converted(model, maps, form), torch.no_grad():
        scale = float(model(row(40)[None]).logits.abs().max())
        assert leak(model, 40) < 1e-5 * scale


@both
def test_left_padding_changes_nothing(family):
    model, ids = MODELS[family](), row(25)
    with converted(model, new_maps(model), "linear+window"), torch.no_grad():
        close(model(**padded([ids], 34)).logits[:, 9:], model(ids[None]).logits, 1e-4)


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
def test_without_maps_it_is_the_model_itself_and_afterwards_too(family):
    model, ids = MODELS[family](), row(30)[None]
    with torch.no_grad():
        before = model(ids).logits
        with converted(model, {}, "linear"):
            close(model(ids).logits, before, 1e-4)
        with converted(model, new_maps(model), "linear"):
            assert (model(ids).logits - before).abs().max() > 1e-2 * before.abs().max()
        assert torch.equal(model(ids).logits, before)
    assert not any("feature_maps" in name for name, _ in model.named_parameters())


def test_packed_rows_are_refused():
    model = MODELS["gpt2"]()
    packed = flatten([Encoded([1, 2, 3], 1, 1), Encoded([4, 5, 6], 1, 1)])
    with converted(model, new_maps(model), "linear"), pytest.raises(ValueError, match="one document a row"):
        model(input_ids=packed["input_ids"], position_ids=packed["position_ids"])
    with document_attention(model):  # still usable
        pass
    assert not any("hybrid" in name for name in ATTENTIONS)  # nothing that notebook 06 could choose


@pytest.fixture(scope="module")
def base():
    loaded = load_base()
    return replace(loaded, model=sharpened(copy.deepcopy(loaded.model)), name="sharpened")


@pytest.fixture(scope="module")
def task():
    return load_task("debian")


def test_rows_hold_whole_documents_and_each_token_is_a_target_once(base, task):
    text = rows(base, task, "validation", 150, 48)
    stream = torch.cat([r[0, :-1] for r in text.ids] + [text.ids[-1][0, -1:]])
    end = base.tokenizer.eos_token_id
    assert stream[0] == end and stream[-1] == end and len(stream) > 150
    documents = base.tokenizer.decode(stream[1:-1]).split(base.tokenizer.eos_token)
    wanted = [e["prompt"] + e["target"] for e in head(task["validation"], len(documents))]
    assert documents == wanted
    assert text.n_bytes == sum(len(t.encode()) for t in wanted)
    assert torch.equal(torch.cat([r[0, 1:] for r in text.ids]), stream[1:])
    with pytest.raises(ValueError, match=r"validation split holds .* not 100,000,000"):
        rows(base, task, "validation", 10**8, 48)
    other = rows(base, task, "train", 150, 48, seed=1)
    assert not torch.equal(other.ids[0], rows(base, task, "train", 150, 48, seed=2).ids[0])


def test_bits_per_byte_is_the_sum_over_all_rows(base, task):
    text = rows(base, task, "validation", 150, 48)
    with torch.no_grad():
        nats = sum(float(F.cross_entropy(base.model(r[:, :-1]).logits[0], r[0, 1:], reduction="sum")) for r in text.ids)
    wanted = nats / math.log(2) / text.n_bytes
    assert convert.bits_per_byte(base.model, text) == pytest.approx(wanted, rel=5e-3)  # autocast


@pytest.mark.parametrize("form", ["linear", "linear+window"])
def test_matching_lowers_every_layers_error_and_moves_nothing_else(base, task, form):
    before = copy.deepcopy(base.model.state_dict())
    held_out = rows(base, task, "validation", 100, 48)
    text = rows(base, task, "train", 2_000, 48, 0)
    maps = convert.match(base.model, text, form, 1e-2, "matching")
    start = convert.matching_errors(base.model, new_maps(base.model), form, held_out)
    end = convert.matching_errors(base.model, maps, form, held_out)
    assert all(b < 0.95 * a for a, b in zip(start, end, strict=True)), (start, end)
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    assert all(p.requires_grad for p in base.model.parameters())


def test_a_matching_error_is_the_relative_square_of_the_outputs(base, task, monkeypatch):
    text = rows(base, task, "validation", 40, 48)
    monkeypatch.setitem(FORMS, "exact", {"window": 10_000, "far": True})  # a window over everything
    exact = convert.matching_errors(base.model, new_maps(base.model), "exact", text)
    assert max(exact) < 1e-6
    monkeypatch.setattr(convert, "hybrid", lambda q, k, v, *_, **__: torch.zeros_like(v))
    nothing = convert.matching_errors(base.model, new_maps(base.model), "linear", text)
    assert nothing == pytest.approx([1.0] * len(nothing))


def test_tuning_learns_in_a_copy(base, task):
    before = copy.deepcopy(base.model.state_dict())
    maps, text = new_maps(base.model), rows(base, task, "train", 1_500, 48, 0)
    model, moved = convert.tune(base.model, maps, "linear+window", text, 3e-3, "tuning")
    held_out = rows(base, task, "validation", 100, 48)
    with converted(base.model, maps, "linear+window"):
        start = convert.bits_per_byte(base.model, held_out)
    with converted(model, moved, "linear+window"):
        assert convert.bits_per_byte(model, held_out) < start - 0.05
    assert all(torch.equal(v, base.model.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(moved[0].query, maps[0].query)  # the feature maps move as well
    assert torch.equal(maps[0].query, new_maps(base.model)[0].query)


def test_the_state_has_the_size_of_its_formula_and_only_the_caches_grows(base):
    def kilobytes(form, layers, context):
        maps = {i: m for i, m in new_maps(base.model).items() if i < layers}
        with converted(base.model, maps, form, "hybrid_step"), torch.no_grad():
            convert.fill_states(base.model, context)
            base.model(torch.zeros(1, 1, dtype=torch.long), position_ids=torch.tensor([[9]]), use_cache=False)
            states = [x for m in attention_modules(base.model) for x in m.recurrent_state if x is not None]
            return sum(x.numel() * 4 for x in states) / 1_000

    heads, layers = base.model.config.n_head, base.model.config.n_layer
    width = base.model.config.n_embd // heads
    one = layers * heads * 2 * width * 4 / 1_000  # a token's keys and values
    state = layers * heads * 2 * width * (width + 1) * 4 / 1_000
    for context in (40, 80):
        assert kilobytes("linear", 0, context) == pytest.approx(one * (context + 1))
        assert kilobytes("linear", layers, context) == pytest.approx(state)
        assert kilobytes("linear+window", layers, context) == pytest.approx(state + WINDOW * one)
        assert kilobytes("linear", layers // 2, context) == pytest.approx((one * (context + 1) + state) / 2)
