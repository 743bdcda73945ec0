"""Lossless compression of text with a language model and a range coder.

A model that gives the next token the probability p lets an arithmetic coder spend -log2 p bits on it
(Rissanen 1976; Delétang et al. 2024, "Language Modeling Is Compression", arXiv:2309.10668): the sum over
a text is its cross-entropy, in real bytes. The coder is constriction's range coder (Bamler 2022,
arXiv:2201.01741). It rounds each distribution to fixed point of 24 bits and leaves every token at least
2**-24, so that any text can be coded: 0.3 % of the probability, 0.004 bits a token, for GPT-2's 50,257.

The decoder has to see bit by bit the distributions that the encoder saw, and floating-point sums depend
on the order in which they are added: on the shape of the batch, on the number of threads, on whether a
cache is read or a text is passed at once. So `walk`, one token at a time for a fixed batch in float32, is
the only computation here, and both directions run it; the file records batch, window and threads.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import constriction
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lib.explore.container import DIGEST, Archive, digest_of, group_bounds, read, write
from lib.explore.escapes import join, split, to_ids, to_text

# fixed point by rounding: the optimal one would cost O(V log V)
FAMILY = constriction.stream.model.Categorical(perfect=False)


@dataclass(frozen=True)
class Codec:
    """A model as one half of a compressor. `name` is "base" or the folder of a run in data/runs.

    `batch` documents are coded side by side, with `window` tokens of context: GPT-2's 1,024, whatever
    the model could do. Both directions need the same; decoding takes them from the file.
    """

    model: PreTrainedModel  # float32, eval mode
    tokenizer: PreTrainedTokenizerBase
    name: str = "base"
    batch: int = 64
    window: int = 1024

    @cached_property
    def fingerprint(self) -> bytes:
        return fingerprint(self.model, self.tokenizer)


@dataclass(frozen=True)
class Compressed:
    """`data` is the file. `bits` (documents,): -sum log2 p of the tokens, what an ideal coder would spend.
    `escaped_bytes` stand beside the coded text; `header_bytes` are those of an archive of nothing."""

    data: bytes
    bits: np.ndarray
    tokens: np.ndarray  # (documents,)
    escaped_bytes: int
    header_bytes: int


def compress(codec: Codec, documents: Sequence[bytes], desc: str = "compressing") -> Compressed:
    """`documents` in one archive; any bytes at all, an empty document too.

    Documents do not see each other. What the tokenizer can't give back byte for byte is stored beside.
    Raises ValueError for a window that the model's positions can't hold.
    """
    halves = [split(d, codec.tokenizer) for d in documents]
    ids = [to_ids(codec.tokenizer, text) for text, _ in halves]
    escapes = [one for _, one in halves]
    bits, groups = np.zeros(len(ids)), []
    lengths = [len(i) for i in ids]
    with _progress(sum(lengths), desc) as bar:
        for rows in group_bounds(lengths, codec.batch):
            encoder = constriction.stream.queue.RangeEncoder()

            def code(step, p, rows=rows, encoder=encoder):
                symbols = np.array([ids[i][step] for i in rows[: len(p)]], np.int32)
                own = np.maximum(p[np.arange(len(p)), symbols], np.finfo(np.float32).tiny)
                bits[rows[: len(p)]] -= np.log2(own.astype(float))
                encoder.encode(symbols, FAMILY, p)
                bar.update(len(p))
                return symbols

            walk(codec, [lengths[i] for i in rows], code)
            groups.append(encoder.get_compressed().astype("<u4").tobytes())
    archive = Archive(
        codec.fingerprint,
        torch.get_num_threads(),
        codec.batch,
        codec.window,
        platform_of(codec.model),
        codec.name,
        lengths,
        sum(map(len, documents)),
        digest_of(documents),
        escapes,
        groups,
    )
    escaped = sum(len(data) for one in escapes for _, data in one)
    data = write(archive)
    return Compressed(data, bits, np.array(lengths), escaped, archive.header_bytes)


def decompress(codec: Codec, data: bytes, desc: str = "decompressing") -> list[bytes]:
    """The documents of an archive, in order; batch, window and threads are the file's.

    Raises ValueError for a damaged file, for one that another model wrote, and where this machine's
    arithmetic differs from the writer's: never returns anything but the documents that went in.
    """
    archive = read(data)
    check_model(codec, archive)
    here = replace(codec, batch=archive.batch, window=archive.window)
    ids: list[list[int]] = [[] for _ in archive.tokens]
    groups = group_bounds(archive.tokens, archive.batch)
    try:
        with use_threads(archive.threads), _progress(sum(archive.tokens), desc) as bar:
            for rows, coded in zip(groups, archive.groups, strict=True):
                words = np.frombuffer(coded, "<u4").astype(np.uint32)
                decoder = constriction.stream.queue.RangeDecoder(words)

                def code(step, p, rows=rows, decoder=decoder):
                    symbols = decoder.decode(FAMILY, p)
                    for i, symbol in zip(rows, symbols.tolist(), strict=False):
                        ids[i].append(symbol)
                    bar.update(len(p))
                    return symbols

                walk(here, [archive.tokens[i] for i in rows], code)
        documents = [join(to_text(codec.tokenizer, i), one) for i, one in zip(ids, archive.escapes, strict=True)]
        sound = digest_of(documents) == archive.content
    except (AssertionError, IndexError):  # constriction's word for bits that no symbol explains
        sound = False
    if not sound:
        raise ValueError(
            f"The model computed other numbers here than where the file was made ({archive.platform}; here "
            f"{platform_of(codec.model)}), so the text is lost on this machine: decompress it there."
        )
    return documents


def check_model(codec: Codec, archive: Archive) -> None:
    """Raises ValueError where `archive` was written with another model or tokenizer than `codec` has."""
    if archive.fingerprint != codec.fingerprint:
        raise ValueError(
            f"The file was compressed with the model {archive.name!r} (fingerprint "
            f"{archive.fingerprint.hex()}), and {codec.name!r} has {codec.fingerprint.hex()}: load that model."
        )


@torch.no_grad()
def walk(codec: Codec, lengths: Sequence[int], code: Callable) -> None:
    """Token by token through documents of `lengths` tokens, longest first, side by side.

    `code(step, p)` gets the distributions (rows still running, V), float32, and returns those rows'
    tokens (int32): it writes them, or reads them from a file. A full window is begun again with its later half,
    and rows that ended leave once a quarter of the batch has: when depends on the lengths alone.
    """
    model, device = codec.model, codec.model.device
    if codec.window > (model.config.max_position_embeddings or codec.window) or codec.window < 2:
        raise ValueError(
            f"A window of {codec.window} tokens: the model has {model.config.max_position_embeddings} positions; "
            "choose between 2 and those."
        )
    start = codec.tokenizer.eos_token_id  # before every document; rows that ended idle on it
    history = torch.full((len(lengths), 1), start)
    cache, cached = None, 0
    for step in range(lengths[0]):
        running = sum(n > step for n in lengths)
        if running <= len(history) * 3 // 4:
            history = history[:running]
            if cache is not None:
                cache.batch_select_indices(torch.arange(running, device=device))
        if cached == codec.window:
            cache, cached = None, 0
            history = history[:, -(codec.window // 2) :]
        fed = history[:, cached:].to(device)  # (rows, 1), or half a window
        out = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, cached = out.past_key_values, cached + fed.shape[1]
        p = out.logits[:running, -1].float().softmax(-1).cpu().numpy()
        new = torch.full((len(history), 1), start)
        new[:running, 0] = torch.from_numpy(code(step, p).astype(np.int64))
        history = torch.cat([history, new], dim=1)


# --- who computed, and where


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """8 bytes of the SHA-256 over every weight (name, shape, bytes) and the tokenizer's definition."""
    total = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        total.update(weight.detach().cpu().contiguous().numpy().data)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("padding", "truncation"):  # set by the last call, no part of the tokenizer
        definition.pop(passing, None)
    total.update(json.dumps(definition, sort_keys=True).encode())
    return total.digest()[:DIGEST]


def platform_of(model: PreTrainedModel) -> str:
    """What the last bits of a float depend on, beside batch and threads."""
    device = model.device.type
    kind = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} {device} {kind}"


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress(tokens: int, desc: str) -> tqdm:
    return tqdm(total=tokens, desc=desc, unit="token", disable=tokens < 2_000)
