"""Bits per byte and token perplexity of held-out text, and how sure their differences are.

One function, `score`, measures every model before and after: nats per document. The ratios are taken afterwards:

- bits per byte = sum of nats / (ln 2 * sum of UTF-8 bytes of the targets). Comparable across tokenizers (Gao et al.
  2020, "The Pile", arXiv:2101.00027, section 3.1).
- token perplexity = exp(sum of nats / sum of target tokens). Comparable for one tokenizer only.

EOS is a target token (it costs nats and has no byte); prompt tokens are not; there is no padding."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.special import expit, logit
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lib import profile
from lib.fast import ONEDNN_ROWS, matmul_precision, onednn_precision, rows_at_a_time
from lib.packing import Encoded, document_attention, flatten, pack
from lib.tasks import encode

FEW = 50  # groups, with fewer than which a percentile bootstrap's interval is too narrow


def token_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats, float32: logits (N, V), labels (N,) -> (N,). Probabilities never exist whole."""
    parts = zip(*(x.split(rows_at_a_time(logits)) for x in (logits, labels)), strict=True)
    return torch.cat([F.cross_entropy(x.float(), y, reduction="none") for x, y in parts])


@contextmanager
def float32_logits(model: PreTrainedModel) -> Iterator[None]:
    """Inside, in eval mode, the output layer computes in its weights' dtype, under autocast as well: GPT-2's logits lie
    near -100, where neighbouring bfloat16 numbers are 0.5 nats apart."""
    head, was_training = model.get_output_embeddings(), model.training
    forward = head.forward

    def exact(hidden: torch.Tensor) -> torch.Tensor:  # (1, N, C) -> (1, N, V)
        precision = onednn_precision() if hidden.shape[-2] >= ONEDNN_ROWS else torch.get_float32_matmul_precision()
        with torch.autocast(hidden.device.type, enabled=False), matmul_precision(precision):
            return forward(hidden.to(head.weight.dtype))

    head.forward = exact
    model.eval()
    try:
        yield
    finally:
        del head.forward
        model.train(was_training)


@torch.no_grad()
def token_scores(model, encoded: Sequence[Encoded], pack_length: int = 2_048, desc: str = "scoring") -> list[tuple]:
    """Per document, in the order given: the nats of each target token, float32 (n,), and whether it is the model's most
    probable token, bool (n,). Documents share rows of `pack_length` tokens without seeing each other. The first token
    of a document without a prompt has nothing before it and is not scored. Raises ValueError for fewer than 2 tokens.
    """
    if short := [e.id or i for i, e in enumerate(encoded) if len(e.input_ids) < 2]:
        raise ValueError(f"Document {short[0]} has fewer than 2 tokens: there is none to score.")
    packs = pack(encoded, pack_length)
    device = next(model.parameters()).device
    out: list = [None] * len(encoded)
    with document_attention(model), float32_logits(model), profile.autocast():
        for indices in tqdm(packs, desc=desc, disable=len(packs) < 8):
            batch = {k: v.to(device) for k, v in flatten([encoded[i] for i in indices]).items()}
            # The last token predicts nothing: a window of one more token than the model has positions fits.
            batch["position_ids"].clamp_(max=model.config.max_position_embeddings - 1)
            labels, document = batch.pop("labels")[0], batch.pop("document").cpu()
            logits = model(**batch).logits[0]  # (N, V)
            nats = token_nats(logits, labels).cpu()
            greedy = (logits.argmax(-1) == labels).cpu()
            for d, i in enumerate(indices):
                out[i] = (nats[document == d], greedy[document == d])
    return out


def score_encoded(model, encoded: Sequence[Encoded], pack_length: int = 2_048, desc: str = "scoring") -> pd.DataFrame:
    """A row per document, in the order given: id, nats (sum over the target's tokens, EOS included), tokens, bytes."""
    scored = zip(encoded, token_scores(model, encoded, pack_length, desc), strict=True)
    rows = [(e.id, float(nats.double().sum()), len(nats), e.target_bytes) for e, (nats, _) in scored]
    return pd.DataFrame(rows, columns=["id", "nats", "tokens", "bytes"])


def score(model, tokenizer, rows: Sequence[Mapping], desc: str = "scoring") -> pd.DataFrame:
    """How many nats `model` spends on the target of each row of a task, given its prompt: `score_encoded` with the
    row's group. Raises ValueError for a document longer than the model's context."""
    frame = score_encoded(model, encode(tokenizer, rows, model.config.max_position_embeddings), desc=desc)
    frame.insert(1, "group", [row["group"] for row in rows])
    return frame


