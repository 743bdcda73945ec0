"""lib.tasks and data/build_debian.py: bad input, group safety, near-duplicates, determinism."""

import collections
import hashlib
import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lib.tasks
from lib.models import tiny_tokenizer
from lib.profile import DATA
from lib.tasks import (
    SPLITS,
    Example,
    Task,
    TaskUnavailable,
    e2e_meaning,
    encode,
    load_task,
    token_statistics,
)

spec = importlib.util.spec_from_file_location("build_debian", DATA / "build_debian.py")
build_debian = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_debian)


@pytest.fixture(scope="module")
def debian() -> Task:
    return load_task("debian")


@pytest.fixture(scope="module")
def tokenizer(debian):
    return tiny_tokenizer([e.prompt + e.target for e in debian.train[:200]], vocab_size=600)


def everything(task: Task) -> list[Example]:
    return task.train + task.validation + task.test


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


# ---- the shipped data


def test_debian_loads_fast_and_matches_its_card(debian):
    seconds = []
    for _ in range(3):  # the best of three: another process may hold the cores
        start = time.perf_counter()
        load_task("debian")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    card = json.loads((DATA / "debian" / "card.json").read_text(encoding="utf-8"))
    assert card["splits"] == {s: len(getattr(debian, s)) for s in SPLITS}
    assert list(card["stages"].values())[-1] == len(everything(debian)) > 9000
    for name, digest in card["files_sha256"].items():
        assert hashlib.sha256((DATA / "debian" / name).read_bytes()).hexdigest() == digest
    whole = b"".join((DATA / "debian" / f"{s}.jsonl").read_bytes() for s in SPLITS)
    assert debian.sha256 == hashlib.sha256(whole).hexdigest()


def test_debian_rows_keep_the_rules(debian):
    prompt = re.compile(
        r"Package: (\S+)\nSection: (\S+)\nTags: \S+::\S+(?:, \S+::\S+)*\nDescription:\n"
    )
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


def test_no_held_out_document_is_close_to_a_training_document(debian):
    """By an exact inverted index, which shares no code with the MinHash that removed them."""

    def triples(text):
        words = re.findall(r"\w+", text.lower())
        return set(zip(words, words[1:], words[2:], strict=False))

    held_out = [triples(e.target) for e in debian.validation + debian.test]
    index = collections.defaultdict(list)
    for i, own in enumerate(held_out):
        for t in own:
            index[t].append(i)
    worst = 0.0
    for own in (triples(e.target) for e in debian.train):
        shared = collections.Counter(i for t in own for i in index.get(t, ()))
        worst = max([worst, *(n / len(own | held_out[i]) for i, n in shared.items() if n > 2)])
    assert 0.2 < worst < build_debian.THRESHOLD


def test_a_leading_slice_is_no_alphabetical_one(debian):
    """Profiles evaluate `test[:n]`: the first documents must come from the whole alphabet."""
    initials = {e.id[0] for e in debian.test[:100]}
    assert len(initials) > 10
    assert np.mean([e.id < "m" for e in debian.test[:200]]) == pytest.approx(
        np.mean([e.id < "m" for e in debian.test]), abs=0.1
    )


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
        texts.append(
            f"Package: {name}\nDescription-md5: {md5}\nDescription-en: {name} synopsis\n{body}\n"
        )
    return "\n".join(heads), "\n".join(texts)


def body(word: str, n: int = 30) -> str:
    words = [f"{word}{i}" for i in range(n)]
    return f" {' '.join(words[: n // 2])}\n .\n  * {' '.join(words[n // 2 :])}"


def test_build_forms_the_document():
    files, facts = build_debian.build(*lists(("vi", "", "editors", body("x", 20))))
    (row,) = [json.loads(line) for data in files.values() for line in data.splitlines()]
    assert row["prompt"] == (
        "Package: vi\nSection: editors\nTags: role::program, use::editing\nDescription:\n"
    )
    assert row["target"] == (
        "vi synopsis\nx0 x1 x2 x3 x4 x5 x6 x7 x8 x9\n\n * x10 x11 x12 x13 x14 x15 x16 x17 x18 x19"
    )
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
        *lists(
            ("one", "", "misc", body("a")),
            ("two", "", "misc", near),
            ("zed", "", "misc", body("b")),
        )
    )
    rows = [json.loads(line)["id"] for data in files.values() for line in data.splitlines()]
    assert sorted(rows) == ["one", "zed"] and facts["stages"]["near-duplicates removed"] == 2


def test_build_caps_families():
    docs = [{"id": f"lib{i}-perl", "family": "perl"} for i in range(9)] + [
        {"id": "x", "family": ""}
    ]
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
    Path(f"{tmp_path}/mirror_dists_bookworm_InRelease").write_text(
        "Version: 12.9\nDate: today\nMD5Sum:\n"
    )
    build_debian.main(["--lists", str(tmp_path), "--out", str(tmp_path / "out")])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["release"] == {"version": "12.9", "date": "today"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.json", "test.jsonl", "train.jsonl", "validation.jsonl"
    ]  # fmt: skip


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
    with pytest.raises(ValueError, match="'debain' is unknown: choose debian, e2e or the path"):
        load_task()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_task("nowhere.jsonl")
    monkeypatch.setenv("TASK", "")
    assert load_task().name == "debian"


def test_missing_shipped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lib.tasks, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl is missing: run `git checkout"):
        load_task("debian")


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
        "name : A | Type : pub || A is a pub .", "name : A | Type : pub || The pub A ."
    ]  # fmt: skip
    assert {e.group for e in train} == {"name : A | Type : pub"}
    assert [(e.prompt, e.target, e.references) for e in sorted(task.test, key=lambda e: e.id)] == [
        ("name : C ||", " C .", ("C .", "C again .")), ("name : D ||", " D one .", ("D one .",))
    ]  # fmt: skip
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

    import lib.fetch

    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.setattr(lib.fetch, "MIRROR", tmp_path / "mirror")
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
    with pytest.raises(
        ValueError, match=f"doc-7 is {n} tokens long and the limit {n - 1}: shorten"
    ):
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
    card = json.loads((DATA / "debian" / "card.json").read_text(encoding="utf-8"))
    folder = Path("/var/lib/apt/lists")
    try:
        texts = {
            key: build_debian.read_list(build_debian.find_list(folder, card["suite"], kind))
            for key, kind in (
                ("packages", "binary-*_Packages"),
                ("translation", "i18n_Translation-en"),
            )
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
