"""Benchmark texts that we may not ship, and `python -m lib fetch`, which gathers all for offline use.

Everything arrives whole or not at all, is checked against a SHA-256, and says why when it cannot be had.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from lib import hub
from lib.hub import Unavailable, hub_file, quiet
from lib.profile import DATA, current

MIRROR = DATA / "mirror"

# name -> file -> SHA-256 of the published file, line for line what the literature's numbers were taken on
OUTSIDE = {
    "e2e": {
        "train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
        "valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
        "test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    },
    "wikitext2": {"wiki.test.raw": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"},
    "lambada": {"lambada_test.jsonl": "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"},
    "blimp": {"blimp_all.tsv": "9ae4fe6bb66b4273419d2dca091fd8b0c44a7de0260b980aba2ec9a8e4bfc5d4"},
}


def _wikitext2() -> dict[str, bytes]:
    file = hub_file("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet", repo_type="dataset")
    rows = pd.read_parquet(file)["text"]  # a blank line of the file, " \n", is an empty row
    return {"wiki.test.raw": "".join(row or " \n" for row in rows).encode()}


def _lambada() -> dict[str, bytes]:
    file = hub_file("EleutherAI/lambada_openai", "data/lambada_test_en.jsonl", repo_type="dataset")
    return {"lambada_test.jsonl": file.read_bytes()}


def _blimp() -> dict[str, bytes]:
    files = HfApi(endpoint=hub.endpoint()).list_repo_files("nyu-mll/blimp", repo_type="dataset")
    text = io.StringIO()
    for name in tqdm(sorted(f for f in files if f.endswith(".parquet")), desc="BLiMP"):
        with quiet():
            rows = pd.read_parquet(hub_file("nyu-mll/blimp", name, repo_type="dataset"))
        columns = rows.UID, rows.linguistics_term, rows.sentence_good, rows.sentence_bad
        text.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    return {"blimp_all.tsv": text.getvalue().encode()}


# how the hub's copy becomes the published file, and one file by which to see whether the hub is there
HUB: dict[str, tuple[Callable[[], dict[str, bytes]], str, str]] = {
    "wikitext2": (_wikitext2, "Salesforce/wikitext", "README.md"),
    "lambada": (_lambada, "EleutherAI/lambada_openai", "README.md"),
    "blimp": (_blimp, "nyu-mll/blimp", "README.md"),
}


def outside(name: str) -> Path:
    """The folder of a data set from outside: `e2e`, `wikitext2`, `lambada` or `blimp`.

    From $DATA_MIRROR, else data/mirror, else the hub into data/mirror (never in the `fast` profile).
    Files: e2e/{train,valid,test}.txt, wikitext2/wiki.test.raw, lambada/lambada_test.jsonl,
    blimp/blimp_all.tsv. Raises Unavailable, with the reason and the way out, after 5 s at most.
    """
    if name not in OUTSIDE:
        raise ValueError(f"No data set {name!r} from outside: there are {', '.join(OUTSIDE)}.")
    for root in (_data_mirror(), MIRROR):
        if root and all((root / name / file).is_file() for file in OUTSIDE[name]):
            return root / name
    reason = "the fast profile downloads nothing"
    if current().name != "fast":
        try:
            return _install(name, _from_hub(name))
        except Unavailable as error:
            reason = str(error)
    raise Unavailable(
        f"{name} is neither in DATA_MIRROR nor in data/mirror ({', '.join(OUTSIDE[name])}), and the hub "
        f"does not give it: {reason}. With another network, or a mirror of the hub in HF_ENDPOINT, "
        f"`python -m lib fetch {name}` gets it."
    )


def _data_mirror() -> Path | None:
    given = os.environ.get("DATA_MIRROR")
    return Path(given).expanduser() if given else None


def _from_hub(name: str) -> dict[str, bytes]:
    if name not in HUB:
        raise Unavailable("the hub has only the untokenised release, which lib.tasks takes by itself")
    build, repository, file = HUB[name]
    if trouble := hub.hub_trouble(repository, file, repo_type="dataset"):
        raise Unavailable(trouble)
    try:
        return build()
    except Unavailable:
        raise
    except Exception as error:  # the listing's HTTP library, pyarrow, or columns that are not there
        raise Unavailable(f"{repository} did not come as expected ({error!r:.200})") from error


def _install(name: str, contents: dict[str, bytes]) -> Path:
    """Write one data set into data/mirror, whole or not at all. Raises Unavailable for other bytes."""
    for file, data in contents.items():
        found = hashlib.sha256(data).hexdigest()
        if found != OUTSIDE[name][file]:
            raise Unavailable(
                f"{name}/{file} is not the published file (sha256 {found[:12]}..., "
                f"expected {OUTSIDE[name][file][:12]}...)"
            )
    MIRROR.mkdir(parents=True, exist_ok=True)
    with FileLock(MIRROR / ".lock"), tempfile.TemporaryDirectory(dir=MIRROR, prefix=".new-") as new:
        fresh = Path(new) / name
        fresh.mkdir()
        for file, data in contents.items():
            (fresh / file).write_bytes(data)
        shutil.rmtree(MIRROR / name, ignore_errors=True)
        os.replace(fresh, MIRROR / name)
    return MIRROR / name


# The command


def fetch(what: list[str] | None = None) -> int:
    """Bring `what` to this disk for offline use: `model`, `e2e`, `wikitext2`, `lambada`, `blimp`.

    Prints one line each. What cannot be had counts as a failure only if it was asked for by name, or if
    there is no model at all: returns the number of failures. Raises ValueError for other names.
    """
    if unknown := [name for name in what or [] if name not in ("model", *OUTSIDE)]:
        raise ValueError(f"Nothing is called {unknown[0]!r}: choose of model, {', '.join(OUTSIDE)}.")
    failures = 0
    for name in what or ["model", *OUTSIDE]:
        try:
            folder, how = _fetch_model() if name == "model" else _fetch_outside(name)
        except (Unavailable, OSError, ValueError) as error:
            print(f"{name:10} not fetched: {error}")
            failures += bool(what) or name == "model"
        else:
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
            print(f"{name:10} {folder}, {size:,.1f} MB, {how}")
    return failures


def _fetch_outside(name: str) -> tuple[Path, str]:
    mirror = _data_mirror()
    here = {file: MIRROR / name / file for file in OUTSIDE[name]}
    if all(p.is_file() and hub.sha256(p) == OUTSIDE[name][file] for file, p in here.items()):
        return MIRROR / name, "already there"
    if mirror and (mirror / name).is_dir():
        contents = {file: (mirror / name / file).read_bytes() for file in OUTSIDE[name]}
        return _install(name, contents), f"copied from {mirror}"
    return _install(name, _from_hub(name)), f"from {hub.endpoint()}"


def _fetch_model() -> tuple[Path, str]:
    from lib import stand_in

    folder = hub.MODELS / "gpt2"
    if hub.holds_model(folder):
        return folder, "already there"
    cached = hub.cached_model(hub.GPT2, hub.GPT2_REVISION)
    hub.MODELS.mkdir(parents=True, exist_ok=True)
    partial = hub.MODELS / ".gpt2.partial"  # kept when the network breaks off: the next run goes on
    try:
        with FileLock(hub.MODELS / ".gpt2.lock"):
            if cached and hub.holds_model(cached):
                shutil.copytree(cached, partial, dirs_exist_ok=True)
                how = f"GPT-2 117M, copied from {cached}"
            else:
                hub.hub_model(hub.GPT2, hub.GPT2_REVISION, local_dir=partial)
                how = f"GPT-2 117M, from {hub.endpoint()}"
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            hub.check_folder(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            return folder, how
    except Unavailable as error:
        built = stand_in.build()
        return built, f"the stand-in {stand_in.NAME}, because {error}"
