"""Chinese (notebook 07): the form of a Tang quatrain, a plan before it, and frequent characters as new tokens.

Form is counted by rules without a judge (Wang Li 1958, "Hanyu shilü xue"). Sounds are today's Mandarin from pypinyin,
one reading per character. Some rhymes of the Tang no longer rhyme, its entering tone (-p, -t, -k, an oblique one) has
gone over into all four of today, and tones bind regulated verse alone: people stay below 100 %, and are the yardstick.
"""

import copy
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from pypinyin import Style, pinyin
from tokenizers import AddedToken
from torch import Tensor

from lib import packing, tasks

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
METRES = {5: "五", 7: "七"}
INITS = ("pieces", "random")  # how a new token's row starts
MARKS = {"平": "-", "仄": "/", None: "?"}  # all punctuation, which no measure of form reads
# The thirteen tracks (十三辙, Luo Changpei 1942) join e with o, ü and er with i, ong with eng, and part ie from e.
FINALS = {"in": "en", "vn": "en", "ing": "eng", "ong": "eng", "iong": "eng", "ie": "ê", "ve": "ê"}
FINALS |= {"e": "o", "v": "i", "er": "i"}


def lines_of(text: str) -> list[str]:
    """A poem's lines without punctuation and blanks; an empty line inside stays."""
    return ["".join(c for c in x if unicodedata.category(c)[0] not in "PZ") for x in text.strip().split("\n")]


def quatrain(text: str) -> list[str] | None:
    """The four lines of a quatrain, all of five or all of seven Chinese characters; None for another text."""
    lines = lines_of(text)
    one_length = len(lines) == 4 and len({*map(len, lines)}) == 1 and len(lines[0]) in METRES
    return lines if one_length and all(map(HAN.fullmatch, lines)) else None


def _reading(character: str, style: Style) -> str:
    return pinyin(character, style=style, strict=True, errors=lambda _: [""])[0][0]


@cache
def rhyme_of(character: str) -> str | None:
    """A character's class of rhyme, its final without medial: 家 jia -> "a", 云 yun -> "en". None without pinyin."""
    final = _reading(character, Style.FINALS)  # strict: gui is uei, 云 is vn
    return FINALS.get(final) or re.sub(r"^[iuv](?=[aeo])", "", final) or None


def rhyme(a: str, b: str) -> bool:
    """Whether two characters rhyme. The same character twice is no rhyme; nor is one without pinyin."""
    return a != b and rhyme_of(a) is not None and rhyme_of(a) == rhyme_of(b)


@cache
def tone_of(character: str) -> str | None:
    """平 level (tones 1, 2) or 仄 oblique (3, 4); None for the neutral tone and for what has no pinyin."""
    return {"1": "平", "2": "平", "3": "仄", "4": "仄"}.get(_reading(character, Style.FINALS_TONE3)[-1:])


def _opposite(pairs: Sequence[tuple[str, str]]) -> float:
    known = [tone_of(a) != tone_of(b) for a, b in pairs if tone_of(a) and tone_of(b)]
    return float(np.mean(known)) if known else float("nan")


def alternation(lines: Sequence[str]) -> float:
    """Inside a line: of the characters at 2 and 4 (with seven, also 4 and 6), the share of pairs with opposite tones.
    1 by the rule, about 0.5 by chance, nan where no tone is known."""
    return _opposite([(x[i], x[i + 2]) for x in lines for i in range(1, len(x) - 2, 2)])


def opposition(lines: Sequence[str]) -> float:
    """Between lines 1 and 2, and 3 and 4: the share of opposite tones at characters 2, 4 (and 6)."""
    return _opposite([(a[i], b[i]) for a, b in (lines[:2], lines[2:]) for i in range(1, len(a), 2)])


def form(text: str, known: frozenset[str] = frozenset()) -> dict[str, float]:
    """The measures of one text; `known` are the training poems' lines.

    exact_form, rhyme (lines 2 and 4) and copied_line (a line of `known`) are 0 or 1; alternation, opposition and
    repeated (characters that stood in the poem before) are shares. A text that is no quatrain has exact_form 0 and
    rhyme 0, so that a rate is always one of all texts, and no shares."""
    copied, lines = float(not known.isdisjoint(lines_of(text))), quatrain(text)
    if not lines:
        return {"exact_form": 0.0, "rhyme": 0.0, "copied_line": copied}
    found = {"exact_form": 1.0, "rhyme": float(rhyme(lines[1][-1], lines[3][-1])), "alternation": alternation(lines)}
    repeated = 1 - len(set("".join(lines))) / (4 * len(lines[0]))
    return found | {"opposition": opposition(lines), "repeated": repeated, "copied_line": copied}


