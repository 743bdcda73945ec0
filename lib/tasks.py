"""Datasets as (prompt, target) documents: where they come from, how they are split and checked.

The target begins right after the prompt: prompt + target is the plain document, and a generation for
the prompt alone should produce the target and then EOS. data/README.md holds a card per dataset.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedTokenizerBase

from lib.hub import Unavailable, hub_file, hub_trouble, outside
from lib.packing import Encoded
from lib.profile import DATA, ROOT, current

SPLITS = ("train", "validation", "test")
MIN_GROUPS = 10  # fewer leave one or two groups to test on
E2E_HUB, E2E_REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
E2E_FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


@dataclass(init=False, eq=False)
class Example(dict):
    """One document, in transition: `row["prompt"]` is the form that stays, `row.prompt` the one that goes.

    `references`: what a generation may be compared with, the target (stripped of surrounding blanks) first; `group`:
    what must not straddle two splits.
    """

    id: str
    prompt: str
    target: str
    references: tuple[str, ...]
    group: str

    def __init__(self, id, prompt, target, references, group):
        super().__init__(id=id, prompt=prompt, target=target, references=references, group=group)

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(init=False)
class Task:
    """A dataset in three splits, in transition: `task["train"]` is the form that stays, `task.train` the one that goes.

    `Task(splits, name, sha256="", source="")` makes one of a dict of lists of rows (dicts) and stays;
    `task.replace(train=rows, name=...)` is the same task with other rows or another name, and stays.
    The order inside a split depends on a hash of the ids alone: any leading slice is a random sample.
    """

    name: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    sha256: str  # of its content files, one after the other
    source: str  # a folder, file or address

    def __init__(self, *args, **more):
        if args and isinstance(args[0], str) or "train" in more:  # the old form
            names = ("name", *SPLITS, "sha256", "source")
            fields = dict(zip(names, args, strict=False)) | more
        else:
            fields = {"sha256": "", "source": ""} | dict(
                zip(("splits", "name", "sha256", "source"), args, strict=False)
            )
            fields |= more
            fields |= {split: fields["splits"].get(split, []) for split in SPLITS}
            del fields["splits"]
        self.__dict__.update(fields)
        for split in SPLITS:
            self.__dict__[split] = [e if isinstance(e, Example) else Example(**e) for e in fields[split]]

    def __getitem__(self, split):
        return getattr(self, split) if split in SPLITS else {}[split]

    def __iter__(self):
        return iter(SPLITS)

    def keys(self):
        return SPLITS

    def values(self):
        return [self[split] for split in SPLITS]

    def items(self):
        return [(split, self[split]) for split in SPLITS]

    def replace(self, **changes):
        fields = {"name": self.name, "sha256": self.sha256, "source": self.source} | dict(self) | changes
        return Task({s: fields.pop(s) for s in SPLITS}, **fields)


def head(rows, n: int | None = None) -> list[dict]:
    """The first `n` rows as a list of dicts, all of them for None."""
    return list(islice(rows, n))


class TaskUnavailable(Unavailable):
    """A dataset from outside the project cannot be had here; says why and the way out."""


def load_task(name: str | os.PathLike | None = None) -> Task:
    """A name in `TASKS` or the path of a .jsonl file; None: the environment's TASK, else "debian".

    A relative path counts from the current folder, then from the checkout. Raises ValueError for an
    unknown name or a bad file, FileNotFoundError for a missing one, TaskUnavailable for `e2e`
    without a copy of it.
    """
    name = os.fspath(name or os.environ.get("TASK") or "debian")
    if name in TASKS:
        return TASKS[name]()
    if not name.endswith(".jsonl"):
        known = ", ".join(TASKS)
        raise ValueError(f"TASK={name!r} is unknown: choose {known} or the path of a .jsonl file.")
    path = Path(name).expanduser()
    found = [p for p in (Path.cwd() / path, ROOT / path) if p.is_file()]
    if not found:
        raise FileNotFoundError(f"TASK={name!r}: no such file in {Path.cwd()} or {ROOT}; check it.")
    return _custom(found[0].resolve())


def _task(name: str, splits: Iterable[list[Example]], sha256: str, source: str) -> Task:
    def order(example: Example) -> bytes:
        # not the split's own hash: an id that is also the group's name would sort by its split
        return hashlib.sha256(f"order:{example.id}".encode()).digest()

    return Task(name, *(sorted(s, key=order) for s in splits), sha256=sha256, source=source)


def _rows(path: Path) -> list[tuple[str, dict]]:
    """("path, line N", object) for each line that is not blank; ValueError names the bad line."""
    rows = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as e:
            raise ValueError(f"{where}: not UTF-8 ({e.reason}); save the file as UTF-8.") from None
        except (json.JSONDecodeError, RecursionError) as e:
            raise ValueError(f"{where}: not valid JSON ({e}); write one object a line.") from None
        if not isinstance(row, dict):
            raise ValueError(f'{where}: not an object; write {{"prompt": "...", "target": "..."}}.')
        rows.append((where, row))
    if not rows:
        raise ValueError(f'{path} is empty; write one {{"prompt", "target"}} object a line.')
    return rows


def _text(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: "{key}" holds {type(value).__name__}, not a string; quote it.')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write \ud800 alone, UTF-8 cannot
        raise ValueError(f'{where}: "{key}" holds half a surrogate pair; repair it.') from None
    return value


def _example(where: str, row: dict, default_id: str) -> Example:
    """One checked row. Raises ValueError, one sentence that begins with `where`."""
    for key in ("prompt", "target"):
        if key not in row:
            raise ValueError(f'{where}: no "{key}"; every row needs "prompt" and "target".')
        # a generation may start from "\n", but not from nothing
        if not _text(where, key, row[key]) or (key == "target" and not row[key].strip()):
            raise ValueError(f'{where}: "{key}" is empty; fill it in or remove the row.')
    references = [] if row.get("references") is None else row["references"]
    if not isinstance(references, list):
        raise ValueError(f'{where}: "references" is no list; write ["...", "..."] or leave it out.')
    texts = [row["target"], *(_text(where, "references", r) for r in references)]
    named = {"id": default_id, "group": row["prompt"]}
    for key in named:
        if row.get(key) is not None:
            is_number = isinstance(row[key], int) and not isinstance(row[key], bool)
            named[key] = str(row[key]) if is_number else _text(where, key, row[key])
    unique = dict.fromkeys(t.strip() for t in texts if t.strip())
    return Example(named["id"], row["prompt"], row["target"], tuple(unique), named["group"])


def _read(path: Path) -> list[Example]:
    first: dict[str, str] = {}
    examples = []
    for i, (where, row) in enumerate(_rows(path)):
        example = _example(where, row, f"{path.stem}-{i:06d}")
        if example.id in first:
            raise ValueError(f'{where}: the id "{example.id}" is taken by {first[example.id]}.')
        first[example.id] = where
        examples.append(example)
    return examples


def _sha256(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in paths)).hexdigest()


def _shipped(name: str) -> Task:
    """data/`name`, as its build script split it."""
    paths = [DATA / name / f"{split}.jsonl" for split in SPLITS]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `git checkout -- data/{name}`.")
    return _task(name, map(_read, paths), _sha256(paths), f"data/{name}")


def _custom(path: Path) -> Task:
    """A .jsonl file, split 80/10/10 by a hash of the group once exact duplicates are removed."""
    examples = _read(path)
    distinct = list({(e.prompt, e.target): e for e in reversed(examples)}.values())[::-1]
    if len(distinct) < len(examples):
        print(f"{path.name}: {len(examples) - len(distinct)} exact duplicates removed.")
    groups = sorted({e.group for e in distinct}, key=lambda g: hashlib.sha256(g.encode()).digest())
    if len(groups) < MIN_GROUPS:
        raise ValueError(
            f'{path}: {len(groups)} different groups (a row\'s "group", else its prompt) are too few '
            f"to split into train, validation and test; give it {MIN_GROUPS} or more."
        )
    held_out = max(2, round(len(groups) / 10))
    where = dict.fromkeys(groups, "train") | dict.fromkeys(groups[:held_out], "test")
    where |= dict.fromkeys(groups[held_out : 2 * held_out], "validation")
    splits = [[e for e in distinct if where[e.group] == split] for split in SPLITS]
    name = path.stem if path.stem not in TASKS else f"{path.stem}_custom"
    return _task(name, splits, _sha256([path]), str(path))


def _e2e() -> Task:
    """E2E NLG (Novikova et al. 2017, arXiv:1706.09254): train has one Example per row; validation and
    test have one per distinct meaning representation, all its texts as references, in file order.

    The files ({train,valid,test}.txt, `name : X | Type : pub||text`, tokenised by spaCy) are those of
    the LoRA paper. Without them the hub's rows serve: their meaning representations are brought into
    the same form, but their texts are the raw release, untokenised, so scores on them do not compare
    with published ones; `source` tells which it was.
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


