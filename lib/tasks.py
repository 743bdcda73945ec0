"""Datasets as (prompt, target) documents: where they come from, how they are split and checked.

prompt + target is the plain document; a generation for the prompt gives the target, then EOS. Cards: data/README.md.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from huggingface_hub.errors import EntryNotFoundError
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

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
        parts = {split: splits.get(split, ()) for split in SPLITS}
        for split, rows in parts.items():
            if not isinstance(rows, Dataset):
                rows = list(rows)
                parts[split] = Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, COLUMNS)
        super().__init__(parts)
        self.name, self.sha256, self.source = name, sha256, source

    def replace(self, **changes) -> "Task":
        """The same task with other rows or another name: `task.replace(train=rows, name="half")`."""
        fields = {"name": self.name, "sha256": self.sha256, "source": self.source, **self, **changes}
        return Task({split: fields.pop(split) for split in SPLITS}, **fields)


def head(rows: Iterable[Mapping], n: int | None = None) -> list[dict]:
    """The first `n` rows, all for None. A split is ordered by a hash of the ids: they are a random sample."""
    if isinstance(rows, Dataset):  # far faster than row by row
        rows = rows.select(range(len(rows) if n is None else min(n, len(rows)))).to_list()
    return list(islice(rows, n))


def load_task(name: str | os.PathLike | None = None) -> Task:
    """A name in `TASKS`; the path of a file in a form of `READERS`, from the current folder, else from the checkout; or
    a dataset's id on the hub, "user/set". None: the environment's TASK, else "debian". Raises ValueError for an unknown
    name or bad rows, FileNotFoundError for a missing file, Unavailable for `e2e` or an id that cannot be had."""
    name = os.fspath(name or os.environ.get("TASK") or "debian")
    if name in TASKS:
        return TASKS[name]()
    path = Path(name).expanduser()
    if path.suffix.lower() not in READERS:
        if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
            return _hub(name)
        forms = f"the path of a {' or '.join(READERS)} file, or a dataset's id on the hub, user/set"
        raise ValueError(f"TASK={name!r} is unknown: choose {', '.join(TASKS)}, {forms}.")
    found = [p for p in (Path.cwd() / path, ROOT / path) if p.is_file()]
    if not found:
        raise FileNotFoundError(f"TASK={name!r}: no such file in {Path.cwd()} or {ROOT}; check it.")
    path = found[0].resolve()
    return _split(read(path), path.stem, _sha256([path]), str(path))


# --- a file's records, ("path, line N", dict) each; every reader raises ValueError that begins with the place


def _json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as e:
            what = f"not UTF-8 ({e.reason})" if isinstance(e, UnicodeDecodeError) else f"not valid JSON ({e})"
            raise ValueError(f"{where}: {what}; write one object a line, in UTF-8.") from None
        if not isinstance(record, dict):
            raise ValueError(f'{where}: not an object; write {{"prompt": "...", "target": "..."}}.')
        yield where, record


def _csv(path: Path) -> Iterator[tuple[str, dict]]:
    """An empty cell is none, a cell under `references` is one reference."""
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
        raise ValueError(f"{path}: not valid Parquet ({e!s:.150}).") from None
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
            named[key] = str(value) if type(value) is int else _text(where, key, value)
    references = list(dict.fromkeys(t for t in texts if t))
    return {"prompt": record["prompt"], "target": record["target"], "references": references, **named}


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: "{key}" holds {type(value).__name__}, not a string; quote it.')
    if re.search("[\ud800-\udfff]", value):  # JSON can write one, UTF-8 cannot
        raise ValueError(f'{where}: "{key}" holds half a surrogate pair; repair it.')
    return value


def read(path: Path) -> list[dict]:
    """The checked rows of a file, in its order; an id must be there once."""
    return _rows(READERS[path.suffix.lower()](path), path.stem, str(path))


def _rows(records: Iterable[tuple[str, dict]], stem: str, source: str) -> list[dict]:
    first: dict[str, str] = {}
    rows = []
    for where, record in records:
        row = _row(where, record, f"{stem}-{len(rows):06d}")
        if (taken := first.setdefault(row["id"], where)) != where:
            raise ValueError(f'{where}: the id "{row["id"]}" is taken by {taken}.')
        rows.append(row)
    if not rows:
        raise ValueError(f'{source} is empty; write rows with "prompt" and "target".')
    return rows


def _task(name: str, splits: Iterable[list[dict]], sha256: str, source: str) -> Task:
    """Each split in the order of a hash, and not of the split's own: an id that is also the group's name would sort by
    its split."""
    parts = (sorted(rows, key=lambda r: hashlib.sha256(f"order:{r['id']}".encode()).digest()) for rows in splits)
    return Task(dict(zip(SPLITS, parts, strict=True)), name, sha256, source)


def _sha256(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()


def _shipped(name: str) -> Task:
    """data/`name`, as its build script split it."""
    paths = [DATA / name / f"{split}.jsonl" for split in SPLITS]
    return _task(name, map(read, paths), _sha256(paths), f"data/{name}")


def _hub(name: str) -> Task:
    """All rows of a dataset on the hub, its own splits put together."""
    trouble, rows, stem = hub_trouble(name, ".gitattributes", repo_type="dataset"), [], name.split("/")[1]
    try:
        rows = [] if trouble else [row for part in load_dataset(name).values() for row in part]
    except Exception as error:  # of an HTTP library, pyarrow, or datasets' own
        trouble = f"{error!r:.150}"
    if trouble:
        raise Unavailable(f"TASK={name!r} is no file here, and as a dataset of the hub it cannot be had: {trouble}.")
    rows = _rows(((f"{name}, row {i}", row) for i, row in enumerate(rows, 1)), stem, name)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return _split(rows, stem, digest, f"https://huggingface.co/datasets/{name}")


def _split(rows: list[dict], name: str, sha256: str, source: str) -> Task:
    """`rows` split 80/10/10 by a hash of the group once exact duplicates are removed."""
    distinct = list({(r["prompt"], r["target"]): r for r in reversed(rows)}.values())[::-1]
    if len(distinct) < len(rows):
        print(f"{name}: {len(rows) - len(distinct)} exact duplicates removed.")
    groups = sorted({r["group"] for r in distinct}, key=lambda g: hashlib.sha256(g.encode()).digest())
    if len(groups) < MIN_GROUPS:
        few = f'{len(groups)} different groups (a row\'s "group", else its prompt) are too few to split'
        raise ValueError(f"{source}: {few} into train, validation and test; give it {MIN_GROUPS} or more.")
    held_out = max(2, round(len(groups) / 10))
    where = dict.fromkeys(groups, "train") | dict.fromkeys(groups[:held_out], "test")
    where |= dict.fromkeys(groups[held_out : 2 * held_out], "validation")
    splits = [[r for r in distinct if where[r["group"]] == split] for split in SPLITS]
    return _task(name if name not in TASKS else f"{name}_custom", splits, sha256, source)


# --- E2E NLG

E2E_HUB, E2E_REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
E2E_FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def _e2e() -> Task:
    """E2E NLG (Novikova et al. 2017, arXiv:1706.09254): train has one row per text; validation and test have one per
    distinct meaning representation, all its texts as references, in file order.

    The files (`name : X | Type : pub||text`, tokenised by spaCy) are those of the LoRA paper. Without them the hub's
    rows serve, in the same form but untokenised: scores do not compare with published ones; `source` tells which."""
    try:
        folder = outside("e2e")
    except Unavailable:
        tables, source = _e2e_hub(), f"https://huggingface.co/datasets/{E2E_HUB}"
        digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()
    else:
        paths = [folder / f"{name}.txt" for name in ("train", "valid", "test")]
        lines = [p.read_text("utf-8").splitlines() for p in paths]
        tables = [[[part.strip() for part in line.partition("||")[::2]] for line in part] for part in lines]
        source, digest = str(folder), _sha256(paths)
    return _task("e2e", map(_e2e_split, SPLITS, tables), digest, source)


def e2e_meaning(raw: str) -> str:
    """`name[X], eatType[pub], priceRange[£20-25]` -> `name : X | Type : pub | price : £ 20 - 25`."""
    fields = dict(field.split("[", 1) for field in raw.strip().removesuffix("]").split("], "))
    if "priceRange" in fields:
        fields["priceRange"] = fields["priceRange"].replace("£", "£ ").replace("-", " - ")
    return " | ".join(f"{E2E_FIELDS.get(key, key)} : {value}" for key, value in fields.items())


def _e2e_hub() -> list[list[list[str]]]:
    at = {"revision": E2E_REVISION, "repo_type": "dataset"}
    files = [f"default/{split}/0000.parquet" for split in SPLITS]
    trouble = hub_trouble(E2E_HUB, files[0], **at)
    try:  # without the hub an earlier download may still be in its cache
        files = [hub_file(E2E_HUB, f, local_files_only=bool(trouble), **at) for f in files]
    except (Unavailable, EntryNotFoundError) as error:
        where = "E2E NLG is not in $DATA_MIRROR/e2e or data/mirror/e2e, and the hub does not give it"
        ways = "put train.txt, valid.txt and test.txt into data/mirror/e2e, or set HF_ENDPOINT to a mirror of the hub"
        raise Unavailable(f"{where} ({trouble or error}): {ways}.") from error
    tables = (pd.read_parquet(f)[["meaning_representation", "human_reference"]] for f in files)
    return [[[e2e_meaning(m), t.strip()] for m, t in table.itertuples(index=False)] for table in tables]


def _e2e_split(split: str, rows: Iterable[list[str]]) -> list[dict]:
    merged = [(meaning, [text]) for meaning, text in rows]
    if split != "train":
        frame = pd.DataFrame(rows).drop_duplicates()
        merged = [(meaning, texts.tolist()) for meaning, texts in frame.groupby(0, sort=False)[1]]
    rows = [{"prompt": f"{m} ||", "target": f" {t[0]}", "references": t, "group": m} for m, t in merged]
    return [{"id": f"e2e-{split}-{i:05d}", **row} for i, row in enumerate(rows)]


TASKS = {name: partial(_shipped, name) for name in ("debian", "tang", "idioms") if (DATA / name).is_dir()}
TASKS["e2e"] = _e2e


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
