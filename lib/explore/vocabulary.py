"""Vocabulary extension: frequent characters become tokens of their own, in tokenizer and model.

A byte-level BPE made for English cuts a Chinese character into two or three tokens. Here the most frequent
of them get one token each, with an embedding row (and, where the head is not tied, an output row) that
starts from the mean of the pieces' rows, as in Sachidananda et al. 2021, arXiv:2109.07460, or from random
numbers as the control. Random rows have logits near 0, which may lie far above those of the old tokens, so
that the first steps of training only push them down: Hewitt 2021, "Initializing New Word Embeddings for
Pretrained Language Models", nlp.stanford.edu/~johnhew/vocab-expansion.html.
"""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lib.explore.chinese import is_han
from lib.explore.encodings import Encoding, encoding_statistics
from lib.models import Base


def split_characters(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int) -> list[str]:
    """The `count` most frequent Chinese characters of `texts` that `tokenizer` cuts into several tokens.

    Pass the training split alone. Equally frequent ones in code order. Raises ValueError where there are
    fewer than `count`.
    """
    frequency = Counter(c for text in texts for c in text if is_han(c))
    ordered = sorted(frequency, key=lambda c: (-frequency[c], c))
    pieces = pieces_of(tokenizer, ordered)
    found = [c for c in ordered if len(pieces[c]) > 1]
    if len(found) < count:
        raise ValueError(
            f"The texts hold {len(found)} characters that the tokenizer splits, fewer than {count}: "
            "lower the number of new tokens or pass more text."
        )
    return found[:count]


def pieces_of(tokenizer: PreTrainedTokenizerBase, characters: Sequence[str]) -> dict[str, list[int]]:
    """Character -> the token ids that `tokenizer` writes it with, standing alone."""
    if not characters:
        return {}
    ids = tokenizer(list(characters), add_special_tokens=False).input_ids
    return dict(zip(characters, ids, strict=True))


# --- how a new row starts: (old rows (V, C), pieces per new token, seed) -> new rows (N, C)


def from_pieces(rows: Tensor, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """The mean of the pieces' rows."""
    return torch.stack([rows[list(ids)].mean(0) for ids in pieces])


def from_noise(rows: Tensor, pieces: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Normal noise of mean 0 and of the standard deviation that `from_pieces` gives: the same scale
    without the knowledge."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(pieces), rows.shape[1], generator=generator)
    return (noise * from_pieces(rows, pieces, seed).std().cpu()).to(rows)


INITS: dict[str, Callable[[Tensor, Sequence[Sequence[int]], int], Tensor]] = {
    "pieces": from_pieces,
    "random": from_noise,
}


def extend(base: Base, characters: Sequence[str], init: str, seed: int = 0) -> Base:
    """A copy of `base` with a token for each of `characters`; `base` itself is left untouched.

    The old rows stay as they are, the new ones start by INITS[`init`]. The name tells the extension apart,
    so that lib.train.finetune never takes another one's run. Raises ValueError for an unknown `init`, no
    character, or one that is a single token already.
    """
    if init not in INITS:
        raise ValueError(f"Init {init!r} is unknown; choose one of {', '.join(INITS)}.")
    pieces = pieces_of(base.tokenizer, characters)
    if single := [c for c in characters if len(pieces[c]) < 2] or ([] if characters else [""]):
        raise ValueError(f"{single[0]!r} is no character that the tokenizer splits: leave it out.")
    tokenizer, model = copy.deepcopy(base.tokenizer), copy.deepcopy(base.model)
    before = len(tokenizer)
    # not normalised, or a tokenizer that normalises would look for another string than the text holds
    tokenizer.add_tokens([AddedToken(c, normalized=False) for c in characters])
    new = torch.tensor(tokenizer.convert_tokens_to_ids(list(characters)))
    if len(tokenizer) != before + len(characters) or int(new.min()) < before:
        raise ValueError("A character is given twice or is a token already: pass each one once.")
    # mean_resizing would start the rows from a third distribution, that of all old rows
    size = max(model.get_input_embeddings().num_embeddings, len(tokenizer))
    model.resize_token_embeddings(size, mean_resizing=False)
    _fill(model, new, list(pieces.values()), init, seed)
    digest = hashlib.sha256("".join(characters).encode()).hexdigest()[:8]
    name = f"{base.name} + {len(characters)} characters ({init}, seed {seed}, {digest})"
    return replace(base, model=model.eval(), tokenizer=tokenizer, name=name, parameters=model.num_parameters())


@torch.no_grad()
def _fill(model, new: Tensor, pieces: Sequence[Sequence[int]], init: str, seed: int) -> None:
    """Write the new rows of the embedding and of a head of its own, its bias included."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tables = [embedding] if head.weight is embedding else [embedding, head.weight]
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias[:, None])  # a view: (V, 1)
    for table in tables:
        table[new.to(table.device)] = INITS[init](table, pieces, seed)


# --- facts about a tokenizer


def token_facts(tokenizer: PreTrainedTokenizerBase | Encoding, texts: Sequence[str]) -> dict[str, float]:
    """tokens, characters, tokens_per_character, and invalid_percent: of the tokens, those whose bytes alone
    are not valid UTF-8 (a part of a character). No EOS. Raises ValueError for no text."""
    if isinstance(tokenizer, Encoding):
        found = encoding_statistics(tokenizer, texts)
        tokens, characters = found["tokens"], found["characters"]
        invalid = found["invalid_percent"]
    else:
        if not any(texts):
            raise ValueError("No text to measure the tokenizer on.")
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        used = Counter(i for ids in tokenizer(list(texts), **options).input_ids for i in ids)
        tokens, characters = used.total(), sum(map(len, texts))
        broken = sum(n for i, n in used.items() if "\ufffd" in tokenizer.decode([i]))
        invalid = 100 * broken / tokens
    return {
        "tokens": tokens,
        "characters": characters,
        "tokens_per_character": tokens / characters,
        "invalid_percent": invalid,
    }


def facts_table(
    tokenizers: dict[str, PreTrainedTokenizerBase | Encoding], corpora: dict[str, Sequence[str]]
) -> pd.DataFrame:
    """`token_facts` of each tokenizer on each corpus: tokenizer, corpus, tokens, ..."""
    return pd.DataFrame(
        [
            {"tokenizer": name, "corpus": corpus, **token_facts(tokenizer, texts)}
            for corpus, texts in corpora.items()
            for name, tokenizer in tokenizers.items()
        ]
    )
