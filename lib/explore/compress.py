"""Lossless compression of text with a language model and a range coder: `python -m lib compress`.

A model that gives the next token the probability p lets an arithmetic coder spend -log2 p bits on it (Rissanen 1976;
Delétang et al. 2024, "Language Modeling Is Compression", arXiv:2309.10668): the sum over a text is its cross-entropy,
in real bytes. The coder is constriction's range coder (Bamler 2022, arXiv:2201.01741).
The decoder has to see bit by bit the distributions that the encoder saw, and floating-point sums depend on the order
in which they are added: on batch shape, threads, and whether a cache is read. So `walk`, one token at a time for a
fixed batch, is the only computation, both directions run it, and the file records all that it depends on."""

import hashlib
import io
import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product
from pathlib import Path

import constriction
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from lib import models, profile, results, train

# Fixed point of 24 bits by rounding (the optimal one costs O(V log V)): every token keeps at least 2**-24, so that any
# text can be coded, at 0.004 bits a token for a vocabulary of 50,257.
FAMILY = constriction.stream.model.Categorical(perfect=False)
SUFFIX, BASE = ".lmz", "base"
MAGIC, VERSION = b"LMZ", 3
DIGEST = 8  # bytes of a SHA-256: damage by chance passes once in 2**64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by their number in a file


@dataclass(frozen=True)
class Codec:
    """A model (float32, eval mode) as one half of a compressor; `name` is "base" or a run's folder in data/runs.
    `batch` streams are coded side by side, the model in `dtype` with `window` tokens of context; a document is cut into
    up to `cuts` streams of a window or 1,024 tokens; with `mix` a `Mixer` learns. A file records all five."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = BASE
    batch: int = 64
    window: int = 1024
    cuts: int = 16
    mix: bool = False
    dtype: torch.dtype = torch.float32

    @cached_property
    def runner(self) -> PreTrainedModel:
        return self.model if self.dtype == torch.float32 else deepcopy(self.model).to(self.dtype)

    @cached_property
    def fingerprint(self) -> bytes:
        """8 bytes of the SHA-256 over every weight (name, shape, bytes) and the tokenizer's definition."""
        total = hashlib.sha256()
        for name, weight in sorted(self.model.named_parameters()):
            total.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            total.update(weight.detach().cpu().contiguous().numpy().data)
        definition = json.loads(self.tokenizer.backend_tokenizer.to_str())
        definition = {k: v for k, v in definition.items() if k not in ("padding", "truncation")}  # of the last call
        total.update(json.dumps(definition, sort_keys=True).encode())
        return total.digest()[:DIGEST]

    @property
    def platform(self) -> str:
        """What the last bits of a float depend on, beside batch and threads."""
        device = self.model.device.type
        kind = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__} numpy {np.__version__} {device} {kind}"


def compress(codec: Codec, documents: Sequence[bytes], desc: str = "compressing") -> tuple[bytes, np.ndarray]:
    """`documents`, any bytes at all, as the bytes of one file, and (documents,) -sum log2 p of their tokens, which an
    ideal coder would spend. Documents do not see each other; one that the tokenizer can't give back byte for byte is
    stored beside. Raises ValueError for a window that the model's positions can't hold."""
    ids = [to_ids(codec.tokenizer, d) for d in documents]
    lengths, bits, coded = [len(i) for i in ids], np.zeros(len(ids)), []
    with tqdm(total=sum(lengths), desc=desc, unit="token") as bar:
        for group in groups(lengths, codec):
            encoder = constriction.stream.queue.RangeEncoder()

            def code(step, p, group=group, encoder=encoder):
                symbols = np.array([ids[i][start + step] for i, start, _ in group[: len(p)]], np.int32)
                own = np.maximum(p[np.arange(len(p)), symbols], np.finfo(np.float32).tiny)
                np.subtract.at(bits, [i for i, *_ in group[: len(p)]], np.log2(own.astype(float)))
                encoder.encode(symbols, FAMILY, p)
                bar.update(len(p))
                return symbols

            walk(codec, [end - start for _, start, end in group], code)
            coded.append(encoder.get_compressed().astype("<u4").tobytes())
    options = (codec.batch, codec.window, codec.cuts, int(codec.mix), DTYPES.index(codec.dtype))
    beside = {i: d for i, d in enumerate(documents) if d and not ids[i]}
    content, n_bytes = digest(b"".join(map(_block, documents))), sum(map(len, documents))
    origin = (codec.fingerprint, torch.get_num_threads(), options, codec.platform, codec.name)
    return packed(Archive(*origin, lengths, n_bytes, content, beside, coded)), bits


