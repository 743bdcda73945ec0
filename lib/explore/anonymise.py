"""Personal data in text: found by forms, checksums (python-stdnum) and phone plans (phonenumbers), then replaced.

No model: a name that is not in the list, a nickname or a street stay. Notebook 08 measures precision and recall on a
labelled set (data/anonymiser).
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import exceptions, iban, luhn
from stdnum.cn import ric

from lib.profile import DATA

LABELLED = DATA / "anonymiser"
# full-width forms, one character for one, so that positions stay those of the text
HALF_WIDTH = str.maketrans("０１２３４５６７８９＠（）＋－．：＝", "0123456789@()+-.:=")
NOBODY = {"user", "username", "runner", "shared", "public", "default", "all users", "guest", "you"}
FILE = re.compile(r"(?i)\.(?:html?|php|txt|md|py|css|js|png|jpe?g|gif|svg|webp|zip)$")
COUNTED = re.compile(r"(?i)(?:ISBN|ISSN|doi|order|ticket|tracking|订单号?|单号|编号|提交号)\W*[\d-]*$")
SPOKEN = re.compile(r"(?i)(?:call|text|phone|mobile|tel|dial|ring|电话|手机)\D{0,12}$")
VERSION = re.compile(
    r"(?i)(?:versions?|release[ds]?|section|oid|build|upgrade to|版本号?|第)\s*(?:是|为|:)?"
    r"(?:[\d.,;\s]|\bor\b|\band\b|和|或)*v?$|[A-Za-z]/$"
)
# nobody's: this network, loopback, masks and reserved 255, documentation (RFC 5737, RFC 3849)
NO_HOST = "0.0.0.0/8 127.0.0.0/8 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 255.0.0.0/8 2001:db8::/32"
NO_HOST = [*map(ipaddress.ip_network, NO_HOST.split())]
IPV6_HOSTS = [*map(ipaddress.ip_network, ("2000::/3", "fc00::/7", "fe80::/10"))]
# strict forms of North America, China, Britain and Germany; behind a + a number that nobody is given will do
PLANS = [(r, Leniency.STRICT_GROUPING) for r in ("US", "CN", "GB", "DE")] + [(None, Leniency.POSSIBLE)]
Spans = list[tuple[int, int]]


# --- checks: of a pattern's match, the spans that are personal


def _secret(m: re.Match) -> Spans:
    """An assigned value that reads like a secret, not like code, a count or prose; without the sentence's end."""
    start, password = m.start(m.lastindex), re.search("(?i)pass|pwd", m[0]) is not None
    value = re.split(r"&\w+=", m[m.lastindex].rstrip(".,;:!?\"'"))[0]  # in an address, without the next parameter
    attribute = re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", value)  # os.environ
    code = m.string[start + len(value) :][:1] in ("(", "[") or "://" in value or "***" in value or attribute
    # max_tokens=100000 is a count; a password may be words with signs between them, and "my-token" a placeholder
    signs = password if value.replace(".", "").isdigit() else re.search(r"[\d!@#$%^&*?-]" if password else r"\d", value)
    return [(start, start + len(value))] if len(value) >= 6 and not code and signs else []


def _home(m: re.Match) -> Spans:
    user = m[m.lastindex].rstrip(".-")
    somebody = user and user.lower() not in NOBODY and not FILE.search(user)
    return [(m.start(), m.start(m.lastindex) + len(user))] if somebody else []


def resident_id(number: str) -> bool:
    """GB 11643-1999: a date of birth and a check character; regions are not looked up, their list changes."""
    try:
        return bool(ric.get_birth_date(number)) and ric.calc_check_digit(number) == number[-1].upper()
    except exceptions.ValidationError:
        return False


def _card(m: re.Match) -> Spans:
    counted = COUNTED.search(m.string, max(0, m.start() - 24), m.start())
    return [m.span()] if luhn.is_valid(re.sub(r"[ -]", "", m[0])) and not counted else []


def _iban(m: re.Match) -> Spans:
    parts = m[0].split(" ")
    ends = [" ".join(parts[:n]) for n in range(len(parts), 0, -1)]  # a capital word may follow
    return [(m.start(), m.start() + len(e)) for e in ends if iban.is_valid(e)]