def reward(text: str, known: frozenset[str] = frozenset()) -> float:
    """How many of four rules a text keeps, tones by their share: exact form, rhyme, alternation, opposition. 0 where it
    is no quatrain or copies a line of `known`."""
    found = form(text, known)
    rules = [found.get(name, 0) for name in ("exact_form", "rhyme", "alternation", "opposition")]
    return float(np.nansum(rules)) * found["exact_form"] * (1 - found["copied_line"])


def rhyme_by_chance(poems: Sequence[str]) -> float:
    """The rate of rhyme when line 2 of each quatrain is paired with line 4 of every other one of the same line length;
    nan for less than two poems. Of a model's own poems the stricter chance: few line ends rhyme by that alone."""
    hits = pairs = 0
    for length in METRES:
        ends = [(p[1][-1], p[3][-1]) for p in filter(None, map(quatrain, poems)) if len(p[0]) == length]
        second, fourth = Counter(a for a, _ in ends), Counter(b for _, b in ends)
        hits += sum(n * m * rhyme(a, b) for a, n in second.items() for b, m in fourth.items())
        hits -= sum(rhyme(a, b) for a, b in ends)  # a poem with itself
        pairs += len(ends) * (len(ends) - 1)
    return hits / pairs if pairs else float("nan")


def plan_of(text: str, last: str | None = None) -> str:
    """A quatrain's plan: metre, final of line 4's end, ends of lines 2 and 4; 七an颜间. `last`: another end."""
    if not (lines := quatrain(text)):
        raise ValueError(f"Not a quatrain, four lines, all of five or all of seven Chinese characters: {text[:30]!r}.")
    second, fourth = lines[1][-1], last or lines[3][-1]
    return f"{METRES[len(lines[0])]}{rhyme_of(fourth) or '?'}{second}{fourth}"


def marked(text: str) -> str:
    """A quatrain's lines, each behind the tones that the rules bind, of its characters 2, 4 (and 6): -/- is level,
    oblique, level. Before its line and not in the plan, since a mark is then near its character."""
    bound = ["".join(MARKS[tone_of(c)] for c in line[1:-1:2]) for line in quatrain(text)]
    return "\n".join(map(str.__add__, bound, text.split("\n")))


def marks_kept(text: str) -> float:
    """The share of a text's marks whose characters have the tone they say; nan without any."""
    lines = [(re.match("[-/?]*", line)[0], lines_of(line)[0][1:-1:2]) for line in text.strip().split("\n")]
    kept = [mark == MARKS[tone_of(c)] for marks, bound in lines for mark, c in zip(marks, bound, strict=False)]
    return float(np.mean(kept)) if kept else float("nan")


def with_plan(task, tones: bool = False):
    """Each target behind its plan (Yao et al. 2019; rhyme words first: Ghazvininejad et al. 2016), its lines `marked`
    for `tones`."""
    splits, name = {}, f"{task.name}-plan{'-tones' * tones}"
    for split, rows in task.items():
        both = ([f"{plan_of(t)}\n{marked(t) if tones else t}" for t in (r["target"], *r["references"])] for r in rows)
        splits[split] = [r | {"target": t[0], "references": t[1:]} for r, t in zip(rows, both, strict=True)]
    return task.replace(name=name, sha256=f"{task.sha256}{name.removeprefix(task.name)}", **splits)


def unrhymed_plans(poems: Sequence[str]) -> list[str]:
    """For each quatrain the plan whose second word is the end of the next quatrain that does not rhyme with its first:
    what a model that only learned to copy ends its lines in. Raises ValueError where all poems rhyme."""
    ends, plans = [quatrain(text)[3][-1] for text in poems], []
    for i, text in enumerate(poems):
        second = quatrain(text)[1][-1]
        other = next((c for c in (*ends[i + 1 :], *ends[:i]) if c != second and not rhyme(second, c)), None)
        if other is None:
            raise ValueError(f"No end of the other poems fails to rhyme with {second}: pass more.")
        plans.append(plan_of(text, other))
    return plans


