"""The zip to hand in: complete, the same from the same content, and without anything that must not leave."""

import ast
import io
import json
import zipfile

import pytest
from sample_project import NAMES, commit, notebook, project, write

from lib import profile
from lib.__main__ import main
from lib.report import export, leaks, pack

KEY = "sk-" + "a1B2c3D4e5F6g7H8i9J0k1L2"  # in two parts: this file is packed itself


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A finished, committed project whose report costs nothing to export."""
    for name in export.FORMATS:
        made = lambda tree, root, draft, name=name: f"{name} {draft}".encode()  # noqa: E731
        monkeypatch.setitem(export.FORMATS, name, made)
    return project(tmp_path / "课程")


def names(path):
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        return [name.removeprefix(f"{pack.TOP}/") for name in packed.namelist()]


def add(root, name, text, *git):
    write(root / name, text)
    commit(root, "add", *git, name)


def test_the_package_holds_what_is_handed_in(root):
    path = pack.pack(root=root)
    assert path == root / "build/final.zip"
    found = names(path)
    assert {
        "report.md",
        "report.html",
        "report.docx",
        "report.pdf",
        "README.md",
        "requirements.txt",
        "pyproject.toml",
        "data/README.md",
        "data/debian/card.json",
        "data/debian/train.jsonl",
        "lib/packing.py",
        "figures/03_before_after.png",
    } <= set(found)
    for stem in NAMES:
        assert {f"notebooks/{stem}.py", f"notebooks/{stem}.ipynb", f"data/results/{stem}.json"} <= set(found)
    assert found == sorted(found)


def test_the_mid_term_package_has_readme_as_its_report(root):
    (root / "report.md").unlink()
    commit(root, "rm", "-q", "--cached", "report.md")
    found = names(pack.pack(midterm=True, root=root))
    assert {"README.md", "midterm_report.pdf", "notebooks/03_evaluate.ipynb", "data/results/03_evaluate.json"} <= set(
        found
    )
    assert "report.md" not in found
    project(root, git=False)
    assert "report.md" not in names(pack.pack(midterm=True, root=root))


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
            assert {entry.date_time[0] for entry in word.infolist()} == {1980}
        assert b'href="lib/packing.py"' in packed.read(f"{pack.TOP}/report.html")


def test_caches_models_and_private_data_stay_out_though_tracked(root):
    private = [
        "data/private/me.jsonl",
        "data/models/gpt2/config.json",
        "data/runs/r/state.json",
        "data/mirror/e2e/a.txt",
        "data/debian/ratings_2.jsonl",
        "lib/__pycache__/x.pyc",
        "data/debian/model.safetensors",
        ".env",
        "lib/.env",
        "tests/id_rsa",
        "lib/server.pem",
        "build/old.html",
        ".github/workflows/ci.yml",
        "notes.txt",
    ]
    for name in private:
        write(root / name, "private")
    commit(root, "add", "-f", *private)
    assert not set(names(pack.pack(root=root))) & set(private)


BEGIN, END = ("-----" + word + " RSA PRIVATE " + "KEY-----" for word in ("BEGIN", "END"))
TUNED, SCORED = "notebooks/02_finetune.ipynb", "notebooks/03_evaluate.ipynb"
LEAKS = {
    "a key": ("lib/judge.py", f'KEY = "{KEY}"\n', "looks like a key"),
    "a private key": ("tests/a.txt", f"{BEGIN}\nx\n{END}", "like a key"),
    "a key in an output": (TUNED, notebook("02_finetune", f"{KEY}\n"), "looks like a key"),
    "a home in code": ("lib/data.py", 'open("/home/xiaoming/x")\n', r"absolute path \(/home/xiaoming"),
    "a Windows home": (SCORED, notebook("03_evaluate", r"C:\Users\Li Hua\a.txt"), "absolute path"),
    "a temporary folder": (SCORED, notebook("03_evaluate", "/tmp/ipykernel_1/2.py"), "absolute path"),
    "a home in results": ("data/results/02_finetune.json", None, "absolute path"),
    "a home in the report": ("README.md", None, "absolute path"),
}


@pytest.mark.parametrize("case", LEAKS)
@pytest.mark.parametrize("draft", [False, True])
def test_nothing_secret_leaves_and_the_file_is_named(root, case, draft):
    name, text, said = LEAKS[case]
    text = text or (root / name).read_text("utf-8").replace("stand-in", "/home/xiaoming/m", 1)
    add(root, name, text)
    with pytest.raises(ValueError, match=said) as refused:
        pack.pack(draft=draft, root=root)
    assert name in str(refused.value) and KEY not in str(refused.value)
    assert not (root / "build").exists()


def test_this_machines_paths_and_secrets_are_found_everywhere(root, monkeypatch):
    add(root, "tests/test_x.py", f'A = "{root}/data"\n')
    with pytest.raises(ValueError, match=r"tests/test_x.py holds a path of this machine"):
        pack.pack(root=root)
    add(root, "tests/test_x.py", 'A = "correct-horse-battery"\n')
    pack.pack(root=root)
    monkeypatch.setenv("JUDGE_API_KEY", "correct-horse-battery")
    with pytest.raises(ValueError, match=r"holds the value of \$JUDGE_API_KEY") as refused:
        pack.pack(root=root)
    assert "correct-horse" not in str(refused.value)


def test_a_notebook_may_show_the_labelled_texts(root):
    shown = notebook("03_evaluate", "/home/lin_wy and /home/lin_wang").encode()
    (said,) = leaks.find("notebooks/03_evaluate.ipynb", shown, root)
    assert "(/home/lin_wang)" in said


def test_documents_may_speak_of_homes(root):
    assert not list(leaks.find("data/debian/train.jsonl", b"kept in /home/ken/x", root))
    assert not list(leaks.find("figures/a.png", b"/home/ken/x", root))
    assert list(leaks.find("data/debian/train.jsonl", f"token {KEY}".encode(), root))


def test_nothing_in_this_repository_must_stay():
    found = pack._tracked(profile.ROOT) or pack._walked(profile.ROOT)
    kept = [name for name in found if name.split("/")[0] in pack.FOLDERS and not leaks.kept_out(name)]
    assert len(kept) > 100
    for name in kept:
        if (profile.ROOT / name).is_file() and not name.endswith((".jsonl", ".svg")):
            assert not list(leaks.find(name, (profile.ROOT / name).read_bytes(), profile.ROOT))


def test_gaps_refuse_and_a_draft_says_so(root):
    pack.pack(root=root)
    before = (root / "build/final.zip").read_bytes()
    report = (root / "report.md").read_text("utf-8")
    write(root / "report.md", report.replace("| Li Hua", "| [Name of member 2]"))
    with pytest.raises(ValueError, match=r"Members named.*is no name yet[\s\S]*`python -m lib pack --draft`"):
        pack.pack(root=root)
    assert (root / "build/final.zip").read_bytes() == before
    path = pack.pack(draft=True, root=root)
    assert path.name == "final-draft.zip"
    with zipfile.ZipFile(path) as packed:
        assert "[Name of member 2] is no name yet" in packed.read(f"{pack.TOP}/DRAFT.txt").decode("utf-8")
        assert packed.read(f"{pack.TOP}/report.pdf") == b"pdf True"
    (root / "data/results/03_evaluate.json").unlink()
    with pytest.raises(ValueError, match=r"data/results/03_evaluate.json does not hold both"):
        pack.pack(root=root)


def test_what_is_gone_or_not_in_git_is_named(root):
    (root / "lib/packing.py").unlink()
    with pytest.raises(ValueError, match=r"lib/packing.py is gone: `git checkout lib/packing.py`"):
        pack.pack(root=root)
    commit(root, "checkout", "lib/packing.py")
    commit(root, "rm", "-q", "--cached", "report.md", "data/results/04_token_encoding.json")
    with pytest.raises(
        ValueError, match=r"git does not track data/results/04_token_encoding.json, report.md: `git add"
    ):
        pack.pack(root=root)


def test_a_deleted_figure_and_a_missing_report(root):
    (root / "figures/03_before_after.png").unlink()
    with pytest.raises(ValueError, match=r"figures/03_before_after.png, which is missing: `git checkout"):
        pack.pack(root=root)
    (root / "report.md").unlink()
    with pytest.raises(ValueError, match=r"report.md is missing or empty"):
        pack.pack(root=root)
    with pytest.raises(ValueError, match=r"report.md is missing in .*: write it first"):
        pack.pack(draft=True, root=root)


def test_untracked_files_stay_out_and_are_named(root, capsys):
    write(root / "lib/scratch_notes.py", "")
    assert "lib/scratch_notes.py" not in names(pack.pack(root=root))
    assert "Not tracked by git, so not packed: lib/scratch_notes.py\n" in capsys.readouterr().out


def test_without_git_the_known_folders_are_packed(tmp_path, root):
    plain = project(tmp_path / "plain", git=False)
    write(plain / "data/private/me.jsonl", "private")
    write(plain / "secrets.txt", "private")
    (plain / "data/outside").symlink_to(root, target_is_directory=True)
    (plain / "data/secrets.txt").symlink_to(plain / "secrets.txt")
    assert pack.pack(root=plain).read_bytes() == pack.pack(root=root).read_bytes()


def test_a_link_is_not_followed(tmp_path, root):
    write(tmp_path / "elsewhere.txt", "private")
    (root / "lib/link.txt").symlink_to(tmp_path / "elsewhere.txt")
    commit(root, "add", "lib/link.txt")
    with pytest.raises(ValueError, match=r"lib/link.txt is a link"):
        pack.pack(root=root)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_pack_leaves_the_previous_zip(root, monkeypatch, error):
    before = pack.pack(root=root).read_bytes()
    add(root, "lib/more.py", "MORE = 1\n")

    def stop(*arguments):
        raise error(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr("lib.results.os.replace", stop)
        pack.pack(root=root)
    assert [(p.name, p.read_bytes()) for p in (root / "build").iterdir()] == [("final.zip", before)]


def test_a_build_folder_that_cannot_be_written(root):
    write(root / "build", "a file")
    with pytest.raises(OSError, match=r"final.zip was not written \(.*\); free space or choose a folder you own"):
        pack.pack(root=root)


def test_chinese_file_names_survive(root):
    add(root, "data/debian/数据卡.md", "来源\n")
    path = pack.pack(root=root)
    with zipfile.ZipFile(path) as packed:
        assert packed.read(f"{pack.TOP}/data/debian/数据卡.md").decode("utf-8") == "来源\n"


def test_the_package_of_this_project_holds_all_that_its_code_imports():
    """README's two commands need the requirements, the package's metadata and every module of `lib`."""
    found = pack._tracked(profile.ROOT) or pack._walked(profile.ROOT)
    packed = {name for name in found if not leaks.kept_out(name)}
    assert {"requirements.txt", "pyproject.toml", "data/debian/train.jsonl", "data/gpt2_bpe/merges.txt"} <= packed
    for name in (n for n in packed if n.startswith(("lib/", "notebooks/")) and n.endswith(".py")):
        for node in ast.walk(ast.parse((profile.ROOT / name).read_text("utf-8"))):
            module = getattr(node, "module", None)
            if isinstance(node, ast.ImportFrom) and (module == "lib" or str(module).startswith("lib.")):
                wanted = [module] if module != "lib" else [f"lib.{alias.name}" for alias in node.names]
                assert {f"{w.replace('.', '/')}.py" for w in wanted} <= packed, (name, wanted)


def test_the_command(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(pack, "pack", lambda *arguments: asked.append(arguments))
    assert main(["pack", "--midterm", "--draft"]) == 0 and asked == [(True, True)]

    def refuse(*arguments):
        raise ValueError("gaps")

    monkeypatch.setattr(pack, "pack", refuse)
    assert main(["pack"]) == 1 and "gaps" in capsys.readouterr().err


def test_results_name_no_rater():
    for path in (profile.DATA / "results").glob("*.json"):
        for rows in json.loads(path.read_text("utf-8"))["tables"].values():
            assert not any("rater" in row for row in rows), path.name
