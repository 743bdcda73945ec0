"""lib.tasks: forms of files, bad input, group safety, E2E, documents in tokens."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hub_server import nothing_within_reach

import lib.hub
import lib.tasks
from lib.hub import Unavailable
from lib.models import tiny_tokenizer
from lib.tasks import SPLITS, Task, encode, head, load_task


@pytest.fixture(scope="module")
def debian() -> Task:
    return load_task("debian")


@pytest.fixture(scope="module")
def tokenizer(debian):
    return tiny_tokenizer([r["prompt"] + r["target"] for r in head(debian["train"], 200)], vocab_size=600)


def everything(task: Task) -> list[dict]:
    return [row for split in SPLITS for row in head(task[split])]


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def rows(n: int, **more) -> list[dict]:
    return [{"prompt": f"Q{i}:\n", "target": f"answer {i}", **more} for i in range(n)]


def row(**changed) -> dict:
    return {"id": "x", "prompt": "p", "target": "t", "references": ["t"], "group": "g"} | changed


def test_task_of_200_rows(tmp_path, monkeypatch):
    data = rows(200)
    data[3] |= {"references": ["answer 3", " another "], "group": "g", "id": 77}
    path = jsonl(tmp_path / "mine.jsonl", data)
    monkeypatch.setenv("TASK", str(path))
    task = load_task()
    assert (task.name, task.source) == ("mine", str(path))
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [len(task[s]) for s in SPLITS] == [160, 20, 20]
    small = task.replace(train=head(task["train"], 3), validation=[], name="small")
    assert small.name == "small" and [len(small[s]) for s in SPLITS] == [3, 0, 20]
    (special,) = [r for r in everything(task) if r["id"] == "77"]
    assert special["references"] == ["answer 3", "another"] and special["group"] == "g"
    monkeypatch.setattr(lib.tasks, "ROOT", tmp_path)  # a notebook runs in its own folder
    assert everything(task) == everything(load_task("mine.jsonl"))
    crlf = path.read_bytes().replace(b"\n", b"\r\n\r\n")
    (tmp_path / "debian.jsonl").write_bytes(b"\xef\xbb\xbf" + crlf)  # BOM and blank lines are no error
    again = load_task(tmp_path / "debian.jsonl")
    assert again.name == "debian_custom" and len(everything(again)) == 200  # no file passes for a shipped task


def test_csv_and_parquet_give_the_task_of_the_same_rows_in_json_lines(tmp_path):
    data = [r | {"references": [f"also {i}, really"], "note": ""} for i, r in enumerate(rows(30))]
    data[7] |= {"target": 'NA, "quoted"\nand 007'}  # nothing may become a number, a date or a gap
    data[8] |= {"target": "007"}
    expected = everything(load_task(jsonl(tmp_path / "a.jsonl", data)))
    assert {"007", 'NA, "quoted"\nand 007'} <= {r["target"] for r in expected}
    frame = pd.DataFrame(data)
    frame.to_parquet(tmp_path / "a.parquet")
    frame["references"] = frame["references"].str[0]
    frame.to_csv(tmp_path / "a.csv", index=False, encoding="utf-8-sig")
    assert everything(load_task(tmp_path / "a.parquet")) == everything(load_task(tmp_path / "a.csv")) == expected


@pytest.mark.parametrize("key", ["group", "prompt"])
def test_groups_never_straddle_and_duplicates_are_removed(tmp_path, capsys, key):
    data = [{"prompt": f"P{i}", "target": f"t{i}"} | {key: f"g{i % 17}"} for i in range(200)]
    task = load_task(jsonl(tmp_path / "a.jsonl", data + data[:7]))
    per_split = [set(task[s]["group"]) for s in SPLITS]
    assert all(per_split) and len(everything(task)) == 200
    assert sum(map(len, per_split)) == len(set().union(*per_split)) == 17
    assert "7 exact duplicates removed" in capsys.readouterr().out


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    with pytest.raises(Unavailable, match=r"'user/set' is no file here.*cannot be had: the fast profile"):
        load_task("user/set")
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setattr(lib.tasks, "hub_trouble", lambda name, *_, **__: None)
    parts = {"train": Dataset.from_list(rows(150)), "test": Dataset.from_list(rows(200)[150:])}
    monkeypatch.setattr(lib.tasks, "load_dataset", lambda name: DatasetDict(parts))
    task = load_task("user/set")
    assert (task.name, task.source) == ("set", "https://huggingface.co/datasets/user/set") and task.sha256
    of_a_file = load_task(jsonl(tmp_path / "set.jsonl", rows(200)))
    assert everything(task) == everything(of_a_file)
    parts["train"] = Dataset.from_dict({"text": ["x"]})
    with pytest.raises(ValueError, match='user/set, row 1: no "prompt"'):
        load_task("user/set")
    monkeypatch.setattr(lib.tasks, "load_dataset", lambda name: {}[name])
    with pytest.raises(Unavailable, match="cannot be had: KeyError"):
        load_task("user/set")


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
        (b'{"prompt": "p", "target": "t", "references": ""}', r'"references" is no list'),
        (b'{"prompt": "p", "target": "t", "references": [1]}', r'"references" holds int'),
        (b'{"prompt": "p", "target": "t", "group": ["g"]}', r'"group" holds list'),
        (b'{"prompt": "p", "target": "t", "id": true}', r'"id" holds bool'),
        (GOOD.replace(b"}", b', "id": "a"}') * 2, r'line 2: the id "a" is taken by .*line 1'),
        (b"".join(b'{"prompt": "p%d", "target": "t"}\n' % i for i in range(9)), r"9 different groups .* too few"),
    ],
)
def test_bad_json_lines_say_where(tmp_path, bad, message, name="bad.jsonl"):
    (tmp_path / name).write_bytes(bad)
    with pytest.raises(ValueError, match=message) as error:
        load_task(tmp_path / name)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("bad.csv", b"", r"bad\.csv is empty"),
        ("bad.csv", b"prompt,target\n", r"bad\.csv is empty"),
        ("bad.csv", b"prompt,target\np,one, two\n", r"line 2: not as many cells as the header"),
        ("bad.csv", b"prompt,target\np\n", r"line 2: not as many cells as the header"),
        ("bad.csv", b"prompt,target\np,t\nq,\n", r'line 3: no "target"'),
        ("bad.csv", b'prompt,target\np,t\nq,"open\n', r"line 3: not valid CSV"),
        ("bad.csv", "prompt,target\n春,眠\n".encode("gbk"), r"bad\.csv: not UTF-8"),
        ("bad.parquet", b"PAR1", r"bad\.parquet: not valid Parquet"),
    ],
)
def test_bad_tables_say_where(tmp_path, name, bad, message):
    test_bad_json_lines_say_where(tmp_path, bad, message, name)


def test_unknown_names_and_missing_files(monkeypatch):
    monkeypatch.setenv("TASK", "debain")
    with pytest.raises(ValueError, match=r"'debain' is unknown: choose debian, .*e2e, the path of a"):
        load_task()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_task("nowhere.jsonl")
    monkeypatch.setenv("TASK", "")
    assert load_task().name == "debian"


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
    prompt = "name : A | Type : pub ||"
    assert sorted(r["prompt"] + r["target"] for r in task["train"]) == [
        f"{prompt} A is a pub .",
        f"{prompt} The pub A .",
    ]
    assert set(task["train"]["group"]) == {"name : A | Type : pub"}
    assert sorted((r["prompt"], r["target"], r["references"]) for r in task["test"]) == [
        ("name : C ||", " C .", ["C .", "C again ."]),
        ("name : D ||", " D one .", ["D one ."]),
    ]
    assert len(task["validation"]) == 1 and task.source == str(mirror / "e2e")


def test_e2e_from_the_hubs_rows(tmp_path, monkeypatch):
    nothing_within_reach(tmp_path, monkeypatch)
    with pytest.raises(Unavailable, match=r"data/mirror/e2e.*cannot be reached.*HF_ENDPOINT"):
        load_task("e2e")

    def download(repository, file, repo_type, revision, **_):
        assert (repository, repo_type, revision) == ("tuetschek/e2e_nlg", "dataset", "refs/convert/parquet")
        path = tmp_path / file.replace("/", "_")
        meaning = "name[The Vaults], eatType[pub], priceRange[£20-25], familyFriendly[no], near[Café Adriatic]"
        texts = ["The Vaults is a pub. ", "A pub."]
        pd.DataFrame({"meaning_representation": [meaning] * 2, "human_reference": texts}).to_parquet(path)
        return str(path)

    monkeypatch.setattr(lib.hub, "hf_hub_download", download)
    task = load_task("e2e")
    prompt = "name : The Vaults | Type : pub | price : £ 20 - 25 | family friendly : no | near : Café Adriatic ||"
    assert task["test"][0]["prompt"] == prompt
    assert task["test"][0]["references"] == ["The Vaults is a pub.", "A pub."]
    assert len(task["train"]) == 2 and task.source.startswith("https://huggingface.co/")


def test_encode_round_trip_and_limit(debian, tokenizer):
    special = row(id="doc-7", prompt="<|endoftext|> p\n", target="t <|endoftext|> é")  # is text in a document
    examples = [*head(debian["test"], 50), special]
    documents = encode(tokenizer, examples, 4096)
    for r, d in zip(examples, documents, strict=True):
        assert tokenizer.decode(d.input_ids) == r["prompt"] + r["target"] + tokenizer.eos_token
        assert tokenizer.decode(d.input_ids[: d.prompt_length]) == r["prompt"]
        assert d.input_ids[-1] == tokenizer.eos_token_id and d.input_ids.count(tokenizer.eos_token_id) == 1
        assert (d.target_bytes, d.id) == (len(r["target"].encode()), r["id"])
    n = len(documents[-1].input_ids)
    assert encode(tokenizer, [special], n) == documents[-1:]
    with pytest.raises(ValueError, match=f"doc-7 is {n} tokens long and the limit {n - 1}: shorten"):
        encode(tokenizer, [special], n - 1)
