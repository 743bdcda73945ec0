"""Datasets as (prompt, target) documents: where they come from, how they are split and checked.

prompt + target is the plain document; a generation for the prompt gives the target, then EOS. A text has no prompt and
follows EOS. The forms that a file may have, and the cards of the shipped sets: data/README.md."""

import codecs
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset
from jinja2 import TemplateError
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from lib.hub import Unavailable, endpoint, hub_trouble
from lib.packing import Encoded
from lib.profile import DATA, ROOT

SPLITS = ("train", "validation", "test")
MIN_GROUPS = 10  # fewer leave one or two groups to test on
BLOCK_BYTES = 1_000  # of a text that is cut, at most; a token has a byte or more
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
    return list(rows)[:n]


def load_task(name: str | os.PathLike | None = None, base=None) -> Task:
    """A name in `TASKS`; the path of a file in a form of `READERS`, from the current folder, else from the checkout; or
    a dataset's id on the hub, "user/set". None: the environment's TASK, else "debian". A user's rows have a form of
    `FORMS`, or TASK_COLUMNS names their columns; with `base` (lib.models.Base) they fit its context. Raises ValueError
    for an unknown name or bad rows, FileNotFoundError for a missing file, Unavailable for what cannot be had."""
    name = os.fspath(name or os.environ.get("TASK", "").strip() or "debian")
    if name.lower() in TASKS:
        return TASKS[name.lower()]()
    path = Path(name).expanduser()
    read, found = READERS.get(path.suffix.lower()), [p for p in (Path.cwd() / path, ROOT / path) if p.exists()]
    if read and found:
        return _own(read(found[0]), found[0].name, found[0].read_bytes(), str(found[0]), base)
    if read:
        raise FileNotFoundError(f"TASK={name!r}: no such file in {Path.cwd()} or {ROOT}; check it.")
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not found:
        return _hub(name, base)
    forms = f"the path of a {', '.join(READERS)} file, or a dataset's id on the hub, user/set"
    raise ValueError(f"TASK={name!r} is {'not read' if found else 'unknown'}: choose {', '.join(TASKS)}, {forms}.")


# --- a file's records, ("path, line N", object) each; every reader raises ValueError that begins with the place
def _decoded(path: Path) -> str:
    """UTF-8, or UTF-16 by its mark."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line, gbk = data.count(b"\n", 0, e.start) + 1, "\ufffd" not in data.decode("gb18030", "replace")
        what = f"not {e.encoding.upper()} ({e.reason}{', it may be GBK' if gbk else ''})"
        raise ValueError(f"{path}, line {line}: {what}; save the file as UTF-8.") from None
    if encoding == "utf-16":
        print(f"{path.name}: read as UTF-16, by the mark at its beginning.")
    return text


def _json(path: Path) -> Iterator[tuple[str, object]]:
    """One object a line, or an array of them."""
    text = _decoded(path)
    array = text.lstrip().startswith("[")
    for number, part in [(1, text)] if array else enumerate(text.split("\n"), 1):
        if part.strip():
            try:
                found = json.loads(part)
            except (ValueError, RecursionError) as e:
                line = getattr(e, "lineno", 1) + number - 1
                what = f"not valid JSON ({e}); write one object a line, or one array"
                raise ValueError(f"{path}, line {line}: {what}.") from None
            records = enumerate(found, 1) if array else [(number, found)]
            yield from ((f"{path}, {'row' if array else 'line'} {i}", record) for i, record in records)


def _csv(path: Path) -> Iterator[tuple[str, dict]]:
    """Cells between commas, semicolons or tabs, by the header; a cell under `references` is one reference."""
    text = _decoded(path)
    csv.field_size_limit(2**31 - 1)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            where = f"{path}, line {reader.line_num}"
            if any(record.pop(None, ())) or None in record.values():
                raise ValueError(f"{where}: not as many cells as the header; quote cells that hold a {delimiter!r}.")
            if any(record.values()):
                yield where, record | ({"references": [record["references"]]} if record.get("references") else {})
    except csv.Error as e:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not valid CSV ({e}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        records = parquet.read_table(path).to_pylist()
    except ValueError as e:
        raise ValueError(f"{path}: not valid Parquet ({e!s:.150}).") from None
    return ((f"{path}, row {i}", record) for i, record in enumerate(records, 1))


READERS = {".jsonl": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
READERS[".txt"] = lambda path: (  # one text, or several with <|endoftext|> between them, as in GPT-2's training data
    (f"{path}, text {i}", {"text": text.strip("\n")})
    for i, text in enumerate(_decoded(path).split("<|endoftext|>"), 1)
    if text.strip()
)


# --- from a record to its prompt and target; ValueError says what is wrong, `_rows` where
def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"{key}" holds {type(value).__name__}, not a string; quote it.')
    if re.search("[\ud800-\udfff]", value):  # JSON can write one, UTF-8 cannot
        raise ValueError(f'"{key}" holds half a surrogate pair; repair it.')
    return value


def _instruction(record: dict, answer: str) -> tuple[str, str]:
    """Alpaca's form (Taori et al. 2023) without its introduction; Dolly's input is its `context`."""
    parts = {"Instruction": record["instruction"], "Input": record.get("input") or record.get("context") or ""}
    asked = "".join(f"### {name}:\n{text}\n\n" for name, text in parts.items() if _text(name.lower(), text))
    return f"{asked}### Response:\n", record[answer]


def _chat(turns: list, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, str]:
    """The assistant's last turn is the target, what stands before it the prompt: by the tokenizer's chat template, else
    `User: ...`, a turn a line. ShareGPT's turns are `from` a human or gpt and have a `value`."""
    roles = {"human": "user", "gpt": "assistant"}
    try:
        pairs = [(t["from"], t["value"]) if "from" in t else (t["role"], t["content"]) for t in turns]
        pairs = [(_text("role", role).lower(), _text("content", said)) for role, said in pairs]
    except (TypeError, KeyError):
        raise ValueError('a turn is not {"role": "...", "content": "..."}; mend it.') from None
    turns = [{"role": roles.get(role, role), "content": said} for role, said in pairs]
    if not (last := max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)):
        raise ValueError("no turn of an assistant follows another; remove the row.")
    if tokenizer and tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(turns[:last], tokenize=False, add_generation_prompt=True)
        return prompt, turns[last]["content"]
    lines = [f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns[:last]]
    return "".join(lines) + "Assistant:", f" {turns[last]['content']}"


