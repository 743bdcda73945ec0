"""Data of one's own (notebook 08): documents of a folder, anonymised, freed of duplicates, as a task.

A reader finds a file's structure, cleans whole fields and cuts them after that: no pattern finds an address cut in two.
Prompt and target together stay below 1,024 UTF-8 bytes, so below GPT-2's 1,024 tokens in any byte-level encoding."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import mailbox
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email import policy
from email.errors import MessageError
from email.parser import BytesParser
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from charset_normalizer import from_bytes
from tqdm.auto import tqdm

from lib import profile, results, tasks
from lib.explore.anonymise import anonymise, read_names
from lib.texts import without_near_duplicates, words

PROMPT_BYTES, TARGET_BYTES = 200, 800
MIN_CHARACTERS = 20  # of a target; a chat's replies are shorter
TURNS, BLOCK = 3, 20  # turns that a reply sees; turns at most in a chat's block, which is split as one
LABEL = len("\nA: ")  # before a turn, who speaks
FIRST_LINES, START = 50, 8192  # lines that show whether a file is a chat, characters that show whether it is text
SHORT = 256  # bytes: of fewer, charset-normalizer often guesses wrong
LARGEST, LARGEST_MAIL = 20 * 2**20, 500 * 2**20  # bytes of a file: a person wrote less; a mailbox has attachments
NAMES = "names.txt"  # in the folder's top, in small letters or not: names to be replaced, one a line
LEFT_OUT = {"node_modules", "__pycache__", "site-packages", "venv", "env", "build", "dist"}
# what files of students come in; among all of Python's, neighbours such as cp1250 and cp1252 are confused
ENCODINGS = ["utf_16", "gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "cp1251"]
KEYS = [keys.split() for keys in ("date time timestamp", "name from sender author user role", "text message content")]
REPLIED = re.compile(r"(?i)^(?:(?:re|fwd?|aw|wg|回复|答复|转发)\s*[:：]\s*)+")
QUOTED = r"(?m)^(?:-{2,}\s*(?:Original|Forwarded|原始邮件|转发).*|On (?:.|\n){5,120}?wrote:|在.{5,120}写道[:：]|-- ?)$"
LOST = "\ufffd"  # what a decoder writes for bytes that it cannot read
Clean = Callable[..., str]  # clean(text, people=()) -> text
Pairs = Iterator[tuple[str, str, str]]  # part (what of a file must not be split), prompt, target


class Skip(Exception):
    """A file that gives no documents; the message is the reason, without the file's name or text."""


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """(text, encoding): as `declared` (an older GB also as GB 18030), as UTF-8, else the likeliest of ENCODINGS, for a
    short text GB 2312 first. Raises Skip for binary data."""
    newer = "gb18030" if declared.startswith("gb") else ""
    for encoding in filter(None, (declared, newer, "utf-8-sig", "gb2312" if len(data) < SHORT else "")):
        with suppress(UnicodeDecodeError, LookupError):
            text = data.decode(encoding)
            break
    else:
        best = from_bytes(data, cp_isolation=ENCODINGS).best()
        text, encoding = (str(best), best.encoding) if best else ("\0", "")
    strange = sum(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text[:START])
    if "\0" in text or strange > len(text[:START]) / 50:  # a form feed or two is still text
        raise Skip("binary")
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding.removesuffix("-sig")


def cut(text: str, limit: int = TARGET_BYTES) -> list[str]:
    """`text` in pieces of at most `limit` bytes, cut at line ends or sentence ends where there are any."""
    pieces, now, size = [], "", limit // 4  # a character has at most four bytes
    for sentence in re.findall(r"[^\n.!?。！？]*(?:[\n.!?。！？]+\s*|$)", text):
        for atom in (sentence[i : i + size] for i in range(0, len(sentence), size)):
            if len((now + atom).encode("utf-8")) > limit:
                pieces.append(now)
                now = ""
            now += atom
    return [p.strip() for p in [*pieces, now] if p.strip()]


