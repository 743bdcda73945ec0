"""What notebook 10 shows of lib.explore.compress: the bits of each token, and what bit-identical numbers hang on."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from lib.explore.compress import Codec, use_threads, walk
from lib.explore.escapes import to_ids
from lib.generate import token_text


def token_bits(codec: Codec, text: str) -> pd.DataFrame:
    """What each token of `text` costs: columns token, probability, bits (-log2 of it)."""
    ids = to_ids(codec.tokenizer, text)
    p = _distributions(codec, np.array([ids]))[:, 0]  # (T, V)
    own = p[np.arange(len(ids)), ids].astype(float)
    tokens = [token_text(codec.tokenizer, i) for i in ids]
    return pd.DataFrame({"token": tokens, "probability": own, "bits": -np.log2(own)})


def bit_identity(codec: Codec, documents: Sequence[bytes], tokens: int) -> pd.DataFrame:
    """Does the same model give the same distribution, bit by bit, when the computation is arranged otherwise?

    Columns arrangement, positions, identical (share of positions whose distribution over the whole
    vocabulary is equal in every bit), largest_difference (of ln p of the token that follows, nats).
    The first `tokens` tokens of documents that have as many.
    """
    ids = [to_ids(codec.tokenizer, d.decode())[:tokens] for d in documents]
    ids = np.array([i for i in ids if len(i) == tokens])
    reference, threads = _distributions(codec, ids), torch.get_num_threads()
    half = ids[: max(len(ids) // 2, 1)]
    with use_threads(1 if threads > 1 else 2):
        other = _distributions(codec, ids)
    ways = {
        "the same again": _distributions(codec, ids),
        f"{len(half)} documents side by side, not {len(ids)}": _distributions(codec, half),
        f"{1 if threads > 1 else 2} thread(s), not {threads}": other,
        "the text in one pass, no cache": _one_pass(codec, ids),
    }
    rows = []
    for name, p in ways.items():
        same = (p == reference[:, : p.shape[1]]).all(-1)
        chosen = np.arange(tokens)[:, None], np.arange(p.shape[1])[None], ids[: p.shape[1]].T
        difference = np.abs(np.log(p[chosen]) - np.log(reference[chosen]))
        rows.append(
            {
                "arrangement": name,
                "positions": same.size,
                "identical": float(same.mean()),
                "largest_difference": float(difference.max()),
            }
        )
    return pd.DataFrame(rows)


def _distributions(codec: Codec, ids: np.ndarray) -> np.ndarray:
    """ids (rows, T) -> (T, rows, V): what `walk` gives the coder."""
    seen = []

    def code(step, p):
        seen.append(p)
        return ids[:, step].astype(np.int32)

    walk(codec, [ids.shape[1]] * len(ids), code)
    return np.stack(seen)


@torch.no_grad()
def _one_pass(codec: Codec, ids: np.ndarray) -> np.ndarray:
    start = np.full((len(ids), 1), codec.tokenizer.eos_token_id)
    fed = torch.from_numpy(np.concatenate([start, ids[:, :-1]], axis=1)).to(codec.model.device)
    return codec.model(fed).logits.float().softmax(-1).transpose(0, 1).cpu().numpy()
