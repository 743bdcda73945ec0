"""The machines that students have, README's commands in four shells, text files whatever the locale is."""

import ast
import os
import re
import subprocess
import sys

import pytest

from lib import profile
from lib.__main__ import COMMANDS

README = (profile.ROOT / "README.md").read_text("utf-8")
PATH = ("run 01", "finetune", "report", "report --check", "check", "export html", "pack --draft")
MAY_FAIL = ("check",)  # while names and members are not filled in


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The last commit as Git for Windows clones it, in a folder with Chinese and a blank."""
    if not (profile.ROOT / ".git").exists():
        pytest.skip("a clone needs git and a checkout")
    folder = tmp_path_factory.mktemp("张三") / "NLP 作业"
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", profile.ROOT, folder], check=True)
    return folder


def there(folder, encoding: str, *arguments: str) -> tuple[int, str]:
    """`python -m lib` with its output in a file, on such a machine: its exit status and what it wrote."""
    paths = os.pathsep.join([str(profile.ROOT / "tests" / "elsewhere"), str(folder)])
    made = {"ELSEWHERE": encoding, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": paths}
    made |= {"FAST_OUTPUT": str(folder.parent / "out"), "PROFILE": "fast "}  # the blank is cmd's
    with open(folder.parent / "log.txt", "wb") as log:
        command = [sys.executable, "-m", "lib", *arguments]
        code = subprocess.run(command, cwd=folder, env=os.environ | made, stdout=log, stderr=log).returncode
    return code, (folder.parent / "log.txt").read_bytes().decode(encoding)


@pytest.mark.skipif(sys.platform != "linux", reason="this is such a machine")
@pytest.mark.parametrize("encoding", ["gbk", *(["ascii"] if "MACHINES" in os.environ else [])])
def test_the_main_path_in_a_folder_with_chinese_where_output_is_not_utf_8(clone, encoding):
    for command in PATH:
        code, said = there(clone, encoding, *command.split())
        assert (code == 0 or command in MAY_FAIL) and "Traceback" not in said, f"{command}: {said[-3000:]}"
    assert {p.name for p in (clone / "build").iterdir()} >= {"report.html", "final-draft.zip"}
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, encoding="utf-8").stdout
    assert not changed, "CRLF would change files that the commands leave as they are"


def test_readmes_commands_paste_into_bash_zsh_cmd_and_powershell():
    blocks = re.findall(r"^```(bash|bat)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line for _, block in blocks for line in block.splitlines()]
    assert len(lines) >= 12
    for line in lines + re.findall(r"`([^`\n]*python[^`\n]*)`", README):
        assert not re.search(r"#|'|^\w+=|&&|\\$|^\s", line), f"not every shell takes this: {line}"
    for line in (line for line in lines if line.startswith("python -m lib ")):
        name, *options = line.split()[3:]
        assert {o for o in options if o.startswith("-")} <= COMMANDS[name][2].keys()


def by_locale(call: ast.Call) -> bool:
    """Whether a call reads, writes or decodes text in the locale's encoding; ruff's PLW1514 holds `open`."""
    name, named = getattr(call.func, "attr", ""), {k.arg for k in call.keywords}
    least = {"read_text": 1, "write_text": 2}.get(name)
    decodes = name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & named
    return "encoding" not in named and bool(decodes or (least and len(call.args) < least))


def test_no_text_is_read_written_or_decoded_by_locale():
    for path in (p for folder in ("lib", "tests", "notebooks", "data") for p in (profile.ROOT / folder).rglob("*.py")):
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        assert not (found := [c.lineno for c in calls if by_locale(c)]), f"{path.name}, lines {found}"
