"""lib.explore.attention: every registered variant is tested here by being registered."""

from functools import partial

import pytest
import torch
from notebook_code import defined
from small_models import SMALL_RUN, close, llama, logits_in_pieces, padded, row, sharpened
from transformers import StaticCache

from lib.explore import attention, costs, scratch
from lib.explore.attention import ATTENTIONS, Attention, delta, favor_features, kernel, nystrom, softmax, use_attention
from lib.models import small_gpt2

SMALL = {"window": 8, "segment": 4, "doubling": 2, "features": 16}  # several blocks in a short row
each = pytest.mark.parametrize("name", ATTENTIONS)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 8)


def small(name):
    return {key: value for key, value in SMALL.items() if key in ATTENTIONS[name].options}


def gpt2(name, **options):
    model = scratch.build(97, attention=name, n_positions=160, n_layer=2, n_head=2, n_embd=32)
    return sharpened(use_attention(model, name, **options))


MODELS = {"gpt2": gpt2, "llama": lambda name, **o: use_attention(llama(), name, **o)}


def heads(name, length):
    """q, k, v and delta's beta, float64 with gradients."""
    generator = torch.Generator().manual_seed(length)
    shape = (2, 2, length, 8)
    drawn = partial(torch.randn, generator=generator, dtype=torch.float64)
    tensors = {"q": drawn(shape), "k": drawn(shape), "v": drawn(shape)}
    if ATTENTIONS[name].gated:
        tensors["beta"] = drawn(shape[:3]).sigmoid()
    return {key: x.requires_grad_() for key, x in tensors.items()}


def relative_leak(model, length, **given):
    with torch.no_grad():
        scale = float(model(row(length)[None]).logits.abs().max())
    return costs.leak(model, length, **given) / scale


@pytest.mark.parametrize(("kind", "length"), [("gpt2", 134), ("gpt2", 45), ("gpt2", 7), ("llama", 29)])
@each
def test_no_token_sees_the_future(name, kind, length, request):
    """On whole rows and on rows with padding on the left and on the right (lib.explore.costs.leak)."""
    if length > 100:
        assert relative_leak(gpt2(name), length) < 1e-5
        return
    request.getfixturevalue("small_chunks")  # several small blocks
    cuts = [t for t in (0, 3, 4, 7, 8, 9, 16, 31, 43) if t < length - 1]
    assert relative_leak(MODELS[kind](name, **small(name)), length, cuts=cuts) < 1e-5


def register(monkeypatch, entry):
    monkeypatch.setitem(ATTENTIONS, "new", entry)
    attention.register("new", entry)


@pytest.mark.parametrize("side", ["left", "right", None])
def test_the_leak_test_finds_what_leaks(side, monkeypatch):
    """In whole rows, or in padded rows alone, as of a mask that forgets causality."""

    def forgets(q, k, v, scale, mask=None, **_):
        if side is None:
            return (q @ k.mT * scale).softmax(-1) @ v
        if mask is not None and bool(mask[0, 0, -1, 0]) == (side == "right"):
            mask = mask.any(2, keepdim=True).expand_as(mask)
        return softmax(q, k, v, scale, mask)

    register(monkeypatch, Attention(forgets, takes_mask=True))
    assert relative_leak(gpt2("new"), 20, cuts=(3, 9)) > 1e-2


def test_a_new_attention_is_one_function_and_one_line(monkeypatch):
    def running_mean(q, k, v, scale, **_):
        """Every earlier token counts the same."""
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]

    register(monkeypatch, Attention(running_mean))
    assert relative_leak(gpt2("new"), 45) < 1e-5
    run = scratch.train(scratch.Recipe(seed=0, attention="new", position="rope", **SMALL_RUN))
    assert run.bits_per_byte(["some text"]) < 8


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_row_alone_in_outputs_and_gradients(name, side, small_chunks):
    rows, results = [row(n, seed=n) for n in (31, 5, 0, 18, 1)], []  # one of padding alone
    for parts in ([rows], [[r] for r in rows if len(r)]):
        model, logits = gpt2(name, **small(name)), []
        for part in parts:
            inputs = padded(part, 33 if len(part) > 1 else len(part[0]), side)
            logits.append(model(**inputs).logits)
            assert logits[-1].isfinite().all()
            logits[-1] = logits[-1][inputs["attention_mask"].bool()]
        torch.cat(logits).square().sum().backward()
        results.append([torch.cat(logits), *(p.grad for p in model.parameters())])
    close(results[0][0], results[1][0])
    for together, alone in zip(*results, strict=True):
        close(together, alone, 1e-4)


