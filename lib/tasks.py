"""Datasets as (prompt, target) documents: where they come from, how they are split and checked.

The target begins right after the prompt: prompt + target is the plain document, and a generation for
the prompt alone should produce the target and then EOS. data/README.md holds a card per dataset.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, List, Value
from huggingface_hub.errors import EntryNotFoundError
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from lib import profile
from lib.hub import Unavailable, hub_file, hub_trouble, outside
from lib.packing import Encoded
from lib.profile import DATA, ROOT

SPLITS = ("train", "validation", "test")
MIN_GROUPS = 10  # fewer leave one or two groups to test on
TEXT = Value("string")
# references: what a generation may be compared with, the target (stripped) first; group: what must not straddle splits
COLUMNS = Features({"id": TEXT, "prompt": TEXT, "target": TEXT, "references": List(TEXT), "group": TEXT})


class Task(DatasetDict):
    """A dataset in three splits, `task["train"]`, `["validation"]` and `["test"]`: rows (dicts) or Datasets with the
    columns of COLUMNS. `sha256` is of the content files, one after the other; `source` a folder, file or address."""

    def __init__(self, splits: Mapping[str, Iterable[Mapping]], name: str, sha256: str = "", source: str = ""):
        super().__init__({split: _dataset(splits.get(split, ())) for split in SPLITS})
        self.name, self.sha256, self.source = name, sha256, source

    def replace(self, **changes) -> "Task":
        """The same task with other rows or another name: `task.replace(train=rows, name="half")`."""
        fields = {"name": self.name, "sha256": self.sha256, "source": self.source, **self, **changes}
        return Task({split: fields.pop(split) for split in SPLITS}, **fields)


def _dataset(rows: Iterable[Mapping]) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    rows = list(rows)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, COLUMNS)


def head(rows: Iterable[Mapping], n: int | None = None) -> list[dict]:
    """The first `n` rows, all of them for None. A split is ordered by a hash of the ids: they are a random sample."""
    if isinstance(rows, Dataset):  # far faster than row by row
        rows = rows.select(range(len(rows) if n is None else min(n, len(rows)))).to_list()
    return list(islice(rows, n))


def load_task(name: str | os.PathLike | None = None) -> Task:
    """A name in `TASKS` or the path of a file in a form of `READERS`, from the current folder, else from the checkout;
    None: the environment's TASK, else "debian". Raises ValueError for an unknown name or a bad file, FileNotFoundError
    for a missing one, Unavailable for `e2e` without a copy of it."""
    name = os.fspath(name or os.environ.get("TASK") or "debian")
    if name in TASKS:
        return TASKS[name]()
    path = Path(name).expanduser()
    if path.suffix.lower() not in READERS:
        known = ", ".join(TASKS)
        raise ValueError(f"TASK={name!r} is unknown: choose {known} or the path of a {' or '.join(READERS)} file.")
    found = [p for p in (Path.cwd() / path, ROOT / path) if p.is_file()]
    if not found:
        raise FileNotFoundError(f"TASK={name!r}: no such file in {Path.cwd()} or {ROOT}; check it.")
    return _custom(found[0].resolve())


# --- a file's records, ("path, line N", dict) each; every reader raises ValueError that begins with the place


def _json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise ValueError(f"{where}: not UTF-8 ({e.reason}); save the file as UTF-8.") from None
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"{where}: not valid JSON ({e}); write one object a line.") from None
        if not isinstance(record, dict):
            raise ValueError(f'{where}: not an object; write {{"prompt": "...", "target": "..."}}.')
        yield where, record


def _csv(path: Path) -> Iterator[tuple[str, dict]]:
    """A header names the columns; an empty cell is none, a cell under `references` is one reference."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    raise ValueError(f"{where}: not as many cells as the header; quote cells that hold a comma.")
                record = {name: cell for name, cell in record.items() if cell}
                yield where, record | ({"references": [record["references"]]} if "references" in record else {})
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 ({e.reason}); save the file as CSV UTF-8.") from None
    except csv.Error as e:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not valid CSV ({e}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        records = parquet.read_table(path).to_pylist()
    except ValueError as e:
        raise ValueError(f"{path}: not valid Parquet ({str(e):.150}).") from None
    return ((f"{path}, row {i}", record) for i, record in enumerate(records, 1))


READERS = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}


# --- from records to a task


