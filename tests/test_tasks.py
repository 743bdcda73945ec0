"""lib.tasks and the data/build_*.py: bad input, group safety, near-duplicates, determinism."""

import collections
import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
import tarfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

import lib.tasks
from lib.models import tiny_tokenizer
from lib.profile import DATA
from lib.tasks import SPLITS, Example, Task, TaskUnavailable, e2e_meaning, encode, load_task, token_statistics


def script(name: str):
    """data/`name`.py as a module, under the name by which the other scripts import it."""
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_debian = script("build_debian")
build_tang = script("build_tang")


@pytest.fixture(scope="module")
def debian() -> Task:
    return load_task("debian")


@pytest.fixture(scope="module")
def tang() -> Task:
    return load_task("tang")


@pytest.fixture(scope="module")
def tokenizer(debian):
    return tiny_tokenizer([e.prompt + e.target for e in debian.train[:200]], vocab_size=600)


def everything(task: Task) -> list[Example]:
    return task.train + task.validation + task.test


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


# ---- the shipped data


def card_of(name: str) -> dict:
    return json.loads((DATA / name / "card.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "least"), [("debian", 9000), ("tang", 13000)])
def test_shipped_data_load_fast_and_match_their_card(name, least):
    seconds = []
    for _ in range(3):  # the best of three: another process may hold the cores
        start = time.perf_counter()
        task = load_task(name)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    assert (task.name, task.source) == (name, f"data/{name}")
    card = card_of(name)
    assert card["splits"] == {s: len(getattr(task, s)) for s in SPLITS}
    assert list(card["stages"].values())[-1] == len(everything(task)) > least
    for file, digest in card["files_sha256"].items():
        assert hashlib.sha256((DATA / name / file).read_bytes()).hexdigest() == digest
    whole = b"".join((DATA / name / f"{s}.jsonl").read_bytes() for s in SPLITS)
    assert task.sha256 == hashlib.sha256(whole).hexdigest()


def test_debian_rows_keep_the_rules(debian):
    prompt = re.compile(r"Package: (\S+)\nSection: (\S+)\nTags: \S+::\S+(?:, \S+::\S+)*\nDescription:\n")
    families = collections.Counter()
    for e in everything(debian):
        match = prompt.fullmatch(e.prompt)
        assert match and match[1] == e.id, e.id
        assert match[2] not in {"libs", "libdevel", "oldlibs", "doc", "debug"}
        family = build_debian.family(e.id, match[2])
        assert not e.id.startswith("lib") or family in ("perl", "haskell")
        assert 80 <= len(e.target) <= 800 and e.references == (e.target,)
        assert not re.search(r"^ ?\.$|[ \t]$|\S+@\w+\.\w", e.target, re.MULTILINE), e.id
        families[family] += 1
    assert families["perl"] == build_debian.FAMILY_CAP  # the cap is what limits Perl
    assert max(n for f, n in families.items() if f not in ("", "perl")) < 500


def test_debian_groups_never_straddle_and_have_one_package(debian):
    groups = [e.group for e in everything(debian)]
    assert len(set(groups)) == len(groups)
    for split in SPLITS:
        assert all(build_debian.split_of(e.group) == split for e in getattr(debian, split))


def closest_to_train(task: Task, pieces) -> float:
    """The highest Jaccard similarity of a held-out and a training target, as sets of `pieces`.

    By an exact inverted index, which shares no code with what removed the near-duplicates.
    """
    held_out = [pieces(e.target) for e in task.validation + task.test]
    index = collections.defaultdict(list)
    for i, own in enumerate(held_out):
        for piece in own:
            index[piece].append(i)
    worst = 0.0
    for own in (pieces(e.target) for e in task.train):
        shared = collections.Counter(i for piece in own for i in index.get(piece, ()))
        worst = max([worst, *(n / len(own | held_out[i]) for i, n in shared.items() if n > 2)])
    return worst


def test_no_held_out_document_is_close_to_a_training_document(debian):
    def triples(text):
        words = re.findall(r"\w+", text.lower())
        return set(zip(words, words[1:], words[2:], strict=False))

    assert 0.2 < closest_to_train(debian, triples) < build_debian.THRESHOLD


def test_a_leading_slice_is_no_alphabetical_one(debian):
    """Profiles evaluate `test[:n]`: the first documents must come from the whole alphabet."""
    initials = {e.id[0] for e in debian.test[:100]}
    assert len(initials) > 10
    assert np.mean([e.id < "m" for e in debian.test[:200]]) == pytest.approx(
        np.mean([e.id < "m" for e in debian.test]), abs=0.1
    )


def test_tang_documents_are_quatrains_under_a_title(tang):
    verse = "[\u3400-\u9fff\U00020000-\U0003ffff]{%d}[，。？！；：]"
    form = re.compile("|".join("\n".join([verse % n] * 4) for n in (5, 7)))
    lengths = collections.Counter()
    for e in everything(tang):
        assert form.fullmatch(e.target) and e.references == (e.target,), e.id
        assert re.fullmatch(r"[^\s\d（）\[\]A-Za-z□○]+( [^\s\d（）\[\]A-Za-z□○]+)*\n", e.prompt), e.id
        assert len(e.prompt) <= 21 and e.prompt not in ("句\n", "失题\n", "又一首\n")
        lengths[str(e.target.index("\n") - 1)] += 1
    assert lengths == card_of("tang")["characters_per_verse"]
    by_id = {e.id: e for e in everything(tang)}
    assert len(by_id) == len(everything(tang))
    spring = next(e for e in by_id.values() if e.group == "孟浩然/春晓")
    assert (spring.prompt, spring.target) == ("春晓\n", "春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。")


def test_tang_is_in_simplified_characters(tang):
    """GB 2312, the mainland's standard set, holds simplified forms only: outside it 28 % of the
    source's characters, and here the rare ones."""
    text = "".join(e.prompt + e.target for e in everything(tang))
    outside = sum(not c.encode("gb2312", errors="ignore") for c in text)
    assert 0.003 < outside / len(text) < 0.004
    traditional = "無來時風見國東門開閑馬鳥長樓雲頭葉舊歸萬書與聲盡獨還龍漢場夢邊飛處誰鄉愛淚塵綠紅黃"
    assert not set(text) & set(traditional)
    assert not set(text) & set(map(chr, build_tang.VARIANTS))


def test_tang_sets_of_poems_never_straddle(tang):
    where = collections.defaultdict(set)
    for split in SPLITS:
        for e in getattr(tang, split):
            assert build_debian.split_of(e.group) == split
            author, _ = e.group.split("/")
            first = e.prompt.strip().split(" ")[0]
            where[author, re.sub("[一二三四五六七八九十百]+首$", "", first) or first].add(split)
    assert {len(splits) for splits in where.values()} == {1} and len(where) > 9000


def test_no_held_out_poem_is_close_to_a_training_poem(tang):
    def pairs(text):
        return {v[i : i + 2] for v in text.split("\n") for i in range(len(v) - 2)}

    assert 0.2 < closest_to_train(tang, pairs) < build_tang.THRESHOLD


def test_gpt2_merges_are_openais_and_give_its_ids():
    data = (DATA / "gpt2_bpe" / "merges.txt").read_bytes()
    known = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as in tiktoken
    assert (len(data), hashlib.sha256(data).hexdigest()) == (456_318, known)
    merges = [tuple(line.split(" ")) for line in data.decode().splitlines()[1:]]
    # the 256 letters that stand for bytes, in code order, are bytes_to_unicode's order
    tokens = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges), "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(merges) == 50_000 and len(vocabulary) == 50_257
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    assert bpe.encode("Hello world, 你好").ids == [15496, 995, 11, 220, 19526, 254, 25001, 121]
    assert vocabulary["<|endoftext|>"] == 50_256


# ---- build_debian

PACKAGES = """Package: {name}
{source}Description: {name} synopsis
Description-md5: {md5}
Tag: role::program, use::editing,
 special::TODO
Section: {section}
"""


def lists(*packages: tuple[str, str, str, str]) -> tuple[str, str]:
    """(name, source, section, body) each -> the text of Packages and of Translation-en."""
    heads, texts = [], []
    for name, source, section, body in packages:
        md5 = hashlib.md5(name.encode()).hexdigest()
        line = f"Source: {source} (1.2)\n" if source else ""
        heads.append(PACKAGES.format(name=name, source=line, md5=md5, section=section))
        texts.append(f"Package: {name}\nDescription-md5: {md5}\nDescription-en: {name} synopsis\n{body}\n")
    return "\n".join(heads), "\n".join(texts)


def body(word: str, n: int = 30) -> str:
    words = [f"{word}{i}" for i in range(n)]
    return f" {' '.join(words[: n // 2])}\n .\n  * {' '.join(words[n // 2 :])}"


def test_build_forms_the_document():
    files, facts = build_debian.build(*lists(("vi", "", "editors", body("x", 20))))
    (row,) = [json.loads(line) for data in files.values() for line in data.splitlines()]
    assert row["prompt"] == ("Package: vi\nSection: editors\nTags: role::program, use::editing\nDescription:\n")
    assert row["target"] == ("vi synopsis\nx0 x1 x2 x3 x4 x5 x6 x7 x8 x9\n\n * x10 x11 x12 x13 x14 x15 x16 x17 x18 x19")
    assert row["id"] == row["group"] == "vi" and facts["stages"]["packages"] == 1


def test_build_filters_and_keeps_one_package_per_source():
    kept = ("edit", "edit-gtk", "libfoo-perl", "other")  # own name, shortest name, module, plain
    packages, translation = lists(
        ("edit-gtk", "edit-suite", "editors", body("a")),
        ("edit-gtk-extra", "edit-suite", "editors", body("b")),
        ("ed", "edit", "editors", body("c")),
        ("edit", "", "editors", body("d")),
        ("libfoo", "", "utils", body("e")),
        ("libfoo-perl", "", "perl", body("f")),
        ("foo-doc", "", "text", body("g")),
        ("foo-dev", "", "libdevel", body("h")),
        ("short", "", "misc", " Too short."),
        ("long", "", "misc", body("i", 300)),
        ("mail", "", "mail", body("j") + "\n by jane@example.org"),
        ("other", "", "misc", body("k")),
    )
    packages += "\nPackage: untagged\nDescription-md5: 1\nSection: misc\n"
    files, _ = build_debian.build(packages, translation)
    rows = [json.loads(line)["id"] for data in files.values() for line in data.splitlines()]
    assert sorted(rows) == sorted(kept)


def test_build_is_deterministic_and_blind_to_order():
    packages = [(f"p{i:03d}", "", "misc", body(f"w{i}x")) for i in range(60)]
    files, facts = build_debian.build(*lists(*packages))
    again, _ = build_debian.build(*lists(*packages[::-1]))
    assert files == again
    assert sum(facts["splits"].values()) == 60 and all(facts["splits"].values())


def test_build_drops_near_duplicates_and_keeps_the_first():
    near = body("a").replace("a29", "changed")
    files, facts = build_debian.build(
        *lists(("one", "", "misc", body("a")), ("two", "", "misc", near), ("zed", "", "misc", body("b")))
    )
    rows = [json.loads(line)["id"] for data in files.values() for line in data.splitlines()]
    assert sorted(rows) == ["one", "zed"] and facts["stages"]["near-duplicates removed"] == 2


def test_build_caps_families():
    docs = [{"id": f"lib{i}-perl", "family": "perl"} for i in range(9)] + [{"id": "x", "family": ""}]
    kept = build_debian.cap_families(docs, cap=4)
    assert len(kept) == 5 and kept[-1]["id"] == "x"
    assert kept == build_debian.cap_families(docs[::-1], cap=4)[::-1]


def test_build_command_writes_files_and_names_what_is_missing(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="apt-get -o Acquire::Languages=en update"):
        build_debian.main(["--lists", str(tmp_path), "--out", str(tmp_path / "out")])
    packages, translation = lists(*((f"p{i}", "", "misc", body(f"w{i}x")) for i in range(40)))
    stem = tmp_path / "mirror_dists_bookworm_main"
    Path(f"{stem}_binary-amd64_Packages").write_text(packages)
    Path(f"{stem}_i18n_Translation-en").write_text(translation)
    Path(f"{tmp_path}/mirror_dists_bookworm_InRelease").write_text("Version: 12.9\nDate: today\nMD5Sum:\n")
    build_debian.main(["--lists", str(tmp_path), "--out", str(tmp_path / "out")])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["release"] == {"version": "12.9", "date": "today"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]


# ---- build_tang

SPRING = ["春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。"]


def poem(title: str, paragraphs=SPRING, author: str = "孟浩然") -> dict:
    return {"title": title, "paragraphs": paragraphs, "author": author}


def other(i: int) -> list[str]:
    """A quatrain that shares no pair of characters with the one of another `i`."""
    c = [chr(0x4E00 + 20 * i + k) for k in range(20)]
    return ["".join(c[k : k + 5]) + "，。"[k % 2] for k in range(0, 20, 5)]


def built(*poems: dict) -> tuple[list[dict], dict]:
    def convert(text):
        return text.translate(str.maketrans("雜辭覺曉處聞鳥來風聲詳無", "杂辞觉晓处闻鸟来风声详无"))

    files, facts = build_tang.build(poems, convert)
    return [json.loads(line) for data in files.values() for line in data.splitlines()], facts


def test_build_tang_forms_the_document():
    rows, facts = built(poem("句", other(1)), poem("雜曲歌辭 春曉二首（題擬） 一"))
    assert rows == [
        {
            "id": "tang-00001",
            "prompt": "春晓二首 一\n",
            "target": "春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。",
            "group": "孟浩然/春晓",
        }
    ]
    assert facts["stages"] == {
        "poems": 2,
        "quatrains": 2,
        "with a title": 1,
        "title up to 20": 1,
        "near-duplicates removed": 1,
    }


@pytest.mark.parametrize(
    "paragraphs",
    [
        ["春眠不覺曉，處處聞啼鳥。"],  # two verses
        [*SPRING, *SPRING],
        ["春眠不覺曉，處處聞啼。", *SPRING[1:]],  # unequal
        ["春眠不覺曉色，處處聞啼鳥聲。"] * 2,  # six characters
        ["春眠不□曉，處處聞啼鳥。", *SPRING[1:]],
        ["春眠不[覺]曉，處處聞啼鳥。", *SPRING[1:]],
        ["春眠不覺曉，處處聞啼鳥。", *SPRING[1:], "（一作花落）"],
        ["春眠不\ue829曉，處處聞啼鳥。", *SPRING[1:]],  # private use: a glyph of one font
    ],
)
def test_build_tang_leaves_out_what_is_no_whole_quatrain(paragraphs):
    rows, facts = built(poem("春曉", paragraphs))
    assert not rows and facts["stages"]["quatrains"] == 0


def test_build_tang_leaves_out_titles_that_say_nothing():
    titles = ["", "句", "失题 二", "诗", "诗 三十", "又一首", "十四", "其二", "一○四", "[太]社", "乐" * 21]
    named = ["又自君之出矣", "诗人", "无题", "乐" * 20, "三五七言"]
    rows, _ = built(*(poem(t, other(i)) for i, t in enumerate(titles + named)))
    assert sorted(r["prompt"] for r in rows) == sorted(f"{t}\n" for t in named)


def test_build_tang_keeps_the_better_of_two_copies():
    copy = ["春眠不覺曉，處處聞啼鳥。", "夜半風雨聲，花落自多少。"]  # 11 of 21 pairs: 0.52
    rows, _ = built(
        poem("雜曲歌辭 春"), poem("春", author="不詳"), poem("春曉", copy), poem("春曉二"), poem("異", other(3))
    )
    assert sorted(r["id"] for r in rows) == ["tang-00002", "tang-00004"]


def package(path: Path, parts: dict[str, list]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, poems in parts.items():
            data = json.dumps(poems).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_build_tang_command(tmp_path, monkeypatch, capsys):
    folder = "package/dist/quantangshi"
    path = package(
        tmp_path / "p.tgz",
        {  # in the archive's order 1000 comes before 0, and poet.song is not wanted
            f"{folder}/poet.tang.1000.json": [poem(f"乙{chr(0x5000 + i)}", other(i)) for i in (1, 2)],
            f"{folder}/poet.tang.0.json": [poem("甲", other(0))],
            f"{folder}/poet.song.0.json": [poem("宋", other(9))],
        },
    )
    monkeypatch.setattr(build_tang, "converter", lambda: str)
    monkeypatch.setattr(build_tang, "version", lambda _: "0")
    arguments = ["--package", str(path), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"p\.tgz has sha256 .*npm pack chinese-poetry@2\.0\.1"):
        build_tang.main(arguments)
    assert not (tmp_path / "out").exists()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(build_tang, "SHA256", sha256)
    build_tang.main(arguments)
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert (card["source_sha256"], card["stages"]["poems"]) == (sha256, 3)
    files = [(tmp_path / "out" / f"{s}.jsonl").read_text(encoding="utf-8") for s in SPLITS]
    rows = [json.loads(line) for text in files for line in text.splitlines()]
    assert {r["prompt"]: r["id"] for r in rows}["甲\n"] == "tang-00000"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"npm is missing.*--package"):
        build_tang.main(arguments[2:])


def test_rebuild_of_tang_gives_the_shipped_bytes():
    card, path = card_of("tang"), DATA / "mirror" / "chinese-poetry-2.0.1.tgz"
    try:
        here = version("opencc")
    except PackageNotFoundError:
        pytest.skip("OpenCC, which only the rebuild needs, is not installed")
    if here != card["opencc"] or not path.is_file():
        pytest.skip(f"no {path}, or OpenCC {here} in place of {card['opencc']}")
    files, facts = build_tang.build(build_tang.read_poems(path), build_tang.converter())
    assert facts["stages"] == card["stages"]
    for split, data in files.items():
        assert data == (DATA / "tang" / f"{split}.jsonl").read_bytes()


# ---- custom task files


def rows(n: int, **more) -> list[dict]:
    return [{"prompt": f"Q{i}:\n", "target": f"answer {i}", **more} for i in range(n)]


def test_custom_task_of_200_rows(tmp_path, monkeypatch):
    data = rows(200)
    data[3] |= {"references": ["answer 3", " another "], "group": "g", "id": 77}
    path = jsonl(tmp_path / "mine.jsonl", data)
    monkeypatch.setenv("TASK", str(path))
    task = load_task()
    assert (task.name, task.source) == ("mine", str(path))
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [len(getattr(task, s)) for s in SPLITS] == [160, 20, 20]
    (special,) = [e for e in everything(task) if e.id == "77"]
    assert special.references == ("answer 3", "another") and special.group == "g"
    assert task == load_task()


@pytest.mark.parametrize("key", ["group", "prompt"])
def test_custom_groups_never_straddle(tmp_path, key):
    data = [{"prompt": f"P{i % 17}", "target": f"t{i}"} for i in range(200)]
    if key == "group":
        data = [{"prompt": f"P{i}", "target": f"t{i}", "group": f"g{i % 17}"} for i in range(200)]
    task = load_task(jsonl(tmp_path / "a.jsonl", data))
    per_split = [{e.group for e in getattr(task, s)} for s in SPLITS]
    assert all(per_split) and len(everything(task)) == 200
    assert sum(map(len, per_split)) == len(set().union(*per_split)) == 17


def test_custom_duplicates_are_removed_and_counted(tmp_path, capsys):
    task = load_task(jsonl(tmp_path / "a.jsonl", rows(30) + rows(7)))
    assert len(everything(task)) == 30
    assert "7 exact duplicates removed" in capsys.readouterr().out


def test_custom_relative_paths(tmp_path, monkeypatch):
    jsonl(tmp_path / "here.jsonl", rows(20))
    monkeypatch.chdir(tmp_path)
    assert load_task("here.jsonl").name == "here"
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(FileNotFoundError, match=r"here\.jsonl"):
        load_task("here.jsonl")
    monkeypatch.setattr(lib.tasks, "ROOT", tmp_path)
    assert load_task("here.jsonl").name == "here"


def test_custom_name_never_passes_for_a_shipped_one(tmp_path):
    assert load_task(jsonl(tmp_path / "debian.jsonl", rows(20))).name == "debian_custom"


def test_custom_bom_blank_lines_and_crlf_are_no_error(tmp_path):
    lines = "\r\n\r\n".join(json.dumps(r) for r in rows(12))
    path = tmp_path / "win.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    assert len(everything(load_task(path))) == 12


GOOD = b'{"prompt": "p", "target": "t"}\n'


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", r"bad\.jsonl is empty"),
        (b"\n \n", r"bad\.jsonl is empty"),
        (GOOD + b'{"prompt": "p",\n', r"bad\.jsonl, line 2: not valid JSON"),
        (GOOD * 2 + b'{"prompt": "\xff", "target": "t"}', r"bad\.jsonl, line 3: not UTF-8"),
        ('{"prompt": "p"}'.encode("utf-16"), r"line 1: not UTF-8"),
        (b"[1, 2]", r"line 1: not an object"),
        (b"[" * 200_000, r"line 1: not valid JSON"),
        (b'{"target": "t"}', r'line 1: no "prompt"'),
        (b'{"prompt": "p"}', r'line 1: no "target"'),
        (b'{"prompt": 1, "target": "t"}', r'line 1: "prompt" holds int, not a string'),
        (b'{"prompt": "p", "target": null}', r'line 1: "target" holds NoneType'),
        (b'{"prompt": "p", "target": " \\n"}', r'line 1: "target" is empty'),
        (b'{"prompt": "", "target": "t"}', r'line 1: "prompt" is empty'),
        (b'{"prompt": "p", "target": "\\ud800"}', r'line 1: "target" holds half a surrogate'),
        (b'{"prompt": "p", "target": "t", "references": "r"}', r'"references" is no list'),
        (b'{"prompt": "p", "target": "t", "references": ""}', r'"references" is no list'),
        (b'{"prompt": "p", "target": "t", "references": [1]}', r'"references" holds int'),
        (b'{"prompt": "p", "target": "t", "group": ["g"]}', r'"group" holds list'),
        (b'{"prompt": "p", "target": "t", "id": true}', r'"id" holds bool'),
        (
            b'{"prompt": "p", "target": "t", "id": "a"}\n{"prompt": "q", "target": "t", "id": "a"}',
            r'line 2: the id "a" is taken by .*line 1',
        ),
        (GOOD, r"1 different groups .* too few"),
    ],
)
def test_custom_bad_files_say_where(tmp_path, bad, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=message) as error:
        load_task(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_too_few_groups(tmp_path):
    data = [{"prompt": "p", "target": f"t{i}", "group": f"g{i % 9}"} for i in range(50)]
    with pytest.raises(ValueError, match="9 different groups"):
        load_task(jsonl(tmp_path / "a.jsonl", data))


def test_unknown_names(monkeypatch):
    monkeypatch.setenv("TASK", "debain")
    with pytest.raises(ValueError, match="'debain' is unknown: choose debian, tang, idioms, e2e or the path"):
        load_task()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_task("nowhere.jsonl")
    monkeypatch.setenv("TASK", "")
    assert load_task().name == "debian"


@pytest.mark.parametrize("name", ["debian", "tang"])
def test_missing_shipped_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(lib.tasks, "DATA", tmp_path)
    way_out = rf"train\.jsonl is missing: run `git checkout -- data/{name}`"
    with pytest.raises(FileNotFoundError, match=way_out):
        load_task(name)


# ---- E2E

LINES = {
    "train": ["name : A | Type : pub||A is a pub . ", "name : A | Type : pub||The pub A . "],
    "valid": ["name : B | food : Thai||B is Thai . ", "name : B | food : Thai||Thai B . "],
    "test": ["name : C||C . ", "name : D||D one . ", "name : C||C again . ", "name : C||C . "],
}


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    (tmp_path / "e2e").mkdir()
    for name, lines in LINES.items():
        (tmp_path / "e2e" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path))
    return tmp_path


