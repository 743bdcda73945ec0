"""Causal attention variants in one registry, for transformers' AttentionInterface.

A variant is one function of queries, keys and values and one line of ATTENTIONS; the same name works in a small GPT-2
trained from scratch (lib.explore.scratch) and in a pretrained model (`use_attention`). A fast `form` has a readable
`naive` or `step` beside it; tests/test_attention.py compares them and checks that no variant sees the future.
All take q (B, H, T_q, D), k and v (B, H, T_k, D) and give (B, H, T_q, D). The softmaxes and the naive forms take the
queries of the last T_q positions; the others want T_q = T_k, and `_padding_last` pads what a cache left out. What is
causal needs no padding mask if the padding comes last: `_padding_last` brings each row's real tokens to the front."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

CHUNK = 64  # tokens: quadratic work inside a chunk is then as large as a head's state, 64 x 64


def softmax(q, k, v, scale, mask=None, bias=None, **_) -> Tensor:
    """softmax(q k^T scale + bias) v with the (T_q, T_k) scores in memory (Vaswani et al. 2017, 1706.03762).
    mask (B, 1, T_q, T_k), True: seen; bias(T_q, T_k, device) -> (H, T_q, T_k). A query that sees nothing gives 0."""
    mask = _causal(q, k) if mask is None else mask
    scores = q @ k.mT * scale  # (B, H, T_q, T_k)
    if bias is not None:
        scores = scores + bias(q.shape[2], k.shape[2], q.device)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights * mask.any(-1, keepdim=True) @ v


def softmax_sdpa(q, k, v, scale, mask=None, bias=None, **_) -> Tensor:
    """`softmax` by torch's fused kernel, which never holds the scores (Dao et al. 2022, 2205.14135)."""
    if mask is None and bias is None and q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    seen = _causal(q, k) if mask is None else mask
    if bias is not None:
        seen = bias(q.shape[2], k.shape[2], q.device).to(q.dtype).masked_fill(~seen, torch.finfo(q.dtype).min)
    out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale)
    return out if mask is None else out.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """(T_q, T_k), True where the key is not after the query."""
    n_q, n_k = q.shape[2], k.shape[2]
    return torch.ones(n_q, n_k, dtype=torch.bool, device=q.device).tril(n_k - n_q)


def window_naive(q, k, v, scale, bias=None, window=64, **_) -> Tensor:
    """Softmax over the last `window` tokens, the query's own included (Child et al. 2019, 1904.10509)."""
    seen = _causal(q, k)
    return softmax(q, k, v, scale, seen & ~seen.tril(k.shape[2] - q.shape[2] - window), bias)


def window(q, k, v, scale, bias=None, window=64, **_) -> Tensor:
    """`window_naive` in blocks of `window` queries that see their own block and the one before: O(T window)."""
    length, w = q.shape[2], min(window, q.shape[2])
    q, k, v = _chunks(q, w), _pairs(k, w), _pairs(v, w)
    seen = _near(q)
    if bias is not None:  # (H, 1, w, 2w), the same in every block
        seen = bias(w, 2 * w, q.device).to(q.dtype)[:, None].masked_fill(~seen, torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, seen, scale=scale).flatten(2, 3)[:, :, :length]


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, H, T, D) -> (B, H, N, size, D), zeros after the end: no earlier token sees them."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _pairs(x: Tensor, size: int) -> Tensor:
    """(B, H, T, D) -> (B, H, N, 2 size, D): each of the `_chunks` behind its predecessor, zeros before the first."""
    x = _chunks(x, size)
    return torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3)


def _near(q: Tensor) -> Tensor:
    """(N, w, 2w) for queries (B, H, N, w, D): True for the last w of the keys in `_pairs` up to the query's own."""
    n, w = q.shape[2:4]
    i, j = torch.arange(w, device=q.device)[:, None] + w, torch.arange(2 * w, device=q.device)
    first = torch.arange(n, device=q.device)[:, None, None] == 0  # nothing stands before it
    return (j <= i) & (j > i - w) & ~(first & (j < w))


def elu_features(x: Tensor, **_) -> Tensor:
    """elu(x) + 1 (Katharopoulos et al. 2020, 2006.16236); no 1 / sqrt(D), since it estimates no exponential."""
    return F.elu(x) + 1


