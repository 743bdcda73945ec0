"""The shipped datasets and the scripts that rebuild them: cards, rules of the rows, groups, near-duplicates."""

import collections
import hashlib
import importlib
import json
import re
import sys

import pytest
from conftest import everything

from lib.profile import DATA
from lib.tasks import SPLITS, Task, head, load_task

HAN = "[\u3400-\u4dbf\u4e00-\u9fff]"
# an exploration that a team took out (lib.keep) took its data along
LEAST = {"debian": 9000, "tang": 13000, "idioms": 20000}
SHIPPED = [name for name in LEAST if (DATA / name).is_dir()]
sys.path.append(str(DATA))  # where a script of data/ finds the others
BUILD = {name: importlib.import_module(f"build_{name}") for name in SHIPPED}
build_debian = BUILD["debian"]


def needs(name: str):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f"{name} was taken out")


@pytest.fixture(scope="module")
def shipped() -> dict[str, Task]:
    return {name: load_task(name) for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_data_match_their_card(shipped, name):
    task = shipped[name]
    assert (task.name, task.source) == (name, f"data/{name}")
    card = json.loads((DATA / name / "card.json").read_text(encoding="utf-8"))
    assert card["splits"] == {s: len(task[s]) for s in SPLITS}
    assert list(card["stages"].values())[-1] == len({r["id"] for r in everything(task)}) > LEAST[name]
    for file, digest in card["files_sha256"].items():
        assert hashlib.sha256((DATA / name / file).read_bytes()).hexdigest() == digest
    whole = b"".join((DATA / name / f"{s}.jsonl").read_bytes() for s in SPLITS)
    assert task.sha256 == hashlib.sha256(whole).hexdigest()


def test_debian_rows_keep_the_rules(shipped):
    prompt = re.compile(r"Package: (\S+)\nSection: (\S+)\nTags: \S+::\S+(?:, \S+::\S+)*\nDescription:\n")
    families = collections.Counter()
    for row in everything(shipped["debian"]):
        match = prompt.fullmatch(row["prompt"])
        assert match and match[1] == row["id"]
        assert match[2] not in {"libs", "libdevel", "oldlibs", "doc", "debug"}
        family = build_debian.family(row["id"], match[2])
        assert not row["id"].startswith("lib") or family in ("perl", "haskell")
        assert 80 <= len(row["target"]) <= 800 and row["references"] == [row["target"]]
        assert not re.search(r"^ ?\.$|[ \t]$|\S+@\w+\.\w", row["target"], re.MULTILINE), row["id"]
        families[family] += 1
    assert families["perl"] == build_debian.FAMILY_CAP  # the cap is what limits Perl
    assert max(n for f, n in families.items() if f not in ("", "perl")) < 500


@needs("tang")
def test_tang_documents_are_quatrains_under_a_title_in_simplified_characters(shipped):
    verse = "[\u3400-\u9fff\U00020000-\U0003ffff]{%d}[，。？！；：]"
    form = re.compile("|".join("\n".join([verse % n] * 4) for n in (5, 7)))
    rows = everything(shipped["tang"])
    for row in rows:
        assert form.fullmatch(row["target"]) and row["references"] == [row["target"]]
        assert re.fullmatch(r"[^\s\d（）\[\]A-Za-z□○]+( [^\s\d（）\[\]A-Za-z□○]+)*\n", row["prompt"])
        assert len(row["prompt"]) <= 21 and row["prompt"] not in ("句\n", "失题\n", "又一首\n")
    (spring,) = [r for r in rows if r["group"] == "孟浩然/春晓"]
    assert (spring["prompt"], spring["target"]) == ("春晓\n", "春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。")
    assert not {c for r in rows for c in r["prompt"] + r["target"]} & {*"無來時風見國東門開閑馬鳥長樓雲頭葉舊歸萬書"}


@needs("idioms")
def test_idioms_rows_keep_the_rules(shipped):
    for row in everything(shipped["idioms"]):
        assert re.fullmatch(f"{HAN}{{4}}：", row["prompt"]) and row["prompt"] == f"{row['id']}："
        assert re.fullmatch(f"({HAN}|[，。；、（）《》？！])+。", row["target"]) and len(row["target"]) >= 5


def families_of(name: str, row: dict) -> list:
    """What must be in one split with the row: its group, and siblings that the group might have missed."""
    if name == "tang":  # the poems of a set, by their title without its count
        author, first = row["group"].split("/")[0], row["prompt"].strip().split(" ")[0]
        return [row["group"], (author, re.sub("[一二三四五六七八九十百]+首$", "", first) or first)]
    if name == "idioms":  # one changed place, or another order
        return [row["group"], *((i, row["id"][:i] + row["id"][i + 1 :]) for i in range(4)), "".join(sorted(row["id"]))]
    return [row["group"]]


@pytest.mark.parametrize("name", SHIPPED)
def test_groups_never_straddle_the_splits(shipped, name):
    where = collections.defaultdict(set)
    for split in SPLITS:
        for row in head(shipped[name][split]):
            assert build_debian.split_of(row["group"]) == split
            for family in families_of(name, row):
                where[family].add(split)
    assert {len(splits) for splits in where.values()} == {1} and len(where) > 9000


def pieces(name: str, text: str) -> set:
    if name == "debian":
        words = re.findall(r"\w+", text.lower())
        return set(zip(words, words[1:], words[2:], strict=False))
    text = text if name == "tang" else text.replace("\n", "")
    lines = re.sub(r"[，。；：、（）《》？！]", "", text).split("\n")
    return {line[i : i + 2] for line in lines for i in range(len(line) - 1)}


@pytest.mark.parametrize("name", SHIPPED)
def test_no_held_out_document_is_close_to_a_training_document(shipped, name):
    """The highest Jaccard similarity of a held-out and a training target; shares no code with their removal."""
    task = shipped[name]
    held_out = [pieces(name, r["target"]) for split in ("validation", "test") for r in head(task[split])]
    index = collections.defaultdict(list)
    for i, own in enumerate(held_out):
        for piece in own:
            index[piece].append(i)
    worst = 0.0
    for own in (pieces(name, r["target"]) for r in head(task["train"])):
        shared = collections.Counter(i for piece in own for i in index.get(piece, ()))
        worst = max([worst, *(n / len(own | held_out[i]) for i, n in shared.items() if n > 2)])
    assert 0.2 < worst < BUILD[name].THRESHOLD


@needs("gpt2_bpe")
def test_gpt2_merges_are_openais():
    data = (DATA / "gpt2_bpe" / "merges.txt").read_bytes()
    known = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as in tiktoken
    assert (len(data), hashlib.sha256(data).hexdigest()) == (456_318, known)
