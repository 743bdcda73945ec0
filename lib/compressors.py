"""General-purpose compressors beside the language model, and the tables of notebook 10.

Each is set to its strongest, and measured twice: a document alone (`each`), where headers and an empty
memory weigh most, and all documents as one file (`together`), which tells nothing of where one ends. With
a dictionary from training text they know the domain as a fine-tuned model does: the fair counterpart.
"""

import gzip
import hashlib
import json
import lzma
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import brotli
import numpy as np
import pandas as pd
import torch
import zstandard

from lib import profile
from lib.compress import Codec, compress
from lib.compress_files import BASE, SUFFIX, decompress_elsewhere
from lib.metrics import mean_interval
from lib.results import write_bytes, write_json
from lib.tasks import load_task

DICTIONARY_BYTES = (
    1 << 19
)  # best of 16, 64, 110 and 512 KiB on 100 debian test documents, one at a time
NOTES = profile.DATA / "release_notes" / "documents.jsonl"


@dataclass(frozen=True)
class Compressor:
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    shared_bytes: int = 0  # of training text or of a dictionary, which both sides need


def use_gzip(training: Sequence[bytes]) -> Compressor:
    return Compressor(lambda data: gzip.compress(data, 9, mtime=0), gzip.decompress)


def use_xz(training: Sequence[bytes]) -> Compressor:
    return Compressor(
        lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress
    )


def use_zstd(training: Sequence[bytes], level: int = 19, **options) -> Compressor:
    encoder = zstandard.ZstdCompressor(level=level, **options)
    return Compressor(encoder.compress, zstandard.ZstdDecompressor(**options).decompress)


def use_zstd_ultra(training: Sequence[bytes]) -> Compressor:
    return use_zstd(training, level=22)


def use_brotli(training: Sequence[bytes]) -> Compressor:
    """Quality 11. Brotli's own dictionary of web words (RFC 7932, appendix A) is in the program."""
    return Compressor(
        lambda data: brotli.compress(data, mode=brotli.MODE_TEXT, quality=11), brotli.decompress
    )


def use_zstd_dictionary(training: Sequence[bytes]) -> Compressor:
    """Level 19 and a dictionary that zstd's own trainer chose from `training`."""
    trained = zstandard.train_dictionary(DICTIONARY_BYTES, list(training))
    made = use_zstd(training, dict_data=trained)
    return Compressor(made.encode, made.decode, len(trained.as_bytes()))


def use_zstd_training(training: Sequence[bytes]) -> Compressor:
    """Level 22 with all of `training` as if it stood before the text, in one window."""
    raw = b"".join(training)
    shared = zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(22, window_log=27)
    encoder = zstandard.ZstdCompressor(compression_params=settings, dict_data=shared)
    decoder = zstandard.ZstdDecompressor(dict_data=shared, max_window_size=1 << 27)
    return Compressor(encoder.compress, decoder.decompress, len(raw))


COMPRESSORS: dict[str, Callable[[Sequence[bytes]], Compressor]] = {
    "gzip -9": use_gzip, "xz -9e": use_xz, "zstd -19": use_zstd, "zstd --ultra -22": use_zstd_ultra,
    "brotli 11": use_brotli, "zstd -19, trained dictionary": use_zstd_dictionary,
    "zstd -22 after the training text": use_zstd_training,
}  # fmt: skip
WHOLE = {"zstd -22 after the training text"}  # half a second a call: not for documents one by one


# --- the texts


def domains(documents: dict[str, int]) -> dict[str, list[bytes]]:
    """The leading `documents` of each domain, in UTF-8: debian and tang as prompt + target of the test
    split, release_notes as they are. Raises ValueError for another name."""
    out = {}
    for name, count in documents.items():
        if name == "release_notes":
            rows = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()]
            # an order that depends on the ids alone: packages mixed
            rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
            texts = [row["text"] for row in rows]
        elif name in ("debian", "tang"):
            texts = [e.prompt + e.target for e in load_task(name).test[:count]]
        else:
            raise ValueError(f"Domain {name!r} is unknown; there are debian, release_notes, tang.")
        out[name] = [t.encode() for t in texts[:count]]
    return out


def training_texts() -> list[bytes]:
    """What the fine-tuned models learned from: debian's training split, prompt + target."""
    return [(e.prompt + e.target).encode() for e in load_task("debian").train]


def notes_sha256() -> str:
    return hashlib.sha256(NOTES.read_bytes()).hexdigest()


# --- measurements


def measure_compressor(name: str, domain: str, documents: Sequence[bytes],
                       training: Sequence[bytes]) -> list[dict]:  # fmt: skip
    """Rows of the table `compression` for one of COMPRESSORS: each document alone, and all as one."""
    made = COMPRESSORS[name](training)
    ways = {"together": [b"".join(documents)]} | (
        {} if name in WHOLE else {"each": list(documents)}
    )
    rows = []
    for packaging, pieces in ways.items():
        began = time.perf_counter()
        packed = [made.encode(p) for p in pieces]
        middle = time.perf_counter()
        same = [made.decode(p) for p in packed] == pieces
        seconds = (middle - began, time.perf_counter() - middle)
        who = {"compressor": name, "stage": "none", "seed": 0, "packaging": packaging}
        sizes = (sum(map(len, pieces)), sum(map(len, packed)))
        rows.append(_row(domain, who, sizes, seconds, same, len(documents))
                    | {"shared_bytes": made.shared_bytes})  # fmt: skip
    return rows