FORMS = {  # a record's keys -> its prompt and target, given the tokenizer of a model or None; the first that fits
    ("messages",): lambda r, tokenizer: _chat(r["messages"], tokenizer),
    ("conversations",): lambda r, tokenizer: _chat(r["conversations"], tokenizer),
    ("prompt", "target"): lambda r, _: (r["prompt"], r["target"]),
    ("prompt", "completion"): lambda r, _: (r["prompt"], r["completion"]),
    ("instruction", "output"): lambda r, _: _instruction(r, "output"),
    ("instruction", "response"): lambda r, _: _instruction(r, "response"),
    ("text",): lambda r, _: ("", r["text"]),
}


def _row(record: dict, default_id: str, tokenizer: PreTrainedTokenizerBase | None) -> dict:
    """The columns of COLUMNS, the record's `form`, and whether its group is its prompt."""
    if not isinstance(record, dict):
        raise ValueError('not an object; write {"prompt": "...", "target": "..."}.')
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):  # trl's chats
        record = record | {"messages": record["prompt"] + record["completion"]}
    form = next((keys for keys in FORMS if set(keys) <= set(record)), None)
    if form is None or (form == ("text",) and "prompt" in record):
        ours = [key for key in ("prompt", "target") if key not in record]
        theirs = [key for key, value in record.items() if isinstance(value, str) and key not in COLUMNS]
        pairs = zip(ours if len(theirs) >= len(ours) else ["text"], theirs, strict=False)
        columns = ",".join(f"{key}={name}" for key, name in pairs) or f"{ours[0]}=..."
        raise ValueError(f'no "{ours[0]}" in {", ".join(record)}; name what holds it: --task-columns {columns}.')
    prompt, target = FORMS[form](record, tokenizer)
    # a generation may start from "\n", but only a text from nothing
    begins, ends = _text(form[0], prompt) or form == ("text",), _text(form[-1], target).strip()
    if not (begins and ends):
        raise ValueError(f'"{form[-1] if begins else form[0]}" is empty; fill it in or remove the row.')
    references = [] if record.get("references") in (None, "") else record["references"]
    if not isinstance(references, list):
        raise ValueError('"references" is no list; write ["...", "..."] or leave it out.')
    texts = [t.strip() for t in (target, *(_text("references", r) for r in references))]
    plain = FORMS[form](record, None)[0] if tokenizer else prompt  # the same groups with and without a template
    named = {"id": default_id, "group": plain or default_id}
    for key in named:
        if (value := record.get(key)) not in (None, ""):
            named[key] = str(value) if type(value) is int else _text(key, value)
    row = {"prompt": prompt, "target": target, "references": list(dict.fromkeys(t for t in texts if t)), **named}
    return row | {"form": form, "by_prompt": named["group"] == plain}


