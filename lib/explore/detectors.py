"""The rules of lib.explore.anonymise: what each category of personal data looks like, as spans of characters.

One function per category, from a text to the (start, end) of its items, the surest rule first. Forms
and checksums are those of the standards named beside them; phone forms are North America's, China's,
Britain's, Germany's and the international one.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

Span = tuple[int, int]

# --- keys, tokens, passwords

KEY_FORMS = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,10000}?-----END [A-Z ]{0,30}PRIVATE KEY-----"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON Web Token, RFC 7519
    r"|\b(?:gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}|hf_\w{30,}|npm_\w{30,}|pypi-[\w-]{30,}"
    r"|sk-[\w-]{20,}|sk_(?:live|test)_\w{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|LTAI\w{12,}|AIza[\w-]{30,}"
    r"|xox[abprs]-[\w-]{10,})",
    re.DOTALL | re.ASCII,
)
SECRET_WORD = (
    r"[\w-]{0,60}(?:passwo?r?d|passphrase|pwd|_pass|secret|token(?!i[sz])|api[_ -]?key|access[_ -]?key)"
    r"[\w-]{0,60}"
)
SECRET_VALUE = r"""(?:"([^"\s]{6,})"|'([^'\s]{6,})'|([^\s"'`,;<>()\[\]{}，。；、：（）]{6,}))"""
ASSIGNED = re.compile(
    rf"(?<![\w-]){SECRET_WORD}[\"']?(?:\s*[:=]\s*|\s+(?:is|to)\s+){SECRET_VALUE}", re.IGNORECASE | re.ASCII
)
ASSIGNED_ZH = re.compile(r"(?:密码|口令|令牌|密钥|秘钥)\s*(?:是|为|:)?\s*[\"']?([!-~]{6,})")
CREDENTIALS = re.compile(
    r"(?:bearer|basic)\s+(?=[\w.~+/=-]*\d)([\w.~+/=-]{12,})"
    r"|://[^\s:/@]+:([^\s/@]+)@"
    r"|\s-u\s*[\w.-]+:([^\s'\"]+)|\s-p'([^']+)'",
    re.IGNORECASE | re.ASCII,
)


def _last_group(match: re.Match) -> Span:
    return match.span(match.lastindex)


def _value(match: re.Match) -> Span:
    """The assigned value without the sentence's end, in an address without the next parameter."""
    start, end = _last_group(match)
    value = match.string[start:end].rstrip(".,;:!?\"'")
    value = re.split(r"&\w+=", value)[0]
    return start, start + len(value)


