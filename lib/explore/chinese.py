"""The form of a Tang quatrain (jueju), checked by rules: lines, rhyme, tones, repetition, copied lines.

Pure functions on text; no model and no judge takes part. What the rules are: Wang Li 1958, "Prosody of
Chinese Verse" (Hanyu shilü xue). Sounds are today's Mandarin from pypinyin, one reading per character (its
most frequent). They differ from those of the Tang: some of its rhymes no longer rhyme, and its entering
tone (-p, -t, -k, an oblique one) has gone over into all four tones of today. So people's own poems do not
reach 100 %, and a model is to be held against theirs and against chance.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
from pypinyin import Style, pinyin

from lib.texts import longest_overlap

HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"  # as in data/build_tang.py
LENGTHS = (5, 7)
# What Zhuyin, the older alphabet, writes as medial + rhyme and pinyin contracts: 新 ㄒㄧㄣ, 东 ㄉㄨㄥ. Without
# it 新 (xin) and 春 (chun) would not share their -en, nor 东 (dong) and 风 (feng) their -eng.
CONTRACTED = {"in": "en", "vn": "en", "ing": "eng", "ong": "eng", "iong": "eng"}
# After a medial, pinyin's e is another vowel (ê, Zhuyin ㄝ) than alone, and uo is Zhuyin's ㄛ.
AFTER_MEDIAL = {"ie": "ê", "ve": "ê", "uo": "o"}
MEASURES = ("exact_form", "rhyme", "alternation", "opposition", "repeated", "copied_line", "longest_run")


def is_han(text: str) -> bool:
    """Whether `text` is not empty and all Chinese characters."""
    return re.fullmatch(f"[{HAN}]+", text) is not None


def lines_of(text: str) -> list[str]:
    """The lines of a poem without punctuation and blanks; an empty line inside stays, as an empty string."""

    def bare(line: str) -> str:
        return "".join(c for c in line if unicodedata.category(c)[0] not in "PZ")

    return [bare(line) for line in text.strip().split("\n")]


def quatrain(text: str) -> tuple[str, str, str, str]:
    """The four lines of a quatrain, all of five or all of seven Chinese characters, punctuation set aside.

    Raises ValueError that says what is wrong with another text.
    """
    lines = lines_of(text)
    rule = "a quatrain has four lines, all of five or all of seven Chinese characters"
    if len(lines) != 4:
        raise ValueError(f"Not a quatrain, {len(lines)} line(s) in {text[:30]!r}: {rule}.")
    for number, line in enumerate(lines, 1):
        if not is_han(line):
            raise ValueError(f"Not a quatrain, line {number} is {line[:30]!r}: {rule}.")
    if len(lines[0]) not in LENGTHS or len({len(line) for line in lines}) > 1:
        found = ", ".join(str(len(line)) for line in lines)
        raise ValueError(f"Not a quatrain, lines of {found} characters: {rule}.")
    return tuple(lines)


def is_quatrain(text: str) -> bool:
    """Whether `text` has the exact form that `quatrain` asks for."""
    try:
        quatrain(text)
    except ValueError:
        return False
    return True


def _reading(character: str, style: Style) -> str:
    """pypinyin's first reading; "" for a character without pinyin. Raises ValueError for two characters."""
    if len(character) != 1:
        raise ValueError(f"{character!r} is not one character: pass them one by one.")
    return pinyin(character, style=style, strict=True, errors=lambda _: [""])[0][0]


@cache
def rhyme_of(character: str) -> str | None:
    """The final without its medial: 家 jia -> "a", 花 hua -> "a", 归 gui -> "ei", 云 yun -> "en".

    None for what has no pinyin (a rare character, a letter, a punctuation mark).
    """
    final = _reading(character, Style.FINALS)  # strict: gui is uei, 云 is vn
    known = CONTRACTED | AFTER_MEDIAL
    return known.get(final) or re.sub(r"^[iuv](?=[aeo])", "", final) or None


def rhyme(a: str, b: str) -> bool:
    """Whether two characters rhyme. The same character twice is no rhyme; nor is one without pinyin."""
    return a != b and rhyme_of(a) is not None and rhyme_of(a) == rhyme_of(b)


@cache
def tone_of(character: str) -> str | None:
    """ "level" (tones 1, 2) or "oblique" (3, 4); None for the neutral tone and for what has no pinyin."""
    tone = _reading(character, Style.FINALS_TONE3)[-1:]
    return {"1": "level", "2": "level", "3": "oblique", "4": "oblique"}.get(tone)


def _share_of_opposites(pairs: Sequence[tuple[str, str]]) -> float:
    """Among the pairs whose tones are both known, the share of a level and an oblique one; else nan."""
    tones = [(tone_of(a), tone_of(b)) for a, b in pairs]
    known = [a != b for a, b in tones if a and b]
    return float(np.mean(known)) if known else float("nan")


def alternation(lines: Sequence[str]) -> float:
    """Inside a line: of the pairs at positions (2, 4) and, with seven characters, (4, 6), the share with
    opposite tones. 1 for a poem by the rule, about 0.5 by chance; nan where no tone is known."""
    return _share_of_opposites([(x[i], x[i + 2]) for x in lines for i in range(1, len(x) - 2, 2)])