def test_e2e_train_has_rows_and_test_has_references(mirror):
    task = load_task("e2e")
    train = sorted(task.train, key=lambda e: e.id)
    assert [e.prompt + e.target for e in train] == [
        "name : A | Type : pub || A is a pub .",
        "name : A | Type : pub || The pub A .",
    ]
    assert {e.group for e in train} == {"name : A | Type : pub"}
    assert [(e.prompt, e.target, e.references) for e in sorted(task.test, key=lambda e: e.id)] == [
        ("name : C ||", " C .", ("C .", "C again .")),
        ("name : D ||", " D one .", ("D one .",)),
    ]
    assert len(task.validation) == 1 and task.source == str(mirror / "e2e")


def test_e2e_bad_line(mirror):
    with open(mirror / "e2e" / "valid.txt", "a") as file:
        file.write("name : B\n")
    with pytest.raises(ValueError, match=r"valid\.txt, line 3: not `meaning"):
        load_task("e2e")


def test_e2e_published_counts():
    try:
        task = load_task("e2e")
    except TaskUnavailable as error:
        pytest.skip(str(error))
    assert [len(getattr(task, s)) for s in SPLITS] == [42061, 547, 630]
    assert sum(len(e.references) for e in task.test) > 4000
    assert not {e.group for e in task.train} & {e.group for e in task.validation + task.test}


