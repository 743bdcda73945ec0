"""General-purpose compressors beside the language model, and the tables of notebook 10.

Each is set to its strongest, and measured twice: a document alone (`each`), where headers and an empty
memory weigh most, and all documents as one file (`together`), which tells nothing of where one ends. With
a dictionary from training text they know the domain as a fine-tuned model does: the fair counterpart. They
get all of it, the model only what its budget of tokens reaches.
"""

import gzip
import hashlib
import json
import lzma
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import brotli
import numpy as np
import pandas as pd
import torch
import zstandard

from lib import profile
from lib.explore.compress import Codec, compress
from lib.explore.compress_files import BASE, SUFFIX, decompress_elsewhere
from lib.metrics import mean_interval, paired
from lib.results import write_bytes, write_json
from lib.tasks import load_task

DICTIONARY_BYTES = 1 << 19  # best of 16, 64, 110 and 512 KiB on 100 debian test documents, one at a time
NOTES = profile.DATA / "release_notes" / "documents.jsonl"


@dataclass(frozen=True)
class Compressor:
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    shared_bytes: int = 0  # of training text or of a dictionary, which both sides need


def use_gzip(training: Sequence[bytes]) -> Compressor:
    return Compressor(lambda data: gzip.compress(data, 9, mtime=0), gzip.decompress)


def use_xz(training: Sequence[bytes]) -> Compressor:
    return Compressor(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress)


def use_zstd(training: Sequence[bytes], level: int = 19, **options) -> Compressor:
    encoder = zstandard.ZstdCompressor(level=level, **options)
    return Compressor(encoder.compress, zstandard.ZstdDecompressor(**options).decompress)


def use_zstd_ultra(training: Sequence[bytes]) -> Compressor:
    return use_zstd(training, level=22)


def use_brotli(training: Sequence[bytes]) -> Compressor:
    """Quality 11. Brotli's own dictionary of web words (RFC 7932, appendix A) is in the program."""
    return Compressor(lambda data: brotli.compress(data, mode=brotli.MODE_TEXT, quality=11), brotli.decompress)


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
    "gzip -9": use_gzip,
    "xz -9e": use_xz,
    "zstd -19": use_zstd,
    "zstd --ultra -22": use_zstd_ultra,
    "brotli 11": use_brotli,
    "zstd -19, trained dictionary": use_zstd_dictionary,
    "zstd -22 after the training text": use_zstd_training,
}


# --- the texts


def domains(documents: Mapping[str, int], longest: int) -> dict[str, list[bytes]]:
    """The leading `documents` of at most `longest` bytes of each domain, in UTF-8: debian and tang as prompt +
    target of the test split, release_notes as they are. Raises ValueError for another name."""
    out = {}
    for name, count in documents.items():
        if name == "release_notes":
            rows = [json.loads(line) for line in NOTES.read_text(encoding="utf-8").splitlines()]
            # an order that depends on the ids alone: packages mixed
            rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
            texts = [row["text"].encode() for row in rows]
        elif name in ("debian", "tang"):
            texts = [(e.prompt + e.target).encode() for e in load_task(name).test]
        else:
            raise ValueError(f"Domain {name!r} is unknown; there are debian, release_notes, tang.")
        out[name] = [t for t in texts if len(t) <= longest][:count]
    return out


def training_texts() -> list[bytes]:
    """debian's training split, prompt + target: what the fine-tuned models drew their documents from."""
    return [(e.prompt + e.target).encode() for e in load_task("debian").train]


def notes_sha256() -> str:
    return hashlib.sha256(NOTES.read_bytes()).hexdigest()


# --- measurements


def measure_compressor(name: str, made: Compressor, domain: str, documents: Sequence[bytes]) -> list[dict]:
    """Rows of the table `compression` for one of COMPRESSORS: each document alone, and all as one."""
    made.decode(made.encode(b"the clock starts when a dictionary has been read"))
    rows = []
    for packaging, pieces in (("together", [b"".join(documents)]), ("each", list(documents))):
        began = time.perf_counter()
        packed = [made.encode(p) for p in pieces]
        middle = time.perf_counter()
        same = [made.decode(p) for p in packed] == pieces
        took = (middle - began, time.perf_counter() - middle)
        who = {"compressor": name, "stage": "none", "seed": 0, "packaging": packaging}
        sizes = (sum(map(len, pieces)), sum(map(len, packed)))
        rows.append(
            _row(domain, who, len(documents), sizes, took) | {"round_trip": same, "shared_bytes": made.shared_bytes}
        )
    return rows


