"""A pretrained model's softmax attention turned into linear attention, layer by layer.

The near `window` tokens keep softmax's weights, all earlier ones get phi(q) . phi(k) (LoLCATs: Zhang, Arora et al.
2025, arXiv:2410.10254, equation 6; phi: Hedgehog, Zhang, Bhatia et al. 2024, arXiv:2402.04347). `match`, then `tune`.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, get_cosine_schedule_with_warmup

from lib import metrics, packing, profile
from lib.explore import attention

FORMS = {  # what a converted layer computes: how many near tokens keep softmax, and what sees further
    "linear": {"window": 0, "far": "linear"},
    "linear+window": {"window": 32, "far": "linear"},
    "delta+window": {"window": 32, "far": "delta"},
    "window": {"window": 32, "far": None},  # a control: no far part, nothing to learn
}
CUE = "\nRemember the package"  # of three tried, the one whose names the base model copies best


class FeatureMaps(nn.Module):
    """phi(x) = [softmax(x W), softmax(-x W)] per head, one W for queries and one for keys; features F = 2 D.
    query (H, D, D) and key (H_kv, D, D) start at the identity times D^-1/4, so that x W . y W starts as the score
    x . y / sqrt(D). near (H,): log of how much more a near token's softmax weight counts than a far one's product.
    write (H_kv, D + 1): of the delta rule's strength beta, a sigmoid of a linear map of the key, one half at first."""

    def __init__(self, n_head: int, n_kv: int, head_dim: int) -> None:
        super().__init__()
        start = torch.eye(head_dim) * head_dim**-0.25
        self.query, self.key = (nn.Parameter(start.repeat(n, 1, 1)) for n in (n_head, n_kv))
        self.near = nn.Parameter(torch.zeros(n_head))
        self.write = nn.Parameter(torch.zeros(n_kv, head_dim + 1))
        self.error = None  # of the last pass under `matching`

    def of_query(self, q: Tensor) -> Tensor:
        """(B, H, T, D) -> (B, H, T, F)."""
        return _features(q @ self.query.to(q.dtype))

    def of_key(self, k: Tensor) -> Tensor:
        """(B, H_kv, T, D), or with heads repeated for grouped-query attention -> (B, same, T, F)."""
        return _features(k @ self.key.repeat_interleave(k.shape[1] // len(self.key), 0).to(k.dtype))

    def beta(self, k: Tensor) -> Tensor:
        """(B, H_kv, T, D), or with heads repeated -> (B, same, T)."""
        write = self.write.repeat_interleave(k.shape[1] // len(self.write), 0).to(k.dtype)[..., None]  # (H, D + 1, 1)
        return (F.pad(k, (0, 1), value=1.0) @ write)[..., 0].sigmoid()

    def of_scores(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The near weights e^near exp(s - max s) where `mask`, else 0. scores (B, H, ..., T_q, T_k)."""
        scores = scores.masked_fill(~mask, -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights * self.near.exp().to(scores.dtype).view(-1, *[1] * (scores.ndim - 2))


def _features(x: Tensor) -> Tensor:
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], dim=-1)


def hybrid_naive(q, k, v, scale, maps, window=32, far="linear", **_) -> Tensor:
    """Weights w_tj = e^near exp(s_tj - max s_t) for the last `window` tokens and phi(q_t) . phi(k_j) for earlier
    ones, divided by their sum; with the (T, T) weights in memory. q, k, v (B, H, T, D) -> (B, H, T, D).
    "delta": the far weights count together as before, for what S_t-window of `attention.delta_step` gives phi(q_t)
    instead of their mean of v (delta rules as the far part: Gu et al. 2025, arXiv:2508.15884; joined our own way)."""
    if not far:
        return attention.window_naive(q, k, v, scale, window=window)
    seen, distant = (attention._causal(q, k).tril(-n) for n in (0, window))
    feature_q, feature_k, beta = maps.of_query(q), maps.of_key(k), maps.beta(k)
    weights = feature_q @ feature_k.mT * distant  # (B, H, T, T)
    total, out = weights.sum(-1, keepdim=True), weights @ v
    if far == "delta":
        state, read = None, torch.zeros_like(v)
        for t in range(window, q.shape[2]):
            one, old = slice(t, t + 1), slice(t - window, t - window + 1)
            given = (feature_q[:, :, one], feature_k[:, :, old], v[:, :, old], scale, beta[:, :, old])
            read[:, :, one], state = attention.delta_step(state, *given)
        out = total * read
    if window:
        weights = maps.of_scores(q @ k.mT * scale, seen & ~distant)
        total, out = total + weights.sum(-1, keepdim=True), out + weights @ v
    return out / total


def hybrid(q, k, v, scale, maps=None, window=32, far="linear", **_) -> Tensor:
    """`hybrid_naive` in O(T): blocks of `window` queries see their own block and the one before it, the far tokens
    of which go through the feature maps; what lies further back is one running sum of phi(k)^T v."""
    if maps is None:
        return attention.softmax_sdpa(q, k, v, scale)
    if not far:
        return attention.window(q, k, v, scale, window=window)
    length = q.shape[2]
    feature_q, feature_k = maps.of_query(q), maps.of_key(k)
    if not window:
        return attention.kernel(feature_q, feature_k, v, scale, phi=lambda x, **_: x)
    w = min(window, length)
    if far == "delta":  # its keys and values `w` tokens late, and the window in blocks
        late_k, late_v, beta = (F.pad(x, (0, 0, w, 0))[:, :, :length] for x in (feature_k, v, maps.beta(k)[..., None]))
        total = (feature_q * late_k.cumsum(2)).sum(-1, keepdim=True)  # (B, H, T, 1), what the far weights add up to
        read = attention.delta(feature_q, late_k, late_v, scale, beta[..., 0])
        q, k, v = attention._chunks(q, w), attention._pairs(k, w), attention._pairs(F.pad(v, (0, 1), value=1.0), w)
        near = maps.of_scores(q @ k.mT * scale, attention._near(q)) @ v
        out = near.flatten(2, 3)[:, :, :length] + total * F.pad(read, (0, 1), value=1.0)
        return out[..., :-1] / out[..., -1:]
    v = F.pad(v, (0, 1), value=1.0)  # a column of ones carries the denominator
    q, feature_q = attention._chunks(q, w), attention._chunks(feature_q, w)
    k, v, feature_k = (attention._pairs(x, w) for x in (k, v, feature_k))  # (B, H, N, 2w, .)
    states = (feature_k[:, :, :, w:].mT @ v[:, :, :, w:]).cumsum(2)  # (B, H, N, F, D + 1), sums up to each block
    states = F.pad(states, (0, 0, 0, 0, 2, 0))[:, :, :-2]  # up to the block before the last one
    far = torch.ones(w, 2 * w, dtype=torch.bool, device=q.device).tril()
    weights = maps.of_scores(q @ k.mT * scale, attention._near(q)) + feature_q @ feature_k.mT * far
    out = (feature_q @ states + weights @ v).flatten(2, 3)[:, :, :length]
    return out[..., :-1] / out[..., -1:]


def hybrid_step(state, q, k, v, scale, maps=None, window=32, far="linear", **_) -> tuple[Tensor, tuple]:
    """One token. q (B, H, 1, D), k and v (B, H_kv, 1, D) -> output (B, H, 1, D) and the state, None at the start: keys
    and values (B, H_kv, n, D) that softmax still needs (all of them without maps), and the sum (B, H_kv, F, D + 1) of
    all that left the window, for "delta" its matrix beside the sum of the features."""
    keys, values, far_sum = state or (k[:, :, :0], v[:, :, :0], None)
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    leaving = max(keys.shape[2] - window, 0) if maps is not None else 0
    (old_k, keys), (old_v, values) = ((x[:, :, :leaving], x[:, :, leaving:]) for x in (keys, values))
    if maps is None or not far:
        out = F.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True)
        return out, (keys, values, None)
    feature_k, groups = maps.of_key(old_k), q.shape[1] // k.shape[1]
    feature_q = maps.of_query(q)[:, :, 0].unflatten(1, (-1, groups))  # (B, H_kv, G, F)
    before, update = far_sum, feature_k.mT @ F.pad(old_v, (0, 1), value=1.0)
    far_sum = update if before is None else before + update
    out = feature_q @ far_sum  # (B, H_kv, G, D + 1)
    if far == "delta":
        matrix = None if before is None else before[..., :-1]
        read, matrix = attention.delta_step(matrix, feature_q, feature_k, old_v, scale, maps.beta(old_k))
        far_sum = torch.cat([matrix, far_sum[..., -1:]], -1)
        out = out[..., -1:] * F.pad(read, (0, 1), value=1.0)
    out = out.flatten(1, 2)[:, :, None]  # (B, H, 1, D + 1)
    if window:
        seen, shown = (x.repeat_interleave(groups, 1) for x in (keys, values))
        scores = q @ seen.mT * scale
        weights = maps.of_scores(scores, torch.ones_like(scores, dtype=torch.bool))
        out = out + weights @ F.pad(shown, (0, 1), value=1.0)
    return out[..., :-1] / out[..., -1:], (keys, values, far_sum)


def matching(q, k, v, scale, maps, **options) -> Tensor:
    """Softmax attention that also leaves maps.error: mean |hybrid - softmax|^2 / mean |softmax|^2 of the outputs. All
    layers see the unconverted model's inputs, so that one pass trains the maps of all of them, and only the maps."""
    wanted = attention.softmax_sdpa(q, k, v, scale)
    with torch.enable_grad():
        found = hybrid(q.detach(), k.detach(), v.detach(), scale, maps, **options)
        maps.error = (found - wanted).square().mean() / wanted.square().mean()
    return wanted


for _name, _form in (("hybrid", hybrid), ("hybrid_matching", matching)):
    attention.register(_name, attention.Attention(_form))
    del attention.ATTENTIONS[_name]  # not an attention that notebook 06 could choose


def attend_step(module, query, key, value, attention_mask, scaling, **_):
    """One token of a recurrent run, for transformers: the state is module.recurrent_state, None at the start."""
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (x.float() for x in (query, key, value))
        out, module.recurrent_state = hybrid_step(module.recurrent_state, q, k, v, scaling, **module.attention_options)
    return out.to(query.dtype).transpose(1, 2), None


AttentionInterface.register("hybrid_step", attend_step)
AttentionMaskInterface.register("hybrid_step", lambda *_, **__: None)


@contextmanager
def converted(model, maps: Mapping[int, FeatureMaps], form: str, run="hybrid") -> Iterator[PreTrainedModel]:
    """Inside, the layers in `maps` run `form` (a name in FORMS), the others softmax; then all softmax again. `run`:
    "hybrid", "hybrid_matching" or "hybrid_step"."""
    before, modules = model.config._attn_implementation, attention.attention_modules(model)
    for module in modules:
        module.feature_maps = maps.get(module.layer_idx)  # a child: inside, model.parameters() holds the maps as well
        module.attention_options = FORMS[form] | {"maps": module.feature_maps}
        module.recurrent_state = None
    model.set_attn_implementation(run)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
        for module in modules:
            del module.feature_maps, module.attention_options, module.recurrent_state
        for m in maps.values():
            m.error = None


def new_maps(model: PreTrainedModel) -> dict[int, FeatureMaps]:
    """Fresh feature maps for every layer."""
    n_head, layers = model.config.num_attention_heads, attention.attention_modules(model)
    n_kv = n_head // getattr(layers[0], "num_key_value_groups", 1)
    return {m.layer_idx: FeatureMaps(n_head, n_kv, m.head_dim).to(model.device) for m in layers}


class Rows(NamedTuple):
    """A stream of documents in rows (1, length + 1) that overlap by one token: each is predicted once."""

    ids: list[Tensor]
    n_bytes: int  # UTF-8 bytes of the documents; EOS has none


def rows(base, task, split: str, tokens: int, length: int, seed: int | None = None) -> Rows:
    """Whole documents of a split until `tokens` tokens are reached, in `seed`'s order (None: the task's)."""
    documents, end = list(task[split]), base.tokenizer.eos_token_id
    ids, n_bytes = [end], 0
    for document in packing.draw(documents, len(documents), seed, size=lambda _: 1):  # each once
        text = document["prompt"] + document["target"]
        ids += [*base.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, end]
        n_bytes += len(text.encode("utf-8"))
        if len(ids) > tokens:
            break
    else:
        raise ValueError(f"{task.name}'s {split} split holds {len(ids):,} tokens, not {tokens:,}: ask for fewer.")
    stream = torch.tensor(ids, device=base.model.device)
    return Rows([stream[s : s + length + 1][None] for s in range(0, len(stream) - 1, length)], n_bytes)


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, text: Rows) -> float:
    """Sum of nats / ln 2 over all tokens of the stream, EOS included, per UTF-8 byte of its documents."""
    nats = 0.0
    with metrics.float32_logits(model), profile.autocast():
        for row in text.ids:
            logits = model(row[:, :-1], use_cache=False).logits[0]
            nats += float(metrics.token_nats(logits, row[0, 1:]).double().sum())
    return nats / math.log(2) / text.n_bytes


@torch.no_grad()
def copied(model, tokenizer, names: Sequence[str], text: Rows, distance: int) -> dict[str, list]:
    """Is a name written again `distance` tokens after it was first read? EOS, the cue, a name, as much of `text`, the
    cue, and the name that is scored. Per name `copied`, whether each of its tokens is the likeliest (so greedy decoding
    writes it), and `bits`, how many fewer it takes than where the name before it in `names` had stood instead."""
    cue, stop, *coded = tokenizer([CUE, ".", *(f" {name}" for name in names)], add_special_tokens=False)["input_ids"]
    stream, found = torch.cat([row[0, :-1] for row in text.ids]).tolist(), {"copied": [], "bits": []}
    for i, name in enumerate(tqdm(coded, desc=f"a name from {distance:,} tokens back", disable=None, leave=False)):
        bits = []
        for planted in (coded[i - 1], name):
            end = distance + i * (len(stream) - distance) // len(coded)  # the same text before either
            between = stream[end - distance + len(planted + stop + cue) : end]
            row = [tokenizer.eos_token_id, *cue, *planted, *stop, *between, *cue, *name]
            row = torch.tensor(row, device=text.ids[0].device)
            with metrics.float32_logits(model), profile.autocast():
                logits = model(row[None, :-1], use_cache=False).logits[0, -len(name) :]
            bits.append(float(metrics.token_nats(logits, row[-len(name) :]).double().sum()) / math.log(2))
        found["copied"].append(bool((logits.argmax(-1) == row[-len(name) :]).all()))
        found["bits"].append(bits[0] - bits[1])
    return found


def _optimise(parameters, text: Rows, rate: float, loss_of: Callable[[Tensor], Tensor], desc: str) -> None:
    """One pass over `text`, a row a step: AdamW, a tenth of the steps warm-up, then a cosine to 0."""
    parameters, steps = list(parameters), len(text.ids)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 10, 1), steps)
    half = profile.autocast_dtype() == torch.bfloat16  # float16 would need its loss scaled
    for row in tqdm(text.ids, desc=desc):
        with torch.autocast(row.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(row)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def match(model: PreTrainedModel, text: Rows, form: str, rate: float, desc: str) -> dict[int, FeatureMaps]:
    """Feature maps of all layers, trained to give softmax attention's outputs on `text` (attention transfer: LoLCATs,
    section 3.2). The model's own weights stay and get no gradient."""
    maps = new_maps(model)

    def loss_of(row: Tensor) -> Tensor:
        with torch.no_grad():
            model.base_model(row[:, :-1], use_cache=False)
        return torch.stack([m.error for m in maps.values()]).sum()

    with converted(model, maps, form, "hybrid_matching"):
        _optimise([p for m in maps.values() for p in m.parameters()], text, rate, loss_of, desc)
    return maps


@torch.no_grad()
def matching_errors(model: PreTrainedModel, maps: dict[int, FeatureMaps], form: str, text: Rows) -> list[float]:
    """Per layer |hybrid - softmax|^2 / |softmax|^2 of the outputs, mean over the rows; 0: equal, 1: as bad as 0."""
    errors = []
    with converted(model, maps, form, "hybrid_matching"), profile.autocast():
        for row in text.ids:
            model.base_model(row[:, :-1], use_cache=False)
            errors.append(torch.stack([m.error for m in maps.values()]).cpu())
    return torch.stack(errors).mean(0).tolist()


def tune(model: PreTrainedModel, maps: dict[int, FeatureMaps], form: str, text: Rows, rate: float, desc: str) -> tuple:
    """Brief fine-tuning with the layers in `maps` converted, all parameters and the maps moving, without dropout:
    copies of the model and of the maps. What was passed stays as it is."""
    model, maps = copy.deepcopy(model), copy.deepcopy(maps)

    def loss_of(row: Tensor) -> Tensor:
        return F.cross_entropy(model(row[:, :-1], use_cache=False).logits[0].float(), row[0, 1:])

    with converted(model, maps, form):
        _optimise(model.parameters(), text, rate, loss_of, desc)
    return model, maps