def _ip(m: re.Match) -> Spans:
    """A host's address: no version number, mask, network such as 10.0.0.0/8, or documentation address."""
    try:
        address = ipaddress.ip_address(m[0])
    except ValueError:
        return []
    prefix = re.match(r"/\d{1,3}\b", m.string[m.end() : m.end() + 5])
    with suppress(ValueError):  # bits of a host behind the prefix, or no prefix at all
        if prefix and ipaddress.ip_network(m[0] + prefix[0]):
            return []
    host = address.version == 4 or any(address in n for n in IPV6_HOSTS)
    nobody = any(address in n for n in NO_HOST) or VERSION.search(m.string, max(0, m.start() - 40), m.start())
    return [m.span()] if host and not nobody else []


def _phone(m: re.Match) -> Spans:
    spans = []
    for region, leniency in () if re.fullmatch(IPV4, m[0]) else PLANS:
        for found in PhoneNumberMatcher(m[0], region, leniency, max_tries=len(m[0])):
            start, end = m.start() + found.start, m.start() + found.end
            near = (m.string, max(0, start - 24), start)
            bare = found.raw_string.isdigit() and not re.match(r"0|1[3-9]\d{9}$", found.raw_string)
            if not COUNTED.search(*near) and (not bare or SPOKEN.search(*near)):  # ten digits may count anything
                spans.append((start, end))
    return spans


# --- rules: category, pattern (its last group, else all of it, is the item), check. Of two that overlap, the first

DOMAIN = r"(?:[A-Za-z0-9-]{1,63}\.){1,9}(?!(?i:html?|php|txt|md|py|css|js|png|jpe?g|gif|svg|webp|zip)\b)[A-Za-z]{2,}"
LOCAL = r"(?<![A-Za-z0-9])(?!git@)[A-Za-z0-9][\w.+-]{0,63}"  # RFC 5321
WRITTEN_OUT = rf"(?:\[at\]|\(at\)|{{at}})\s?(?:{DOMAIN}|[\w-]+(?:\s?(?:\[dot\]|\(dot\)|dot)\s?[\w-]+)+)"
IPV4 = r"(?a)(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"
KEY = r"(?:gh[pousr]_|github_pat_|hf_|npm_)\w{30,}|(?:pypi-|AIza)[\w-]{30,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
KEY += r"|sk_(?:live|test)_\w{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|LTAI\w{12,}|xox[abprs]-[\w-]{10,}"
KEY += r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON Web Token, RFC 7519
SECRET = (
    r"(?<![\w-])[\w-]{0,60}(?:passwo?r?d|passphrase|pwd|_pass|secret|token(?!i[sz])|(?:api|access)[_ -]?key)[\w-]{0,60}"
)
VALUE = r"""(?:"([^"\s]{6,})"|'([^'\s]{6,})'|([^\s"'`,;<>()\[\]{}，。；、：（）]{6,}))"""
HOME_ON_DRIVE = r"[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/)([^\\/:*?\"<>|\s][^\\/:*?\"<>|\r\n]*(?=[\\/])|[\w.-]+)"
NUMBERED = (
    r"(?:(?:passport|student|matriculation|employee|personnel|patient|account|tax|member(?:ship)?|insurance|licen[cs]e"
    r"|social security|ssn|customer)\W{0,2}(?:(?:id|card|number|no)\b[.\s]?)*(?:\s?(?:is|:|=|#|\())?\s?"
    r"|(?:学号|学生证号?|护照号?码?|工号|QQ号?|社保号?|医保号?|卡号|账号|账户|身份证号?码?|证件号码?)(?:是|为|:)?\s?)"
)
RULES = (
    ("key", r"(?as)-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,10000}?-----END [A-Z ]{0,30}PRIVATE KEY-----", None),
    ("key", rf"(?a)\b(?:{KEY})", None),
    ("key", rf"(?ai){SECRET}[\"']?(?:\s*[:=]\s*|\s+(?:is|to)\s+){VALUE}", _secret),
    ("key", r"(?ai)(?:bearer|basic)\s+(?=[\w.~+/=-]*\d)([\w.~+/=-]{12,})|://[^\s:/@]+:([^\s/@]+)@", None),
    ("key", r"(?ai)\s-u\s*[\w.-]+:([^\s'\"]+)|\s-p'([^']+)'", None),
    ("key", r"(?:密码|口令|令牌|密钥|秘钥)\s*(?:是|为|:)?\s*[\"']?([!-~]{6,}(?<![.,;:!?\"']))", None),
    ("path", r"(?<![A-Za-z0-9_.~])(?:/var|/usr|/data)?/(?:home|Users)/([\w.-]+)", _home),
    ("path", r"(?<![A-Za-z0-9_])/mnt/[a-z]/Users/([\w.-]+)", _home),
    ("path", rf"(?<![A-Za-z0-9_]){HOME_ON_DRIVE}", _home),
    ("path", r"(?a)(?<![\w/~])~([a-z_][\w-]*)(?=/)", _home),
    ("email", rf"(?a)(?<![\w.+'@/-])(?!git@)[A-Za-z0-9][\w.+'-]*@{DOMAIN}(?![\w@])", None),
    ("email", rf"(?ai){LOCAL}\s?{WRITTEN_OUT}", None),
    ("email", rf"(?a){LOCAL} at [\w-]{{1,63}}(?: dot [\w-]{{1,63}})+\b", None),
    ("email", rf"(?ai)(?:邮箱|邮件|mail)\D{{0,6}}?([A-Za-z0-9][\w.-]{{0,63}}#{DOMAIN})", None),  # against harvesters
    ("id", r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])", lambda m: [m.span()] * resident_id(m[0])),
    ("id", r"(?a)(?<![\w.])[2-6]\d{3}(?:(?:[ -]?\d{4}){3}|[ -]?\d{6}[ -]?\d{5})(?![\w.]\d|\w)", _card),
    ("id", r"(?a)\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _iban),
    ("id", r"(?a)(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", None),  # United States, social security
    (
        "id",
        rf"(?ai){NUMBERED}([A-Z]{{0,3}}-?\d[\dA-Z]*(?:[ -]\d+)*)",
        lambda m: [m.span(1)] * (sum(map(str.isdigit, m[1])) >= 5),
    ),
    ("ip", IPV4, _ip),
    ("ip", r"(?a)(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", _ip),
    ("phone", r"(?a)(?<![\w.+-])(?!\d+\.\d+(?!\.?\d))[+(]?\d(?:[ ./()-]{0,2}\d){8,}(?![\w-])", _phone),
)
CATEGORIES = (*dict.fromkeys(category for category, _, _ in RULES), "name")
RULES = tuple((category, re.compile(pattern), check) for category, pattern, check in RULES)