def measure_model(
    codec: Codec, stage: str, seed: int, texts: Mapping[str, Sequence[bytes]], folder: Path
) -> list[dict]:
    """Rows of the table `compression` for a model, one per domain of `texts`: an archive of all documents,
    which do not see each other, written to `folder`; all of them are decoded in one other process.
    `document_bits` are those of each document, for `by_document`.

    What was measured before is read back, sizes also where the decoding was interrupted. Raises
    RuntimeError where the other process fails.
    """
    rows, undecoded = {}, {}
    for domain, documents in texts.items():
        about = [
            [hashlib.sha256(d).hexdigest() for d in documents],
            codec.fingerprint.hex(),
            codec.batch,
            codec.window,
            torch.get_num_threads(),
            torch.__version__,
        ]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]
        path = folder / f"compressed-{domain}-{key}{SUFFIX}"
        if not (path.exists() and path.with_suffix(".json").exists()):
            _write_archive(codec, stage, seed, domain, documents, path)
        rows[path] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if rows[path]["round_trip"] is None:
            undecoded[path] = documents
    if undecoded:
        print(f"{codec.name}: decoding in another process ...", flush=True)
        for path, (same, seconds) in zip(undecoded, decompress_elsewhere(undecoded), strict=True):
            rows[path] |= {
                # milliseconds are told: a text of escapes alone takes less
                "decode_kb_per_s": rows[path]["original_bytes"] / 1_000 / max(seconds, 1e-3),
                "round_trip": all(same),
                "identical_documents": sum(same),
            }
            write_json(path.with_suffix(".json"), rows[path])
    return list(rows.values())


def _write_archive(codec: Codec, stage: str, seed: int, domain: str, documents: Sequence[bytes], path: Path) -> None:
    """The archive at `path`, and beside it its row, not decoded yet."""
    began = time.perf_counter()
    made = compress(codec, documents, f"{codec.name}, {domain}")
    seconds = time.perf_counter() - began
    write_bytes(path, made.data)
    who = {"compressor": f"model {stage}", "stage": stage, "seed": seed, "packaging": "archive"}
    sizes = (sum(map(len, documents)), len(made.data))
    row = _row(domain, who, len(documents), sizes, (seconds, None)) | {
        "shared_bytes": 4 * sum(p.numel() for p in codec.model.parameters()),  # float32
        "ideal_bytes": made.bits.sum() / 8,
        "tokens": int(made.tokens.sum()),
        "header_bytes": made.header_bytes,
        "escaped_bytes": made.escaped_bytes,
        "document_bits": made.bits.tolist(),
    }
    write_json(path.with_suffix(".json"), row)


def _row(domain: str, who: dict, documents: int, sizes: tuple[int, int], seconds: tuple[float, float | None]) -> dict:
    """One measurement; kB are 1,000 bytes of the uncompressed text."""
    original, compressed = sizes
    encode, decode = (s and original / 1_000 / s for s in seconds)
    return {
        "domain": domain,
        **who,
        "documents": documents,
        "original_bytes": original,
        "compressed_bytes": compressed,
        "bits_per_byte": 8 * compressed / original,
        "encode_kb_per_s": encode,
        "decode_kb_per_s": decode,
        "round_trip": None,
    }


def base_folder() -> Path:
    """Where the base model's archives are kept; those of a run stay beside it."""
    return profile.output_root() / "data" / "runs" / f"compress-{BASE}"


def break_even(table: pd.DataFrame) -> pd.DataFrame:
    """From how much text on the model pays for its own weights, per domain and seed.

    weights + text * model's rate = dictionary + text * rival's rate; the rival is the smallest output of
    COMPRESSORS on the domain. Columns domain, compressor, seed, rival, model_bytes, saved_bits_per_byte,
    megabytes (of text; inf where the model's rate is no better).
    """
    rows = []
    models = table[table["stage"] != "none"]
    for row in models.itertuples():
        others = table[(table["domain"] == row.domain) & (table["stage"] == "none")]
        rival = others.loc[others["bits_per_byte"].idxmin()]
        saved = (rival["bits_per_byte"] - row.bits_per_byte) / 8  # bytes per byte of text
        needed = (row.shared_bytes - rival["shared_bytes"]) / saved if saved > 0 else np.inf
        rows.append(
            {
                "domain": row.domain,
                "compressor": row.compressor,
                "seed": row.seed,
                "rival": rival["compressor"],
                "model_bytes": row.shared_bytes,
                "saved_bits_per_byte": 8 * saved,
                "megabytes": needed / 1e6,
            }
        )
    return pd.DataFrame(rows)