def _rows(records: Iterable[tuple[str, object]], source: str, label: str, base) -> list[dict]:
    """The checked rows of records of one form, with columns renamed by TASK_COLUMNS; an id must be there once."""
    pairs = (pair.partition("=") for pair in os.environ.get("TASK_COLUMNS", "").split(","))
    columns, first, rows = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}, {}, []
    for where, record in records:
        try:
            if isinstance(record, dict):
                kept = {key: value for key, value in record.items() if key not in columns.values()}
                record = kept | {ours: record[theirs] for ours, theirs in columns.items() if theirs in record}
            row = _row(record, where.replace(source, label, 1), base and base.tokenizer) | {"where": where}
            if (taken := first.setdefault(row["id"], where)) != where:
                raise ValueError(f'the id "{row["id"]}" is taken by {taken}.')
            if rows and row["form"] != rows[0]["form"]:
                raise ValueError(f'it has "{row["form"][-1]}", the first row "{rows[0]["form"][-1]}"; write one form.')
        except (ValueError, TemplateError) as e:
            raise ValueError(f"{where}: {e}") from None
        rows.append(row)
    if not rows:
        raise ValueError(f'{source} is empty; write rows with "prompt" and "target".')
    return rows


def _blocks(text: str) -> list[str]:
    """`text` in blocks of at most BLOCK_BYTES, to a line's end, else a sentence's, else anywhere."""
    blocks, at = [], 0
    while at < len(text):
        block = text[at : at + BLOCK_BYTES].encode()[:BLOCK_BYTES].decode(errors="ignore")
        if at + len(block) < len(text):
            block = re.match(r"(?s).*\n|.*[。.]|.*", block)[0]
        blocks.append(block)
        at += len(block)
    return blocks


def _own(records: Iterable[tuple[str, object]], label: str, content: bytes, source: str, base) -> Task:
    """A user's rows as a task. A text longer than the context of `base` is cut, as one text or a few always are, since
    blocks can be split; a pair longer than it is left out."""
    rows = _rows(records, source, label, base)
    if (form := rows[0]["form"]) not in (("prompt", "target"), ("text",)):
        print(f"{label}: rows with {' and '.join(form)}; the first prompt is read as {rows[0]['prompt']!r:.300}.")
    few = form == ("text",) and len({row["group"] for row in rows}) < MIN_GROUPS
    lengths = [len(d.input_ids) for d in encode(base.tokenizer, rows, 10**9)] if base else [0] * len(rows)
    context, fitting, long = base.context if base else 0, [], []
    for row, length in zip(rows, lengths, strict=True):
        if length <= context and not few:
            fitting.append(row)
            continue
        long.append(row["where"])
        if form == ("text",):
            blocks = [block for block in _blocks(row["target"]) if block.strip()]
            named = ((f"{row['id']}, block {i}", block) for i, block in enumerate(blocks, 1))
            fitting += [row | {"id": name, "target": part, "references": [part.strip()]} for name, part in named]
    if long:
        why = "" if few else f", longer than the context of {context:,} tokens,"
        what = "cut into blocks" if form == ("text",) else "left out"
        print(f"{label}: {len(long)} of {len(rows)} documents{why} {what}; first {long[0].replace(source, label)}.")
    digest = hashlib.sha256(content + os.environ.get("TASK_COLUMNS", "").encode()).hexdigest()
    return _split(fitting, Path(label).stem, digest, source)


def ordered(name: str, splits: Iterable[list[dict]], sha256: str, source: str) -> Task:
    """Each split in the order of a hash, and not of the split's own: an id that is also the group's name would sort by
    its split."""
    parts = (sorted(rows, key=lambda r: hashlib.sha256(f"order:{r['id']}".encode()).digest()) for rows in splits)
    return Task(dict(zip(SPLITS, parts, strict=True)), name, sha256, source)


def _shipped(name: str) -> Task:
    """data/`name`, as its build script split it and tests/test_data.py checks it."""
    paths = [DATA / name / f"{split}.jsonl" for split in SPLITS]
    splits = [[json.loads(line) for line in path.read_text("utf-8").strip().split("\n")] for path in paths]
    splits = [[row | {"references": [row["target"].strip()]} for row in rows] for rows in splits]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return ordered(name, splits, digest, f"data/{name}")


