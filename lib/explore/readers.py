"""Files of one's own as (prompt, target) pairs: text, Markdown, code, chat exports, mail.

A reader takes a file's text and `clean`, which anonymises a string, and yields Pair. It finds the
structure first, cleans whole fields, and cuts them after that: an address that is cut in two is none that a
pattern finds. Prompt and target together stay below 1,024 UTF-8 bytes, so below GPT-2's 1,024 tokens in any
byte-level encoding.
"""

import ast
import email
import email.policy
import inspect
import json
import mailbox
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.errors import MessageError
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path

from charset_normalizer import from_bytes

# what files of students come in; among all of Python's, neighbours such as cp1250 and cp1252 are confused
ENCODINGS = ["gb18030", "big5", "shift_jis", "euc_kr", "cp1252", "cp1251"]
PROMPT_BYTES, TARGET_BYTES = 200, 800
MIN_CHARACTERS = 20  # of a target; a chat's replies are shorter
MEGABYTE = 2**20
BLOCK = 20  # messages at most in a chat's block: what is split as one
TURNS = 3  # that a reply sees
Clean = Callable[..., str]  # clean(text, names=()) -> text


class Skip(Exception):
    """A file that gives no documents; the message is the reason, without the file's name or text."""


@dataclass(frozen=True)
class Pair:
    part: str  # what of the file must not be split, such as a day of a chat; "" for the whole file
    prompt: str
    target: str


# --- text of unknown encoding


def decode(data: bytes) -> tuple[str, str]:
    """(text, encoding): a byte order mark, else UTF-8, else the likeliest of ENCODINGS.

    Raises Skip for binary data and for bytes that fit no encoding.
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    marked = next((e for mark, e in marks.items() if data.startswith(mark)), None)
    if not marked and b"\0" in data[:8192]:
        raise Skip("binary")
    try:
        text, encoding = data.decode(marked or "utf-8"), marked or "utf-8"
    except UnicodeDecodeError:
        best = from_bytes(data, cp_isolation=ENCODINGS).best()
        if best is None:
            raise Skip("unknown encoding") from None
        text, encoding = str(best), best.encoding
    controls = sum(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in text[:8192])
    if controls > len(text[:8192]) / 50:
        raise Skip("binary")
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


# --- cutting


def _head(text: str, limit: int) -> str:
    return text.encode("utf-8")[:limit].decode("utf-8", "ignore")


def _tail(text: str, limit: int) -> str:
    return text.encode("utf-8")[-limit:].decode("utf-8", "ignore")


def cut(text: str, limit: int = TARGET_BYTES) -> list[str]:
    """`text` in pieces of at most `limit` bytes, cut at line ends or sentence ends where there are any."""
    pieces, now = [], ""
    for sentence in re.findall(r"[^\n.!?。！？]*(?:[\n.!?。！？]+\s*|$)", text):
        for atom in _slices(sentence, limit):
            if len((now + atom).encode("utf-8")) > limit:
                pieces.append(now)
                now = ""
            now += atom
    return [p.strip() for p in [*pieces, now] if p.strip()]


def _slices(text: str, limit: int) -> Iterator[str]:
    """`text` from its beginning in parts of at most `limit` bytes, the last one shorter."""
    data, start = text.encode("utf-8"), 0
    while start < len(data):
        part = data[start : start + limit].decode("utf-8", "ignore")
        start += len(part.encode("utf-8"))
        yield part


def _titled(title: str, body: str, part: str = "") -> Iterator[Pair]:
    """The title before the first piece of the body, the end of each piece before the next."""
    prompt = _head(title.strip(), PROMPT_BYTES)
    for piece in cut(body):
        if prompt and len(piece) >= MIN_CHARACTERS:
            yield Pair(part, prompt + "\n", piece)
        prompt = _tail(piece, PROMPT_BYTES)


# --- kinds


def read_text(text: str, clean: Clean) -> Iterator[Pair]:
    """First line -> the rest; a chat export under the name of a text file is read as one."""
    if chat := chat_lines(text):
        yield from _blocks(chat, clean)
        return
    whole = clean(text).strip()
    title = whole.partition("\n")[0]
    if len(title.encode("utf-8")) > PROMPT_BYTES:  # no title but a paragraph
        title = cut(title, PROMPT_BYTES)[0]
    yield from _titled(title, whole[len(title) :])


def read_markdown(text: str, clean: Clean) -> Iterator[Pair]:
    """Heading -> what stands below it, up to the next heading; fenced code holds no headings."""
    title, body, fenced = "", [], False
    for line in [*clean(text).splitlines(), "# "]:
        fenced ^= line.lstrip().startswith("```")
        if fenced or not re.match(r"#{1,6} ", line):
            body.append(line)
            continue
        if not title and body:  # a file that begins without a heading
            title, body = body[0], body[1:]
        yield from _titled(title, "\n".join(body).strip())
        title, body = line.lstrip("# "), []


def read_code(text: str, clean: Clean) -> Iterator[Pair]:
    """Signature -> docstring, as far as whole paragraphs fit; in other languages the line below a
    block comment -> the comment."""
    tree = _tree(text)
    for signature, comment in _commented(text) if tree is None else _python(tree):
        prompt, target = clean(signature), ""
        for paragraph in clean(comment).split("\n\n"):
            longer = f"{target}\n\n{paragraph}".strip()
            if len(longer.encode("utf-8")) > TARGET_BYTES:
                break
            target = longer
        if len(prompt.encode("utf-8")) < PROMPT_BYTES and len(target) >= MIN_CHARACTERS:
            yield Pair("", prompt + "\n", target)


def _tree(text: str) -> ast.Module | None:
    """The syntax tree of a Python module; None for what is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's backslashes
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(ast.unparse(b) for b in node.bases)
            signature = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            signature = f"def {node.name}({ast.unparse(node.args)}){returns}:"
        else:
            continue
        if comment := ast.get_docstring(node):
            yield signature, comment