@lru_cache(maxsize=64)
def _name_pattern(names: tuple[str, ...]) -> re.Pattern:
    """Listed names as written; of several words in any case, over a line break, or as "Last, First"."""
    parts = [r"(?!)"]
    for own in sorted(([*map(re.escape, n.split())] for n in names if n.strip()), key=lambda w: -len("".join(w))):
        forms = [r"\s+".join(own), rf"{own[-1]},\s+" + r"\s+".join(own[:-1])] if len(own) > 1 else own
        chinese = re.search(r"[\u3400-\u9fff]", own[0])
        parts += [r"\s*".join(own)] if chinese else [rf"(?{'i' * (len(own) > 1)}:\b{f}\b)" for f in forms]
    return re.compile("|".join(parts))


class Found(NamedTuple):
    start: int
    end: int
    category: str


def find(text: str, names: Sequence[str] = ()) -> list[Found]:
    """What `text` holds of each category, and of `names`, in order and without overlap."""
    plain, used, taken = text.translate(HALF_WIDTH), bytearray(len(text)), []
    for category, pattern, check in (*RULES, ("name", _name_pattern(tuple(names)), None)):
        for m in pattern.finditer(plain):
            for start, end in check(m) if check else [m.span(m.lastindex or 0)]:
                if used.find(1, start, end) < 0:
                    used[start:end] = b"\1" * (end - start)
                    taken.append(Found(start, end, category))
    return sorted(taken)


def anonymise(text: str, names: Sequence[str] = ()) -> tuple[str, Counter]:
    """`text` with each item replaced by its category, such as [EMAIL], and how many of each."""
    pieces, at, found = [], 0, find(text, names)
    for item in found:
        pieces += [text[at : item.start], f"[{item.category.upper()}]"]
        at = item.end
    return "".join([*pieces, text[at:]]), Counter(item.category for item in found)


def read_names(path: Path) -> list[str]:
    """One name a line, UTF-8; blank lines and lines that begin with # are left out."""
    try:
        lines = map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the list as UTF-8.") from None
    return [name for name in lines if name and not name.startswith("#")]


def labelled(half: str, path: Path = LABELLED / "labelled.jsonl") -> list[tuple[str, list[Found]]]:
    """(text, its items) of a half: "tune" was looked at while the rules were written, "test" was not. {{ip|10.0.0.1}}
    marks an item in the file."""
    rows = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        text, items = "", []
        for i, part in enumerate(re.split(r"\{\{(\w+\|.*?)\}\}", row["text"], flags=re.DOTALL)):
            if i % 2:
                category, _, part = part.partition("|")
                items.append(Found(len(text), len(text) + len(part), category))
            text += part
        rows += [(text, items)] * (row["half"] == half)
    return rows