def decompress(codec: Codec, data: bytes) -> list[bytes]:
    """The documents of an archive, in order. Raises ValueError for a damaged file, for one that another model or
    another platform wrote, and where this machine's arithmetic still differs: never returns but what went in."""
    archive = unpacked(data)
    if archive.fingerprint != codec.fingerprint:
        made = f"the model {archive.name!r} (fingerprint {archive.fingerprint.hex()})"
        given = f"{codec.name!r} has {codec.fingerprint.hex()}"
        raise ValueError(f"The file was compressed with {made}, and {given}: load that model.")
    places = f"where the file was made ({archive.platform}; here {codec.platform}): decompress it there."
    if archive.platform != codec.platform:
        raise ValueError(f"Another processor or version computes other numbers than {places}")
    batch, window, cuts, mix, dtype = archive.options
    same = replace(codec, batch=batch, window=window, cuts=cuts, mix=bool(mix), dtype=DTYPES[dtype])
    ids, threads = [np.zeros(n, np.int32) for n in archive.tokens], torch.get_num_threads()
    torch.set_num_threads(archive.threads)
    try:
        with tqdm(total=sum(archive.tokens), desc="decompressing", unit="token") as bar:
            for group, coded in zip(groups(archive.tokens, same), archive.coded, strict=True):
                decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(coded, "<u4").astype(np.uint32))

                def code(step, p, group=group, decoder=decoder):
                    symbols = decoder.decode(FAMILY, p)
                    for (i, start, _), symbol in zip(group, symbols, strict=False):
                        ids[i][start + step] = symbol
                    bar.update(len(p))
                    return symbols

                walk(same, [end - start for _, start, end in group], code)
        documents = [archive.beside.get(n) or to_bytes(codec.tokenizer, i.tolist()) for n, i in enumerate(ids)]
        sound = digest(b"".join(map(_block, documents))) == archive.content
    except (AssertionError, IndexError):  # constriction's word for bits that no symbol explains
        sound = False
    finally:
        torch.set_num_threads(threads)
    if not sound:
        raise ValueError(f"The model computed other numbers here than {places}")
    return documents


class _Room(DynamicLayer):
    """Keys and values with room for more: a new token is written, and what is there is not copied for it."""

    def update(self, key_states, value_states, *args, **kwargs):
        new, used = torch.stack([key_states, value_states]), self.get_seq_length()
        end = used + new.shape[3]
        if not used or self.room.shape[1] != new.shape[1] or end > self.room.shape[3]:
            self.room = new.new_empty(*new.shape[:3], end + 256, new.shape[4])
            if used:
                self.room[..., :used, :] = torch.stack([self.keys, self.values])
        self.room[..., used:end, :], self.is_initialized = new, True
        self.keys, self.values = self.room[..., :end, :]
        return self.keys, self.values


