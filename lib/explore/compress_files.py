"""`python -m lib compress` and `decompress`: files, and the proof of a round trip in another process."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from lib import profile
from lib.explore.compress import Codec, check_model, compress, decompress
from lib.explore.container import read
from lib.models import load_base
from lib.results import write_bytes
from lib.train import load

SUFFIX = ".lmz"
BASE = "base"  # the name of the model that is no run


@lru_cache(maxsize=1)  # several files of one model load it once
def codec_of(name: str = BASE) -> Codec:
    """The base model, or the finished run `name` of data/runs. Raises FileNotFoundError for a missing run."""
    base = load_base()
    if name == BASE:
        return Codec(base.model, base.tokenizer)
    run = load(base, profile.output_root() / "data" / "runs" / name)
    return Codec(run.model, base.tokenizer, name)


def compress_file(path: Path, out: Path | None = None, run: str = BASE) -> Path:
    """`path` as the one document of an archive, by default beside it. Any file; text is what pays."""
    data = path.read_bytes()
    out = _free(out or path.with_name(path.name + SUFFIX))
    codec = codec_of(run)
    began = time.monotonic()
    made = compress(codec, [data])
    write_bytes(out, made.data)
    print(f"{path}: {len(data):,} bytes to {len(made.data):,} in {time.monotonic() - began:.1f} s: {out}")
    return out


def decompress_file(path: Path, out: Path | None = None, run: str | None = None) -> Path:
    """The document of an archive, by default without the suffix; of several a folder, one file each.

    The model is the one that the archive names, or `run`. Raises ValueError, with the file's name, for
    what `lib.explore.compress.decompress` refuses; then nothing is written.
    """
    if out is None and path.suffix != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}: name the file to write with -o.")
    out, data = _free(out or path.with_suffix("")), path.read_bytes()
    try:
        archive = read(data)  # damage is told before a model is loaded
        codec = codec_of(run or archive.name)
        check_model(codec, archive)  # hashing the weights belongs to loading, not to decoding
        began = time.monotonic()
        documents = decompress(codec, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    seconds = time.monotonic() - began
    single = len(documents) == 1
    for i, document in enumerate(documents):
        write_bytes(out if single else out / f"{i:06d}", document)
    print(f"{path}: {len(documents)} document(s), {archive.n_bytes:,} bytes in {seconds:.3f} s: {out}")
    return out


def _free(out: Path) -> Path:
    if out.exists():
        raise ValueError(f"{out} exists: move it away, or name another place with -o.")
    return out


def shell(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m lib ...` of this checkout, in a process of its own with `folder` as its current one."""
    path = os.pathsep.join([str(profile.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lib", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def decompress_elsewhere(archives: Mapping[Path, Sequence[bytes]]) -> list[tuple[list[bool], float]]:
    """Decode `archives` (file -> documents) with the command line, in one other process, and compare.

    Per archive: for each document, whether it came back byte for byte; and the seconds of decoding,
    loading not counted. Raises RuntimeError with the process's last line where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copies = [Path(shutil.copy(path, scratch)) for path in archives]
        done = shell(Path(scratch), "decompress", *(c.name for c in copies))
        if done.returncode:
            raise RuntimeError(last_line(done))
        same = []
        for copy, documents in zip(copies, archives.values(), strict=True):
            out = copy.with_suffix("")
            files = [out] if out.is_file() else sorted(out.glob("*"))
            same.append([f.read_bytes() == d for f, d in zip(files, documents, strict=True)])
    seconds = map(float, re.findall(r"bytes in ([\d.]+) s: ", done.stdout))
    return list(zip(same, seconds, strict=True))


def last_line(done: subprocess.CompletedProcess) -> str:
    """What a process said last: its result, or why it failed."""
    said = done.stderr if done.returncode else done.stdout
    return (said.strip().splitlines() or ["no output"])[-1]