@pytest.fixture
def no_mirror(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    import lib.hub

    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.setattr(lib.hub, "MIRROR", tmp_path / "mirror")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_e2e_unavailable_says_why_and_the_way_out(no_mirror, monkeypatch):
    with pytest.raises(TaskUnavailable, match=r"data/mirror/e2e.*fast profile.*HF_ENDPOINT"):
        load_task("e2e")
    monkeypatch.setenv("PROFILE", "cpu")
    start = time.perf_counter()
    with pytest.raises(TaskUnavailable, match=r"data/mirror/e2e.*HF_HUB_OFFLINE.*HF_ENDPOINT"):
        load_task("e2e")
    assert time.perf_counter() - start < 5


def test_e2e_from_the_hubs_rows(no_mirror, monkeypatch):
    import lib.hub

    def download(repository, file, repo_type, revision, **_):
        assert (repository, repo_type) == ("tuetschek/e2e_nlg", "dataset")
        assert revision == "refs/convert/parquet"
        path = no_mirror / file.replace("/", "_")
        frame = {
            "meaning_representation": ["name[The Vaults], eatType[pub], near[Café Adriatic]"] * 2,
            "human_reference": ["The Vaults is a pub. ", "A pub."],
        }
        pd.DataFrame(frame).to_parquet(path)
        return str(path)

    monkeypatch.setattr(lib.hub, "hf_hub_download", download)
    task = load_task("e2e")
    assert task.test[0].prompt == "name : The Vaults | Type : pub | near : Café Adriatic ||"
    assert task.test[0].references == ("The Vaults is a pub.", "A pub.")
    assert len(task.train) == 2 and task.source.startswith("https://huggingface.co/")


def test_e2e_meaning_has_the_files_form():
    raw = "name[The Eagle], priceRange[£20-25], customer rating[5 out of 5], familyFriendly[no]"
    assert e2e_meaning(raw) == (
        "name : The Eagle | price : £ 20 - 25 | customer rating : 5 out of 5 | family friendly : no"
    )
    assert e2e_meaning("name[A], priceRange[less than £20]") == "name : A | price : less than £ 20"


# ---- encode and token_statistics


def test_encode_round_trip(debian, tokenizer):
    examples = debian.test[:50]
    for e, d in zip(examples, encode(tokenizer, examples, 4096), strict=True):
        assert tokenizer.decode(d.input_ids) == e.prompt + e.target + tokenizer.eos_token
        assert tokenizer.decode(d.input_ids[: d.prompt_length]) == e.prompt
        assert d.input_ids[-1] == tokenizer.eos_token_id
        assert (d.target_bytes, d.id) == (len(e.target.encode()), e.id)
        # the newline before the target is a boundary of the pre-tokeniser: nothing merges over it
        assert tokenizer(e.prompt + e.target)["input_ids"] == d.input_ids[:-1]


def test_encode_takes_special_tokens_in_a_document_as_text(tokenizer):
    e = Example("x", "<|endoftext|> p", "t <|endoftext|> é", ("t",), "g")
    (d,) = encode(tokenizer, [e], 100)
    assert d.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(d.input_ids) == e.prompt + e.target + tokenizer.eos_token
    assert d.target_bytes == len(e.target) + 1


def test_encode_limits(tokenizer):
    e = Example("doc-7", "p", "t" * 30, ("t",), "g")
    (d,) = encode(tokenizer, [e], 4096)
    n = len(d.input_ids)
    assert encode(tokenizer, [e], n) == [d]
    with pytest.raises(ValueError, match=f"doc-7 is {n} tokens long and the limit {n - 1}: shorten"):
        encode(tokenizer, [e], n - 1)
    assert encode(tokenizer, [], 10) == []


def test_encode_needs_eos(tokenizer):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    bare.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode(bare, [Example("a", "p", "t", ("t",), "g")], 10)


def test_token_statistics(tmp_path, tokenizer):
    task = load_task(jsonl(tmp_path / "a.jsonl", [*rows(40), {"prompt": "Q1:\n", "target": "é"}]))
    table = token_statistics(task, tokenizer).set_index("split")
    assert list(table.index) == list(SPLITS)
    for split in SPLITS:
        docs = encode(tokenizer, getattr(task, split), 4096)
        row = table.loc[split]
        assert row.tokens == sum(len(d.input_ids) for d in docs)
        assert row.target_tokens == sum(len(d.input_ids) - d.prompt_length for d in docs)
        assert row.bytes_per_token == row.bytes / (row.tokens - row.documents)
        assert row.max_tokens == max(len(d.input_ids) for d in docs)
    assert table.bytes.sum() == table.characters.sum() + 1
    assert table.documents.sum() == 41 and table.groups.sum() == 40


def test_rebuild_from_this_machines_lists_gives_the_shipped_bytes():
    """Where apt's lists are those of the card: the whole build, byte for byte."""
    card = card_of("debian")
    folder = Path("/var/lib/apt/lists")
    try:
        texts = {
            key: build_debian.read_list(build_debian.find_list(folder, card["suite"], kind))
            for key, kind in (("packages", "binary-*_Packages"), ("translation", "i18n_Translation-en"))
        }
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found = {k: hashlib.sha256(v.encode()).hexdigest() for k, v in texts.items()}
    if found != card["lists_sha256"] or not shutil.which("apt-get"):
        pytest.skip("apt's lists here are of another date than the card's")
    files, facts = build_debian.build(**texts)
    assert facts["stages"] == card["stages"]
    for split, data in files.items():
        assert data == (DATA / "debian" / f"{split}.jsonl").read_bytes()