def bits_per_byte(scores: pd.DataFrame) -> float:
    """Sum of nats / (ln 2 * sum of target bytes). Raises ValueError where there is no byte."""
    if not scores["bytes"].sum():
        raise ValueError("Bits per byte of no text: the targets hold no byte; score some documents.")
    return float(scores["nats"].sum() / (math.log(2) * scores["bytes"].sum()))


def describe(scores: pd.DataFrame) -> dict[str, float]:
    """Bits per byte, token perplexity (EOS in both its sums; depends on the tokenizer) and the sums behind them."""
    nats, tokens, size = (scores[column].sum().item() for column in ("nats", "tokens", "bytes"))
    ratios = {"bits_per_byte": bits_per_byte(scores), "perplexity": math.exp(nats / tokens)}
    return ratios | {"nats": nats, "tokens": tokens, "bytes": size, "documents": len(scores)}


def mean_interval(values: Sequence[float], top: float = math.inf) -> tuple[float, float, float]:
    """Mean over seeds and its two-sided 95 % t interval: (mean, low, high), nan bounds for one value. That of shares of
    `top` (1, or 100 for percent) is on the logit scale, so that it stays between 0 and `top` (Korn and Graubard 1998).
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("The mean of no value: pass one value per seed.")
    mean = float(x.mean())
    half = stats.t.ppf(0.975, x.size - 1) * stats.sem(x) if x.size > 1 else math.nan
    if not 0 < mean < top < math.inf:
        return mean, float(mean - half), float(mean + half)
    share = mean / top
    ends = logit(share) + np.array([-half, half]) / (top * share * (1 - share))  # delta method
    return mean, *(top * expit(ends)).tolist()


def paired(before, after, numerator: str = "nats", denominator: str | None = "bytes") -> dict:
    """Is the difference between two models larger than the choice of documents explains?

    `before` and `after`: a frame, or one per seed. Documents are the sampling unit: their values are averaged over the
    seeds first. The measure is sum(numerator) / sum(denominator), of nats in bits; `denominator=None` for a metric with
    one value per document (chrF). Raises ValueError where the documents differ.

    before, after, difference (after - before); low, high: its 95 % interval, a percentile bootstrap over groups (Efron
    and Tibshirani 1993), of few groups t with the ratio's linearised error (Cochran 1977, section 6.8); p_value:
    two-sided, the signs of the groups' differences flipped at random or in all ways; documents; clusters: groups; how.
    """
    scale = 1 / math.log(2) if numerator == "nats" else 1.0
    sides = [[x] if isinstance(x, pd.DataFrame) else list(x) for x in (before, after)]
    first, same = sides[0][0], ["id", denominator] if denominator else ["id"]
    if not all(np.array_equal(first[same], frame[same]) for side in sides for frame in side):
        raise ValueError("The runs scored different documents: score the same examples in one order.")
    sizes = first[denominator].to_numpy(float) if denominator else np.ones(len(first))
    b, a = (np.mean([frame[numerator].to_numpy(float) for frame in side], axis=0) for side in sides)
    sums = pd.DataFrame({"gap": scale * (a - b), "d": sizes}).groupby(list(first.get("group", first["id"]))).sum()
    gap, d, n = sums["gap"].to_numpy(), sums["d"].to_numpy(), len(sums)
    left = gap - d * gap.sum() / d.sum()  # residuals of the ratio
    half = stats.t.ppf(0.975, n - 1) * stats.sem(left) * n / d.sum() if n > 1 else math.nan
    low, high = gap.sum() / d.sum() + np.array([-half, half])
    if n >= FEW:
        options = {"n_resamples": 10_000, "paired": True, "method": "percentile", "rng": 0}
        ratio = stats.bootstrap((gap, d), lambda gap, d, axis: gap.sum(axis) / d.sum(axis), **options)
        low, high = ratio.confidence_interval
    flips = {"permutation_type": "samples", "n_resamples": 10_000, "batch": 1_000, "rng": 0}
    p = stats.permutation_test((gap,), np.sum, **flips).pvalue if gap.any() and n > 1 else 1.0
    x, y = (float(scale * values.sum() / d.sum()) for values in (b, a))
    how = f"{'bootstrap' if n >= FEW else 't'} interval and sign-flip test over groups"
    found = {"before": x, "after": y, "difference": y - x, "low": float(low), "high": float(high), "p_value": float(p)}
    return found | {"documents": len(first), "clusters": n, "how": how}