@each
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lengths", [(40,), (40, 22)], ids=["one row", "left padding"])
@torch.no_grad()
def test_kv_cache_in_pieces_equals_the_whole(name, kind, lengths, small_chunks):
    model = MODELS[kind](name, **small(name))
    inputs = padded([row(n, seed=n) for n in lengths], 40)
    whole = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    for cache in (None, StaticCache(config=model.config, max_cache_len=64)):  # that with room for later tokens
        close(logits_in_pieces(model, inputs, (20, 7, *[1] * 13), cache)[real], whole[real])


def stepped(entry):
    """The recurrent form, token by token; its state keeps its size."""

    def form(scale, **given):
        tensors = {key: x for key, x in given.items() if torch.is_tensor(x)}
        state, outputs, sizes = None, [], set()
        for t in range(given["q"].shape[2]):
            now = {key: x[:, :, t : t + 1] for key, x in tensors.items()}
            output, state = entry.step(state, scale=scale, **given | now)
            outputs.append(output)
            sizes.add(state.shape)
        assert len(sizes) == 1
        return torch.cat(outputs, dim=2)

    return form


REFERENCES = {n: e.naive or stepped(e) for n, e in ATTENTIONS.items() if e.naive or e.step}


@pytest.mark.parametrize(("name", "biased"), [(n, b) for n in REFERENCES for b in {False, ATTENTIONS[n].takes_bias}])
@pytest.mark.parametrize("length", [1, 5, 24, 29])  # 5: less than a block; 24: whole blocks
def test_form_equals_naive_in_outputs_and_gradients(name, length, biased, small_chunks):
    entry, given = ATTENTIONS[name], heads(name, length)
    slopes = torch.tensor([0.1, 1.0]).double().requires_grad_()

    def bias(n_q, n_k, device):
        keys = torch.arange(n_k)
        return -slopes[:, None, None] * (keys[n_k - n_q :, None] - keys).double().abs().sqrt()

    options = {**entry.options, **small(name), **({"bias": bias} if biased else {})}
    leaves = [*given.values(), *([slopes] if biased else [])]
    results = []
    for form in (entry.form, REFERENCES[name]):
        output = form(scale=0.4, **given, **options)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        results.append([output, *torch.autograd.grad((output * weights).sum(), leaves, materialize_grads=True)])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("config", [{}, {"scale_attn_by_inverse_layer_idx": True}], ids=["", "layer scale"])
@pytest.mark.parametrize("name", ["softmax", "softmax_sdpa"])
@pytest.mark.parametrize("lengths", [(12,), (12, 7)], ids=["one row", "left padding"])
def test_softmax_is_transformers_own_gpt2(name, lengths, config):
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    inputs = padded([row(n, seed=n) for n in lengths], 12)
    real, results = inputs["attention_mask"].bool(), []
    for implementation in ("eager", name):
        model = sharpened(small_gpt2(97, n_embd=32, **no_dropout, **config)).train()
        model.set_attn_implementation(implementation)
        logits = model(**inputs).logits[real]
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for own, ours in zip(*results, strict=True):
        close(ours, own, 1e-4)


def test_performer_features_estimate_the_exponential():
    q, k = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.exp(q @ k.mT * 0.05)
    errors = []
    for n in (16, 256, 4096):
        one, two = (favor_features(x, scale=0.05, features=n) for x in (q, k))
        assert one.shape == (64, n) and bool((one > 0).all())
        errors.append(float((one @ two.mT / n / exact - 1).square().mean().sqrt()))
    assert errors[0] > 1.5 * errors[1] and errors[1] > 2 * errors[2] and errors[2] < 0.05


