"""The zip to hand in: complete, the same from the same content, and without anything that must not leave."""

import io
import zipfile

import pytest
from sample_project import NAMES, commit, notebook, project, write

from lib import profile
from lib.report import export, pack

KEY = "sk-" + "a1B2c3D4e5F6g7H8i9J0k1L2"  # in two parts: this file is packed itself


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A finished, committed project whose report costs nothing to export."""
    monkeypatch.setattr(export, "document", lambda source, form, draft: f"{form} {draft}".encode())
    return project(tmp_path / "课程")


def names(path):
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        return [name.removeprefix(f"{pack.TOP}/") for name in packed.namelist()]


def add(root, name, text):
    write(root / name, text)
    commit(root, "add", name)


HANDED_IN = """report.md report.html report.docx report.pdf README.md requirements.txt pyproject.toml lib/packing.py
data/README.md data/debian/card.json data/debian/train.jsonl figures/03_before_after.png"""


def test_the_package_holds_what_is_handed_in(root):
    path = pack.pack(root=root)
    found, wanted = names(path), set(HANDED_IN.split())
    wanted |= {f"notebooks/{stem}.{kind}" for stem in NAMES for kind in ("py", "ipynb")}
    wanted |= {f"data/results/{stem}.json" for stem in NAMES}
    assert path == root / "build/final.zip" and wanted <= set(found) and found == sorted(found)
    commit(root, "rm", "-qf", "report.md")
    midterm = set(names(pack.pack(midterm=True, root=root)))
    assert {"README.md", "midterm_report.pdf", "notebooks/03_evaluate.ipynb"} <= midterm and "report.md" not in midterm


def test_the_same_content_gives_the_same_bytes(tmp_path):
    """The real exports, in two folders at two times."""
    first, second = (pack.pack(root=project(tmp_path / name)) for name in ("a", "另一个"))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as packed:
        assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in packed.infolist()} == {0o100644}
        pdf = packed.read(f"{pack.TOP}/report.pdf")
        assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf and b"xmp:CreateDate" not in pdf
        with zipfile.ZipFile(io.BytesIO(packed.read(f"{pack.TOP}/report.docx"))) as word:
            assert b"1980-01-01T00:00:00Z" in word.read("docProps/core.xml")
        assert b'href="lib/packing.py"' in packed.read(f"{pack.TOP}/report.html")


PRIVATE = """data/private/me.jsonl data/models/gpt2/config.json data/runs/r/state.json data/mirror/e2e/a.txt notes.txt
data/runs/ratings-debian.jsonl data/me.jsonl lib/__pycache__/x.pyc lib/model.safetensors .env lib/.env tests/id_rsa
lib/server.pem build/old.html .github/workflows/ci.yml
data/my_diary/a.txt data/my_task.jsonl data/debian/mine.jsonl data/results/mine.json data/my_diary/card.json
.DS_Store lib/.DS_Store lib/._packing.py data/debian/._train.jsonl data/debian/Thumbs.db figures/desktop.ini .idea/a.xml
.vscode/settings.json lib/packing-DESKTOP-1A2B3C4.py notebooks/03_evaluate-LAPTOP-张三.ipynb lib/packing(1).py
figures/03_before_after-1.png lib/report/templates/~$reference.docx"""
LEAKS = {
    "lib/judge.py": f'KEY = "{KEY}"\n',
    "tests/a.py": "-----BEGIN RSA PRIVATE " + "KEY-----\nx",
    "data/debian/train.jsonl": "hf" + "_" + "a1B2c3D4e5F6g7H8i9J0k1L2",
    "notebooks/02_finetune.ipynb": notebook("02_finetune", f"{KEY}\n"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_no_key_leaves_and_the_file_is_named(root, name):
    add(root, name, LEAKS[name])
    with pytest.raises(ValueError, match="looks like a key or token") as refused:
        pack.pack(draft=True, root=root)
    assert name in str(refused.value) and KEY not in str(refused.value)
    assert not (root / "build").exists()


def test_this_machines_paths_and_secrets_are_found_everywhere(root, monkeypatch):
    add(root, "tests/test_x.py", f'A = "{root}/data"\n')
    with pytest.raises(ValueError, match=r"tests/test_x.py holds a path of this machine"):
        pack.pack(root=root)
    add(root, "tests/test_x.py", 'A = "correct-horse-battery"\n')
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse-battery")
    with pytest.raises(ValueError, match=r"holds the value of \$JUDGE_API_KEY") as refused:
        pack.pack(root=root)
    assert "correct-horse" not in str(refused.value)


def test_this_repository_packs_all_that_it_needs_and_nothing_private():
    packed = pack.files(profile.ROOT, "report.md")
    needed = {p.relative_to(profile.ROOT).as_posix() for p in (profile.ROOT / "lib").rglob("*.py")}
    assert needed | {"requirements.txt", "data/debian/train.jsonl", "data/gpt2_bpe/merges.txt"} <= set(packed)
    if (profile.ROOT / ".git").exists():
        assert {n for n in pack._git(profile.ROOT) if not n.startswith((".ci/", ".github/"))} == set(packed)
    for name in (n for n in packed if not n.endswith((".jsonl", ".svg"))):
        assert not list(pack.private(name, (profile.ROOT / name).read_bytes(), profile.ROOT)), name


def test_gaps_refuse_and_a_draft_says_so(root):
    write(root / "report.md", (root / "report.md").read_text("utf-8").replace("| Li Hua", "| [Name of member 2]"))
    with pytest.raises(ValueError, match=r"Members named.*is no name yet[\s\S]*`python -m lib pack --draft`"):
        pack.pack(root=root)
    path = pack.pack(draft=True, root=root)
    assert path.name == "final-draft.zip"
    with zipfile.ZipFile(path) as packed:
        assert "[Name of member 2] is no name yet" in packed.read(f"{pack.TOP}/DRAFT.txt").decode("utf-8")
        assert packed.read(f"{pack.TOP}/report.pdf") == b"pdf True"


def test_what_is_gone_or_not_in_git_is_named(root, capsys):
    write(root / "lib/scratch_notes.py", "")
    assert "lib/scratch_notes.py" not in names(pack.pack(root=root))
    assert "Not tracked by git, so not packed: lib/scratch_notes.py\n" in capsys.readouterr().out
    (root / "lib/packing.py").unlink()
    with pytest.raises(ValueError, match=r"lib/packing.py is gone: `git checkout lib/packing.py`"):
        pack.pack(root=root)
    commit(root, "checkout", "lib/packing.py")
    commit(root, "rm", "-q", "--cached", "report.md", "data/results/04_token_encoding.json")
    with pytest.raises(ValueError, match=r"does not track data/results/04_token_encoding.json, report.md: `git add"):
        pack.pack(root=root)


def test_what_is_not_listed_stays_out_with_git_and_without_and_no_link_is_followed(tmp_path, root):
    plain, private = project(tmp_path / "plain", git=False), PRIVATE.split()
    for name in private:
        write(plain / name, "private")
        write(root / name, "private")
    commit(root, "add", "-f", *private)  # even where git tracks it
    packed = pack.pack(root=root)
    assert not set(names(packed)) & set(private)
    assert pack.pack(root=plain).read_bytes() == packed.read_bytes()
    for name in ("data/my_diary", "data/debian"):  # what is private goes nowhere, whatever it is called
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PRIVATE_DATA", name)
            patch.setenv("TASK", "data/results/04_token_encoding.json")
            left = set(pack.files(plain, "report.md"))
        assert not any(n.startswith((f"{name}/", "data/results/04")) for n in left) and "lib/packing.py" in left
    try:
        (plain / "lib/link.py").symlink_to(plain / "notes.txt")
    except OSError as error:
        pytest.skip(f"this machine lets its user make no links: {error}")
    with pytest.raises(ValueError, match=r"lib/link.py is a link"):
        pack.pack(root=plain)
