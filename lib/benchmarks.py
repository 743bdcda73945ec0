"""WikiText-2, LAMBADA and BLiMP: what fine-tuning forgets, each protocol named.

Four published perplexities of GPT-2 on WikiText-2's test text (29.41, 29.94, 37.37, 43.3) are one model under four
protocols: every result says its protocol, its counts and its part of the data. `lib.hub.outside` raises Unavailable."""

import json
import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.hub import outside
from lib.metrics import token_scores
from lib.packing import Encoded

ARTICLE = re.compile(r"\n(?= = (?!= ).* = (?:\n|$))")  # before each ` = Title = ` line of a raw WikiText file
# What wikitext's tokenisation becomes, in this order: lm-evaluation-harness's `wikitext_detokenizer`, whose odd
# rules (the second and the one for " N ") are kept, since 37.37 was measured with them.
_PAIRS = [(re.escape(o), re.escape(c), o + r"\1" + c) for o, c in ("()", "[]", "{}", '""', "''")]
DETOKENIZE = [
    *((r"s '", "s'"), (r"/' [0-9]/", "/'[0-9]/")),
    *((f" @{re.escape(sign)}@ ", sign) for sign in "-,."),
    *((f" {re.escape(sign)} ", f"{sign} ") for sign in ":;.!?,"),
    *((rf"{o}\s*([^{c}]*?)\s*{c}", pair) for o, c, pair in _PAIRS),
    *((" ".join("=" * n), "=" * n) for n in (4, 3, 2)),
    *((" ° ", "°"), (r" \n", "\n"), (r"\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]


def detokenize(page: str) -> str:
    """WikiText's spaced tokens as running text, by the rules of EleutherAI's lm-evaluation-harness."""
    for pattern, replacement in DETOKENIZE:
        page = re.sub(pattern, replacement, page)
    return page


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, bos: bool = False) -> list[int]:
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [first] * bos + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def wikitext2(model, tokenizer, max_tokens: int = 0, max_length: int = 1024) -> dict:
    """WikiText-2's test text under two protocols, side by side. GPT-2 117M: 29.94 and 37.37 in perplexity.

    token_*: blocks of `max_length` tokens of `"\\n\\n".join(rows)`, stride = block, perplexity exp(nats / tokens); the
    first token of a block is context only (transformers' documentation). The rows are the lines with their newline, a
    blank one empty. word_*: article by article, detokenised, in lm-evaluation-harness's rolling windows of `max_length`
    (every token is predicted once; BOS before the first, as much context as fits before the last), exp(nats / words),
    the words of the original article. Bits per byte: over the bytes of the scored tokens; over those of the articles.
    `max_tokens` takes the leading tokens, and as many leading articles as hold them; 0 takes all."""
    raw = (outside("wikitext2") / "wiki.test.raw").read_text(encoding="utf-8")
    length = min(max_length, model.config.max_position_embeddings)
    text = "\n\n".join(f"{line}\n" if line.strip() else "" for line in raw.removesuffix("\n").split("\n"))
    text = text[: 40 * max_tokens or None]  # no more than is scored: a token has 4 characters
    coded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    ids, offsets = coded["input_ids"][: max_tokens or None], coded["offset_mapping"]
    blocks, size = [], 0
    for start in range(0, len(ids) - 1, length):
        blocks.append(ids[start : start + length])
        size += len(text[offsets[start + 1][0] : offsets[start + len(blocks[-1]) - 1][1]].encode("utf-8"))
    found = {"max_tokens": max_tokens, "max_length": length}
    tokens = sum(map(len, blocks)) - len(blocks)
    found |= _ratios("token", model, [Encoded(block, 0, 0) for block in blocks], tokens, size)
    windows, chosen, seen = [], [], 0
    for page in filter(str.strip, ARTICLE.split(raw)):  # 62 in the test file
        if max_tokens and seen >= max_tokens:
            break
        ids = _ids(tokenizer, detokenize(page), bos=True)
        for start in range(1, len(ids), length):
            end = min(start + length, len(ids))
            first = max(0, end - length - 1)
            windows.append(Encoded(ids[first:end], start - first, 0))
        chosen.append(page)
        seen += len(ids) - 1
    words = sum(len(re.split(r"\s+", page)) for page in chosen)
    size = sum(len(page.encode("utf-8")) for page in chosen)
    return found | _ratios("word", model, windows, words, size) | {"words": words, "pages": len(chosen)}


def _ratios(unit: str, model: PreTrainedModel, windows: Sequence[Encoded], units: int, size: int) -> dict:
    """Perplexity per unit and bits per byte of the windows' targets."""
    scored = [nats for nats, _ in token_scores(model, windows, desc=f"WikiText-2, per {unit}")]
    nats = float(torch.cat(scored).double().sum())
    found = {"perplexity": math.exp(nats / units), "bits_per_byte": nats / math.log(2) / size}
    found |= {"tokens": sum(map(len, scored)), "bytes": size}
    return {f"{unit}_{name}": value for name, value in found.items()}


def lambada(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: int = 0) -> dict:
    """LAMBADA, OpenAI's version (Paperno et al. 2016): the last word of a passage, given the rest.

    word_accuracy: all tokens of the word are the model's first choice (lm-evaluation-harness lambada_openai; GPT-2
    117M 32.56 %), word_perplexity: exp of the mean nats per word (40.06). last_token_accuracy: the passage's last token
    alone (46.67 %; the paper's 45.99 is behind a filter of stop words). `documents`: leading passages, 0 all 5,153."""
    lines = (outside("lambada") / "lambada_test.jsonl").read_text(encoding="utf-8").strip().split("\n")
    limit = model.config.max_position_embeddings + 1  # the last token is predicted, never read
    encoded = []
    for i, line in enumerate(lines[: documents or len(lines)]):
        text = json.loads(line)["text"]
        context = len(_ids(tokenizer, text.rpartition(" ")[0].rstrip()))
        ids = _ids(tokenizer, text, bos=not context)
        cut = max(0, len(ids) - limit)
        encoded.append(Encoded(ids[cut:], max((context or 1) - cut, 1), 0, f"LAMBADA {i}"))
    scored = token_scores(model, encoded, desc="LAMBADA")
    n, nats = len(scored), sum(float(nats.double().sum()) for nats, _ in scored)
    word = sum(bool(greedy.all()) for _, greedy in scored) / n
    last = sum(bool(greedy[-1]) for _, greedy in scored) / n
    return {"documents": n, "word_accuracy": word, "word_perplexity": math.exp(nats / n), "last_token_accuracy": last}


def blimp(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: int = 0) -> dict:
    """BLiMP (Warstadt et al. 2020): how often the grammatical sentence of a minimal pair is the likelier,
    by the sum of its log-probabilities after BOS.

    accuracy: mean over the 67 paradigms, its standard_error from the pairs. A tie counts as wrong. `pairs`: of each
    paradigm, 0 all."""
    names, path = ["paradigm", "phenomenon", "good", "bad"], outside("blimp") / "blimp_all.tsv"
    table = pd.read_csv(path, sep="\t", names=names, quoting=3, dtype=str, keep_default_na=False, encoding="utf-8")
    table = table.groupby("paradigm", sort=False).head(pairs or len(table))
    # with a space before the sentence, as the harness has it
    ids = [_ids(tokenizer, f" {sentence}", bos=True) for sentence in table[["good", "bad"]].to_numpy().ravel()]
    scored = token_scores(model, [Encoded(x, 1, 0, f"BLiMP {k}") for k, x in enumerate(ids)], desc="BLiMP")
    good, bad = np.reshape([float(nats.double().sum()) for nats, _ in scored], (-1, 2)).T
    by_paradigm = pd.Series(good < bad).groupby(table["paradigm"].to_numpy(), sort=False)
    mean, size = by_paradigm.mean(), by_paradigm.size()
    error = math.sqrt((mean * (1 - mean) / size).sum()) / len(mean)
    counts = {"pairs": int(size.max()), "paradigms": len(mean)}
    return counts | {"accuracy": float(mean.mean()), "standard_error": error}