def _titled(title: str, body: str, part: str = "") -> Pairs:
    """The title before the first piece of the body, the end of each piece before the next."""
    prompt = title.strip().encode("utf-8")[:PROMPT_BYTES].decode("utf-8", "ignore")
    for piece in cut(body):
        if prompt and len(piece) >= MIN_CHARACTERS:
            yield part, prompt + "\n", piece
        prompt = piece.encode("utf-8")[-PROMPT_BYTES:].decode("utf-8", "ignore")


def read_text(text: str, clean: Clean, facts: Counter) -> Pairs:
    """First line -> the rest, and Markdown's heading -> what stands below it (fenced code holds no headings). A chat
    export under the name of a text file is read as one."""
    if chat := chat_messages(text):
        yield from _replies(chat, clean, facts)
        return
    sections, fenced = [[]], False
    for line in clean(text).strip().splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not fenced and re.match(r"#{1,6} ", line):
            sections.append([])
        sections[-1].append(line)
    for title, *body in filter(None, sections):
        own = title.lstrip("# ")
        short = own
        if len(own.encode("utf-8")) > PROMPT_BYTES:  # a paragraph, no title, or nothing but blanks
            short = next(iter(cut(own, PROMPT_BYTES)), "")
        yield from _titled(short, "\n".join([own[len(short) :], *body]).strip())


