"""lib.tasks: forms of files, bad input, group safety, documents in tokens."""

import copy
import hashlib
import json
import os
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
from conftest import everything
from datasets import Dataset, DatasetDict

import lib.run
import lib.tasks
from lib import hub, models
from lib.__main__ import main
from lib.tasks import SPLITS, Task, encode, head, load_task

Base = namedtuple("Base", "tokenizer context", defaults=[64])
GOOD = b'{"prompt": "p", "target": "t"}\n'


@pytest.fixture(scope="module")
def debian() -> Task:
    return load_task("debian")


@pytest.fixture(scope="module")
def tokenizer(debian):
    return models.tiny_tokenizer([r["prompt"] + r["target"] for r in head(debian["train"], 200)], vocab_size=600)


def without_ids(task: Task) -> list[dict]:
    """An id that a row does not bring is the file's name and the line."""
    return sorted((r | {"id": ""} for r in everything(task)), key=str)


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
    places = [int(r["prompt"][1:-2]) for r in head(task["train"], 20)]
    assert {place // 50 for place in places} == {0, 1, 2, 3} and places != sorted(places)
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
    for name in ("a.parquet", "a.csv"):
        assert without_ids(load_task(tmp_path / name)) == sorted((r | {"id": ""} for r in expected), key=str)


@pytest.mark.parametrize("key", ["group", "prompt"])
def test_groups_never_straddle_and_duplicates_are_removed(tmp_path, capsys, key):
    data = [{"prompt": f"P{i}", "target": f"t{i}"} | {key: f"g{i % 17}"} for i in range(200)]
    task = load_task(jsonl(tmp_path / "a.jsonl", data + data[:7]))
    per_split = [set(task[s]["group"]) for s in SPLITS]
    assert all(per_split) and len(everything(task)) == 200
    assert sum(map(len, per_split)) == len(set().union(*per_split)) == 17
    assert "7 exact duplicates removed" in capsys.readouterr().out


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    with pytest.raises(hub.Unavailable, match=r"'user/set' is no file here.*cannot be had: the fast profile"):
        load_task("user/set")
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setattr(lib.tasks, "hub_trouble", lambda name, *_, **__: None)
    parts = {"train": Dataset.from_list(rows(150)), "test": Dataset.from_list(rows(200)[150:])}
    monkeypatch.setattr(lib.tasks, "load_dataset", lambda name: DatasetDict(parts))
    task = load_task("user/set")
    assert (task.name, task.source) == ("set", "https://huggingface.co/datasets/user/set") and task.sha256
    assert without_ids(task) == without_ids(load_task(jsonl(tmp_path / "set.jsonl", rows(200))))
    parts["train"] = Dataset.from_dict({"question": ["x"]})
    with pytest.raises(ValueError, match=r'user/set, row 1: no "prompt" in question; .* --task-columns text=question'):
        load_task("user/set")
    monkeypatch.setattr(lib.tasks, "load_dataset", lambda name: {}[name])
    with pytest.raises(hub.Unavailable, match="cannot be had: KeyError"):
        load_task("user/set")


def said(*pairs: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": text} for role, text in pairs]


SHAREGPT = (("human", "Q{i}"), ("gpt", "A"), ("human", "R"), ("gpt", "B"))
SHAREGPT = [{"from": who, "value": text} for who, text in SHAREGPT]
CHAT = said(("system", "S"), ("user", "Q{i}"), ("assistant", "A"), ("user", "R"))  # R, which has no answer, is left out
DO = "### Instruction:\n{i}\n\n"


@pytest.mark.parametrize(
    ("form", "prompt", "target"),
    [
        ({"prompt": "Q{i}?", "completion": " A"}, "Q{i}?", " A"),
        ({"prompt": said(("user", "Q{i}")), "completion": said(("assistant", "A"))}, "User: Q{i}\nAssistant:", " A"),
        ({"instruction": "{i}", "input": "", "output": "A"}, DO + "### Response:\n", "A"),
        ({"instruction": "{i}", "context": "C", "response": "A", "n": 1}, DO + "### Input:\nC\n\n### Response:\n", "A"),
        ({"messages": CHAT}, "System: S\nUser: Q{i}\nAssistant:", " A"),
        ({"conversations": SHAREGPT}, "User: Q{i}\nAssistant: A\nUser: R\nAssistant:", " B"),
        ({"text": "A text {i}."}, "", "A text {i}."),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "A.JSON", "a.parquet"])
def test_forms_of_rows(tmp_path, capsys, form, prompt, target, name):
    data = [json.loads(json.dumps(form).replace("{i}", str(i))) for i in range(30)]
    if name == "a.parquet":
        pd.DataFrame(data).to_parquet(tmp_path / name)
    else:
        lines = map(json.dumps, data)
        (tmp_path / name).write_text("\n".join(lines) if name == "a.jsonl" else json.dumps(data, indent=1), "utf-8")
    found = {(r["prompt"], r["target"]) for r in everything(load_task(tmp_path / name))}
    assert found == {(prompt.replace("{i}", str(i)), target.replace("{i}", str(i))) for i in range(30)}
    assert (f"{name}: rows with " in capsys.readouterr().out) == (prompt != "")


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.CSV", ";"), ("a.csv", ",")])
def test_tables_by_their_mark_with_other_names_and_in_utf16(tmp_path, monkeypatch, capsys, name, mark):
    lines = [f'"F{i}{mark} was?"{mark}"A{i}\r\nzwei"{mark}' for i in range(30)]
    (tmp_path / name).write_bytes("\r\n".join([f"Frage{mark}Antwort{mark}n", *lines, mark * 2]).encode("utf-16"))
    monkeypatch.setenv("TASK_COLUMNS", "prompt=Frage, target = Antwort")
    task = load_task(tmp_path / name)
    found = {(r["prompt"], r["target"]) for r in everything(task)}
    assert found == {(f"F{i}{mark} was?", f"A{i}\nzwei") for i in range(30)}
    assert f"{name}: read as UTF-16" in capsys.readouterr().out
    monkeypatch.setenv("TASK_COLUMNS", "prompt=Antwort,target=Frage")
    assert load_task(tmp_path / name).sha256 != task.sha256  # another run
    monkeypatch.setenv("TASK_COLUMNS", "prompt=Quelle,target=Antwort")
    with pytest.raises(ValueError, match=r'line 3: no "prompt" in Frage, n, target; .* --task-columns prompt=Frage'):
        load_task(tmp_path / name)


def test_repeated_prompts_make_each_row_a_group(tmp_path, capsys):
    data = [{"prompt": f"Style: {'news' if i % 2 else 'verse'}\n", "target": f"headline {i // 2}"} for i in range(300)]
    task = load_task(jsonl(tmp_path / "a.jsonl", data))
    assert "300 rows have 2 different prompts: each row is a group of its own" in capsys.readouterr().out
    held_out = {r["target"] for r in head(task["test"])}
    assert len(held_out) == 15 and not held_out & {r["target"] for r in head(task["train"])}
    load_task(jsonl(tmp_path / "b.jsonl", [r | {"group": r["prompt"] + str(i % 11)} for i, r in enumerate(data)]))
    assert "group of its own" not in capsys.readouterr().out


def test_one_text_is_split_by_contiguous_parts(tmp_path, capsys):
    novel = "".join(f"{i}. It was a dark night, and 春 came.\n" + "\n" * (i % 9 == 0) for i in range(2_000))
    (tmp_path / "novel.txt").write_text(novel, "utf-8")
    task = load_task(tmp_path / "novel.txt")
    places = {s: [novel.index(r["target"]) for r in head(task[s])] for s in SPLITS}
    assert max(places["train"]) < min(places["validation"]) and max(places["validation"]) < min(places["test"])
    blocks = sorted(everything(task), key=lambda r: novel.index(r["target"]))
    assert "".join(r["target"] for r in blocks) == novel.rstrip("\n") and {r["prompt"] for r in blocks} == {""}
    assert max(len(r["target"].encode()) for r in blocks) < 1_024 and all(r["target"][0].isdigit() for r in blocks)
    assert "novel.txt, text 1" in capsys.readouterr().out
    (tmp_path / "poems.txt").write_text("<|endoftext|>\n".join(f"Poem {i}\n" for i in range(40)), "utf-8")
    task = load_task(tmp_path / "poems.txt")
    assert len(task["test"]) == 4 and "Poem 7" in {r["target"] for r in everything(task)}


def test_what_exceeds_the_context(tmp_path, tokenizer, capsys):
    long = "".join(f"A sentence of {i} words. " for i in range(400))
    data = [*rows(40), {"prompt": "P", "target": long}]
    task = load_task(jsonl(tmp_path / "pairs.jsonl", data), Base(tokenizer))
    assert len(everything(task)) == 40
    left_out = "1 of 41 documents, longer than the context of 64 tokens, left out; first pairs.jsonl, line 41."
    assert left_out in capsys.readouterr().out
    data = [{"text": f"Text {i}"} for i in range(40)] + [{"text": long}]
    task = load_task(jsonl(tmp_path / "texts.jsonl", data), Base(tokenizer, 1_024))
    assert "cut into blocks; first" in capsys.readouterr().out
    blocks = [r for r in everything(task) if r["group"] == "texts.jsonl, line 41"]
    assert len(blocks) > 5 and encode(tokenizer, blocks, 1_024)
    (tmp_path / "both.txt").write_text(long + "床前明月光" * 900, "utf-8")  # the end is three times as wide
    assert 980 < max(len(r["target"].encode()) for r in everything(load_task(tmp_path / "both.txt"))) <= 1_000
    assert len({s for s in SPLITS for r in head(task[s]) if r in blocks}) == 1


def test_chats_by_the_tokenizers_template(tmp_path, tokenizer):
    with_template = copy.deepcopy(tokenizer)
    with_template.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|bot|>"]})
    template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    with_template.chat_template = template + "<|{{ m.role }}|>{{ m.content }}{% endfor %}<|bot|>"
    data = [{"messages": said(("user", f"Q{i}"), ("assistant", "A"))} for i in range(20)]
    path = jsonl(tmp_path / "a.jsonl", data)
    task, plain = load_task(path, Base(with_template)), load_task(path)
    assert {r["prompt"] for r in everything(task)} == {f"<|user|>Q{i}<|bot|>" for i in range(20)}
    assert [set(task[s]["group"]) for s in SPLITS] == [set(plain[s]["group"]) for s in SPLITS]
    assert encode(with_template, task["test"], 64)[0].input_ids[0] == with_template.convert_tokens_to_ids("<|user|>")
    path = jsonl(path, [{"messages": said(("tool", "T"), ("assistant", "A"))}])
    with pytest.raises(ValueError, match=r"line 1: no tools"):
        load_task(path, Base(with_template))


def test_a_relative_path_means_where_the_command_was_given(tmp_path, monkeypatch):
    jsonl(tmp_path / "my.jsonl", rows(20))
    (tmp_path / "debian").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lib.run, "find", lambda names: [])
    for name, kept in (("my.jsonl", str(tmp_path / "my.jsonl")), ("debian", "debian")):
        for setting, options in ((name, []), ("", ["--task", name])):
            monkeypatch.setenv("TASK", setting)
            assert main(["run", *options]) == 0 and os.environ["TASK"] == kept


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", r"bad\.jsonl is empty"),
        (b"\n \n", r"bad\.jsonl is empty"),
        (GOOD + b'{"prompt": "p",\n', r"bad\.jsonl, line 2: not valid JSON"),
        (GOOD * 2 + b'{"prompt": "\xff", "target": "t"}', r"bad\.jsonl, line 3: not UTF-8"),
        ('{"prompt": "p", "target": "春"}'.encode("gbk"), r"line 1: not UTF-8 .*it may be GBK\)"),
        ('{"prompt": "p"}'.encode("utf-16")[:-1], r"line 1: not UTF-16-LE .truncated data.; save"),
        (b"[1, 2]", r"row 1: not an object"),
        (GOOD + b"[1, 2]", r"line 2: not an object"),
        (b'[\n{"prompt": "p"\n"target": "t"}]', r"line 3: not valid JSON"),
        (b"[" * 200_000, r"line 1: not valid JSON"),
        (b'{"target": "t"}', r'line 1: no "prompt"'),
        (b'{"prompt": "p"}', r'line 1: no "target"'),
        (b'{"prompt": 1, "target": "t"}', r'line 1: "prompt" holds int, not a string'),
        (b'{"prompt": "p", "target": null}', r'line 1: "target" holds NoneType'),
        (b'{"prompt": "p", "target": " \\n"}', r'line 1: "target" is empty'),
        (b'{"prompt": "", "target": "t"}', r'line 1: "prompt" is empty'),
        (b'{"prompt": "p", "target": "\\ud800"}', r'line 1: "target" holds half a surrogate'),
        (b'{"prompt": "p", "target": "t", "references": "r"}', r'"references" is no list'),
        (b'{"answer": "t", "ask": "p", "n": 1}', r'no "prompt" in answer, .*: --task-columns prompt=answer,target=as'),
        (b'{"prompt": "p", "text": "t"}', r'no "target" in prompt, text; name .* it: --task-columns target=text'),
        (GOOD + b'{"text": "t"}', r'line 2: it has "text", the first row "target"'),
        (b'{"instruction": ["i"], "output": "t"}', r'"instruction" holds list'),
        (b'{"messages": ["hello"]}', r"line 1: a turn is not"),
        (b'{"messages": [{"role": "assistant", "content": "t"}]}', r"line 1: no turn of an assistant follows"),
        (b'{"messages": [{"role": "user", "content": null}]}', r'line 1: "content" holds NoneType'),
        (b'{"prompt": [{"role": "user", "content": "p"}], "completion": 5}', 'line 1: "prompt" holds list'),
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
        ("bad.csv", b"prompt,target\np,t\nq,\n", r'line 3: "target" is empty'),
        ("bad.csv", b'prompt,target\np,t\nq,"open\n', r"line 3: not valid CSV"),
        ("bad.csv", "prompt,target\n春,眠\n".encode("gbk"), r"bad\.csv, line 2: not UTF-8 .*GBK"),
        ("bad.txt", b"One line.\n" * 500, r"bad\.txt: \d different groups .* too few"),
        ("bad.parquet", b"PAR1", r"bad\.parquet: not valid Parquet"),
    ],
)
def test_bad_tables_say_where(tmp_path, name, bad, message):
    test_bad_json_lines_say_where(tmp_path, bad, message, name)