def _commented(text: str) -> Iterator[tuple[str, str]]:
    for match in re.finditer(r"/\*\*?((?:[^*]|\*(?!/))*)\*/[ \t]*\n[ \t]*([^\n/*{;]+)", text):
        comment = re.sub(r"(?m)^[ \t]*\*[ \t]?", "", match[1])
        yield match[2].strip(), inspect.cleandoc(comment)


# --- chats

BRACKETED = re.compile(r"\[(?P<time>[^\]\n]{4,40})\]\s*(?P<name>[^:：\n]{1,40})[:：]\s*(?P<text>.*)")
WHATSAPP = re.compile(
    r"(?P<time>\d{1,4}[./-]\d{1,2}[./-]\d{1,4},?\s+\d{1,2}:\d\d(?::\d\d)?(?:\s?[AaPp]\.?[Mm]\.?)?)\s+-\s+"
    r"(?P<name>[^:\n]{1,40}):\s(?P<text>.*)"
)
SYSTEM = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4},?\s+\d{1,2}:\d\d.{0,12}? - [^:]*$")
OMITTED = re.compile(r"<[^<>]*(?:omitted|weggelassen|省略)[^<>]*>|[\u200e\u200f]")
NAME_KEYS = ("name", "from", "sender", "author", "user", "speaker", "role")
TEXT_KEYS = ("text", "message", "content", "body")
TIME_KEYS = ("date", "time", "timestamp", "ts")
ROLES = {"user", "assistant", "system", "bot", "me", "you"}  # who speaks, but no name to be replaced


@dataclass
class Message:
    day: str
    name: str
    text: str


def chat_lines(text: str) -> list[Message]:
    """Messages of `[time] name: message` or WhatsApp's `date, time - name: message` lines; lines without
    such a head continue the message before. Empty unless most of the first lines are heads."""
    lines = [line.lstrip("\u200e\ufeff") for line in text.splitlines() if line.strip()]
    heads = [BRACKETED.match(line) or WHATSAPP.match(line) for line in lines]
    if sum(map(bool, heads[:50])) < max(2, len(heads[:50]) / 2):
        return []
    messages: list[Message] = []
    for line, head in zip(lines, heads, strict=True):
        if head:
            day = re.split(r"[ ,T]", head["time"].strip())[0]
            messages.append(Message(day, head["name"].strip(), head["text"]))
        elif messages and not SYSTEM.match(line):
            messages[-1].text += "\n" + line
    return messages