def measure_model(codec: Codec, stage: str, seed: int, domain: str, documents: Sequence[bytes],
                  folder: Path) -> dict:  # fmt: skip
    """The row of the table `compression` for a model: one archive of all documents, which do not see
    each other, written to `folder` and decoded in a process of its own.

    What was measured before is read back. Raises RuntimeError where the other process fails.
    """
    about = [[hashlib.sha256(d).hexdigest() for d in documents], codec.fingerprint.hex(), codec.batch,
             codec.window, torch.get_num_threads(), torch.__version__]  # fmt: skip
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]
    path = folder / f"compressed-{domain}-{key}{SUFFIX}"
    record = path.with_suffix(".json")
    if record.exists() and path.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    began = time.perf_counter()
    made = compress(codec, documents, f"{codec.name}, {domain}")
    seconds = time.perf_counter() - began
    write_bytes(path, made.data)
    print(f"{codec.name}, {domain}: decoding in another process ...", flush=True)
    same, decode_seconds = decompress_elsewhere(path, documents)
    who = {"compressor": f"model {stage}", "stage": stage, "seed": seed, "packaging": "archive"}
    sizes = (sum(map(len, documents)), len(made.data))
    row = _row(domain, who, sizes, (seconds, decode_seconds), all(same), len(documents)) | {
        "shared_bytes": 4 * sum(p.numel() for p in codec.model.parameters()),  # float32
        "ideal_bytes": made.bits.sum() / 8, "tokens": int(made.tokens.sum()),
        "header_bytes": made.header_bytes, "escaped_bytes": made.escaped_bytes,
        "identical_documents": sum(same),
    }  # fmt: skip
    write_json(record, row)
    return json.loads(record.read_text(encoding="utf-8"))


def _row(domain, who, sizes, seconds, same, documents) -> dict:
    original, compressed = sizes
    return {
        "domain": domain, **who, "documents": documents, "original_bytes": original,
        "compressed_bytes": compressed, "bits_per_byte": 8 * compressed / original,
        "encode_kb_per_s": original / 1_000 / seconds[0], "decode_kb_per_s": original / 1_000 / seconds[1],
        "round_trip": bool(same),
    }  # fmt: skip


def base_folder() -> Path:
    """Where the base model's archives are kept; those of a run stay beside it."""
    return profile.output_root() / "data" / "runs" / f"compress-{BASE}"


def break_even(table: pd.DataFrame) -> pd.DataFrame:
    """From how much text on the model pays for its own weights, per domain and seed.

    weights + text * model's rate = dictionary + text * rival's rate; the rival is the smallest output of
    COMPRESSORS on the domain. Columns domain, compressor, seed, rival, model_bytes, megabytes (inf where
    the model's rate is no better).
    """
    rows = []
    models = table[table["stage"] != "none"]
    for row in models.itertuples():
        others = table[(table["domain"] == row.domain) & (table["stage"] == "none")]
        rival = others.loc[others["bits_per_byte"].idxmin()]
        saved = (rival["bits_per_byte"] - row.bits_per_byte) / 8  # bytes per byte of text
        needed = (row.shared_bytes - rival["shared_bytes"]) / saved if saved > 0 else np.inf
        rows.append({"domain": row.domain, "compressor": row.compressor, "seed": row.seed,
                     "rival": rival["compressor"], "model_bytes": row.shared_bytes,
                     "saved_bits_per_byte": 8 * saved, "megabytes": needed / 1e6})  # fmt: skip
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame, breaks: pd.DataFrame) -> list[str]:
    """Sentences from this run's own numbers, per domain; the conditions in them are computed."""
    models, others = table[table["stage"] != "none"], table[table["stage"] == "none"]
    lines = [
        f"{int(models['identical_documents'].sum())} of {int(models['documents'].sum())} documents in "
        f"{len(models)} archives came back byte for byte in another process; the other compressors' "
        f"round trips: {'all' if others['round_trip'].all() else 'NOT all'} exact.",
        f"Container and coder add {(models['compressed_bytes'] / models['ideal_bytes'] - 1).min():.1%} to "
        f"{(models['compressed_bytes'] / models['ideal_bytes'] - 1).max():.1%} to -sum log2 p.",
    ]
    for domain in table["domain"].unique():
        own = models[models["domain"] == domain]
        before = own.loc[own["stage"] == "before", "bits_per_byte"].iloc[0]
        mean, low, high = mean_interval(own.loc[own["stage"] == "after", "bits_per_byte"])
        verdict = (
            "fine-tuning makes the file smaller" if max(mean, np.nan_to_num(high)) < before
            else "fine-tuning makes it larger" if mean > before and not low <= before
            else "no difference that the seeds bear out"
        )  # fmt: skip
        rival = others.loc[others.loc[others["domain"] == domain, "bits_per_byte"].idxmin()]
        better = mean < rival["bits_per_byte"]
        lines.append(
            f"{domain}: {before:.3f} bits per byte before, {mean:.3f} [{low:.3f}, {high:.3f}] after: {verdict}. "
            f"Smallest rival: {rival['compressor']}, {rival['packaging']}, {rival['bits_per_byte']:.3f}; the "
            f"fine-tuned model {'beats' if better else 'does not beat'} it."
        )
        megabytes = breaks.loc[
            (breaks["domain"] == domain) & (breaks["compressor"] == "model after"), "megabytes"
        ]
        reached = np.isfinite(megabytes.mean())
        lines.append(
            f"{domain}: the weights pay for themselves from {megabytes.mean():,.0f} MB of such text on."
            if reached else f"{domain}: the weights never pay for themselves."
        )  # fmt: skip
    slow = models["encode_kb_per_s"].mean()
    lines.append(
        f"The models encode {slow:.2f} kB/s and decode {models['decode_kb_per_s'].mean():.2f} kB/s; the slowest "
        f"rival encodes {others['encode_kb_per_s'].min() / slow:,.0f} times as fast."
    )
    return lines