def _e2e_file(path: Path) -> list[tuple[str, str]]:
    """(meaning representation, text) per line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        meaning, _, text = (part.strip() for part in line.partition("||"))
        if not (meaning and text):
            raise ValueError(f"{path}, line {number}: not `meaning representation||text`.")
        rows.append((meaning, text))
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


def _e2e_hub() -> list[list[tuple[str, str]]]:
    files = [f"default/{split}/0000.parquet" for split in SPLITS]
    at = {"revision": E2E_REVISION, "repo_type": "dataset"}
    fast = current().name == "fast"
    trouble = "the fast profile downloads nothing" if fast else hub_trouble(E2E_HUB, files[0], **at)
    try:  # without the hub an earlier download may still be in its cache
        files = [hub_file(E2E_HUB, f, local_files_only=bool(trouble), **at) for f in files]
    except (Unavailable, EntryNotFoundError) as error:
        raise TaskUnavailable(
            "E2E NLG is not in $DATA_MIRROR/e2e or data/mirror/e2e, and the hub does not give it "
            f"({trouble or error}): put train.txt, valid.txt and test.txt into data/mirror/e2e, "
            "or set HF_ENDPOINT to a mirror of the hub."
        ) from error
    tables = (pd.read_parquet(f)[["meaning_representation", "human_reference"]] for f in files)
    return [[(e2e_meaning(m), t.strip()) for m, t in table.itertuples(index=False)] for table in tables]


def _e2e_split(split: str, rows: Sequence[tuple[str, str]]) -> list[Example]:
    texts: dict[str, list[str]] = {}
    for meaning, text in rows:
        texts.setdefault(meaning, []).append(text)
    merged = [(m, [t]) for m, t in rows] if split == "train" else texts.items()
    return [
        Example(f"e2e-{split}-{i:05d}", f"{m} ||", f" {t[0]}", tuple(dict.fromkeys(t)), m)
        for i, (m, t) in enumerate(merged)
    ]


TASKS: dict[str, Callable[[], Task]] = {
    "debian": partial(_shipped, "debian"),
    "tang": partial(_shipped, "tang"),
    "idioms": partial(_shipped, "idioms"),
    "e2e": _e2e,
}


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Token ids of prompt, target and EOS. Prompt and target are tokenised apart, so that the prompt
    is the same sequence when a generation starts from it. A special token's name inside a document
    is text.

    Raises ValueError for a tokenizer without EOS and for a document of over `max_length` tokens.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{tokenizer.name_or_path or 'The tokenizer'} has no EOS token; set one.")
    if not examples:
        return []
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    prompts = tokenizer([e["prompt"] for e in examples], **options)["input_ids"]
    targets = tokenizer([e["target"] for e in examples], **options)["input_ids"]
    documents = []
    for e, prompt, target in zip(examples, prompts, targets, strict=True):
        ids = [*prompt, *target, tokenizer.eos_token_id]
        if len(ids) > max_length:
            raise ValueError(
                f"Document {e['id']} is {len(ids)} tokens long and the limit {max_length}: "
                "shorten it, split it into several, or raise max_length."
            )
        documents.append(Encoded(ids, len(prompt), len(e["target"].encode("utf-8")), e["id"]))
    return documents


def token_statistics(task: Task, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row per split. characters, bytes: prompt + target; tokens: those and EOS; target_tokens:
    target and EOS; median, p95, max: tokens per document; bytes_per_token: EOS not counted.
    """
    rows = []
    for split in SPLITS:
        examples = task[split]
        documents = encode(tokenizer, examples, max_length=10**9)
        tokens = np.array([len(d.input_ids) for d in documents])
        texts = [e["prompt"] + e["target"] for e in examples]
        n_bytes = sum(len(t.encode("utf-8")) for t in texts)
        rows.append(
            {
                "task": task.name,
                "split": split,
                "documents": len(examples),
                "groups": len({e["group"] for e in examples}),
                "characters": sum(map(len, texts)),
                "bytes": n_bytes,
                "tokens": int(tokens.sum()),
                "target_tokens": int(tokens.sum()) - sum(d.prompt_length for d in documents),
                "median_tokens": float(np.median(tokens)),
                "p95_tokens": float(np.percentile(tokens, 95)),
                "max_tokens": int(tokens.max()),
                "bytes_per_token": n_bytes / int(tokens.sum() - len(examples)),
            }
        )
    return pd.DataFrame(rows)
