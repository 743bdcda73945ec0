"""The machines that students have, README's commands in four shells, text files whatever the locale is."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import files

import pytest

from lib import profile
from lib.__main__ import COMMANDS

README = (profile.ROOT / "README.md").read_text("utf-8")
PATH = ("finetune", "report", "report --check", "check", "export html", "pack --draft")  # check: names are to fill in
NOTEBOOKS = [path.name[:2] for path in sorted((profile.ROOT / "notebooks").glob("0[1236]_*.py"))]


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
    made = os.environ | {"ELSEWHERE": encoding, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": paths}
    made |= {"FAST_OUTPUT": str(folder.parent / encoding), "PROFILE": "fast "}  # the blank is cmd's
    with open(folder.parent / "log.txt", "wb") as log:
        done = subprocess.run([sys.executable, "-m", "lib", *arguments], cwd=folder, env=made, stdout=log, stderr=log)
    return done.returncode, (folder.parent / "log.txt").read_bytes().decode(encoding)


@pytest.mark.skipif(sys.platform != "linux", reason="this is such a machine")
@pytest.mark.parametrize(("encoding", "some", "n"), [("gbk", NOTEBOOKS[:1], 6), ("ascii", NOTEBOOKS[-1:], 2)])
def test_the_main_path_in_a_folder_with_chinese_where_output_is_not_utf_8(clone, encoding, some, n):
    some, n = (NOTEBOOKS, 6) if "MACHINES" in os.environ else (some, n)  # all of it, in GBK and the locale C
    for command in ("run " + " ".join(some), *PATH[:n]):
        code, said = there(clone, encoding, *command.split())
        assert (code == 0 or command == "check") and "Traceback" not in said, f"{command}: {said[-3000:]}"
    assert n < 6 or {p.name for p in (clone / "build").iterdir()} >= {"report.html", "final-draft.zip"}
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, encoding="utf-8").stdout
    assert not changed and b"\r" not in (clone / "data/debian/test.jsonl").read_bytes(), "CRLF changes files and hashes"


def test_readmes_commands_paste_into_bash_zsh_cmd_and_powershell():
    lines = "".join(re.findall(r"^```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)).splitlines()
    assert len(lines) >= 12
    for line in lines + re.findall(r"`([^`\n]*python[^`\n]*)`", README):
        assert not re.search(r"#|'|^\w+=|&&|\\$|^\s", line), f"not every shell takes this: {line}"
    for line in (line for line in lines if line.startswith("python -m lib ")):
        name, *options = line.split()[3:]
        assert {o for o in options if o.startswith("-")} <= COMMANDS[name][2].keys()


def test_readme_makes_an_environment_in_every_shell_where_torch_fits_windows_paths():
    assert "python3 -m venv .venv\nsource .venv/bin/activate" in README and "whose torch lacks libuv" in README
    assert "py -m venv .venv\n.venv\\Scripts\\activate" in README and "write `.venv\\Scripts\\python`" in README
    folder = int(re.search(r"this folder's path may have (\d+) characters", README)[1])
    assert folder + len("\\.venv\\Lib\\site-packages\\") + max(len(str(path)) for path in files("torch")) < 260


def by_locale(call: ast.Call) -> bool:
    """Whether a call reads, writes or decodes text in the locale's encoding; ruff's PLW1514 holds `open`."""
    name, named = getattr(call.func, "attr", ""), {k.arg for k in call.keywords}
    least = {"read_text": 1, "write_text": 2}.get(name)
    decodes = name in ("run", "Popen", "check_output") and {"text", "universal_newlines", "errors"} & named
    return "encoding" not in named and bool(decodes or (least and len(call.args) < least))


def test_no_text_is_read_written_or_decoded_by_locale_and_what_is_held_is_tried_again():
    held = r"\bos\.(replace|rename)\(|shutil\.(move|rmtree)\((?!.*ignore_)|TemporaryDirectory\((?!.*ignore_)"
    for path in (p for folder in ("lib", "tests", "notebooks", "data") for p in (profile.ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        lines = [n.lineno for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and by_locale(n)]
        assert not lines, f"{path.name}, lines {lines}"
        found = path.name != "profile.py" and path.parent.name not in ("tests", "elsewhere") and re.search(held, text)
        assert not found, f"{path.name}: {found[0]} gives up at once where another program has the file open"
