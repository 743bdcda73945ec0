"""The other systems of lib.explore.bench, in an environment of their own: they are no part of requirements.txt.

The environment sees what this one has installed and adds the peers alone, in pinned versions; nothing that is
installed here is replaced or fetched a second time, torch above all.
"""

import importlib.metadata
import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

from lib import profile
from lib.hub import Unavailable
from lib.results import write_text

PEERS = {"trl": "trl==1.16.0", "lm-eval": "lm-eval==0.4.13"}  # released October and August 2026
LEFT_OUT = {"litgpt": "litgpt 0.5.13 has no GPT-2: its models take rotary positions, GPT-2's are learned."}
TIMEOUT = 1_800  # seconds for one peer; three of lm-eval's dependencies are built from source


def folder() -> Path:
    return profile.ROOT / "data" / "runs" / "peers"


def python(peer: str) -> str:
    """The interpreter that has `peer`, installed on the first call. Raises Unavailable, in one sentence."""
    home = folder()
    made = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    mark = home / f"{peer}.json"
    if mark.exists() and json.loads(mark.read_text()) == _wanted(peer):
        return str(made)
    print(f"Installing {PEERS[peer]} into {home.relative_to(profile.ROOT)}, once.", flush=True)
    try:
        if not made.exists():
            venv.create(home, with_pip=True)
            _see_this_environment(home)
        write_text(home / "constraints.txt", "\n".join(installed()) + "\n")
        pip = [str(made), "-m", "pip", "install", "-q", "-c", str(home / "constraints.txt")]
        subprocess.run([*pip, PEERS[peer]], check=True, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise Unavailable(f"{peer} is left out: {PEERS[peer]} can't be installed ({lines[-1]}).") from None
    write_text(mark, json.dumps(_wanted(peer)))
    return str(made)


def installed() -> list[str]:
    """This environment as pip's constraints; without the "+cpu" of a local wheel, which pip then still takes."""
    found = {(d.name.lower(), d.version.split("+")[0]) for d in importlib.metadata.distributions()}
    tools = {"pip", "setuptools", "wheel", "gpt2-finetuning-coursework"}
    return sorted(f"{name}=={version}" for name, version in found if name not in tools)


def _wanted(peer: str) -> dict:
    torch = importlib.metadata.version("torch")
    return {"peer": PEERS[peer], "torch": torch, "from": sysconfig.get_path("purelib")}


def _see_this_environment(home: Path) -> None:
    """A .pth line, since `--system-site-packages` would show the interpreter's packages, not a venv's own."""
    (found,) = home.glob("lib/python*/site-packages") if os.name != "nt" else [home / "Lib/site-packages"]
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    write_text(found / "project.pth", "\n".join(paths) + "\n")