def _row(where: str, record: dict, default_id: str) -> dict:
    """The columns of COLUMNS from one record. Raises ValueError, one sentence that begins with `where`."""
    for key in ("prompt", "target"):
        if key not in record:
            raise ValueError(f'{where}: no "{key}"; every row needs "prompt" and "target".')
        # a generation may start from "\n", but not from nothing
        if not _text(where, key, record[key]) or (key == "target" and not record[key].strip()):
            raise ValueError(f'{where}: "{key}" is empty; fill it in or remove the row.')
    references = [] if record.get("references") is None else record["references"]
    if not isinstance(references, list):
        raise ValueError(f'{where}: "references" is no list; write ["...", "..."] or leave it out.')
    texts = [t.strip() for t in (record["target"], *(_text(where, "references", r) for r in references))]
    named = {"id": default_id, "group": record["prompt"]}
    for key in named:
        if (value := record.get(key)) is not None:
            is_number = isinstance(value, int) and not isinstance(value, bool)
            named[key] = str(value) if is_number else _text(where, key, value)
    unique = list(dict.fromkeys(t for t in texts if t))
    return {"prompt": record["prompt"], "target": record["target"], "references": unique, **named}


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: "{key}" holds {type(value).__name__}, not a string; quote it.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write \ud800 alone, UTF-8 cannot
        raise ValueError(f'{where}: "{key}" holds half a surrogate pair; repair it.') from None
    return value


def read(path: Path) -> list[dict]:
    """The checked rows of a file in the order of the file; an id must be there once."""
    first: dict[str, str] = {}
    rows = []
    for where, record in READERS[path.suffix.lower()](path):
        row = _row(where, record, f"{path.stem}-{len(rows):06d}")
        if (taken := first.setdefault(row["id"], where)) != where:
            raise ValueError(f'{where}: the id "{row["id"]}" is taken by {taken}.')
        rows.append(row)
    if not rows:
        raise ValueError(f'{path} is empty; write rows with "prompt" and "target".')
    return rows


def _task(name: str, splits: Iterable[list[dict]], sha256: str, source: str) -> Task:
    def order(row: dict) -> bytes:
        # not the split's own hash: an id that is also the group's name would sort by its split
        return hashlib.sha256(f"order:{row['id']}".encode()).digest()

    return Task({s: sorted(rows, key=order) for s, rows in zip(SPLITS, splits, strict=True)}, name, sha256, source)