def favor_features(x: Tensor, is_query=False, scale=1.0, features=64, **_) -> Tensor:
    """FAVOR+: exp(w.x' - |x'|^2 / 2) with x' = x sqrt(scale) and w the rows of `_projection`, whose products estimate
    exp(q.k scale) without bias (Choromanski et al. 2021, 2009.14794). A query's are divided by their largest, which
    cancels in the ratio; a key's maximum would depend on later tokens."""
    x = x * scale**0.5
    exponent = x @ _projection(x.shape[-1], features).to(x).mT - x.square().sum(-1, keepdim=True) / 2
    if is_query:
        exponent = exponent - exponent.amax(-1, keepdim=True).detach()
    return exponent.exp() + 1e-6  # as in the paper's TensorFlow code: a sum of them is never 0


@cache
def _projection(head_dim: int, features: int) -> Tensor:
    """(features, head_dim): orthogonal in blocks of head_dim rows, each row as long as a Gaussian's."""
    generator = torch.Generator().manual_seed(0)
    square = [torch.empty(head_dim, head_dim) for _ in range(-(-features // head_dim))]
    rows = torch.cat([nn.init.orthogonal_(x, generator=generator).T for x in square])[:features]
    return rows * torch.randn(features, head_dim, generator=generator).norm(dim=1, keepdim=True)


def kernel(q, k, v, scale, phi=elu_features, **options) -> Tensor:
    """sum_j<=t phi(q_t).phi(k_j) v_j / sum_j<=t phi(q_t).phi(k_j) in O(T): products inside chunks, running sums
    phi(k)^T v between them. A column of ones beside v carries the denominator; the sums are shifted, not differences,
    so that rounding brings in no later token."""
    length = q.shape[2]
    q, k = phi(q, is_query=True, scale=scale, **options), phi(k, scale=scale, **options)
    q, k, v = (_chunks(x, CHUNK) for x in (q, k, F.pad(v, (0, 1), value=1.0)))  # (B, H, N, C, .)
    states = F.pad((k.mT @ v)[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))  # (B, H, N, F, D + 1)
    out = (q @ states + (q @ k.mT).tril() @ v).flatten(2, 3)[:, :, :length]
    return out[..., :-1] / out[..., -1:]


def kernel_step(state, q, k, v, scale, phi=elu_features, **options) -> tuple[Tensor, Tensor]:
    """`kernel` for one token: q, k, v (B, H, 1, D), state (B, H, F, D + 1) or None -> output, state."""
    q, k = phi(q, is_query=True, scale=scale, **options), phi(k, scale=scale, **options)
    update = k.mT @ F.pad(v, (0, 1), value=1.0)
    state = update if state is None else state + update
    out = q @ state
    return out[..., :-1] / out[..., -1:], state


def delta_step(state, q, k, v, scale, beta=None, **_) -> tuple[Tensor, Tensor]:
    """S_t = S_t-1 + beta_t k_t (v_t - S_t-1^T k_t)^T, o_t = S_t^T q_t for one token: q, k, v (B, H, 1, D), writing
    strength beta (B, H, 1), state (B, H, D, D) or None -> output, state. It takes away what is stored under a key
    before it writes (Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", 2102.11174).
    Queries and keys have length 1, as in Yang et al. 2024 (2406.06484), without their SiLU, RMS norm, convolutions."""
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    old = 0.0 if state is None else k @ state  # (B, H, 1, D)
    update = k.mT @ ((v - old) * beta[..., None])
    state = update if state is None else state + update
    return q @ state, state


def delta(q, k, v, scale, beta=None, **_) -> Tensor:
    """`delta_step` for all tokens by chunks: the values U that a chunk really writes solve one triangular system,
    (I + tril(beta k k^T, -1)) U = beta (v - k S) for the state S before it (the WY form of Yang et al. 2024)."""
    length, width = q.shape[2], v.shape[-1]
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    q, k, v, beta = (_chunks(x, CHUNK) for x in (q, k, v, beta[..., None]))
    system = (beta * (k @ k.mT)).tril(-1)  # (B, H, N, C, C); the solver adds the unit diagonal
    solved = torch.linalg.solve_triangular(system, torch.cat([beta * v, beta * k], -1), upper=False, unitriangular=True)
    values, keys = solved.split([width, k.shape[-1]], dim=-1)
    inside = (q @ k.mT).tril()
    state, out = v.new_zeros(*v.shape[:2], k.shape[-1], width), []
    # unbind, since the gradient of an index is a whole tensor of zeros: chunk by chunk that is quadratic in T
    for q_n, k_n, values_n, keys_n, inside_n in zip(*(x.unbind(2) for x in (q, k, values, keys, inside)), strict=True):
        written = values_n - keys_n @ state  # (B, H, C, D)
        out.append(q_n @ state + inside_n @ written)
        state = state + k_n.mT @ written
    return torch.cat(out, dim=2)[:, :, :length]


def nystrom_naive(q, k, v, scale, segment=32, doubling=8, ridge=0.5, **_) -> Tensor:
    """Exact softmax near a query, Nystrom's approximation for the chunks of `segment` tokens before its own.

    Nystromformer (Xiong et al. 2021, 2102.03902) writes softmax(q k^T) v as F A^-1 B v with landmarks from the whole
    sequence, so tokens see later ones. The causal form is our own: one softmax over the row's first token, the query's
    chunk up to itself, and landmarks l, which are the mean keys of the segments that ended before that chunk and count
    as often as the segment has tokens. A segment is one chunk long, and twice as long after every `doubling` of them.
    A landmark's value is what makes attention right where p = l - l_1 asks (keys share a mean, which would let w differ
    by orders of magnitude): with B v = softmax(p k^T) v over the chunks before, w = size exp(scale |p|^2 / 2) and
    K = exp(-scale |p_m - p_n|^2 / 2) + ridge, it is w^-1 K^-1 diag(K w) B v, for ridge 0 the A^-1 B v of
    A = softmax(p l^T + log size). The first token is in no segment (a sink: Xiao et al. 2023, 2309.17453)."""
    outputs = []
    for t in range(q.shape[2]):
        start = 1 + max(t - 1, 0) // segment * segment
        keys, values = (torch.cat([x[:, :, :1], x[:, :, start : t + 1]], 2) for x in (k, v))
        edges = [1]
        while (end := edges[-1] + segment * 2 ** ((len(edges) - 1) // doubling)) <= start:
            edges.append(end)
        scores = q[:, :, t : t + 1] @ keys.mT * scale  # (B, H, 1, near)
        if start > 1:
            marks = torch.stack([k[:, :, i:j].mean(2) for i, j in pairwise(edges)], 2)
            sizes = torch.tensor(edges, device=q.device, dtype=q.dtype).diff()[:, None]  # (M, 1)
            p = marks - marks[:, :, :1]
            seen = (p @ k[:, :, 1:start].mT * scale).softmax(-1) @ v[:, :, 1:start]
            apart = (p[:, :, :, None] - p[:, :, None]).square().sum(-1)  # (B, H, M, M)
            system = (-scale / 2 * apart).exp() + ridge * torch.eye(len(sizes), device=q.device, dtype=q.dtype)
            w = sizes * (scale / 2 * p.square().sum(-1, keepdim=True)).exp()  # (B, H, M, 1)
            values = torch.cat([values, torch.linalg.solve(system, (system @ w) * seen) / w], 2)
            scores = torch.cat([scores, q[:, :, t : t + 1] @ marks.mT * scale + sizes.mT.log()], -1)
        outputs.append(scores.softmax(-1) @ values)
    return torch.cat(outputs, dim=2)


def nystrom(q, k, v, scale, segment=32, doubling=8, ridge=0.5, **_) -> Tensor:
    """`nystrom_naive` for all N chunks at once. The landmarks of a chunk are the first ones of M, and the factor of a
    leading block is the leading block of the factor, so one Cholesky factor of K serves all; B v comes from sums that
    run over the chunks. O(T segment + T M D + T M^2), and M grows with log T."""
    length, lowest = q.shape[2] - 1, torch.finfo(q.dtype).min
    if not length:
        return v
    first_k, first_v = k[:, :, None, :1], v[:, :, None, :1]  # (B, H, 1, 1, D)
    q, k, v = (_chunks(x[:, :, 1:], segment) for x in (q * scale, k, v))  # (B, H, N, c, D)
    chunk = torch.arange(q.shape[2], device=q.device)
    sizes = 2 ** (chunk // doubling).clamp(max=30)  # of segments, in chunks
    ends = sizes.cumsum(0)
    sizes, ends = (x[ends < max(len(chunk), 2)] for x in (sizes, ends))  # (M,)
    inside = (chunk < ends[:, None]) & (chunk >= (ends - sizes)[:, None])  # (M, N)
    ready = chunk[:, None] >= ends  # (N, M)
    marks = (inside / sizes[:, None]).to(q) @ k.mean(3)  # (B, H, M, D)
    log_size = (sizes * segment).to(q).log()
    late = torch.ones(segment, segment, dtype=torch.bool, device=q.device).triu(1)
    marked = (q @ marks[:, :, None].mT + log_size).masked_fill(~ready[:, None], lowest)
    scores = torch.cat([q @ first_k.mT, (q @ k.mT).masked_fill(late, lowest), marked], -1)
    first, near, far = scores.softmax(-1).split([1, segment, len(ends)], -1)  # (B, H, N, c, .)
    # B v = sums / mass, each over the chunks before; a landmark's largest score keeps exp in range and cancels
    p = marks - marks[:, :, :1]
    b = (k @ p[:, :, None].mT * scale).mT  # (B, H, N, M, c)
    b = (b - b.detach().amax((2, 4), keepdim=True)).exp()
    sums = F.pad((b @ v)[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))  # (B, H, N, M, D)
    mass = F.pad(b.sum(-1)[:, :, :-1].cumsum(2), (0, 0, 1, 0), value=1.0)  # (B, H, N, M)
    half = scale / 2 * p.square().sum(-1)  # (B, H, M)
    eye = torch.eye(len(ends), device=q.device, dtype=q.dtype)
    system = (scale * p @ p.mT - half[..., None] - half[..., None, :]).exp() + ridge * eye
    w = (half + log_size)[:, :, None]
    w = (w - w.detach().amax(-1, keepdim=True)).exp()  # its largest cancels too: (B, H, 1, M)
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(system), eye, upper=False)[:, :, None]
    # far w^-1 K^-1 diag(K w) / mass: what is not ready is 0 on either side of the factor, hence its block alone counts
    far = (far / w[:, :, None]) @ factor.mT * ready[:, None] @ factor
    far = far * (ready * ((w * ready) @ system) / mass)[:, :, :, None]
    out = first * first_v + near @ v + far @ sums
    return torch.cat([first_v[:, :, 0], out.flatten(2, 3)[:, :, :length]], dim=2)


@dataclass(frozen=True)
class Attention:
    """A variant: `form` is what models run, `naive` or the recurrent `step` its readable reference."""

    form: Callable[..., Tensor]
    naive: Callable[..., Tensor] | None = None
    step: Callable | None = None
    takes_bias: bool = False  # there are scores that ALiBi and T5 can be added to
    takes_mask: bool = False  # else rows are moved so that padding comes last
    options: Mapping[str, object] = field(default_factory=dict)
    gated: bool = False  # takes beta (B, H, T), a sigmoid of a linear map of all heads' keys


ATTENTIONS = {
    "softmax": Attention(softmax, takes_bias=True, takes_mask=True),
    "softmax_sdpa": Attention(softmax_sdpa, softmax, takes_bias=True, takes_mask=True),
    "window": Attention(window, window_naive, takes_bias=True, options={"window": 64}),
    "linear": Attention(kernel, step=kernel_step, options={"phi": elu_features}),
    "performer": Attention(kernel, step=kernel_step, options={"phi": favor_features, "features": 64}),
    "delta": Attention(delta, step=delta_step, gated=True),
    "nystrom": Attention(nystrom, nystrom_naive, options={"segment": 32, "doubling": 8, "ridge": 0.5}),
}


def register(name: str, entry: Attention) -> None:
    """Make `name` known here and to transformers."""
    ATTENTIONS[name] = entry
    AttentionInterface.register(name, _attend(name))
    AttentionMaskInterface.register(name, _padding)


def use_attention(model: PreTrainedModel, name: str, **options) -> PreTrainedModel:
    """Make `model`, pretrained or not, run the attention `name`, and return it. `options` replace the variant's own.
    New parameters (delta's beta) start from fixed seeds. Raises ValueError for an unknown variant or option."""
    if name not in ATTENTIONS:
        raise ValueError(f"No attention is called {name!r}: choose one of {', '.join(ATTENTIONS)}.")
    entry = ATTENTIONS[name]
    if unknown := set(options) - set(entry.options):
        raise ValueError(f"{name!r} has no option {min(unknown)!r}: it takes {', '.join(entry.options) or 'none'}.")
    for module in attention_modules(model):
        module.attention_options = dict(options)
        if entry.gated:
            n_head = model.config.num_attention_heads
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(module.layer_idx)
                module.beta = nn.Linear(n_head * module.head_dim, n_head)
                nn.init.normal_(module.beta.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.beta.bias)
                module.beta.to(model.device)
    model.set_attn_implementation(name)
    return model


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The self-attention modules of a GPT-2, Llama or similar model, by layer."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")]


def _padding(batch_size, q_length, kv_length, q_offset=0, attention_mask=None, device=None, **_) -> Tensor | None:
    """The mask that transformers passes on to `_attend`: (B, T_k), True for real tokens, or None. It ends with the
    last token: a static cache holds `kv_length` keys, the room for those to come among them."""
    length = min(kv_length, int(q_offset) + q_length)
    if attention_mask is None or bool(attention_mask.all()):
        return None if length == kv_length else torch.ones(batch_size, length, dtype=torch.bool, device=device)
    return attention_mask[:, -length:].bool()


def _attend(name: str) -> Callable:
    """What transformers calls in place of its own attention."""
    entry = ATTENTIONS[name]

    def attend(module, query, key, value, attention_mask, scaling, position_ids=None, **_):
        """query (B, H, T_q, D), key and value (B, H_kv, T_k, D), mask (B, T_k) -> (B, T_q, H, D); no dropout."""
        position = module.__dict__.get("position")
        biased = position is not None and position.code.bias
        if biased and not entry.takes_bias:
            known = ", ".join(n for n, e in ATTENTIONS.items() if e.takes_bias)
            raise ValueError(f"{position.name!r} adds to scores and {name!r} does not have any: choose one of {known}.")
        if attention_mask is not None:
            if attention_mask.ndim != 2:
                raise ValueError(f"attention {name!r} takes a padding mask (B, T), not {tuple(attention_mask.shape)}.")
            key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
        elif not module.layer_idx and position_ids is not None and bool((position_ids.diff() != 1).any()):
            raise ValueError(f"attention {name!r} takes one document a row: lib.packing has one for packed rows.")
        groups = query.shape[1] // key.shape[1]  # grouped-query attention: H_kv heads serve H queries
        if groups > 1:
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        given = entry.options | getattr(module, "attention_options", {}) | ({"bias": position.bias} if biased else {})
        if not entry.takes_mask:
            out = _padding_last(entry, module, position, query, key, value, attention_mask, scaling, given)
            return out.transpose(1, 2), None
        mask = None if attention_mask is None else _causal(query, key) & attention_mask[:, None, None]
        if position is not None:
            query, key = position.rotate(query, key)
        return entry.form(query, key, value, scaling, mask=mask, **given).transpose(1, 2), None

    return attend


def _padding_last(entry, module, position, q, k, v, mask, scale, given) -> Tensor:
    """The plain causal form in float32 (running sums drown in bfloat16's 8 bits), padding moved to the end."""
    n_q, n_k, dtype = q.shape[2], k.shape[2], v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        q = F.pad(q, (0, 0, n_k - n_q, 0))  # with a cache the queries are the last ones
        if mask is not None:
            order = (~mask).int().argsort(dim=1, stable=True)  # (B, T_k)
            q, k, v = (x.take_along_dim(order[:, None, :, None], 2) for x in (q, k, v))
        if entry.gated:
            written = k.transpose(1, 2).flatten(2).to(module.beta.weight.dtype)
            given = given | {"beta": module.beta(written).float().sigmoid().transpose(1, 2)}
        if position is not None:
            q, k = position.rotate(q, k)
        out = entry.form(q, k, v, scale, **given)
        if mask is not None:
            back = order.argsort(dim=1)[:, None, :, None]
            out = out.take_along_dim(back, 2).masked_fill(~mask[:, None, :, None], 0.0)
    return out[:, :, n_k - n_q :].to(dtype)


for _name, _entry in ATTENTIONS.items():
    register(_name, _entry)