def by_document(rows: Sequence[dict], texts: Mapping[str, Sequence[bytes]]) -> pd.DataFrame:
    """After against before, paired by document, per domain: -sum log2 p over bytes, headers apart, of `rows`
    of `measure_model`. Columns domain, seeds and those of lib.metrics.Paired (seeds are averaged first)."""
    out = []
    for domain, documents in texts.items():
        common = {"id": range(len(documents)), "bytes": list(map(len, documents))}
        frames = {"before": [], "after": []}
        for row in rows:
            if row["domain"] == domain:
                frames[row["stage"]].append(pd.DataFrame({**common, "bits": row["document_bits"]}))
        found = paired(frames["before"], frames["after"], numerator="bits", scale=1)
        out.append({"domain": domain, "seeds": len(frames["after"]), **asdict(found)})
    return pd.DataFrame(out)


def findings(table: pd.DataFrame, breaks: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Sentences from this run's own numbers, per domain; the conditions in them are computed. `pairs` is
    `by_document`'s: a difference counts where its interval, and with seeds theirs as well, excludes 0. Both
    leave the header out, which in a run's archive is longer by the run's name and weighs on short texts."""
    models, others = table[table["stage"] != "none"], table[table["stage"] == "none"]
    added = models["compressed_bytes"] / models["ideal_bytes"] - 1
    lines = [
        f"{int(models['identical_documents'].sum())} of {int(models['documents'].sum())} documents in "
        f"{len(models)} archives came back byte for byte in another process; the other compressors' "
        f"round trips: {'all' if others['round_trip'].all() else 'NOT all'} exact.",
        f"To -sum log2 p, container and coder add {added.min():.1%} to {added.max():.1%}.",
    ]
    for pair in pairs.itertuples():
        own = models[models["domain"] == pair.domain].set_index("stage")
        header = 8 * own["header_bytes"] / own["original_bytes"]
        before, after = (own["bits_per_byte"][[stage]] for stage in ("before", "after"))
        mean, low, high = mean_interval(after)
        _, lowest, highest = mean_interval(after - header["after"])
        bar, one_seed = before.iloc[0] - header["before"], np.isnan(low)
        smaller = pair.high < 0 and (one_seed or highest < bar)
        larger = pair.low > 0 and (one_seed or lowest > bar)
        verdict = (
            "fine-tuning takes fewer bits"
            if smaller
            else "fine-tuning takes more bits"
            if larger
            else "no difference that is borne out"
        )
        interval = "(one seed)" if one_seed else f"[{low:.3f}, {high:.3f}]"
        lines.append(
            f"{pair.domain}: {before.iloc[0]:.3f} bits per byte before, {mean:.3f} {interval} after, of which headers "
            f"are {header['before']:.3f} and {header[['after']].mean():.3f}; without them, by document, "
            f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]: {verdict}."
        )
        rival = others.loc[others.loc[others["domain"] == pair.domain, "bits_per_byte"].idxmin()]
        lines.append(
            f"{pair.domain}, smallest rival: {rival['compressor']}, {rival['packaging']}, "
            f"{rival['bits_per_byte']:.3f}; the fine-tuned model "
            f"{'beats' if mean < rival['bits_per_byte'] else 'does not beat'} it."
        )
        needed = breaks.loc[(breaks["domain"] == pair.domain) & (breaks["compressor"] == "model after"), "megabytes"]
        never = int(np.isinf(needed).sum())
        lines.append(
            f"{pair.domain}: the weights pay for themselves from {needed.mean():,.1f} MB of such text on."
            if not never
            else f"{pair.domain}: the weights never pay for themselves in {never} of {len(needed)} runs."
        )
    rates = [_rate(models, way) for way in ("encode_kb_per_s", "decode_kb_per_s")]
    lines.append(
        f"The models encode {rates[0]:.2f} kB/s and decode {rates[1]:.2f} kB/s; the slowest rival encodes "
        f"{others['encode_kb_per_s'].min() / rates[0]:,.1f} times as fast."
    )
    return lines


def _rate(rows: pd.DataFrame, way: str) -> float:
    """kB/s over several rows: all their bytes over all their seconds."""
    return rows["original_bytes"].sum() / (rows["original_bytes"] / rows[way]).sum()
