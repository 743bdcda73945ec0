"""Personal data in text: found by forms, checksums (python-stdnum) and phone plans (phonenumbers), then replaced.

The text is brought into one form, searched in that, and replaced where it stands. No model: a name that is not in the
list, a nickname or a street stay. Notebook 08 measures precision and recall on a labelled set (data/anonymiser)."""

import html
import ipaddress
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import exceptions, iban, luhn
from stdnum.cn import ric

from lib.profile import DATA

LABELLED = DATA / "anonymiser"
# what stands for another character: a line end inside a paragraph (quoted or not; = in quoted-printable mail), percent
# and HTML escapes, accents of their own; beyond ASCII all but letters in their only form and ends of a clause
WRITTEN = re.compile(
    r"=?[ \t]{0,9}\n(?![ \t>]*\n)[ \t>]*"
    r"|%[0-7]\w|%[CcDd]\w%\w\w|%[Ee]\w(?:%\w\w){2}|&(?:#\d{2,6}|#[xX][\da-fA-F]{2,5}|[A-Za-z]{2,8});"
    r"|[A-Za-z][\u0300-\u036f]+"
    r"|[^\x00-\x7f\u00c0-\u0130\u0400-\u04ff\u3001\u3002\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3！，；？][\u0300-\u036f]*"
)
SIGNS = str.maketrans("‘’ʼ´‐‑‒–−", "''''-----")
HAN_DIGITS = "〇零○一幺壹二贰三叁四肆五伍六陆七柒八捌九玖"
HAN_NUMBER = re.compile(rf"(?=[\d -]{{0,30}}[{HAN_DIGITS}])[\d{HAN_DIGITS}](?:[ -]?[\d{HAN_DIGITS}]){{6,}}")
HAN_VALUES = str.maketrans(HAN_DIGITS, "0001112233445566778899")
NOBODY = {"user", "username", "runner", "shared", "public", "default", "all users", "guest", "you"}
FILE = re.compile(r"(?i)\.(?:html?|php|txt|md|py|css|js|png|jpe?g|gif|svg|webp|zip)$")
COUNTED = r"(?i)(?:ISBN|ISSN|doi|order|ticket|tracking|item|artikel\w*|bestell\w*|(?:订?单|编|提交)号|订单)(?:-1[03])?"
COUNTED = re.compile(COUNTED + r"\W*[\d-]*$")
SPOKEN = re.compile(r"(?i)(?:call|text|phone|mobile|tel|dial|ring|电话|手机)\D{0,12}$")
VERSION = r"(?i)(?:versions?|release[ds]?|section|oid|build|upgrade to|版本号?|第)"
VERSION = re.compile(VERSION + r"(?:[是为:\d.,;\s和或]|\b(?:or|and)\b)*v?$|[A-Za-z]/$")
# nobody's: this network, loopback, masks and reserved 255, documentation (RFC 5737, RFC 3849)
NO_HOST = "0.0.0.0/8 127.0.0.0/8 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 255.0.0.0/8 2001:db8::/32"
NO_HOST = [*map(ipaddress.ip_network, NO_HOST.split())]
IPV6_HOSTS = [*map(ipaddress.ip_network, ("2000::/3", "fc00::/7", "fe80::/10"))]
# the strict forms of six countries, and behind a 0 any grouping; behind a + a number that nobody is given will do
REGIONS = ("US", "CN", "GB", "DE", "FR", "JP")
PLANS = [(r, Leniency.STRICT_GROUPING) for r in REGIONS] + [(r, Leniency.VALID) for r in REGIONS[1:]]
PLANS += [(None, Leniency.POSSIBLE)]
Spans = list[tuple[int, int]]


def plain(text: str, joints: Sequence[str] = ("\n",)) -> tuple[str, Sequence[int], Sequence[int]]:
    """`text` without escapes, invisible characters and uncommon ways to write a letter, sign or digit; line ends inside
    paragraphs become each of `joints` in turn. With it, where each of its characters begins in `text`, and ends."""
    joint, pieces, starts, ends, at = cycle(joints), [], array("i"), array("i"), 0
    for m in WRITTEN.finditer(text):
        if "\n" in m[0]:
            new = next(joint)
        elif m[0][0] in "%&":
            new = html.unescape(unquote(m[0]))
        else:
            new = "" if unicodedata.category(m[0][0]) == "Cf" else unicodedata.normalize("NFKC", m[0].translate(SIGNS))
        pieces += [text[at : m.start()], new]
        starts.extend([*range(at, m.start()), *[m.start()] * len(new)])
        ends.extend([*range(at + 1, m.start() + 1), *[m.end()] * len(new)])
        at = m.end()
    starts.extend(range(at, len(text)))
    ends.extend(range(at + 1, len(text) + 1))
    return HAN_NUMBER.sub(lambda m: m[0].translate(HAN_VALUES), "".join([*pieces, text[at:]])), starts, ends