def read_json(text: str, clean: Clean) -> Iterator[Pair]:
    """A list of messages, or an object with one under "messages": name, text and time by usual keys."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Skip("not valid JSON") from None
    rows = value.get("messages") if isinstance(value, dict) else value
    messages = [m for row in rows if (m := _json_message(row))] if isinstance(rows, list) else []
    if not messages:
        raise Skip("JSON without messages")
    yield from _blocks(messages, clean)


def _json_message(row: object) -> Message | None:
    if not isinstance(row, dict):
        return None
    name, text, time = (next((row[k] for k in keys if row.get(k)), "") for keys in (NAME_KEYS, TEXT_KEYS, TIME_KEYS))
    if isinstance(text, list):  # Telegram: pieces with formatting
        plain = (p.get("text") if isinstance(p, dict) else p for p in text)
        text = "".join(p for p in plain if isinstance(p, str))
    if not (name and isinstance(name, str) and text and isinstance(text, str)):
        return None
    return Message(re.split(r"[ ,T]", str(time))[0], name, text)


def _blocks(messages: Sequence[Message], clean: Clean) -> Iterator[Pair]:
    """Previous turns -> reply, inside blocks of one day and at most BLOCK turns. Speakers become A, B, ...
    in each block, and their names are cleaned from the messages."""
    named = {m.name for m in messages if len(m.name) > 1}
    names = sorted(n for n in named if n.lower() not in ROLES)
    turns: list[Message] = []
    for m in messages:  # neighbouring messages of one speaker are one turn
        if text := OMITTED.sub("", m.text).strip():
            if turns and (turns[-1].name, turns[-1].day) == (m.name, m.day):
                turns[-1].text += "\n" + text
            else:
                turns.append(Message(m.day, m.name, text))
    block: list[Message] = []
    number = 0
    for turn in [*turns, None]:
        if block and (turn is None or turn.day != block[0].day or len(block) == BLOCK):
            yield from _replies(block, f"{number}", names, clean)
            block, number = [], number + 1
        block.append(turn)


def _replies(block: Sequence[Message], part: str, names: Sequence[str], clean: Clean) -> Iterator[Pair]:
    labels = {n: chr(ord("A") + i % 26) for i, n in enumerate(dict.fromkeys(m.name for m in block))}
    said = [f"{labels[m.name]}: {clean(m.text, names)}" for m in block]
    for i in range(1, len(block)):
        speaker, reply = said[i][:2], said[i][3:]
        before = _tail("\n".join(said[max(0, i - TURNS) : i]), PROMPT_BYTES - 4)
        if len(reply) > 1:
            yield Pair(part, f"{before}\n{speaker} ", cut(reply)[0])


# --- mail

REPLY_MARK = re.compile(r"^(?:(?:re|fwd?|aw|wg|sv|回复|答复|转发)\s*[:：]\s*)+", re.IGNORECASE)
QUOTE_START = re.compile(r"(?m)^(?:-{2,}\s*(?:Original Message|原始邮件|Forwarded).*|On .{5,80}wrote:|-- ?)$")


class _Plain(HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("style", "script")
        if tag in ("p", "br", "div", "li", "tr"):
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "script")

    def handle_data(self, data):
        if self.hidden <= 0:
            self.parts.append(data)


def read_mail(path: Path, clean: Clean) -> Iterator[Pair]:
    """Subject -> what the sender wrote: no quoted lines, no signature. A thread is one part.

    .eml is one message, .mbox many. Names in From, To and Cc are cleaned from the text.
    """
    if path.suffix.lower() == ".eml":
        messages = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default)]
    else:
        messages = mailbox.mbox(path, factory=_policy_message, create=False)
    for message in messages:
        try:
            yield from _message(message, clean)
        except (ValueError, LookupError, AttributeError, TypeError, AssertionError, MessageError):
            continue  # what Python's header and HTML parsers raise on malformed mail


def _message(message: EmailMessage, clean: Clean) -> Iterator[Pair]:
    people = (a.display_name for h in ("from", "to", "cc") for a in _addresses(message, h))
    names = [n for n in people if len(n) > 1]
    subject = REPLY_MARK.sub("", str(message.get("subject", ""))).strip()
    body = clean(_written(message), names)
    yield from _titled(clean(subject, names), body, part=subject.lower())


def _policy_message(file) -> EmailMessage:
    return email.message_from_binary_file(file, policy=email.policy.default)


def _addresses(message: EmailMessage, header: str) -> Sequence:
    return getattr(message.get(header), "addresses", ())


def _written(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    try:
        text = body.get_content() if body else ""
    except (LookupError, UnicodeError):  # a charset that Python does not know
        return ""
    if body and body.get_content_subtype() == "html":
        parser = _Plain()
        parser.feed(text)
        text = "".join(parser.parts)
    text = QUOTE_START.split(text.replace("\r\n", "\n"))[0]
    return "\n".join(line for line in text.splitlines() if not line.startswith(">")).strip()


# --- the registry


@dataclass(frozen=True)
class Kind:
    name: str
    suffixes: tuple[str, ...]
    read: Callable[..., Iterator[Pair]]  # (text, or for mail the path; clean)
    max_bytes: int = 20 * MEGABYTE  # more than this is data, not something a person wrote


KINDS = (
    Kind("text", (".txt", ".text", ".rst", ".org", ".tex"), read_text),
    Kind("markdown", (".md", ".markdown"), read_markdown),
    Kind("code", (".py", ".js", ".ts", ".java", ".c", ".h", ".cpp", ".hpp", ".go", ".rs", ".php"), read_code),
    Kind("chat", (".json",), read_json),
    Kind("mail", (".eml", ".mbox"), read_mail, 500 * MEGABYTE),
)
BY_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes}