def follows(text: str) -> dict[str, float]:
    """How a text keeps to its own first line: plan_rhymes (its two words), metre_kept, ends_kept (lines 2 and 4 end in
    them), each 0 or 1; 0 without a readable plan or a quatrain after it."""
    plan, _, poem = text.partition("\n")
    plan, lines = plan.strip(), quatrain(poem)
    kept = {"plan_rhymes": len(plan) >= 3 and rhyme(plan[-2], plan[-1])}
    kept["metre_kept"] = lines is not None and METRES[len(lines[0])] == plan[:1]
    kept["ends_kept"] = lines is not None and lines[1][-1] + lines[3][-1] == plan[-2:]
    return {name: float(value) for name, value in kept.items()}


def split_characters(tokenizer, texts: Sequence[str], count: int) -> list[str]:
    """The `count` most frequent Chinese characters of `texts` that `tokenizer` cuts into several tokens, ties in code
    order. Pass the training split alone. Raises ValueError where there are fewer."""
    frequency = Counter(c for text in texts for c in text if HAN.fullmatch(c))
    ordered = sorted(frequency, key=lambda c: (-frequency[c], c))
    pieces = tokenizer(ordered, add_special_tokens=False).input_ids
    found = [c for c, ids in zip(ordered, pieces, strict=True) if len(ids) > 1]
    if len(found) < count:
        raise ValueError(f"The texts hold {len(found)} characters that the tokenizer splits, fewer than {count}.")
    return found[:count]


def new_rows(rows: Tensor, pieces: Sequence[Sequence[int]], init: str, seed: int) -> Tensor:
    """New rows (N, C) of a table (V, C). "pieces": the mean of each token's pieces (Sachidananda et al. 2021,
    arXiv:2109.07460). "random", the control: noise of mean 0 and their standard deviation, the scale without the
    knowledge; its logits near 0 may lie far above the old tokens' (Hewitt 2021, Initializing New Word Embeddings)."""
    means = torch.stack([rows[list(ids)].mean(0) for ids in pieces])
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed))
    return means if init == "pieces" else (noise * means.std().cpu()).to(rows)


@torch.no_grad()
def extend(base, characters: Sequence[str], init: str, seed: int = 0):
    """A copy of `base` with a token for each of `characters`: the `new_rows` of embedding, untied head and its bias
    start by `init`, one of INITS. The name tells the extension apart, so that no other one's run is taken. Raises
    ValueError for a character that is not split or given twice."""
    pieces = base.tokenizer(list(characters), add_special_tokens=False).input_ids if characters else [[]]
    if min(map(len, pieces)) < 2 or len({*characters}) < len(characters):
        raise ValueError("Each new token must be a character that the tokenizer splits, given once.")
    tokenizer, model = copy.deepcopy(base.tokenizer), copy.deepcopy(base.model)
    # not normalised, or a tokenizer that normalises would look for another string than the text holds
    tokenizer.add_tokens([AddedToken(c, normalized=False) for c in characters])
    new = torch.tensor(tokenizer.convert_tokens_to_ids(list(characters)))
    size = max(model.get_input_embeddings().num_embeddings, len(tokenizer))
    model.resize_token_embeddings(size, mean_resizing=False)  # which would be a third way to start
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tables = [embedding] if output.weight is embedding else [embedding, output.weight]
    if getattr(output, "bias", None) is not None:
        tables.append(output.bias[:, None])  # a view: (V, 1)
    for table in tables:
        table[new.to(table.device)] = new_rows(table, pieces, init, seed)
    digest = hashlib.sha256("".join(characters).encode()).hexdigest()[:8]
    name = f"{base.name} + {len(characters)} characters ({init}, seed {seed}, {digest})"
    return replace(base, model=model.eval(), tokenizer=tokenizer, name=name, parameters=model.num_parameters())


def same_documents(base, extended, task, seed: int, tokens: int, seen=None) -> int:
    """How many tokens of `extended` the documents hold that `base` draws with `tokens` of its own: with that budget and
    seed, both train on the same documents; `extended` on those of `seen`, without plans say."""
    drawn = packing.draw(tasks.encode(base.tokenizer, task["train"], base.context), tokens, seed)
    length = {d.id: len(d.input_ids) for d in tasks.encode(extended.tokenizer, (seen or task)["train"], base.context)}
    return sum(length[d.id] for d in drawn)


def bits_per_character(scores: pd.DataFrame, rows) -> float:
    """Sum of nats / (ln 2 * characters of the scored targets among `rows`). EOS has nats and no character; punctuation
    and line breaks are characters."""
    characters = {row["id"]: len(row["target"]) for row in rows}
    return float(scores["nats"].sum() / (np.log(2) * sum(characters[i] for i in scores["id"])))