def _is_secret(match: re.Match) -> bool:
    """Whether an assigned value reads like a secret, not like code, a count or prose."""
    start, end = _value(match)
    value, follows = match.string[start:end], match.string[end : end + 1]
    if len(value) < 6 or follows in ("(", "["):
        return False
    password = re.search("pass|pwd", match[0], re.IGNORECASE) is not None
    if value.replace(".", "").isdigit():  # max_tokens=100000, but password: 48213377
        return password
    attribute = re.fullmatch(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", value)  # os.environ
    if attribute or "://" in value or "***" in value:
        return False
    # a password may be words with signs between them; of a token, "my-token" is a placeholder
    return re.search(r"[\d!@#$%^&*?-]" if password else r"\d", value) is not None


def keys(text: str) -> Iterator[Span]:
    """Keys with a known prefix, private key blocks, and values given to a password, token or secret."""
    yield from (m.span() for m in KEY_FORMS.finditer(text))
    yield from (_value(m) for m in ASSIGNED.finditer(text) if _is_secret(m))
    yield from (_last_group(m) for m in CREDENTIALS.finditer(text))
    yield from (_value(m) for m in ASSIGNED_ZH.finditer(text))


# --- home folders

HOMES = (
    re.compile(r"(?<![A-Za-z0-9_.~])(?:/var|/usr|/data)?/(?:home|Users)/([\w.-]+)"),
    re.compile(r"(?<![A-Za-z0-9_])/mnt/[a-z]/Users/([\w.-]+)"),
    re.compile(
        r"(?<![A-Za-z0-9_])[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/)([^\\/:*?\"<>|\s][^\\/:*?\"<>|\r\n]*(?=[\\/])|[\w.-]+)"
    ),
    re.compile(r"(?<![\w/~])~([a-z_][\w-]*)(?=/)", re.ASCII),
)
NOBODY = {"user", "username", "runner", "shared", "public", "default", "all users", "guest", "you"}
FILE = re.compile(r"\.(?:html?|php|txt|md|py|css|js|png|jpe?g|gif|svg|webp|zip)$", re.IGNORECASE)


def paths(text: str) -> Iterator[Span]:
    """Home folders up to the user's name; what follows stays."""
    for pattern in HOMES:
        for match in pattern.finditer(text):
            user = match[1].rstrip(".-")
            if user and user.lower() not in NOBODY and not FILE.search(user):
                yield match.start(), match.start(1) + len(user)


# --- e-mail

DOMAIN = r"(?:[A-Za-z0-9-]{1,63}\.){1,9}[A-Za-z]{2,}"
LOCAL = r"(?<![A-Za-z0-9])[A-Za-z0-9][\w.+-]{0,63}"  # at most 64 characters: RFC 5321, 4.5.3.1.1
EMAILS = (
    re.compile(rf"(?<![\w.+'@/-])[A-Za-z0-9][\w.+'-]*@{DOMAIN}(?![\w@])", re.ASCII),
    re.compile(
        rf"{LOCAL}\s?(?:\[at\]|\(at\)|\{{at\}})\s?"
        rf"(?:{DOMAIN}|[\w-]+(?:\s?(?:\[dot\]|\(dot\)|dot)\s?[\w-]+)+)",
        re.ASCII | re.IGNORECASE,
    ),
    re.compile(rf"{LOCAL} at [\w-]{{1,63}}(?: dot [\w-]{{1,63}})+\b", re.ASCII),
    # an address whose @ was replaced against harvesters
    re.compile(rf"(?:邮箱|邮件|mail)\D{{0,6}}?([A-Za-z0-9][\w.-]{{0,63}}#{DOMAIN})", re.ASCII | re.IGNORECASE),
)


def emails(text: str) -> Iterator[Span]:
    """Addresses, also with the @ written out; git@host names a service and icon@2x.png a file."""
    for pattern in EMAILS:
        for match in pattern.finditer(text):
            span = match.span(match.lastindex or 0)
            found = text[slice(*span)]
            if not found.startswith("git@") and not FILE.search(found):
                yield span


# --- ID-like numbers

ID_WORDS = (
    r"(?:passport|student|matriculation|employee|personnel|patient|account|tax|member(?:ship)?|insurance"
    r"|licen[cs]e|social security|ssn|customer)\W{0,2}(?:(?:id|card|number|no)\b[.\s]?)*(?:\s?(?:is|:|=|#|\())?\s?"
    r"|(?:学号|学生证号?|护照号?码?|工号|QQ号?|社保号?|医保号?|卡号|账号|账户|身份证号?码?|证件号码?)(?:是|为|:)?\s?"
)
CONTEXT_ID = re.compile(rf"(?:{ID_WORDS})([A-Z]{{0,3}}-?\d[\dA-Z]*(?:[ -]\d+)*)", re.IGNORECASE | re.ASCII)
RESIDENT = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
CARD = re.compile(r"(?<![\w.])[2-6]\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{4}|([ -]?)\d{6}\2\d{5})(?![\w.]\d|\w)", re.ASCII)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", re.ASCII)
SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII)
NUMBERED = re.compile(r"(?:ISBN|ISSN|doi|order|ticket|tracking|订单号?|单号|编号|提交号)\W*[\d-]*$", re.IGNORECASE)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, digit sums, a multiple of 10."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 * (d > 9) for d in doubled) % 10 == 0


def resident_id(number: str) -> bool:
    """GB 11643-1999: eight digits of a date, and a check character over weights 2^i mod 11."""
    month, day = int(number[10:12]), int(number[12:14])
    check = sum(int(d) * (2 ** (17 - i) % 11) for i, d in enumerate(number[:17])) % 11
    return 1 <= month <= 12 and 1 <= day <= 31 and "10X98765432"[check] == number[17].upper()


def iban(text: str) -> bool:
    """ISO 13616: with the first four characters at the end and A = 10 ..., the rest mod 97 is 1."""
    plain = text.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def ids(text: str) -> Iterator[Span]:
    """Resident IDs, cards and IBANs by checksum, SSNs by form, others by the word before them."""
    yield from (m.span() for m in RESIDENT.finditer(text) if resident_id(m[0]))
    for match in CARD.finditer(text):
        if luhn(re.sub(r"\D", "", match[0])) and not _numbered(text, match.start()):
            yield match.span()
    for match in IBAN.finditer(text):
        words = match[0].split(" ")
        ends = [" ".join(words[:n]) for n in range(len(words), 0, -1)]  # a capital word may follow
        if fits := next((e for e in ends if iban(e)), None):
            yield match.start(), match.start() + len(fits)
    yield from (m.span() for m in SSN.finditer(text))
    for match in CONTEXT_ID.finditer(text):
        if sum(c.isdigit() for c in match[1]) >= 5:
            yield match.span(1)


def _numbered(text: str, start: int) -> bool:
    """Whether what stands before says that the number counts things, such as an ISBN."""
    return NUMBERED.search(text[max(0, start - 24) : start]) is not None


