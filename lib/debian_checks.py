"""Does a generated Debian description keep Debian's form, and say what its debtags say?"""

import re
from collections.abc import Sequence

# Debtags facets whose values a description talks about. Chosen on the validation split, where a human
# description mentions 54 % of these tags and that of the next package 11 %. Left out for lack of such a
# contrast or because the value is a letter: role, scope, interface, implemented-in, uitoolkit, devel, x11.
CONTENT_FACETS = frozenset(
    [
        "accessibility",
        "admin",
        "biology",
        "culture",
        "field",
        "game",
        "hardware",
        "mail",
        "made-of",
        "network",
        "office",
        "protocol",
        "science",
        "security",
        "sound",
        "suite",
        "system",
        "use",
        "web",
        "works-with",
        "works-with-format",
    ]
)
# value -> other words that say it, as prefixes; short on purpose
SYNONYMS = {
    "gameplaying": ("game", "play"),
    "timekeeping": ("time", "clock", "date"),
    "text": ("string", "word"),
    "viewing": ("display", "show"),
    "monitor": ("watch",),
    "checking": ("test", "verif", "valid"),
    "configuring": ("setting", "setup"),
    "organizing": ("manag",),
    "analysing": ("analy",),
    "learning": ("teach", "educat", "tutor"),
    "storing": ("storage", "backup", "archiv"),
    "chatting": ("irc", "messag"),
    "synchronizing": ("sync",),
    "transmission": ("send", "transfer"),
    "downloading": ("fetch",),
    "image": ("graphic", "picture", "photo"),
    "audio": ("sound", "music"),
    "video": ("movie", "film"),
    "db": ("database", "sql"),
    "source": ("code",),
    "package": ("deb", "apt"),
    "logfile": ("log",),
    "plaintext": ("text",),
    "jpg": ("jpeg",),
    "oggvorbis": ("ogg", "vorbis"),
    "ssl": ("tls",),
    "http": ("web",),
    "mathematics": ("math",),
    "cryptography": ("encrypt", "crypt"),
    "virtualization": ("virtual", "xen", "qemu", "kvm"),
    "filesystem": ("disk", "mount"),
    "vcs": ("git", "version"),
    "raster": ("image", "picture", "photo"),
    "vector": ("svg", "drawing"),
    "biology": ("bio", "gene", "dna", "protein", "sequenc"),
    "bioinformatics": ("bio", "gene", "dna"),
    "entertaining": ("fun", "game", "amus"),
    "storage": ("disk", "drive", "tape"),
    "cd": ("disc",),
}


def parse_tags(prompt: str) -> list[str]:
    """The debtags on the `Tags:` line of a prompt; none without such a line."""
    line = re.search(r"^Tags:(.*)$", prompt, re.MULTILINE)
    return [t.strip() for t in line[1].split(",") if "::" in t] if line else []


def _stem(word: str) -> str:
    """A crude stem: the word less one ending, at least four letters of it ("converting" -> "convert")."""
    short = re.sub(r"(?:ings?|ers?|ors?|ions?|ies|ed|es|s|e|y)$", "", word)
    return short if len(short) >= 4 else word


def tag_reflected(tag: str, text: str) -> bool:
    """Does a word of `text` begin with the tag's value, its stem or a synonym of it? Values of fewer
    than four letters ("c", "r", "x11") must be the whole word."""
    value = tag.rpartition("::")[2].split(":")[-1]
    said = set(re.findall(r"[a-z0-9]+\+*", text.lower()))
    wanted = {value, *SYNONYMS.get(value, ()), *(_stem(w) for w in value.split("-") if len(w) > 3)}
    return any(w in said if len(w) < 4 else any(s.startswith(w) for s in said) for w in wanted)


def debian_checks(prompt: str, output: str) -> dict[str, float]:
    """Does one generated description keep Debian's form, and say what its tags say?

    The form is that of Debian Policy 5.6.13 and the Developer's Reference 6.2.2: a synopsis of at most
    80 characters without a leading article and without a full stop; `synopsis_form` is all three, and
    none for an empty one. All 0 or 1, but `tags_reflected`: the share of the prompt's tags in
    CONTENT_FACETS that a word of the output says, nan without such a tag. Human descriptions do not
    say all of theirs: their rate is the ceiling to stand beside, that of other packages' descriptions
    the chance.
    """
    synopsis, _, long = output.strip().partition("\n")
    synopsis = synopsis.strip()
    tags = [t for t in parse_tags(prompt) if t.split("::")[0] in CONTENT_FACETS]
    checks = {
        "synopsis_at_most_80": float(0 < len(synopsis) <= 80),
        "no_article": float(not re.match(r"(?:an?|the)\b(?!-)", synopsis, re.IGNORECASE)),
        "no_full_stop": float(not (synopsis.endswith(".") and not synopsis.endswith(("...", "etc.")))),
        "has_long_description": float(bool(long.strip())),
    }
    checks["synopsis_form"] = float(all(checks[k] for k in ("synopsis_at_most_80", "no_article", "no_full_stop")))
    checks["tags_reflected"] = sum(tag_reflected(t, output) for t in tags) / len(tags) if tags else float("nan")
    return checks


def debian_summary(prompts: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
    """The mean of each check; `tags_reflected` over the outputs whose prompt has such tags."""
    if not outputs or len(prompts) != len(outputs):
        raise ValueError(f"{len(prompts)} prompts and {len(outputs)} outputs: pass one per prompt.")
    rows = [debian_checks(p, o) for p, o in zip(prompts, outputs, strict=True)]
    means = {}
    for name in rows[0]:
        values = [r[name] for r in rows if r[name] == r[name]]  # nan: nothing to check
        means[name] = sum(values) / len(values) if values else float("nan")
    return means