def _sha256(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()


def _shipped(name: str) -> Task:
    """data/`name`, as its build script split it."""
    paths = [DATA / name / f"{split}.jsonl" for split in SPLITS]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `git checkout -- data/{name}`.")
    return _task(name, map(read, paths), _sha256(paths), f"data/{name}")


def _custom(path: Path) -> Task:
    """A file of rows, split 80/10/10 by a hash of the group once exact duplicates are removed."""
    rows = read(path)
    distinct = list({(r["prompt"], r["target"]): r for r in reversed(rows)}.values())[::-1]
    if len(distinct) < len(rows):
        print(f"{path.name}: {len(rows) - len(distinct)} exact duplicates removed.")
    groups = sorted({r["group"] for r in distinct}, key=lambda g: hashlib.sha256(g.encode()).digest())
    if len(groups) < MIN_GROUPS:
        few = f'{len(groups)} different groups (a row\'s "group", else its prompt) are too few to split'
        raise ValueError(f"{path}: {few} into train, validation and test; give it {MIN_GROUPS} or more.")
    held_out = max(2, round(len(groups) / 10))
    where = dict.fromkeys(groups, "train") | dict.fromkeys(groups[:held_out], "test")
    where |= dict.fromkeys(groups[held_out : 2 * held_out], "validation")
    splits = [[r for r in distinct if where[r["group"]] == split] for split in SPLITS]
    name = path.stem if path.stem not in TASKS else f"{path.stem}_custom"
    return _task(name, splits, _sha256([path]), str(path))


# --- E2E NLG

E2E_HUB, E2E_REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
E2E_FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def _e2e() -> Task:
    """E2E NLG (Novikova et al. 2017, arXiv:1706.09254): train has one row per text; validation and test have one per
    distinct meaning representation, all its texts as references, in file order.

    The files ({train,valid,test}.txt, `name : X | Type : pub||text`, tokenised by spaCy) are those of the LoRA paper.
    Without them the hub's rows serve: their meaning representations are brought into the same form, but their texts are
    untokenised, so scores on them do not compare with published ones; `source` tells which it was.
    """
    try:
        folder = outside("e2e")
    except Unavailable:
        tables, source = _e2e_hub(), f"https://huggingface.co/datasets/{E2E_HUB}"
        digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()
    else:
        paths = [folder / f"{name}.txt" for name in ("train", "valid", "test")]
        tables, source, digest = [_e2e_file(p) for p in paths], str(folder), _sha256(paths)
    return _task("e2e", map(_e2e_split, SPLITS, tables), digest, source)


def _e2e_file(path: Path) -> list[list[str]]:
    """[meaning representation, text] per line."""
    rows = [[part.strip() for part in line.partition("||")[::2]] for line in path.read_text("utf-8").splitlines()]
    if bad := [number for number, row in enumerate(rows, 1) if not all(row)]:
        raise ValueError(f"{path}, line {bad[0]}: not `meaning representation||text`.")
    return rows


def e2e_meaning(raw: str) -> str:
    """`name[X], eatType[pub], priceRange[£20-25]` -> `name : X | Type : pub | price : £ 20 - 25`."""
    parts = []
    for field in raw.strip().removesuffix("]").split("], "):
        key, _, value = field.partition("[")
        if key == "priceRange":
            value = value.replace("£", "£ ").replace("-", " - ")
        parts.append(f"{E2E_FIELDS.get(key, key)} : {value}")
    return " | ".join(parts)


def _e2e_hub() -> list[list[list[str]]]:
    at = {"revision": E2E_REVISION, "repo_type": "dataset"}
    files = [f"default/{split}/0000.parquet" for split in SPLITS]
    fast = profile.name() == "fast"
    trouble = "the fast profile downloads nothing" if fast else hub_trouble(E2E_HUB, files[0], **at)
    try:  # without the hub an earlier download may still be in its cache
        files = [hub_file(E2E_HUB, f, local_files_only=bool(trouble), **at) for f in files]
    except (Unavailable, EntryNotFoundError) as error:
        why = (
            f"E2E NLG is not in $DATA_MIRROR/e2e or data/mirror/e2e, and the hub does not give it ({trouble or error})"
        )
        ways = "put train.txt, valid.txt and test.txt into data/mirror/e2e, or set HF_ENDPOINT to a mirror of the hub"
        raise Unavailable(f"{why}: {ways}.") from error
    tables = (pd.read_parquet(f)[["meaning_representation", "human_reference"]] for f in files)
    return [[[e2e_meaning(m), t.strip()] for m, t in table.itertuples(index=False)] for table in tables]


def _e2e_split(split: str, rows: Iterable[list[str]]) -> list[dict]:
    texts: dict[str, dict] = {}  # a dict of texts keeps their order and each once
    for meaning, text in rows:
        texts.setdefault(meaning, {})[text] = None
    merged = [(m, [t]) for m, t in rows] if split == "train" else [(m, list(t)) for m, t in texts.items()]
    return [
        {"id": f"e2e-{split}-{i:05d}", "prompt": f"{m} ||", "target": f" {t[0]}", "references": t, "group": m}
        for i, (m, t) in enumerate(merged)
    ]


TASKS: dict[str, Callable[[], Task]] = {
    "debian": partial(_shipped, "debian"),
    "tang": partial(_shipped, "tang"),
    "idioms": partial(_shipped, "idioms"),
    "e2e": _e2e,
}


# --- in tokens


def encode(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping], max_length: int) -> list[Encoded]:
    """Token ids of prompt, target and EOS. Prompt and target are tokenised apart, so that the prompt is the same
    sequence when a generation starts from it; a special token's name inside a document is text. Raises ValueError for
    a tokenizer without EOS and for a document of over `max_length` tokens."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path or 'The tokenizer'} has no EOS token; set one.")
    if not (rows := head(rows)):
        return []
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    prompts, targets = (tokenizer([r[key] for r in rows], **options)["input_ids"] for key in ("prompt", "target"))
    documents = []
    for row, prompt, target in zip(rows, prompts, targets, strict=True):
        ids = [*prompt, *target, tokenizer.eos_token_id]
        if len(ids) > max_length:
            too_long = f"Document {row['id']} is {len(ids)} tokens long and the limit {max_length}"
            raise ValueError(f"{too_long}: shorten it, split it into several, or raise max_length.")
        documents.append(Encoded(ids, len(prompt), len(row["target"].encode("utf-8")), row["id"]))
    return documents


def token_statistics(task: Task, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row per split. characters, bytes: prompt + target; tokens: those and EOS; target_tokens: target and EOS;
    median, p95, max: tokens per document; bytes_per_token: EOS not counted."""
    rows = []
    for split in SPLITS:
        documents, part = encode(tokenizer, task[split], max_length=10**9), head(task[split])
        tokens, texts = np.array([len(d.input_ids) for d in documents]), [r["prompt"] + r["target"] for r in part]
        total, n_bytes = int(tokens.sum()), sum(len(t.encode("utf-8")) for t in texts)
        counts = {"documents": len(part), "groups": len({r["group"] for r in part}), "characters": sum(map(len, texts))}
        rows.append(
            {"task": task.name, "split": split, **counts, "bytes": n_bytes, "tokens": total}
            | {"target_tokens": total - sum(d.prompt_length for d in documents)}
            | {"median_tokens": float(np.median(tokens)), "p95_tokens": float(np.percentile(tokens, 95))}
            | {"max_tokens": int(tokens.max()), "bytes_per_token": n_bytes / (total - len(part))}
        )
    return pd.DataFrame(rows)
