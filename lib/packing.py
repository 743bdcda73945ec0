"""Sequence packing without padding and without attention across documents.

Whole documents are laid end to end in one row; each keeps its own `position_ids` from 0 and attends to itself alone.
That is exact: the logits equal those of one document at a time (tests/test_packing.py). Masks, positions: Krell et al.
2021, "Efficient sequence packing without cross-contamination", arXiv:2107.02027; first fit decreasing: Johnson 1973."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import AttentionInterface, PreTrainedModel

from lib.fast import causal_attention


@dataclass(frozen=True)
class Encoded:
    """One document in token ids: prompt, target, EOS. The first `prompt_length` tokens are no target."""

    input_ids: list[int]
    prompt_length: int
    target_bytes: int  # UTF-8 bytes of the target text; EOS adds a token and no byte
    id: str = ""


def attend_within_documents(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, cu_seq_lens_q=None, **_
):
    """Causal attention inside each document of a packed row, for transformers' AttentionInterface.

    query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D). `cu_seq_lens_q` are the document bounds 0 .. T.
    One call per document: a masked (T, T) would spend a third of a CPU step on scores that the mask throws away. On a
    GPU, where the launches of many small calls are what takes the time, one call for all (`attend_padded`)."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary positions leave float32 under autocast
    if query.is_cuda:
        return attend_padded(query, key, value, scaling, dropout, cu_seq_lens_q), None
    lengths = cu_seq_lens_q.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    out = [causal_attention(q, k, v, scaling, dropout, grouped) for q, k, v in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


@lru_cache(maxsize=1)  # all layers get the same tensor of bounds, and reading it makes the GPU wait
def _places(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
    """Where the tokens of a row (T,) stand among its documents padded to the longest: (documents, longest)."""
    lengths = bounds.diff()
    inside = torch.arange(int(lengths.max()), device=bounds.device) < lengths[:, None]
    return inside.flatten().nonzero().squeeze(1), inside.shape


def attend_padded(query, key, value, scaling, dropout, bounds: torch.Tensor) -> torch.Tensor:
    """`attend_within_documents` in one call, (1, T, H, D): documents padded behind their end, where no token looks."""
    places, shape = _places(bounds)
    padded = []
    for x in (query, key, value):  # (1, H, T, D) -> (documents, H, longest, D)
        room = x.new_zeros(shape.numel(), *x.shape[1::2]).index_copy(0, places, x[0].transpose(0, 1))
        padded.append(room.unflatten(0, shape).transpose(1, 2))
    out = causal_attention(*padded, scaling, dropout, query.shape[1] != key.shape[1])
    return out.transpose(1, 2).flatten(0, 1).index_select(0, places)[None]


AttentionInterface.register("documents", attend_within_documents)


@contextmanager
def document_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, `model` attends within packed documents; its own attention is restored after."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, cache = base.config._attn_implementation, base.config.use_cache
    base.set_attn_implementation("documents")
    base.config.use_cache = False  # a cache is never read here, and building one costs memory
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        base.config.use_cache = cache


def pack(documents: Sequence[Encoded], pack_length: int) -> list[list[int]]:
    """Rows of document indices by first fit decreasing, each at most `pack_length` tokens or one longer document."""
    rows, room = [[] for _ in documents], [pack_length] * len(documents)  # indices; tokens that still fit
    for i in sorted(range(len(documents)), key=lambda i: -len(documents[i].input_ids)):
        n = len(documents[i].input_ids)
        r = next(r for r, free in enumerate(room) if n <= free or not rows[r])
        rows[r].append(i)
        room[r] -= n
    return [row for row in rows if row]


def flatten(documents: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The model inputs of one packed row.

    input_ids and position_ids (1, T); cu_seq_lens_q (documents + 1,); logits_to_keep (N,), the positions whose next
    token is a target: logits exist for those alone; labels (1, N), those next tokens, EOS among them; document (N,)."""
    ids, positions, bounds, keep, labels, owner = [], [], [0], [], [], []
    for d, doc in enumerate(documents):
        start, n = bounds[-1], len(doc.input_ids)
        ids += doc.input_ids
        positions += range(n)
        bounds.append(start + n)
        first = max(doc.prompt_length, 1)  # without a prompt the first token has nothing before it
        keep += range(start + first - 1, start + n - 1)
        labels += doc.input_ids[first:]
        owner += [d] * (n - first)
    row = {"input_ids": [ids], "position_ids": [positions], "labels": [labels]}
    row |= {"logits_to_keep": keep, "document": owner}
    row = {name: torch.tensor(numbers) for name, numbers in row.items()}
    return row | {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32)}


def draw(documents: Sequence, tokens: int, seed: int | None, size=lambda document: len(document.input_ids)) -> list:
    """Documents in a random order of `seed` (None: as they stand), epoch after epoch, until `tokens` tokens are drawn;
    `size` measures a document in something else."""
    generator, n = torch.Generator().manual_seed(seed or 0), len(documents)
    drawn, total, order = [], 0, []
    while total < tokens:
        if not order:
            order = [*range(n)] if seed is None else torch.randperm(n, generator=generator).tolist()
        drawn.append(documents[order.pop(0)])
        total += size(drawn[-1])
    return drawn


def rows(drawn: Sequence[Encoded], pack_length: int, multiple: int) -> list[list[Encoded]]:
    """Packed rows, in windows of about 16, which Trainer shuffles; their number is a multiple of the rows behind
    one step (the emptiest are left out)."""
    windows, total = [[]], 0
    for document in drawn:
        if total >= 16 * pack_length:
            windows.append([])
            total = 0
        windows[-1].append(document)
        total += len(document.input_ids)
    out = [[window[i] for i in row] for window in windows for row in pack(window, pack_length)]
    fullest = sorted(range(len(out)), key=lambda r: -sum(len(d.input_ids) for d in out[r]))
    keep = max(len(out) // multiple * multiple, min(multiple, len(out)))
    return [out[r] for r in sorted(fullest[:keep])]