def opposition(lines: Sequence[str]) -> float:
    """Between the lines of a couplet (1 and 2, 3 and 4): at positions 2, 4 (and 6), the share with
    opposite tones. 1 for a poem by the rule, about 0.5 by chance; nan where no tone is known."""
    couplets = ((lines[0], lines[1]), (lines[2], lines[3]))
    return _share_of_opposites([(a[i], b[i]) for a, b in couplets for i in range(1, len(a), 2)])


def repeated(lines: Sequence[str]) -> float:
    """Share of a poem's characters that stood in it before: 0 if all differ."""
    text = "".join(lines)
    return 1 - len(set(text)) / len(text)


def training_lines(texts: Sequence[str]) -> frozenset[str]:
    """Every line of the training poems, punctuation set aside: what `form` finds copies of."""
    return frozenset(line for text in texts for line in lines_of(text) if line)


def form(text: str, known: frozenset[str] = frozenset()) -> dict[str, float]:
    """The measures of one text; `known` are the training poems' lines.

    exact_form, rhyme (lines 2 and 4) and copied_line (one line or more of `known`) are 0 or 1;
    alternation, opposition and repeated are shares. A text that is no quatrain has exact_form 0 and rhyme
    0, so that a rate is always one of all texts, and nan where the measure needs four equal lines.
    """
    copied = float(any(line in known for line in lines_of(text) if line))
    if not is_quatrain(text):
        nan = dict.fromkeys(("alternation", "opposition", "repeated"), float("nan"))
        return {"exact_form": 0.0, "rhyme": 0.0, **nan, "copied_line": copied}
    lines = quatrain(text)
    return {
        "exact_form": 1.0,
        "rhyme": float(rhyme(lines[1][-1], lines[3][-1])),
        "alternation": alternation(lines),
        "opposition": opposition(lines),
        "repeated": repeated(lines),
        "copied_line": copied,
    }


def form_table(texts: Sequence[str], train: Sequence[str]) -> pd.DataFrame:
    """One row per measure of MEASURES: measure, value (the mean over the texts it is defined for; of
    longest_run the median) and texts (how many those are). `train` are the training poems; longest_run is
    the longest run of characters, punctuation counted, that also stands in one of them.

    Raises ValueError for no text.
    """
    if not texts:
        raise ValueError("The form of no text: pass some poems.")
    known = training_lines(train)
    frame = pd.DataFrame([form(text, known) for text in texts])
    frame["longest_run"] = longest_overlap(list(texts), list(train))
    rows = []
    for measure in MEASURES:
        values = frame[measure].dropna()
        middle = values.median() if measure == "longest_run" else values.mean()
        rows.append({"measure": measure, "value": float(middle), "texts": len(values)})
    return pd.DataFrame(rows)


def scan(text: str) -> pd.DataFrame:
    """A quatrain under the rules, one row a line: line, tones (平 level, 仄 oblique, ？ unknown), end (the
    last character), rhyme (its final without the medial). Raises ValueError for a text that is none."""
    sign = {"level": "平", "oblique": "仄", None: "？"}
    return pd.DataFrame(
        [
            {"line": x, "tones": "".join(sign[tone_of(c)] for c in x), "end": x[-1], "rhyme": rhyme_of(x[-1])}
            for x in quatrain(text)
        ]
    )


def rhyme_by_chance(texts: Sequence[str]) -> float:
    """The rate of rhyme when line 2 of each quatrain is paired with line 4 of every other one of the same
    line length: what the same line ends give without regard to each other. nan for less than two poems.

    Held against a model's own poems it is the stricter chance: a model that ends its lines in few sounds
    rhymes by that alone. Raises ValueError for a text that is no quatrain.
    """
    hits = pairs = 0
    for length in LENGTHS:
        poems = [p for p in map(quatrain, texts) if len(p[0]) == length]
        second, fourth = (Counter(p[k][-1] for p in poems) for k in (1, 3))
        finals = [Counter(), Counter()]
        for count, characters in zip(finals, (second, fourth), strict=True):
            for c, n in characters.items():
                count[rhyme_of(c)] += n
        hits += sum(n * finals[1][f] for f, n in finals[0].items() if f)
        hits -= sum(n * fourth[c] for c, n in second.items() if rhyme_of(c))  # the same character
        hits -= sum(rhyme(p[1][-1], p[3][-1]) for p in poems)  # a poem with itself
        pairs += len(poems) * (len(poems) - 1)
    return hits / pairs if pairs else float("nan")


def characters_mixed(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Chance for tones: each quatrain with its own characters in a random order.

    Raises ValueError for a text that is no quatrain.
    """
    rng = np.random.default_rng(seed)
    out = []
    for lines in map(quatrain, texts):
        mixed, n = "".join(rng.permutation(list("".join(lines)))), len(lines[0])
        out.append("\n".join(mixed[i : i + n] for i in range(0, 4 * n, n)))
    return out