def test_delta_overwrites_what_linear_adds_up():
    k, v = torch.randn(2, 1, 1, 2, 8, generator=torch.Generator().manual_seed(0))
    key = k[:, :, :1].expand_as(k)  # the same key twice, and asked for
    stored = delta(key, key, v, 1.0, beta=torch.ones(1, 1, 2))[0, 0, 1]
    torch.testing.assert_close(stored, v[0, 0, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kernel(key, key, v, 1.0)[0, 0, 1], v[0, 0].mean(0), atol=1e-5, rtol=1e-5)


def test_nystrom_is_softmax_with_one_token_or_the_whole_row_in_a_segment():
    q, k, v = (heads("nystrom", 20)[key] for key in "qkv")
    exact = softmax(q, k, v, 0.4)
    for segment in (20, 64):
        torch.testing.assert_close(nystrom(q, k, v, 0.4, segment=segment), exact)
    torch.testing.assert_close(nystrom(q, k, v, 0.4, segment=1, doubling=20, ridge=1e-12), exact, atol=1e-6, rtol=0)
    assert 1e-3 < (nystrom(q, k, v, 0.4, segment=4, doubling=2) - exact).norm() / exact.norm() < 0.5


@torch.no_grad()
def test_softmax_is_a_pretrained_models_own_attention():
    inputs = padded([row(19), row(8)], 19)
    real = inputs["attention_mask"].bool()
    expected = llama()(**inputs).logits[real]
    for name in ("softmax", "softmax_sdpa"):
        close(use_attention(llama(), name)(**inputs).logits[real], expected)
    for name in set(ATTENTIONS) - {"softmax", "softmax_sdpa", "window"}:  # 19 tokens: one window
        changed = use_attention(llama(), name, **small(name))(**inputs).logits[real]
        assert (changed - expected).abs().max() > 1e-3, name


def test_the_recall_task_and_the_landmarks_of_notebook_06_are_what_they_say():
    at = defined("06_attention", "KEYS", "VALUES", "BLANK", "associations", "landmark_values", "plain")
    rows = at.associations(8, 50, torch.Generator().manual_seed(0))
    assert rows[0][:, :8].tolist() != rows[0][:, 8:].tolist() and (rows[1][:, 8:] == at.BLANK).all()
    for keys, values, answers in zip(*(x.tolist() for x in rows), strict=True):
        written = dict(zip(keys[:8], values[:8], strict=True))
        assert sorted(written) == sorted(keys[8:]) and max(written) < at.KEYS <= min(values)
        assert [written[key] for key in keys[8:]] == [at.KEYS + answer for answer in answers]
    k, v = (heads("nystrom", 20)[key][0] for key in "kv")  # every key its own landmark
    torch.testing.assert_close(at.landmark_values(k, k.new_ones(2, 20), k, v, 0.4, 1e-12), v, atol=1e-6, rtol=0)
    q, k, v = (heads("nystrom", 21)[key] for key in "qkv")
    k = torch.cat([k[:, :, :1], k[:, :, 1::4].repeat_interleave(4, 2)], 2)  # a mean key that counts as four is all four
    torch.testing.assert_close(at.plain(q, k, v, 0.4, segment=4), softmax(q, k, v, 0.4))


def test_a_bad_name_or_option_is_named():
    with pytest.raises(ValueError, match=r"'flash': choose one of softmax, softmax_sdpa, .*nystrom"):
        use_attention(small_gpt2(97), "flash")
    with pytest.raises(ValueError, match="'window' has no option 'size': it takes window"):
        use_attention(small_gpt2(97), "window", size=4)


@pytest.mark.parametrize("name", [n for n, e in ATTENTIONS.items() if not e.takes_bias])
@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_a_bias_needs_scores(name, position):
    model = scratch.build(97, position, name, n_layer=1, n_head=2, n_embd=32)
    with pytest.raises(ValueError, match=rf"'{position}' adds .*'{name}' does not .*choose one of softmax"):
        model(row(5)[None])


@each
@pytest.mark.parametrize("kind", MODELS)
def test_masks_of_four_dimensions_and_packed_rows_are_refused(name, kind):
    model = MODELS[kind](name)
    with pytest.raises(ValueError, match=r"padding mask \(B, T\), not \(1, 1, 6, 6\)"):
        model(row(6)[None], attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="one document a row"):
        model(row(5)[None], position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