def read_code(text: str, clean: Clean, facts: Counter) -> Pairs:
    """Signature -> docstring, as far as whole paragraphs fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's backslashes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Skip("not valid Python") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented, node.body, node.decorator_list = ast.get_docstring(node) or "", [ast.Pass()], []
            try:
                signature = ast.unparse(node).rpartition("\n")[0].removeprefix("async ")
            except RecursionError:  # a default value that nests deeper than Python writes out
                continue
            prompt, target = clean(signature), ""
            for paragraph in clean(documented).split("\n\n"):
                longer = f"{target}\n\n{paragraph}".strip()
                if len(longer.encode("utf-8")) > TARGET_BYTES:
                    break
                target = longer
            if len(prompt.encode("utf-8")) < PROMPT_BYTES and len(target) >= MIN_CHARACTERS:
                yield "", prompt + "\n", target


TIME = r"(?:[上下]午)?\d{1,2}:\d\d(?::\d\d)?"
DAY = r"(?P<day>\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2})日?"
HEADS = (  # [time] name: text; WhatsApp's date, time - name: text; WeChat's and QQ's, on a line of their own
    r"\[(?P<day>[^\] ,T\n]+)[^\]\n]{0,40}\]\s*(?P<name>[^:：\n]{1,40})[:：]\s*(?P<text>.*)",
    rf"(?P<day>[\d./-]{{6,10}}),?\s+{TIME}[^-\n]{{0,9}}-\s+(?P<name>[^:\n]{{1,40}}):\s(?P<text>.*)",
    rf"(?P<name>[^:：\n]{{1,40}}?)\s+{DAY}\s+{TIME}\s*(?P<text>)$",
    rf"{DAY}\s+{TIME}\s+(?:【[^】]*】)?(?P<name>[^:：\n]{{1,40}}?)(?:\(\d{{5,12}}\)|<[^<>\s]+>)?\s*(?P<text>)$",
)
HEADS = [re.compile(f"[\u200e\ufeff]?{head}") for head in HEADS]
SYSTEM = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4},?\s+\d{1,2}:\d\d.{0,12}? - [^:]*$")
OMITTED = r"<[^<>]*(?:omitted|weggelassen|省略)[^<>]*>|\[(?:图片|\w*表情|语音|视频|文件)\]|[\u200e\u200f]"
ROLES = {"user", "assistant", "system", "bot", "me", "you"}  # who speaks, but no name to be replaced


def chat_messages(text: str) -> list[list[str]]:
    """[day, name, text] of a chat export; lines without a head of HEADS continue the message before. Empty unless most
    of the first lines are heads (one on a line of its own counts for itself and two lines of text) and most messages
    have a text."""
    lines = [line for line in text.splitlines() if line.strip()]
    heads, messages = [next(filter(None, (h.match(line) for h in HEADS)), None) for line in lines], []
    counts = [1 if head["text"] else 3 for head in heads[:FIRST_LINES] if head]
    if len(counts) < 2 or sum(counts) < len(heads[:FIRST_LINES]) / 2:
        return []
    for line, head in zip(lines, heads, strict=True):
        if head:
            messages.append([head["day"], head["name"].strip(), head["text"]])
        elif messages and not SYSTEM.match(line):
            messages[-1][2] += "\n" + line
    return messages if sum(bool(m[2]) for m in messages) >= len(messages) / 2 else []


def _replies(messages: Sequence[Sequence[str]], clean: Clean, facts: Counter) -> Pairs:
    """Previous turns -> reply, inside blocks of one day and at most BLOCK turns. Speakers become A, B, ... in each
    block, and their names are cleaned from the messages."""
    names, number = sorted({n for _, n, _ in messages if len(n) > 1 and n.lower() not in ROLES}), 0
    facts["messages", "chat"] += len(messages)
    facts["speakers", "chat"] += len({name for _, name, _ in messages})
    told = [(day, name, said) for day, name, text in messages if (said := re.sub(OMITTED, "", text).strip())]
    for _, of_day in groupby(told, key=lambda m: m[0]):
        # neighbouring messages of one speaker are one turn
        turns = [(name, "\n".join(m[2] for m in some)) for name, some in groupby(of_day, key=lambda m: m[1])]
        for block in (turns[i : i + BLOCK] for i in range(0, len(turns), BLOCK)):
            labels = {n: chr(ord("A") + i % 26) for i, n in enumerate(dict.fromkeys(name for name, _ in block))}
            said = [f"{labels[name]}: {clean(text, names)}" for name, text in block]
            for i in range(1, len(block)):
                if len(said[i]) > LABEL:
                    before = "\n".join(said[max(0, i - TURNS) : i]).encode("utf-8")[LABEL - PROMPT_BYTES :]
                    yield f"{number}", f"{before.decode('utf-8', 'ignore')}\n{said[i][:2]} ", cut(said[i][3:])[0]
            number += 1


def read_json(text: str, clean: Clean, facts: Counter) -> Pairs:
    """A chat exported as JSON: a list of messages, or an object with one under "messages"; day, name and text stand
    under the usual KEYS, a text in pieces too (Telegram)."""
    try:
        found, messages = json.loads(text), []
    except (ValueError, RecursionError):
        raise Skip("not valid JSON") from None
    found = found.get("messages") if isinstance(found, dict) else found
    for row in (r for r in found if isinstance(r, dict)) if isinstance(found, list) else ():
        time, name, said = (next((row[k] for k in keys if row.get(k)), "") for keys in KEYS)
        pieces = [p.get("text") if isinstance(p, dict) else p for p in (said if isinstance(said, list) else [said])]
        if isinstance(name, str) and name and all(isinstance(p, str) for p in pieces):
            messages.append((re.split(r"[ ,T]", str(time))[0], name, "".join(pieces)))
    if not messages:
        raise Skip("JSON without messages")
    yield from _replies(messages, clean, facts)


def read_mail(path: Path, clean: Clean, facts: Counter) -> Pairs:
    """Subject -> what the sender wrote in plain text, without quotations, signature and the names in From, To and Cc. A
    thread is one part. `.eml` is one message, `.mbox` many; malformed ones are left out."""
    parser, many = BytesParser(policy=policy.default), path.suffix.lower() == ".mbox"
    for message in mailbox.mbox(path, parser.parse, create=False) if many else [parser.parsebytes(path.read_bytes())]:
        try:
            body = message.get_body(("plain",))
            data, declared = (body.get_payload(decode=True), body.get_content_charset("")) if body else (b"", "")
            for name, value in message.raw_items():
                raw = " ".join(value.split()).encode("utf-8", "surrogateescape")
                if not raw.isascii() and name.lower() in ("subject", "from", "to", "cc"):  # a header without encoding
                    encoding = decode(raw + b"\n" + data, declared)[1]
                    message.replace_header(name, raw.decode(encoding, "replace"))
            people = [a.display_name for h in ("from", "to", "cc") for a in getattr(message[h], "addresses", ())]
            subject, text = REPLIED.sub("", str(message["subject"] or "")).strip(), decode(data, declared)[0]
        except (Skip, ValueError, LookupError, AttributeError, TypeError, AssertionError, MessageError):
            facts["messages", "mail that is malformed"] += 1  # what Python's parsers raise on such headers
            continue
        facts["messages", "mail"] += 1
        names = [" ".join(reversed(n.split(", "))) for n in people if len(n) > 1]
        if many:  # whose escape for a line that begins like a message is no quotation
            text = re.sub(r"(?m)^>(?=>*From )", "", text)
        own = "\n".join(line for line in re.split(QUOTED, text)[0].splitlines() if not line.startswith(">")).strip()
        yield from _titled(clean(subject, names), clean(own, names), subject.lower())


READERS = {"text": read_text, "markdown": read_text, "code": read_code, "chat": read_json}
KIND_OF = dict.fromkeys((".txt", ".text", ".rst", ".org", ".tex"), "text") | {".md": "markdown", ".py": "code"}
KIND_OF |= {".json": "chat", ".eml": "mail", ".mbox": "mail"}


class Collection(NamedTuple):
    task: tasks.Task
    card: pd.DataFrame  # what, key, value: counts; no text, no names of files
    own: bool  # a folder of one's own: then no text of it belongs into an output


def collect(packages: Sequence[str], folder: str | os.PathLike | None = None) -> Collection:
    """The documents of `folder`, else of the environment's PRIVATE_DATA, else docstrings of `packages`; kept in
    data/private, which git ignores. Raises FileNotFoundError for a folder that is not there and ValueError for one
    without readable documents or with fewer than a split needs."""
    folder, facts = folder or os.environ.get("PRIVATE_DATA", "").strip(), Counter()
    if folder:
        # seen from here or, since a notebook runs in its own folder, from the checkout
        places = [place / Path(folder).expanduser() for place in (Path.cwd(), profile.ROOT)]
        root = next((p.resolve() for p in places if p.is_dir()), None)
        if root is None:
            raise FileNotFoundError(f"PRIVATE_DATA={folder} is no folder; name one that holds your files.")
        lists = [p for p in root.iterdir() if p.name.lower() == NAMES and p.is_file()]
        rows = _documents(_files(root, lists), [name for path in lists for name in read_names(path)], facts)
    else:
        rows = _documents([file for package in packages for file in _modules(package)], (), facts)
        facts.update({("package", f"{p} {importlib.metadata.version(p)}"): 1 for p in packages})
    if not rows:
        skipped = ", ".join(f"{n} {key}" for (what, key), n in facts.items() if what == "skipped") or "none"
        where, kinds = f"PRIVATE_DATA={folder}" if folder else "The packages", " ".join(sorted(KIND_OF))
        raise ValueError(f"{where}: no readable document (files skipped: {skipped}); kinds read: {kinds}.")
    path = profile.output_root() / "data" / "private" / ("private.jsonl" if folder else "docstrings.jsonl")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in deduplicate(rows, facts)]
    results.write_bytes(path, "".join(lines).encode())
    task = tasks.load_task(path)
    for split in task:
        facts["split", split], facts["groups", split] = len(task[split]), len({row["group"] for row in task[split]})
    every = pd.DataFrame([row for split in task for row in task[split]])
    facts["characters", "target, median"] = float(every["target"].str.len().median())
    facts["characters", "all"] = int((every["prompt"] + every["target"]).str.len().sum())
    card = pd.DataFrame([(*key, value) for key, value in sorted(facts.items())], columns=["what", "key", "value"])
    return Collection(task, card, bool(folder))


def _files(root: Path, lists: Sequence[Path]) -> list[tuple[Path, str]]:
    """(file, name below `root`) in a fixed order, without hidden and installed things, links and `lists`."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith(".") and d not in LEFT_OUT)
        paths = (Path(folder, n) for n in sorted(names) if not n.startswith("."))
        found += [p for p in paths if p.is_file() and not p.is_symlink() and p not in lists]
    return [(p, p.relative_to(root).as_posix()) for p in found]