def _hub(name: str, base) -> Task:
    """All rows of a dataset on the hub, its own splits put together."""
    trouble, parts = hub_trouble(name, ".gitattributes", repo_type="dataset"), {}
    datasets.config.HF_ENDPOINT = endpoint()  # where a mirror has moved to
    try:
        parts = parts if trouble else {split: list(part) for split, part in load_dataset(name).items()}
    except Exception as error:  # of an HTTP library, pyarrow, or datasets' own
        trouble = f"{error!r:.150}"
    if trouble:
        raise Unavailable(f"TASK={name!r} is no file here, and as a dataset of the hub it cannot be had: {trouble}.")
    rows = [row for part in parts.values() for row in part]
    source, content = f"https://huggingface.co/datasets/{name}", json.dumps(rows, default=str).encode()
    for split, part in parts.items():  # ids may begin anew in each
        for row in part:
            row.update({"id": f"{split} {row['id']}"} if "id" in row else {})
    records = ((f"{source}, row {i}", row) for i, row in enumerate(rows, 1))
    return _own(records, name.split("/")[1], content, source, base)


def _split(rows: list[dict], name: str, sha256: str, source: str) -> Task:
    """`rows` split 80/10/10 by a hash of the group once exact duplicates are removed. Where there are hardly any
    prompts, rows with one target are a group; blocks of one text or a few are split as they follow each other."""
    distinct = list({(r["prompt"], r["target"]): r for r in reversed(rows)}.values())[::-1]
    if len(distinct) < len(rows):
        print(f"{name}: {len(rows) - len(distinct)} exact duplicates removed.")
    groups = sorted({r["group"] for r in distinct}, key=lambda g: hashlib.sha256(g.encode()).digest())
    note = ""
    if len(groups) < MIN_GROUPS and not any(r["prompt"] for r in distinct):
        note = f"{name}: {len(distinct)} blocks; the last tenth is the test split, the one before it validation.\n"
        distinct = [r | {"group": r["id"]} for r in distinct]
        groups = [r["id"] for r in reversed(distinct)]
    elif len(groups) < min(len(distinct), max(MIN_GROUPS, len(distinct) / 20)) and all(r["by_prompt"] for r in rows):
        note = f"{name}: {len(distinct)} rows have {len(groups)} different prompts: each row is a group of its own.\n"
        distinct = [r | {"group": r["target"]} for r in distinct]
        groups = sorted({r["target"] for r in distinct}, key=lambda g: hashlib.sha256(g.encode()).digest())
    if len(groups) < MIN_GROUPS:
        few = f'{len(groups)} different groups (a row\'s "group", else its prompt or block) are too few to split'
        raise ValueError(f"{source}: {few} into train, validation and test; give it {MIN_GROUPS} or more.")
    print(note, end="")
    held_out = max(2, round(len(groups) / 10))
    where = dict.fromkeys(groups, "train") | dict.fromkeys(groups[:held_out], "test")
    where |= dict.fromkeys(groups[held_out : 2 * held_out], "validation")
    splits = [[r for r in distinct if where[r["group"]] == split] for split in SPLITS]
    return ordered(name if name not in TASKS else f"{name}_custom", splits, sha256, source)


TASKS = {name: partial(_shipped, name) for name in ("debian", "tang", "idioms") if (DATA / name).is_dir()}
TASKS["e2e"] = lambda: import_module("lib.explore.e2e").load()  # which imports this module


def encode(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping], max_length: int) -> list[Encoded]:
    """Token ids of prompt (EOS where it is empty), target and EOS. Prompt and target are tokenised apart, so that the
    prompt is the same sequence when a generation starts from it; a special token's name is text, but for the prompts of
    a tokenizer whose chat template writes such names. Raises ValueError for a document of over `max_length` tokens."""
    end = tokenizer.eos_token_id
    if not (rows := head(rows)):
        return []
    if broken := [r["id"] for r in rows if re.search("[\ud800-\udfff]", r["prompt"] + r["target"])]:
        raise ValueError(f"Document {broken[0]} holds half a surrogate pair: repair it.")
    options, as_text = {"add_special_tokens": False, "verbose": False}, not tokenizer.chat_template
    prompts = tokenizer([row["prompt"] for row in rows], split_special_tokens=as_text, **options)["input_ids"]
    targets = tokenizer([row["target"] for row in rows], split_special_tokens=True, **options)["input_ids"]
    documents = []
    for row, prompt, target in zip(rows, prompts, targets, strict=True):
        ids = [*(prompt or [end]), *target, end]
        if len(ids) > max_length:
            too_long = f"Document {row['id']} is {len(ids)} tokens long and the limit {max_length}"
            raise ValueError(f"{too_long}: shorten it, split it into several, or raise max_length.")
        documents.append(Encoded(ids, len(ids) - len(target) - 1, len(row["target"].encode("utf-8")), row["id"]))
    return documents