# Checks: of a pattern's match, the spans that are personal
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
    ends = [word.end() for word in re.finditer(r"\w+", m[0])][::-1]  # another word may follow
    return [(m.start(), m.start() + end) for end in ends if iban.is_valid(m[0][:end])]


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


def _phone(m: re.Match) -> Iterator[tuple[int, int]]:
    for region, leniency in () if re.fullmatch(IPV4, m[0]) else PLANS:
        for found in PhoneNumberMatcher(m[0], region, leniency, max_tries=len(m[0])):
            opened = found.raw_string[0] == "(" and ")" not in found.raw_string
            start, end = m.start() + found.start + opened, m.start() + found.end
            near = (m.string, max(0, start - 24), start)
            bare = found.raw_string.isdigit() and not re.match(r"0|1[3-9]\d{9}$", found.raw_string)
            ungrouped = leniency == Leniency.VALID and not re.match(r"\(?0", found.raw_string)
            # ten digits may count anything
            if not COUNTED.search(*near) and not ungrouped and (not bare or SPOKEN.search(*near)):
                yield start, end


# Rules: category, pattern (its last group, else all of it, is the item), check. Of two that overlap, the first
DOMAIN = r"(?:[A-Za-z0-9-]{1,63}\.){1,9}(?!(?i:html?|php|txt|md|py|css|js|png|jpe?g|gif|svg|webp|zip)\b)[A-Za-z]{2,}"
LOCAL = r"(?<![A-Za-z0-9])(?!git@)[A-Za-z0-9][\w.+-]{0,63}"  # RFC 5321
AT, DOT = r"\s?[\[({<](?:at|@|a)[\])}>]\s?", r"\s?(?:[\[({<](?:dot|\.)[\])}>]|\bdot\b)\s?"
WRITTEN_OUT = rf"{AT}(?:{DOMAIN}|[\w-]+(?:{DOT}[\w-]+)+)"
# where blanks may be meant: an ordinary end of a host's name, and no ordinary word first ("meet us @ cafe.example")
TOP = r"(?:com|org|net|edu|gov|info|io|ai|app|dev|me|cn|hk|tw|de|at|ch|uk|eu|fr|it|es|nl|jp|kr|in|au|ca|example|test)"
SPACED_HOST = rf"(?:[\w-]{{1,63}} ?\. ?){{1,4}}{TOP}\b(?![\[=]|\([\w)]|\.\w)"
NO_LOCAL = r"(?!(?:you|us|me|we|it|is|are|was|be|them|him|her|here|and|or|meet\w*|all|look|available|live|read|out)\b)"
ASKED = r"(?:mail|邮箱|邮件|信箱|contact|address|reach|write|send|kontakt)"
IPV4 = r"(?a)(?:(?<![\w.-])|(?<=\bIP))\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)"
KEY = [line.split()[0] for line in (LABELLED / "keys.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
# 40 hexadecimal digits elsewhere are a commit
WANDB = r"(?i:wandb|w&b|weights ?(?:&|and) ?biases)(?:(?!commit|sha|rev).){0,60}?\b([0-9a-f]{40})\b"
SECRET = r"(?<![\w-])[\w-]{0,60}(?:passw|passphrase|pwd|_pass|secret|token(?!i[sz])|(?:api|access)[_ -]?key)[\w-]{0,60}"
VALUE = r"""(?:"([^"\s]{6,})"|'([^'\s]{6,})'|([^\s"'`,;<>()\[\]{}，。；、：（）]{6,}))"""
HOME_ON_DRIVE = r"[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/)([^\\/:*?\"<>|\s][^\\/:*?\"<>|\r\n]*(?=[\\/])|[\w.-]+)"
NUMBERED = (
    r"(?:(?:passport|student|matriculation|employee|personnel|patient|account|tax|member(?:ship)?|insurance|licen[cs]e"
    r"|social security|ssn|customer)\W{0,2}(?:(?:id|card|number|no)\b[.\s]?)*(?:\s?(?:is|:|=|#|\())?\s?"
    r"|(?:学号|学生证号?|护照号?码?|工号|QQ号?|社保号?|医保号?|卡号|账号|账户|身份证号?码?|证件号码?)(?:是|为|:)?\s?)"
    r"((?=(?:[ -]?[A-Z]{0,3}-?\d){5})[A-Z]{0,3}-?\d[\dA-Z]*(?:[ -]\d+)*)(?![\dA-Z]|\n\d)"
)
RESIDENT = r"(?<![\dA-Za-z])\d{6}[ -]?(?:\d{4}[ -]?){2}\d{3}[\dXx](?![\dA-Za-z])"
# nineteen digits of UnionPay and of older Chinese cards, sixteen, American Express' fifteen
CARD = r"(?:62|95|6[08])\d\d(?:[ -]?\d{4}){3}[ -]?\d{3}|[2-6]\d{3}(?:(?:[ -]?\d{4}){3}|[ -]?\d{6}[ -]?\d{5})"
BEFORE, BEHIND = r"(?<![^\W\u3400-\u9fff])", r"(?![^\W\u3400-\u9fff])"  # no word's border, but Chinese has none
DATE = r"(?:(?:19|20)\d\d[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./](?:19|20)\d\d)(?!\d)"
RULES = (
    ("key", r"(?as)-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,10000}?-----END [A-Z ]{0,30}PRIVATE KEY-----", None),
    ("key", rf"(?a)\b(?:{'|'.join(KEY)})", None),
    ("key", rf"(?as){WANDB}", None),
    ("key", r"(?a)hooks\.slack\.com/services/([\w/]{20,})|\bmachine\s\S+\s+login\s\S+\s+password\s+(\S+)", None),
    ("key", rf"(?ai){SECRET}[\"']?(?:\s*[:=]\s*|\s+(?:is|to)\s+){VALUE}", _secret),
    ("key", r"(?ai)(?:bearer|basic)\s+(?=[\w.~+/=-]*\d)([\w.~+/=-]{12,})|://[^\s:/@]+:([^\s/@]+)@", None),
    ("key", r"(?ai)\s-u\s*[\w.-]+:([^\s'\"]+)|\s-p'([^']+)'", None),
    ("key", r"(?:密码|口令|令牌|密钥|秘钥)\s*(?:是|为|:)?\s*[\"']?([!-~]{6,}(?<![.,;:!?\"']))", None),
    ("path", r"(?<![A-Za-z0-9_.~])(?:/var|/usr|/data)?/(?:home|Users)/([\w.-]+)", _home),
    ("path", r"(?<![A-Za-z0-9_])/mnt/[a-z]/Users/([\w.-]+)", _home),
    ("path", rf"(?i)(?<![A-Za-z0-9_]){HOME_ON_DRIVE}", _home),
    ("path", r"(?a)(?<![\w/~])~([a-z_][\w-]*)(?=/)", _home),
    ("email", rf"(?a)(?<![\w.+'@/-])(?!git@)[A-Za-z0-9][\w.+'-]*@{DOMAIN}(?![\w@]|-\n)", None),
    ("email", rf"(?ai){LOCAL}\s?{WRITTEN_OUT}", None),
    ("email", rf"(?ai){LOCAL} at [\w-]{{1,63}}(?: dot [\w-]{{1,63}})+\b", None),
    ("email", rf"(?ai)(?<![A-Za-z0-9]){NO_LOCAL}{LOCAL}(?: @ ?|@ ){SPACED_HOST}", None),
    ("email", rf"(?ai){ASKED}\W{{0,4}}(?:\w{{1,20}}\W{{1,3}}){{0,2}}?({NO_LOCAL}{LOCAL} at {SPACED_HOST})", None),
    ("email", rf"(?ai)(?<![A-Za-z0-9])(?:(?<=[<(])|(?=[a-z][\w-]{{0,63}}[._\d])){LOCAL} at {SPACED_HOST}", None),
    ("email", rf"(?ai)(?:邮箱|邮件|mail)\D{{0,6}}?([A-Za-z0-9][\w.-]{{0,63}}#{DOMAIN})", None),  # against harvesters
    ("id", RESIDENT, lambda m: [m.span()] * resident_id(re.sub("[ -]", "", m[0]))),
    ("id", rf"(?a)(?<![\w.])(?:{CARD})(?![\w.]\d|\w)", _card),
    ("id", r"(?ai)\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b", _iban),
    ("id", r"(?a)(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", None),  # United States, social security
    ("id", rf"(?ai){NUMBERED}", None),
    ("ip", IPV4, _ip),
    ("ip", r"(?a)(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", _ip),
    ("phone", r"(?a)(?<![\w.])0[1-9]([ .-])\d\d(?:\1\d\d){3}(?![\w.-])", lambda m: [m.span()]),  # France, in pairs
    ("phone", rf"(?a)(?<![\w.+-])(?!\d+\.\d+(?!\.?\d)|{DATE})[+(]?\d(?:[ ./()-]{{0,2}}\d){{8,}}(?![\w-])", _phone),
)
RULES = tuple((category, re.compile(pattern), check) for category, pattern, check in RULES)
TORN = (RULES[1], *(rule for rule in RULES if rule[0] in ("email", "phone", "id")))  # what is sought over a line end

# first names that are words as well: names only where no sentence begins
WORDS = """will mark grace rose may april june hope joy faith art bill frank pat rob sue drew chase grant dawn summer
ivy lily daisy ruby pearl amber guy rich max ray page iris olive robin christian"""
SIMPLIFIED = str.maketrans(dict((LABELLED / "traditional.txt").read_text(encoding="utf-8").split()))


@lru_cache(maxsize=64)
def _name_pattern(names: tuple[str, ...], speakers: tuple[str, ...]) -> re.Pattern:
    """Names as written; of several words in any case, over a line end, or as "Last, First"; Chinese ones with blanks
    inside. Of speakers the first name alone, too."""
    forms = [r"(?!)"]
    for i, name in enumerate((*names, *speakers)):
        own = [*map(re.escape, plain(name)[0].translate(SIMPLIFIED).split())]
        whole, known = "".join(own), i >= len(names)
        if re.match(r"[\u3400-\u9fff]", whole):
            forms += [r"\s?".join(whole)]
            forms += [whole[-2:]] * (known and len(whole) in (3, 4))
        elif len(own) > 1:
            orders = (own, [f"{own[-1]},", *own[:-1]])
            forms += [rf"(?i:{BEFORE}{order}{BEHIND})" for order in map(r"[\s>]+".join, orders)]
            start = r"(?:(?<=[a-z,;:] )|(?<=@))" if own[0].lower() in WORDS.split() else BEFORE
            forms += [f"{start}{own[0]}{BEHIND}"] * (known and len(own[0]) > 2 and own[0][0].isupper())
        elif own:
            forms.append(f"{BEFORE}{own[0]}{BEHIND}")
    return re.compile("|".join(sorted(forms, key=len, reverse=True)))


class Found(NamedTuple):
    start: int
    end: int
    category: str


def find(text: str, names: Sequence[str] = (), speakers: Sequence[str] = ()) -> list[Found]:
    """What `text` holds of each category, of `names`, of `speakers` by first name too; in order, without overlap."""
    form, used, taken = plain(text), bytearray(len(text)), []
    people = [("name", _name_pattern(tuple(names), tuple(speakers)), None)]
    searched = [(form, RULES), ((form[0].translate(SIMPLIFIED), *form[1:]), people)]
    if "\n" in text:  # an item over a line end: every second one away, then the others
        searched += [(plain(text, joints), TORN) for joints in (("", "\n"), ("\n", ""))]
    for (written, starts, ends), rules in searched:
        for category, pattern, check in rules:
            for m in pattern.finditer(written):
                for start, end in check(m) if check else [m.span(m.lastindex or 0)]:
                    start, end = starts[start], ends[end - 1]
                    if used.find(1, start, end) < 0:
                        used[start:end] = b"\1" * (end - start)
                        taken.append(Found(start, end, category))
    return sorted(taken)


def anonymise(text: str, names: Sequence[str] = (), speakers: Sequence[str] = ()) -> tuple[str, Counter]:
    """`text` with each item that `find` finds replaced by its category, such as [EMAIL], and how many of each."""
    pieces, at, found = [], 0, find(text, names, speakers)
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
