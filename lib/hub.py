"""The Hugging Face hub, or a mirror of it: is it there, and its files, checked.

Shared by lib.models (the base model) and lib.fetch (benchmark texts, `python -m lib fetch`).
"""

import hashlib
import json
import os
import threading
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import huggingface_hub.utils as hub_utils
import transformers
from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from lib.profile import DATA

MODELS = DATA / "models"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GPT2 = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_SHA256 = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"  # 548,105,171 bytes
PATIENCE = 4.0  # seconds until a hub that does not answer counts as out of reach
SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
)

# The hub's Xet transfer talks to its own hosts, which a mirror in HF_ENDPOINT does not cover, and can wait
# for them without end (github.com/huggingface/xet-core/issues/898): plain HTTP fails in time.
constants.HF_HUB_DISABLE_XET = True


class Unavailable(RuntimeError):
    """Data or a model that cannot be had here; the message says why and what would help."""


@contextmanager
def quiet(bars: bool = False):
    """No warnings of transformers and huggingface_hub inside and, unless `bars`, no progress bars."""
    with ExitStack() as stack:
        for log in (transformers.logging, hub_utils.logging):
            stack.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity_error()
        if not bars:  # both libraries draw with tqdm itself, which has no switch after import
            silent = partialmethod(tqdm.__init__, disable=True)
            stack.enter_context(mock.patch.object(tqdm, "__init__", silent))
        yield


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError, or ValueError for damage, in one sentence if `folder` cannot be loaded.

    It has to hold config.json, safetensors of the length that their header states, and a tokenizer.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder.")
    files = {path.name for path in folder.iterdir()}
    weights = sorted(name for name in files if name.endswith(".safetensors"))
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if "config.json" not in files:
        raise FileNotFoundError(f"{folder} has no config.json: it is no model folder of transformers.")
    if not weights and pickles:
        raise ValueError(
            f"{folder} has its weights as {pickles[0]} alone, a pickle that could run code: "
            "put model.safetensors of the same model beside config.json."
        )
    if not weights:
        raise FileNotFoundError(f"{folder} has no weights: put model.safetensors beside config.json.")
    if not ({"tokenizer.json", "tokenizer.model"} & files or {"vocab.json", "merges.txt"} <= files):
        raise FileNotFoundError(f"{folder} has no tokenizer: put tokenizer.json, or vocab.json and merges.txt, there.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(named - files):
            raise FileNotFoundError(f"{folder} lacks {missing[0]}, which {index.name} names.")
    for name in weights:
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} is damaged or cut short ({error}): delete it and fetch it again, "
                "`python -m lib fetch` or by hand."
            ) from None


def holds_model(folder: Path) -> bool:
    """Whether `check_folder` finds nothing wrong."""
    try:
        check_folder(folder)
    except (OSError, ValueError):
        return False
    return True


def endpoint() -> str:
    """HF_ENDPOINT (a mirror) or the hub itself, without a slash at the end."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def hub_trouble(repository: str, file: str, revision: str = "main", repo_type: str | None = None):
    """Why `file` cannot be had from the hub, in a few words; None if its first byte arrived.

    Decided within PATIENCE seconds, name lookup and redirects to the file's own host included:
    transformers' and huggingface_hub's own retries take up to a minute.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    host = urlsplit(endpoint()).netloc or endpoint()
    found = [f"{host} did not answer within {PATIENCE:.0f} s"]

    def ask() -> None:
        url = hf_hub_url(repository, file, repo_type=repo_type, revision=revision, endpoint=endpoint())
        headers = {**hub_utils.build_hf_headers(), "Range": "bytes=0-0"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=PATIENCE, follow_redirects=True) as answer:
                code = answer.status_code
                next(answer.iter_bytes(1), b"")
            found[0] = None if code < 400 else f"{host} answered {code} for {repository}, {file}"
        except Exception as error:  # of two HTTP libraries, by version of huggingface_hub
            if "Timeout" not in type(error).__name__:
                found[0] = f"{host} cannot be reached ({type(error).__name__})"

    # A thread, because no timeout of the HTTP library covers a name server that does not answer
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0]


def hub_file(repository: str, file: str, revision: str = "main", **more) -> Path:
    """One file of the hub, in its cache. Raises Unavailable, EntryNotFoundError where it does not exist.

    `more` goes to hf_hub_download (repo_type, local_dir). What breaks off is taken up again next time.
    """
    try:
        return Path(
            hf_hub_download(repository, file, revision=revision, endpoint=endpoint(), etag_timeout=PATIENCE, **more)
        )
    except Exception as error:  # of two HTTP libraries, by version of huggingface_hub
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise Unavailable(f"download of {file} from {repository} failed ({type(error).__name__}: {reason})") from error


def cached_model(repository: str, revision: str = "main") -> Path | None:
    """The folder of a model in the local Hugging Face cache, asking no network; None if not there."""
    found = [
        try_to_load_from_cache(repository, file, revision=revision) for file in ("config.json", "model.safetensors")
    ]
    return Path(found[1]).parent if all(isinstance(path, str) for path in found) else None


def hub_model(repository: str, revision: str = "main", local_dir: Path | None = None) -> Path:
    """The folder with a model's config, tokenizer and safetensors, from the hub; no other file of it.

    In the hub's cache, or in `local_dir`. Raises Unavailable; checks GPT-2's weights against the pinned
    SHA-256 and others against the one the hub names.
    """
    pinned = (repository, revision) == (GPT2, GPT2_REVISION)
    if trouble := hub_trouble(repository, "model.safetensors" if pinned else "config.json", revision):
        raise Unavailable(trouble)
    where = {"revision": revision, "local_dir": local_dir}
    with quiet():
        try:
            folder = hub_file(repository, "config.json", **where).parent
        except EntryNotFoundError:
            raise Unavailable(f"{repository} has no config.json on {endpoint()}") from None
        for name in SIDE_FILES:
            try:
                hub_file(repository, name, **where)
            except EntryNotFoundError:
                continue
    with quiet(bars=True):
        try:
            weights = hub_file(repository, "model.safetensors", **where)
        except EntryNotFoundError:
            raise Unavailable(f"{repository} has no model.safetensors on {endpoint()}") from None
    blob = weights.resolve()
    # the cache names a large file by the SHA-256 in the hub's ETag
    expected = GPT2_SHA256 if pinned else blob.name
    if len(expected) == 64 and sha256(blob) != expected:
        weights.unlink()
        blob.unlink(missing_ok=True)
        raise Unavailable(f"model.safetensors of {repository} from {endpoint()} has the wrong SHA-256; it was removed")
    return folder