class Mixer:
    """The model mixed with adaptive n-grams: p(w) = exp(a l_w + b_w + sum_k u_k[share]) / Z, with l the model's logits
    and the quarter in which w's share of what came after the last k tokens lies. a, b and u follow the gradient of
    -log p of each token (PAQ's mixing, Mahoney 2005; b as in Nacrith, 2602.19626), so both directions know them."""

    def __init__(self, rows: int, vocabulary: int):
        self.scale, self.cells = np.float32(1), np.full((2, 4), 0.3)  # k by share
        self.bias, self.power = np.zeros(vocabulary, np.float32), np.ones(vocabulary, np.float32)
        self.seen, self.before = defaultdict(Counter), [(-2, -1)] * rows

    def mix(self, logits: np.ndarray) -> np.ndarray:
        """(rows, V) -> (rows, V) float32, the distributions."""
        self.logits, self.found = logits, []
        p = logits * self.scale + self.bias
        for row, k in product(range(len(p)), (1, 2)):
            if counts := self.seen.get(self.before[row][-k:]):
                tokens, times = np.array([*counts.items()]).T
                at = (k - 1, np.minimum(4 * times // times.sum(), 3))
                p[row, tokens] += self.cells[at]
                self.found.append((row, tokens, at))
        p = np.exp(p - p.max(1, keepdims=True))
        self.p = p / p.sum(1, keepdims=True)
        return self.p

    def learn(self, symbols: np.ndarray) -> None:
        """The rows' tokens that came: one step of gradient, and their counts."""
        error = self.p.copy()
        error[np.arange(len(error)), symbols] -= 1
        for row, tokens, at in self.found:
            np.subtract.at(self.cells, at, 0.02 * error[row, tokens])
        self.scale -= np.float32(0.001) * (error * self.logits).sum()
        gradient = error.sum(0)
        self.power += gradient**2
        self.bias -= 0.3 * gradient / np.sqrt(self.power)
        for row, symbol in enumerate(symbols.tolist()):
            for k in (1, 2):
                self.seen[self.before[row][-k:]][symbol] += 1
            self.before[row] = (self.before[row][1], symbol)


@torch.no_grad()
def walk(codec: Codec, lengths: Sequence[int], code: Callable) -> None:
    """Token by token through documents of `lengths` tokens, longest first, side by side. `code(step, p)` gets the
    distributions (rows still running, V), float32, and returns those rows' tokens (int32): it writes them, or reads
    them from a file. A full window is begun again with its later half, and rows that ended leave once a quarter of the
    batch has: when depends on the lengths alone."""
    model, device = codec.runner, codec.model.device
    most = model.config.max_position_embeddings or codec.window
    if not 2 <= codec.window <= most:
        raise ValueError(f"A window of {codec.window} tokens: the model has {most} positions; choose 2 to {most}.")
    start = codec.tokenizer.eos_token_id  # before every document; rows that ended idle on it
    history = torch.full((len(lengths), 1), start)
    mixer = Mixer(len(lengths), model.config.vocab_size) if codec.mix else None
    cache, cached = Cache(layer_class_to_replicate=_Room), 0
    for step in range(lengths[0]):
        running = sum(n > step for n in lengths)
        if running <= len(history) * 3 // 4:
            history = history[:running]
            if cached:
                cache.batch_select_indices(torch.arange(running, device=device))
        if cached == codec.window:
            cache, cached = Cache(layer_class_to_replicate=_Room), 0
            history = history[:, -(codec.window // 2) :]
        fed = history[:, cached:].to(device)  # (rows, 1), or half a window
        out = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, cached = out.past_key_values, cached + fed.shape[1]
        logits = out.logits[:running, -1].float()
        symbols = code(step, mixer.mix(logits.cpu().numpy()) if mixer else logits.softmax(-1).cpu().numpy())
        if mixer:
            mixer.learn(symbols)
        new = torch.full((len(history), 1), start)
        new[:running, 0] = torch.from_numpy(symbols.astype(np.int64))
        history = torch.cat([history, new], dim=1)


def groups(tokens: Sequence[int], codec: Codec) -> list[list[tuple[int, int, int]]]:
    """The streams (document, from, to) that share a batch, longest first, so that few rows idle; none is empty."""
    cuts = [max(min(n // min(codec.window, 1_024), codec.cuts), 1) for n in tokens]
    edges = [np.linspace(0, n, parts + 1).astype(int).tolist() for n, parts in zip(tokens, cuts, strict=True)]
    streams = [(i, start, end) for i, places in enumerate(edges) for start, end in pairwise(places) if end]
    streams.sort(key=lambda stream: stream[1] - stream[2])
    return [streams[start : start + codec.batch] for start in range(0, len(streams), codec.batch)]


def to_ids(tokenizer: PreTrainedTokenizerBase, data: bytes) -> list[int]:
    """Token ids that give `data` back byte for byte, [] where none do (no UTF-8, a tokenizer that rewrites)."""
    # the name of a special token inside a document is text
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    text = data.decode("utf-8", "replace")
    ids = tokenizer(text, **options).input_ids if text else []
    return ids if to_bytes(tokenizer, ids) == data else []


def to_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bytes:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).encode()


# The file: MAGIC, VERSION, the fields of Archive in order, a checksum of all before. Numbers are LEB128 (7 bits a
# byte, the high bit: one more follows), a block is its length and its bytes; what is kept beside is deflated
@dataclass(frozen=True)
class Archive:
    fingerprint: bytes  # of model and tokenizer
    threads: int
    options: tuple[int, ...]  # batch, window, cuts, mix (0 or 1), and dtype's number in DTYPES
    platform: str  # where it was made
    name: str  # of the model: where to look for it
    tokens: list[int]  # per document
    n_bytes: int  # of all documents
    content: bytes  # digest of the documents and of where each ends: tells a model that computed other numbers
    beside: dict[int, bytes]  # documents that the tokenizer can't give back
    coded: list[bytes]  # range coder words, one entry per batch


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _number(value: int) -> bytes:
    more, low = value >> 7, value & 127
    return bytes([low | 128]) + _number(more) if more else bytes([low])


def _block(data: bytes) -> bytes:
    return _number(len(data)) + data


def packed(archive: Archive) -> bytes:
    """`archive` as the bytes of a file."""
    settings = [_number(n) for n in (archive.threads, *archive.options)]
    origin = [_block(text.encode()) for text in (archive.platform, archive.name)]
    sizes = [_number(n) for n in (len(archive.tokens), *archive.tokens, archive.n_bytes)]
    beside = b"".join(_number(i) + _block(document) for i, document in archive.beside.items())
    blocks = [_block(data) for data in (zlib.compress(beside, 9) if beside else b"", *archive.coded)]
    head = [MAGIC, bytes([VERSION]), archive.fingerprint]
    body = b"".join([*head, *settings, *origin, *sizes, archive.content, *blocks])
    return body + digest(body)


class _Reader(io.BytesIO):
    def number(self) -> int:
        (byte,) = self.read(1)
        return byte if byte < 128 else byte - 128 + (self.number() << 7)

    def block(self) -> bytes:
        return self.read(self.number())


def unpacked(data: bytes) -> Archive:
    """The content of a file. Raises ValueError for another kind or version of file, and for damage."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("This is no file of `python -m lib compress`: it does not begin with LMZ.")
    body = data[:-DIGEST]
    if len(body) <= len(MAGIC) or digest(body) != data[-DIGEST:]:
        raise ValueError("The compressed file is damaged or cut short (its checksum differs): get another copy of it.")
    if body[len(MAGIC)] != VERSION:
        made = f"is of format {body[len(MAGIC)]} and this program reads {VERSION}"
        raise ValueError(f"The compressed file {made}: use the checkout that wrote it.")
    file = _Reader(body[len(MAGIC) + 1 :])
    fingerprint, threads, options = file.read(DIGEST), file.number(), tuple(file.number() for _ in range(5))
    platform, name = file.block().decode(), file.block().decode()
    tokens = [file.number() for _ in range(file.number())]
    n_bytes, content, deflated, beside, coded = file.number(), file.read(DIGEST), file.block(), {}, []
    flat = _Reader(zlib.decompress(deflated) if deflated else b"")
    while flat.tell() < len(flat.getvalue()):
        beside |= {flat.number(): flat.block()}
    while file.tell() < len(file.getvalue()):
        coded.append(file.block())
    return Archive(fingerprint, threads, options, platform, name, tokens, n_bytes, content, beside, coded)


@lru_cache(maxsize=1)  # several files of one model load it once
def codec_of(name: str = BASE) -> Codec:
    """The base model, or the finished run `name` of data/runs. Raises FileNotFoundError for a missing run."""
    base = models.load_base()
    run = base if name == BASE else train.load(base, profile.output_root() / "data" / "runs" / name)
    window = min(4_096, run.model.config.max_position_embeddings)
    return Codec(run.model, base.tokenizer, name, window=window, mix=True, dtype=profile.autocast_dtype())


def compress_file(path: Path, out: Path | None = None, run: str = BASE) -> Path:
    """`path`, any file, as the one document of an archive, by default beside it."""
    data, out = path.read_bytes(), _free(out or path.with_name(path.name + SUFFIX))
    codec, began = codec_of(run), time.monotonic()
    packed, _ = compress(codec, [data])
    results.write_bytes(out, packed)
    print(f"{path}: {len(data):,} bytes to {len(packed):,} in {time.monotonic() - began:.1f} s: {out}")
    return out


def decompress_file(path: Path, out: Path | None = None, run: str | None = None) -> Path:
    """The document of an archive, by default without the suffix; of several a folder, one file each. The model is the
    one that the archive names, or `run`. Raises ValueError, with the file's name, for what `decompress` refuses; then
    nothing is written."""
    if out is None and path.suffix != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}: name the file to write with -o.")
    out, data = _free(out or path.with_suffix("")), path.read_bytes()
    try:
        codec = codec_of(run or unpacked(data).name)  # damage is told before a model is loaded
        codec.fingerprint  # noqa: B018  hashing the weights belongs to loading, not to decoding
        began = time.monotonic()
        documents = decompress(codec, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    seconds = time.monotonic() - began
    for i, document in enumerate(documents):
        results.write_bytes(out if len(documents) == 1 else out / f"{i:06d}", document)
    print(f"{path}: {len(documents)} document(s), {sum(map(len, documents)):,} bytes in {seconds:.3f} s: {out}")
    return out


def _free(out: Path) -> Path:
    if out.exists():
        raise ValueError(f"{out} exists: move it away, or name another place with -o.")
    return out