def test_unknown_names_and_missing_files(monkeypatch):
    monkeypatch.setenv("TASK", "debain")
    with pytest.raises(ValueError, match=r"'debain' is unknown: choose debian, .*the path of a"):
        load_task()
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_task("nowhere.jsonl")
    with pytest.raises(ValueError, match=r"'README.md' is not read: choose .*, \.txt file"):
        load_task("README.md")
    for name in ("", "DEBIAN "):
        monkeypatch.setenv("TASK", name)
        assert load_task().name == "debian"


def test_encode_round_trip_and_limit(debian, tokenizer):
    special = row(id="doc-7", prompt="<|endoftext|> p\n", target="t <|endoftext|> é")  # is text in a document
    examples = [*head(debian["test"], 50), special]
    documents = encode(tokenizer, examples, 4096)
    for r, d in zip(examples, documents, strict=True):
        assert tokenizer.decode(d.input_ids) == r["prompt"] + r["target"] + tokenizer.eos_token
        assert tokenizer.decode(d.input_ids[: d.prompt_length]) == r["prompt"]
        assert d.input_ids[-1] == tokenizer.eos_token_id and d.input_ids.count(tokenizer.eos_token_id) == 1
        assert (d.target_bytes, d.id) == (len(r["target"].encode()), r["id"])
    (from_nothing,) = encode(tokenizer, [row(prompt="")], 9)
    assert (from_nothing.input_ids[0], from_nothing.prompt_length) == (tokenizer.eos_token_id, 1)
    n = len(documents[-1].input_ids)
    assert encode(tokenizer, [special], n) == documents[-1:]
    with pytest.raises(ValueError, match=f"doc-7 is {n} tokens long and the limit {n - 1}: shorten"):
        encode(tokenizer, [special], n - 1)
    with pytest.raises(ValueError, match=f"Document {special['id']} holds half a surrogate pair: repair it"):
        encode(tokenizer, [special | {"prompt": "\ud83e"}], n)