def _modules(package: str) -> list[tuple[Path, str]]:
    """(file, name) of a package's own modules, tests left out."""
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    own = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    return [(root / p, f"{package}/{p.as_posix()}") for p in own if not any("test" in part for part in p.parts)]


def _digest(text: str) -> str:  # paths are private too; a file's name may hold halves of pairs
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _documents(files: Sequence[tuple[Path, str]], names: Sequence[str], facts: Counter) -> list[dict]:
    """Rows of a task file. `files`: (path, a name that stays the same on every machine)."""

    def clean(text: str, people: Sequence[str] = ()) -> str:
        text, counts = anonymise(text, names, people)
        facts.update({("replaced", category): n for category, n in counts.items()})
        return text

    rows = []
    for path, name in tqdm(files, desc="reading", disable=len(files) < 200):
        kind = KIND_OF.get(path.suffix.lower())
        try:
            if kind is None or path.stat().st_size > (LARGEST_MAIL if kind == "mail" else LARGEST):
                raise Skip("too large" if kind else "another kind of file")
            if kind == "mail":  # each message names its own encoding
                found = list(read_mail(path, clean, facts))
            else:
                text, encoding = decode(path.read_bytes())
                facts["encoding", encoding] += 1
                found = list(READERS[kind](text, clean, facts))
        except (Skip, OSError) as reason:
            facts["skipped", getattr(reason, "strerror", None) or str(reason)] += 1
            continue
        facts["files", kind if found else f"{kind} without a document"] += 1
        for i, (part, prompt, target) in enumerate(found):
            if lost := (prompt + target).count(LOST):
                facts["left out", "documents with unreadable characters"] += 1
                facts["left out", "unreadable characters"] += lost
                continue
            row = {"id": f"{kind}-{_digest(f'{name} {i}')}", "prompt": prompt, "target": target}
            place = "" if kind == "mail" else name  # a thread may lie in several files
            rows.append({**row, "group": _digest(f"{place}\n{part}"), "kind": kind})
    return rows


def triples(text: str) -> set[str]:
    """The runs of three words in lower case, a Chinese character a word; a shorter text whole."""
    parts = words(text.lower())
    return {" ".join(parts[k : k + 3]) for k in range(max(1, len(parts) - 2))}


def deduplicate(rows: Sequence[dict], facts: Counter | None = None) -> list[dict]:
    """Rows without exact (white space and case aside) and near duplicates of an earlier target; counted in `facts`."""
    first: dict[str, dict] = {}
    for row in rows:
        first.setdefault(" ".join(row["target"].lower().split()), row)
    once = list(first.values())
    kept = [once[i] for i in without_near_duplicates([triples(row["target"]) for row in once])]  # 0.3, as for `debian`
    if facts is not None:
        facts["documents", "found"], facts["documents", "kept"] = len(rows), len(kept)
        facts["documents", "exact duplicates removed"] = len(rows) - len(once)
        facts["documents", "near-duplicates removed"] = len(once) - len(kept)
    return kept
