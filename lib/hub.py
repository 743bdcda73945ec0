"""The Hugging Face hub, or a mirror of it in HF_ENDPOINT; the texts that we may not ship; `python -m lib fetch`.

What arrives is whole, is checked against a SHA-256, and says why when it cannot be had."""

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from functools import partialmethod
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import huggingface_hub.utils as hub_utils
import pandas as pd
import transformers
from filelock import FileLock
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from lib import profile
from lib.profile import DATA, remove, replace, write_bytes

MODELS, MIRROR = DATA / "models", DATA / "mirror"  # ignored by git
GPT2 = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_SHA256 = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"  # 548,105,171 bytes
PATIENCE = 4.0  # seconds until a hub that does not answer counts as out of reach
SIDE_FILES = ("generation_config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
SIDE_FILES += ("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "chat_template.jinja")
MOVED: dict[str, str] = {}  # endpoint -> where its permanent redirects lead
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
    "shakespeare": {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
}
HUB_COPIES = {"wikitext2": "Salesforce/wikitext", "lambada": "EleutherAI/lambada_openai", "blimp": "nyu-mll/blimp"}

# The hub's Xet transfer talks to its own hosts, which a mirror in HF_ENDPOINT does not cover, and can wait
# for them without end (github.com/huggingface/xet-core/issues/898): plain HTTP fails in time.
constants.HF_HUB_DISABLE_XET = True


class Unavailable(RuntimeError):
    """Data or a model that cannot be had here; the message says why and what would help."""


def reached(get: Callable, *names):
    """`get(*names)`; where that is out of reach None, and a printed line that says why."""
    try:
        return get(*names)
    except Unavailable as reason:
        return print(f"Skipped: {reason}")


@contextmanager
def quiet(bars: bool = False):
    """No warnings of transformers and huggingface_hub inside and, unless `bars`, no progress bars."""
    with ExitStack() as stack:
        for log in (transformers.logging, hub_utils.logging):
            stack.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity_error()
        if not bars:  # both libraries draw with tqdm itself, which has no switch after import
            stack.enter_context(mock.patch.object(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True)))
        yield


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return sha_fileobj(file).hex()


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, or ValueError for damage, if `folder` does not hold config.json, a tokenizer, and
    safetensors of the length that their header states or pytorch_model.bin."""
    files = {path.name for path in folder.iterdir()}
    if "config.json" not in files:
        raise FileNotFoundError(f"{folder} has no config.json: it is no model folder of transformers.")
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights and "pytorch_model.bin" not in files:
        raise FileNotFoundError(f"{folder} has no weights: put model.safetensors beside config.json.")
    if not ({"tokenizer.json", "tokenizer.model"} & files or {"vocab.json", "merges.txt"} <= files):
        raise FileNotFoundError(f"{folder} has no tokenizer: put tokenizer.json, or vocab.json and merges.txt, there.")
    for name in files & {"config.json", "pytorch_model.bin", *SIDE_FILES, *weights}:
        with open(folder / name, "rb") as file:
            begins = file.read(64).lstrip().lower()
        if begins.startswith((b"version https://git-lfs", b"<!doctype html", b"<html")):
            kind = "a web page" if begins.startswith(b"<") else "a Git-LFS pointer"
            raise ValueError(f"{folder / name} is {kind} and not the file: get the file itself by its download link.")
    for name in weights:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            what = f"{folder / name} is damaged or cut short ({error})"
            raise ValueError(f"{what}: delete it and fetch it again, `python -m lib fetch` or by hand.") from None


def holds_model(folder: Path) -> bool:
    """Whether `check_folder` finds nothing wrong."""
    with suppress(OSError, ValueError):
        check_folder(folder)
        return True
    return False


def endpoint() -> str:
    """HF_ENDPOINT (a mirror) or the hub itself, or where `hub_trouble` saw it moved to; without a slash at the end."""
    named = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    return MOVED.get(named, named)


def hub_trouble(repository: str, file: str, revision: str = "main", repo_type: str | None = None) -> str | None:
    """Why `file` cannot be had from the hub, in a few words; None if its first byte arrived. Decided within PATIENCE
    seconds, name lookup and redirects included: huggingface_hub's own retries take up to a minute."""
    if profile.name() == "fast":
        return "the fast profile downloads nothing"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    asked = endpoint()
    host = urlsplit(asked).netloc or asked
    found = [f"{host} did not answer within {PATIENCE:.0f} s"]
    url = hf_hub_url(repository, file, repo_type=repo_type, revision=revision, endpoint=asked)
    path = url.removeprefix(asked)
    headers = {**hub_utils.build_hf_headers(), "Range": "bytes=0-0"}

    def ask() -> None:
        try:
            with get_session().stream("GET", url, headers=headers, timeout=PATIENCE, follow_redirects=True) as answer:
                code = answer.status_code
                next(answer.iter_bytes(1), b"")
            found[0] = None if code < 400 else f"{host} answered {code} for {repository}, {file}"
            # huggingface_hub's HEAD requests follow no redirect to another host
            for step, after in zip(answer.history[:3], [*answer.history[1:], answer], strict=False):
                if step.status_code in (301, 308) and str(after.url).endswith(path):
                    MOVED[asked] = str(after.url).removesuffix(path)
        except Exception as error:  # of two HTTP libraries, by version of huggingface_hub
            if "Timeout" not in type(error).__name__:
                found[0] = f"{host} cannot be reached ({type(error).__name__})"

    # A thread, because no timeout of the HTTP library covers a name server that does not answer
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def hub_file(repository: str, file: str, revision: str = "main", **more) -> Path:
    """One file of the hub, in its cache; what breaks off is taken up again next time. `more` goes to hf_hub_download
    (repo_type, local_dir). Raises Unavailable, EntryNotFoundError where it does not exist."""
    more |= {"revision": revision, "endpoint": endpoint(), "etag_timeout": PATIENCE}
    try:
        return Path(hf_hub_download(repository, file, **more))
    except Exception as error:  # of two HTTP libraries, by version of huggingface_hub
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise Unavailable(f"download of {file} from {repository} failed ({type(error).__name__}: {reason})") from error


def cached_model(repository: str, revision: str = "main") -> Path | None:
    """The folder of a model in the local Hugging Face cache, asking no network; None if not there or not whole."""
    found = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    return Path(found).parent if isinstance(found, str) and holds_model(Path(found).parent) else None


def hub_model(repository: str, revision: str = "main", local_dir: Path | None = None) -> Path:
    """The folder with a model's config, tokenizer and safetensors alone, in the hub's cache or in `local_dir`. Raises
    Unavailable, also where GPT-2's weights have not the pinned SHA-256, or others the hub's own."""
    pinned = (repository, revision) == (GPT2, GPT2_REVISION)
    if trouble := hub_trouble(repository, "model.safetensors" if pinned else "config.json", revision):
        raise Unavailable(trouble)
    for name in ("config.json", *SIDE_FILES, "model.safetensors"):
        with quiet(bars=name == "model.safetensors"):
            try:
                weights = hub_file(repository, name, revision, local_dir=local_dir)
            except EntryNotFoundError:
                if name not in SIDE_FILES:
                    raise Unavailable(f"{repository} has no {name} on {endpoint()}") from None
    blob = weights.resolve()
    try:  # the hub's ETag of a large file is its SHA-256
        url = hf_hub_url(repository, "model.safetensors", revision=revision, endpoint=endpoint())
        expected = GPT2_SHA256 if pinned else HfApi().get_hf_file_metadata(url=url, timeout=PATIENCE).etag or ""
    except Exception as error:  # see hub_file
        raise Unavailable(f"{endpoint()} does not tell the SHA-256 of {repository} ({type(error).__name__})") from error
    if len(expected) == 64 and sha256(blob) != expected:
        remove(weights)
        remove(blob)
        raise Unavailable(f"model.safetensors of {repository} from {endpoint()} has the wrong SHA-256; it was removed")
    return weights.parent


def places(name: str) -> list[Path]:
    return [Path(folder).expanduser() / name for folder in (os.environ.get("DATA_MIRROR"), MIRROR) if folder]


def outside(name: str) -> Path:
    """The folder of a data set of OUTSIDE: below $DATA_MIRROR, else data/mirror, else fetched from the hub to there
    (never in the `fast` profile). Raises Unavailable, with the reason and the way out, after 5 s at most."""
    if name not in OUTSIDE:
        raise ValueError(f"No data set {name!r} from outside: there are {', '.join(OUTSIDE)}.")
    for folder in places(name):
        if all((folder / file).is_file() for file in OUTSIDE[name]):
            return folder
    try:
        return _from_hub(name)
    except Unavailable as error:
        reason = str(error)
    where = f"neither in DATA_MIRROR nor in data/mirror ({', '.join(OUTSIDE[name])}), and the hub does not give it"
    ways = f"`python -m lib fetch {name} --mirror https://hf-mirror.com`, or without the mirror in another network."
    raise Unavailable(f"{name} is {where}: {reason}. {ways if name in HUB_COPIES else 'data/README.md says whence.'}")


def _from_hub(name: str) -> Path:
    """data/mirror/`name` with the published file, made from the hub's copy of it. Raises Unavailable."""
    if name not in HUB_COPIES:
        raise Unavailable("the hub has no copy (of E2E only the untokenised release, which the task takes by itself)")
    repository, where = HUB_COPIES[name], {"repo_type": "dataset"}
    if trouble := hub_trouble(repository, "README.md", **where):
        raise Unavailable(trouble)
    try:
        if name == "lambada":
            data = hub_file(repository, "data/lambada_test_en.jsonl", **where).read_bytes()
        elif name == "wikitext2":  # a blank line of the file, " \n", is an empty row
            table = pd.read_parquet(hub_file(repository, "wikitext-2-raw-v1/test-00000-of-00001.parquet", **where))
            data = "".join(row or " \n" for row in table["text"]).encode()
        else:  # a file for each of the 67 paradigms
            files, lines = HfApi(endpoint=endpoint()).list_repo_files(repository, **where), []
            for file in tqdm(sorted(f for f in files if f.endswith(".parquet")), desc="BLiMP"):
                with quiet():
                    table = pd.read_parquet(hub_file(repository, file, **where))
                rows = table[["UID", "linguistics_term", "sentence_good", "sentence_bad"]].itertuples(index=False)
                lines += ["\t".join(row) + "\n" for row in rows]
            data = "".join(lines).encode()
    except Unavailable:
        raise
    except Exception as error:  # the listing's HTTP library, pyarrow, or columns that are not there
        raise Unavailable(f"{repository} did not come as expected ({error!r:.200})") from error
    ((file, expected),) = OUTSIDE[name].items()
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        what = f"sha256 {found[:12]}..., expected {expected[:12]}..."
        raise Unavailable(f"{name}/{file} is not the published file ({what})")
    write_bytes(MIRROR / name / file, data)
    return MIRROR / name


def fetch(what: list[str] | None = None) -> int:
    """Bring `what` to this disk for offline use: `model`, or names of OUTSIDE; all by default. Prints one line each and
    returns the number of failures: what was asked for by name, or having no model at all."""
    failures, known = 0, ["model", *OUTSIDE]
    if unknown := set(what or ()) - set(known):
        raise ValueError(f"Nothing is called {min(unknown)!r}: choose one of {', '.join(known)}.")
    for name in what or known:
        try:
            if name == "model":
                folder, how = _fetch_model()
            else:
                files = OUTSIDE[name].items()
                good = [d for d in places(name) if all((d / f).is_file() and sha256(d / f) == h for f, h in files)]
                folder, how = (good[0], "already there") if good else (_from_hub(name), f"from {endpoint()}")
        except (Unavailable, OSError, ValueError) as error:
            print(f"{name:10} not fetched: {error}")
            failures += bool(what) or name == "model"
        else:
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
            print(f"{name:10} {folder}, {size:,.1f} MB, {how}")
    return failures


def _fetch_model() -> tuple[Path, str]:
    folder = MODELS / "gpt2"
    if found := folder if holds_model(folder) else cached_model(GPT2, GPT2_REVISION):
        return found, "already there"
    partial = MODELS / ".gpt2.partial"  # kept when the network breaks off: the next run goes on
    try:
        with FileLock(MODELS / ".gpt2.lock"):
            hub_model(GPT2, GPT2_REVISION, local_dir=partial)
            remove(partial / ".cache")
            check_folder(partial)
            remove(folder)
            replace(partial, folder)
    except Unavailable as error:
        from lib.models import STAND_IN, build_stand_in  # lib.models imports this module

        return build_stand_in(), f"the stand-in {STAND_IN}, because {error}"
    return folder, f"GPT-2 117M, from {endpoint()}"
