"""Rebuild data/debian: Debian package descriptions as (prompt, target) documents.

    apt-get -o Acquire::Languages=en update      # on Debian: leaves the lists in /var/lib/apt/lists
    python data/build_debian.py                  # writes data/debian; same lists, same bytes

The lists: Packages (name, section, debtags) and Translation-en (the descriptions), joined on
Description-md5. Their format: deb822(5) and https://wiki.debian.org/DebianRepository/Format.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib.results import write_bytes
from lib.texts import without_near_duplicates

HERE = Path(__file__).resolve().parent
MIN_CHARACTERS, MAX_CHARACTERS = 80, 800
LEFT_OUT_SECTIONS = {"libs", "libdevel", "oldlibs", "doc", "debug"}
LEFT_OUT_NAMES = re.compile(r"-(doc|docs|dbg|dbgsym|dev|prof)$")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
# Perl modules are 30 % of the documents before the cap; the next family, Python's, is 3 %.
FAMILY_CAP = 2_500
SHINGLE_WORDS = 3
# Series that share a boilerplate paragraph (Tryton modules, aspell dictionaries) meet at 0.3 to 0.6.
# Of the held-out documents, 3 % have such a sibling in train at 0.5, none at 0.3, for 250 documents.
THRESHOLD = 0.3
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
STAGES = (
    "packages",
    "with a description",
    "with debtags",
    "no library or doc",
    "no e-mail address",
    "80-800 characters",
)
APT_HELPER = "/usr/lib/apt/apt-helper"


def read_list(path: Path) -> str:
    """The text of one package list: plain, .gz, .xz, or .lz4 (through apt's own helper)."""
    if path.suffix == ".gz":
        data = gzip.decompress(path.read_bytes())
    elif path.suffix == ".xz":
        data = lzma.decompress(path.read_bytes())
    elif path.suffix == ".lz4":
        if not os.path.exists(APT_HELPER):
            raise FileNotFoundError(f"{path} is lz4 and {APT_HELPER} is missing: unpack it with `unlz4 {path}` first.")
        done = subprocess.run([APT_HELPER, "cat-file", str(path)], capture_output=True, check=True)
        data = done.stdout
    else:
        data = path.read_bytes()
    return data.decode("utf-8")


def find_list(folder: Path, suite: str, kind: str) -> Path:
    """The one list of `suite`'s main section in `folder`: kind "binary-*_Packages", "i18n_..."."""
    found = sorted(folder.glob(f"*_dists_{suite}_main_{kind}*"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no {suite} main {kind} list: run "
            "`apt-get -o Acquire::Languages=en update` on Debian, or name another --suite."
        )
    return found[0]


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a deb822 file; continuation lines keep their leading blank."""
    for block in re.split(r"\n{2,}", text):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                if key:
                    fields[key] += "\n" + line
            elif ":" in line:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        if fields:
            yield fields


def plain_description(field: str) -> str:
    """Synopsis, newline, long description: one leading blank less, ` .` is a blank line."""
    lines = [line[1:] if line.startswith(" ") else line for line in field.split("\n")]
    lines = ["" if line.strip() == "." else line.rstrip() for line in lines]
    return "\n".join(lines).strip()


def family(name: str, section: str) -> str:
    """The module family a package belongs to ("perl", "haskell", ...), or "" for none."""
    if name.startswith("libghc-") or (section == "haskell" and name.startswith("haskell-")):
        return "haskell"
    if name.startswith("lib") and name.endswith("-perl"):
        return "perl"
    match = re.match(r"(python3|ruby|node|golang|r-cran|elpa|php|librust)-", name)
    return match.group(1) if match else ""


def wanted(name: str, section: str, tags: list[str], synopsis: str) -> bool:
    """Neither library nor documentation, debugging symbols or an empty transitional package.

    Perl and Haskell modules are libraries by name; they stay and are capped (`cap_families`).
    """
    if section in LEFT_OUT_SECTIONS or LEFT_OUT_NAMES.search(name):
        return False
    if "role::dummy" in tags or re.search(r"\b(transitional|dummy) ", synopsis, re.IGNORECASE):
        return False
    return not name.startswith("lib") or family(name, section) in ("perl", "haskell")


def candidates(packages: str, translation: str, counts: dict[str, int]) -> list[dict]:
    """One document per source package, sorted by source name; `counts` gets the stages' sizes."""
    texts = {s["Description-md5"]: s.get("Description-en", "") for s in stanzas(translation)}
    counts.update(dict.fromkeys(STAGES, 0))
    by_source: dict[str, list[dict]] = defaultdict(list)
    for p in stanzas(packages):
        counts["packages"] += 1
        target = plain_description(texts.get(p.get("Description-md5", ""), ""))
        if "\n" not in target:
            continue
        counts["with a description"] += 1
        tags = sorted({t.strip() for t in p.get("Tag", "").split(",")} - {""})
        tags = [t for t in tags if not t.endswith("::TODO")]  # "still to be tagged" says nothing
        if not tags:
            continue
        counts["with debtags"] += 1
        name, section = p["Package"], p.get("Section", "misc")
        if not wanted(name, section, tags, target.split("\n", 1)[0]):
            continue
        counts["no library or doc"] += 1
        if EMAIL.search(target):
            continue
        counts["no e-mail address"] += 1
        if not MIN_CHARACTERS <= len(target) <= MAX_CHARACTERS:
            continue
        counts["80-800 characters"] += 1
        source = p.get("Source", name).split()[0]
        prompt = f"Package: {name}\nSection: {section}\nTags: {', '.join(tags)}\nDescription:\n"
        document = {"id": name, "prompt": prompt, "target": target, "group": source}
        by_source[source].append({**document, "section": section, "family": family(name, section)})
    # The package that carries the source's own name describes it best; then the shortest name.
    documents = [
        min(group, key=lambda d: (d["id"] != source, len(d["id"]), d["id"]))
        for source, group in sorted(by_source.items())
    ]
    counts["one per source package"] = len(documents)
    return documents


def shingles(text: str, n: int = SHINGLE_WORDS) -> frozenset[str]:
    """The runs of `n` lower-case words; the whole text where it has fewer words."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def position(group: str) -> float:
    """A number in [0, 1) that depends on the group's name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def cap_families(documents: list[dict], cap: int = FAMILY_CAP) -> list[dict]:
    """At most `cap` documents of each module family, chosen by a hash unrelated to the split's."""
    taken: dict[str, set[str]] = {}
    for name in {d["family"] for d in documents} - {""}:
        members = [d["id"] for d in documents if d["family"] == name]
        taken[name] = set(sorted(members, key=lambda m: position("cap:" + m))[:cap])
    return [d for d in documents if not d["family"] or d["id"] in taken[d["family"]]]


def split_of(group: str) -> str:
    where, upper = position(group), 0.0
    for name, share in SHARES.items():
        upper += share
        if where < upper:
            return name
    return name


def build(packages: str, translation: str) -> tuple[dict[str, bytes], dict]:
    """The text of both lists -> ({split: jsonl bytes}, counts)."""
    counts: dict[str, int] = {}
    documents = candidates(packages, translation, counts)
    documents = [documents[i] for i in without_near_duplicates([shingles(d["target"]) for d in documents], THRESHOLD)]
    counts["near-duplicates removed"] = len(documents)
    documents = cap_families(documents)
    counts["module families capped"] = len(documents)
    files, sizes = in_splits({key: d[key] for key in ("id", "prompt", "target", "group")} for d in documents)
    facts = {
        "stages": counts,
        "splits": sizes,
        "sections": dict(Counter(d["section"] for d in documents).most_common()),
        "module_families": dict(Counter(d["family"] for d in documents if d["family"]).most_common()),
    }
    return files, facts


def release_facts(folder: Path, suite: str) -> dict[str, str]:
    """Version and date of the point release, from the suite's InRelease or Release file."""
    for path in sorted(folder.glob(f"*_dists_{suite}_*Release")):
        head = path.read_text(encoding="utf-8").split("MD5Sum:")[0].split("SHA256:")[0]
        found = dict(re.findall(r"^(Version|Codename|Date): (.*)$", head, re.MULTILINE))
        return {key.lower(): value for key, value in found.items()}
    return {}


def in_splits(rows: Iterable[dict]) -> tuple[dict[str, bytes], dict[str, int]]:
    """{split: its rows as JSON lines} and {split: how many}, split by the rows' groups."""
    lines: dict[str, list[str]] = {name: [] for name in SHARES}
    for row in rows:
        lines[split_of(row["group"])].append(json.dumps(row, ensure_ascii=False) + "\n")
    return {k: "".join(v).encode() for k, v in lines.items()}, {k: len(v) for k, v in lines.items()}


def write_dataset(out: Path, files: dict[str, bytes], card: dict) -> None:
    """The splits and the card, to which their checksums are added; prints the stages' and splits' sizes."""
    checksums = {f"{k}.jsonl": hashlib.sha256(v).hexdigest() for k, v in files.items()}
    for name, data in files.items():
        write_bytes(out / f"{name}.jsonl", data)
    text = json.dumps(card | {"files_sha256": checksums}, indent=1, ensure_ascii=False) + "\n"
    write_bytes(out / "card.json", text.encode())
    print(json.dumps(card["stages"] | card["splits"], indent=1))


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lists", type=Path, default=Path("/var/lib/apt/lists"))
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--out", type=Path, default=HERE / "debian")
    options = parser.parse_args(arguments)
    lists = {
        "packages": read_list(find_list(options.lists, options.suite, "binary-*_Packages")),
        "translation": read_list(find_list(options.lists, options.suite, "i18n_Translation-en")),
    }
    files, facts = build(**lists)
    card = {
        "suite": options.suite,
        "release": release_facts(options.lists, options.suite),
        "lists_sha256": {k: hashlib.sha256(v.encode()).hexdigest() for k, v in lists.items()},
        **facts,
        "near_duplicate_jaccard": THRESHOLD,
    }
    write_dataset(options.out, files, card)


if __name__ == "__main__":
    main()
