"""The file format of lib.explore.compress: what stands in a `.lmz` file, and how damage is told from a sound one.

    magic "LMZ", version | fingerprint of the model | threads, batch, window, platform, name of the model
    documents: their token counts | bytes of all | checksum of their content | escaped bytes | coded groups
    checksum of everything before

Numbers are LEB128 (7 bits a byte, the high bit: one more follows). The last checksum tells a damaged or
truncated file before any of it is decoded; the content's tells a model that computed other numbers.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAGIC, VERSION = b"LMZ", 1
DIGEST = 8  # bytes of a SHA-256: damage by chance passes once in 2**64

Escapes = list[tuple[int, bytes]]  # (offset in the document less its escaped bytes, the bytes)


@dataclass(frozen=True)
class Archive:
    """A file's content, not decoded yet."""

    fingerprint: bytes  # of the model and tokenizer, lib.explore.compress.fingerprint
    threads: int
    batch: int  # documents side by side
    window: int  # tokens of context
    platform: str  # torch's version, device and instruction set where it was made
    name: str  # "base", or the run's folder in data/runs: where to look for the model
    tokens: list[int]  # per document
    n_bytes: int  # of all documents
    content: bytes  # `digest_of` the documents
    escapes: list[Escapes]  # per document
    groups: list[bytes]  # range coder words, one entry per `batch` documents

    @property
    def header_bytes(self) -> int:
        """What an archive of no document takes: everything but counts, escapes and coded groups."""
        empty = {"tokens": [], "escapes": [], "groups": []}
        return len(write(Archive(**{**self.__dict__, **empty})))


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def digest_of(documents: Iterable[bytes]) -> bytes:
    """Of the documents' bytes and of where each ends."""
    return digest(b"".join(_number(len(d)) + d for d in documents))


def write(archive: Archive) -> bytes:
    """`archive` as the bytes of a file."""
    parts = [MAGIC, bytes([VERSION]), archive.fingerprint]
    parts += map(_number, (archive.threads, archive.batch, archive.window))
    parts += [_block(archive.platform.encode()), _block(archive.name.encode())]
    parts += map(_number, (len(archive.tokens), *archive.tokens, archive.n_bytes))
    parts += [archive.content, _block(_write_escapes(archive.escapes))]
    parts += map(_block, archive.groups)
    body = b"".join(parts)
    return body + digest(body)


def read(data: bytes) -> Archive:
    """The content of a file. Raises ValueError for another kind or version of file, and for damage."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("This is no file of `python -m lib compress`: it does not begin with LMZ.")
    body, checksum = data[:-DIGEST], data[-DIGEST:]
    if len(body) <= len(MAGIC) or digest(body) != checksum:
        raise ValueError(
            "The compressed file is damaged or cut short (its checksum differs), so nothing of it was "
            "decoded: get another copy of it."
        )
    if body[len(MAGIC)] != VERSION:
        raise ValueError(
            f"The compressed file is of format {body[len(MAGIC)]} and this program reads {VERSION}: use "
            "the checkout that wrote it."
        )
    file = io.BytesIO(body[len(MAGIC) + 1 :])
    fingerprint = file.read(DIGEST)
    threads, batch, window = (_read_number(file) for _ in range(3))
    platform, name = (_read_block(file).decode() for _ in range(2))
    tokens = [_read_number(file) for _ in range(_read_number(file))]
    n_bytes, content = _read_number(file), file.read(DIGEST)
    escapes = _read_escapes(_read_block(file), len(tokens))
    groups = [_read_block(file) for _ in group_bounds(tokens, batch)]
    return Archive(fingerprint, threads, batch, window, platform, name, tokens, n_bytes, content, escapes, groups)


def group_bounds(tokens: Sequence[int], batch: int) -> list[list[int]]:
    """Indices of the documents that share a batch, longest first: of similar length, so that few rows
    idle. Documents without a token (empty, or escaped whole) are in none."""
    order = sorted((i for i in range(len(tokens)) if tokens[i]), key=lambda i: -tokens[i])
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_number(file: io.BytesIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _block(data: bytes) -> bytes:
    return _number(len(data)) + data


def _read_block(file: io.BytesIO) -> bytes:
    return file.read(_read_number(file))


def _write_escapes(escapes: Sequence[Escapes]) -> bytes:
    """Nothing where there is none; else deflated: (document, offset, bytes) one after the other."""
    flat = [(i, offset, data) for i, one in enumerate(escapes) for offset, data in one]
    parts = [_number(i) + _number(offset) + _block(data) for i, offset, data in flat]
    return zlib.compress(b"".join(parts), 9) if parts else b""


def _read_escapes(data: bytes, documents: int) -> list[Escapes]:
    out: list[Escapes] = [[] for _ in range(documents)]
    raw = zlib.decompress(data) if data else b""
    file = io.BytesIO(raw)
    while file.tell() < len(raw):
        out[_read_number(file)].append((_read_number(file), _read_block(file)))
    return out