# --- IP addresses

IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)
VERSION = re.compile(
    r"(?:versions?|release[ds]?|section|oid|build|upgrade to|版本号?|第)"
    r"\s*(?:是|为|:)?(?:[\d.,;\s]|\bor\b|\band\b|和|或)*v?$|[A-Za-z]/$",
    re.IGNORECASE,
)
# nobody's: this network, loopback, masks and reserved 255, documentation (RFC 5737, RFC 3849)
NO_HOST = [
    ipaddress.ip_network(n)
    for n in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "255.0.0.0/8",
        "2001:db8::/32",
    )
]
IPV6_HOSTS = [ipaddress.ip_network(n) for n in ("2000::/3", "fc00::/7", "fe80::/10")]


def _is_network(text: str, match: re.Match) -> bool:
    """Whether it goes on as a network's prefix, such as 10.0.0.0/8."""
    prefix = re.match(r"/\d{1,3}\b", text[match.end() : match.end() + 5])
    try:
        return prefix is not None and bool(ipaddress.ip_network(match[0] + prefix[0]))
    except ValueError:  # bits of a host behind the prefix, or no prefix at all
        return False


def ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses of hosts; no version numbers, masks or documentation addresses."""
    for pattern in (IPV4, IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            hosts = address.version == 4 or any(address in n for n in IPV6_HOSTS)
            before = text[max(0, match.start() - 40) : match.start()]
            named = any(address in n for n in NO_HOST) or VERSION.search(before)
            if hosts and not named and not _is_network(text, match):
                yield match.span()


# --- phone numbers

PHONES = (
    re.compile(
        r"(?<![\w.])(?:\+|00(?=\d{1,3}[ .\-/(]))[1-9]\d{0,2}"
        r"(?:[ .\-/]?(?:\(\d{1,5}\) ?)?\d{1,5}){2,6}(?![\w-])",
        re.ASCII,
    ),
    re.compile(r"(?<![\w.+-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])", re.ASCII),
    re.compile(r"(?<![\d.])1[3-9]\d([ .-]?)\d{4}\1\d{4}(?!\d)"),  # Chinese mobile
    re.compile(r"(?<![\w.+-])\(?0\d{2,3}\)?[ -]?\d{4}[ -]?\d{4}(?![\w-])", re.ASCII),  # Chinese landline
    re.compile(r"(?<![\w.+-])0[1-9]\d{1,3}[ /]\d{3,6}(?:[ -]\d{2,4}){0,2}(?![\w-])", re.ASCII),
    re.compile(r"(?<![\w.+-])0[1-9]\d{8,9}(?![\w-])", re.ASCII),
)
SPOKEN = re.compile(
    r"(?:call|text|phone|mobile|tel|dial|ring|电话|手机)\D{0,12}?(\d{10,11})(?!\d)", re.IGNORECASE | re.ASCII
)
DATE = re.compile(r"(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}")


def phones(text: str) -> Iterator[Span]:
    """International numbers, and national ones in the forms of North America, China, Britain, Germany."""
    for pattern in PHONES:
        for match in pattern.finditer(text):
            digits = sum(c.isdigit() for c in match[0])
            if 9 <= digits <= 16 and not DATE.match(match[0]) and not _numbered(text, match.start()):
                yield match.span()
    yield from (m.span(1) for m in SPOKEN.finditer(text))


# --- names

CJK = re.compile(r"[\u3400-\u9fff]")


@lru_cache(maxsize=64)
def _name_pattern(names: tuple[str, ...]) -> re.Pattern:
    """Listed names as written; of several words in any case, over a line break, or as "Last, First"."""
    parts = []
    for name in sorted({n.strip() for n in names if n.strip()}, key=len, reverse=True):
        words = [re.escape(w) for w in name.split()]
        if CJK.search(name):
            parts.append(r"\s*".join(words))
        elif len(words) == 1:
            parts.append(rf"\b{words[0]}\b")
        else:
            forms = (r"\s+".join(words), rf"{words[-1]},\s+" + r"\s+".join(words[:-1]))
            parts += [rf"(?i:\b{form}\b)" for form in forms]
    return re.compile("|".join(parts) or r"(?!)")


def names_in(text: str, names: Sequence[str]) -> Iterator[Span]:
    """The names of the list, and only those."""
    yield from (m.span() for m in _name_pattern(tuple(names)).finditer(text))


# where two overlap, the category that stands first here is taken, and of its items the first it gives
CATEGORIES: dict[str, Callable[[str], Iterator[Span]]] = {
    "key": keys,
    "path": paths,
    "email": emails,
    "id": ids,
    "ip": ips,
    "phone": phones,
}
