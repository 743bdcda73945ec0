"""How generated texts compare with references, with each other and with the training text.

Every function takes `predictions` (texts) and `references` (for each prediction a list of texts, or one
text). The counting is done by the libraries that the field cites: sacrebleu (Post 2018) for BLEU and
chrF, rouge-score for ROUGE-L. Checks of what a text says are in lib/explore/slots.py and lib/debian_checks.py.

Beside the published E2E rows (LoRA and others, scored by tuetschek/e2e-metrics, whose mteval-13a
ignores case): use `bleu(..., lowercase=True)` and `nist`; both then follow mteval's definition. Two
differences stay: the published rows may score detokenised text, and mteval counts the empty strings that
its file format pads short reference lists with. ROUGE-L here is rouge-score's F1, there it is
coco-caption's F with beta 1.2 over tokens of Stanford's tokenizer: not comparable. Left out: METEOR,
which needs WordNet's files (matching exact words and stems alone is another metric), and CIDEr, whose
one package (pycocoevalcap 1.2 of 2020, 100 MB) needs Java for the tokens that its numbers rest on.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """Whitespace-separated words; each Chinese character is a word of its own."""
    return _WORD.findall(text)


def ngrams(tokens: Sequence[str], n: int) -> Counter:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _total(counters: Iterable[Counter]) -> Counter:
    """Their sum; `sum` itself would copy what it has at each step."""
    total: Counter = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _checked(predictions: Sequence[str], references: Sequence) -> list[list[str]]:
    """References as lists. Raises ValueError where they do not go with the predictions."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} reference lists: pass one list of "
            "references (or one reference) per prediction, and at least one."
        )
    lists = [[r] if isinstance(r, str) else list(r) for r in references]
    if not all(lists):
        raise ValueError(f"Prediction {lists.index([])} has no reference: give it one or leave it out.")
    return lists


def _streams(references: list[list[str]]) -> list[list[str | None]]:
    """sacrebleu's layout: stream k holds every prediction's k-th reference, None where it has none."""
    longest = max(map(len, references))
    return [[r[k] if k < len(r) else None for r in references] for k in range(longest)]


def bleu(predictions: Sequence[str], references: Sequence, lowercase: bool = False, tokenize: str = "13a") -> float:
    """Corpus BLEU-4 in 0-100 with any number of references (Papineni et al. 2002), as the sacrebleu
    command scores it; `tokenize="zh"` for Chinese."""
    streams = _streams(_checked(predictions, references))
    return BLEU(lowercase=lowercase, tokenize=tokenize, force=True).corpus_score(list(predictions), streams).score


def chrf(predictions: Sequence[str], references: Sequence) -> float:
    """Corpus chrF2 in 0-100: character n-grams up to 6, the best reference (Popovic 2015)."""
    return CHRF().corpus_score(list(predictions), _streams(_checked(predictions, references))).score


def chrf_per_document(predictions: Sequence[str], references: Sequence) -> list[float]:
    """chrF2 in 0-100 of each text alone: what `lib.metrics.paired` compares."""
    lists = _checked(predictions, references)
    return [CHRF().sentence_score(p, r).score for p, r in zip(predictions, lists, strict=True)]


def rouge_l(predictions: Sequence[str], references: Sequence) -> float:
    """Mean ROUGE-L F1 in 0-1, the best reference of each text (Lin 2004), without stemming.

    Words by `words`, in lower case and without the punctuation between them.
    """
    lists, scorer = _checked(predictions, references), RougeScorer(["rougeL"], tokenizer=_Plain())
    best = [scorer.score_multi(r, p)["rougeL"].fmeasure for p, r in zip(predictions, lists, strict=True)]
    return float(np.mean(best))


class _Plain:
    """rouge-score's own tokenizer drops everything outside a-z and 0-9, which is all Chinese text."""

    def tokenize(self, text: str) -> list[str]:
        return words(re.sub(r"[^\w\s]|_", " ", text.lower()))


def nist(predictions: Sequence[str], references: Sequence, max_n: int = 5) -> float:
    """NIST (Doddington 2002) as mteval-v13a counts it, ignoring case: an n-gram matches if any
    reference holds it, and the length goes against the references' average.

    Own code: nltk's corpus_nist matches the single best reference, which is lower with several. Equal
    to nltk with one reference (tests/test_texts.py).
    """
    tokenizer = BLEU(tokenize="13a").tokenizer
    split = cache(lambda text: tuple(tokenizer(text.lower()).split()))
    lists = _checked(predictions, references)
    counts = _total(ngrams(split(r), n) for rs in lists for r in rs for n in range(1, max_n + 1))
    total = sum(len(split(r)) for rs in lists for r in rs)

    def information(gram: tuple[str, ...]) -> float:
        return math.log2((counts[gram[:-1]] if len(gram) > 1 else total) / counts[gram])

    score = 0.0
    for n in range(1, max_n + 1):
        gained, possible = 0.0, 0
        for p, rs in zip(predictions, lists, strict=True):
            mine, theirs = ngrams(split(p), n), Counter()
            for r in rs:
                theirs |= ngrams(split(r), n)
            gained += sum(k * information(g) for g, k in (mine & theirs).items())
            possible += mine.total()
        score += gained / possible if possible else 0.0
    length = sum(len(split(p)) for p in predictions)
    expected = sum(np.mean([len(split(r)) for r in rs]) for rs in lists)
    ratio = min(length / expected, 1.0) if expected else 1.0
    beta = math.log(0.5) / math.log(1.5) ** 2  # half the score at two thirds of the length
    return score * math.exp(beta * math.log(ratio) ** 2) if ratio else 0.0


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams / all n-grams of the texts together (Li et al. 2016). Falls with the amount of
    text: compare equally many texts of similar length."""
    counts = _total(ngrams(words(t), n) for t in texts)
    return len(counts) / counts.total() if counts else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """rep-n: 1 - different / all n-grams inside a text, averaged over the texts (Welleck et al. 2020).
    A text of fewer than n words repeats nothing."""
    counts = [ngrams(words(t), n) for t in texts]
    return float(np.mean([1 - len(c) / c.total() if c else 0.0 for c in counts])) if counts else 0.0


def self_bleu(texts: Sequence[str], sample: int = 100, seed: int = 0) -> float:
    """Mean BLEU-4 in 0-100 of each text against all the others (Zhu et al. 2018, "Texygen"); high means
    alike. It grows with their number: of more than `sample` texts a fixed random `sample` is taken."""
    if len(texts) < 2:
        raise ValueError("Self-BLEU compares texts with each other: pass two or more.")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(texts), min(sample, len(texts)), replace=False))
    picked = [" ".join(words(texts[i])) for i in chosen]
    metric = BLEU(tokenize="none", effective_order=True, force=True)
    return float(np.mean([metric.sentence_score(t, picked[:i] + picked[i + 1 :]).score for i, t in enumerate(picked)]))


class _Runs:
    """All runs of n words of the training texts as 64-bit polynomial hashes modulo 2**64."""

    BASE = 0x9E3779B97F4A7C15  # odd, so that its powers do not vanish

    def __init__(self, train: Sequence[str]):
        self.codes: dict[str, int] = {}
        self.rng = np.random.default_rng(0)
        flat: list[int] = []
        for i, text in enumerate(train):  # a separator of its own ends each text: no run crosses it
            flat += [*self.code(words(text)), *self.code([f"\n{i}"])]
        self.trained = self.prefix(flat)
        self.known = cache(lambda n: np.unique(self.runs(self.trained, n)))

    def code(self, tokens: Sequence[str]) -> list[int]:
        new = dict.fromkeys(t for t in tokens if t not in self.codes)
        drawn = self.rng.integers(2**63, size=len(new), dtype=np.uint64).tolist()
        self.codes.update(zip(new, drawn, strict=True))
        return [self.codes[t] for t in tokens]

    def prefix(self, values: Sequence[int]) -> np.ndarray:
        out, value = np.zeros(len(values) + 1, np.uint64), 0
        for i, v in enumerate(values):
            value = (value * self.BASE + v) % 2**64
            out[i + 1] = value
        return out

    def runs(self, hashes: np.ndarray, n: int) -> np.ndarray:
        return hashes[n:] - hashes[:-n] * np.uint64(pow(self.BASE, n, 2**64))

    def shared(self, mine: np.ndarray, n: int) -> bool:
        found, among = self.runs(mine, n), self.known(n)
        at = np.searchsorted(among, found).clip(max=len(among) - 1)
        return bool((among[at] == found).any())


@lru_cache(maxsize=2)  # the models of a comparison share their training texts
def _runs_of(train: tuple[str, ...]) -> _Runs:
    return _Runs(train)


def longest_overlap(predictions: Sequence[str], train: Sequence[str]) -> list[int]:
    """Words of each prediction's longest run of words that also stands in one training text.

    Binary search over the length (a shared run's parts are shared too) against the set of all runs of
    that length: O(train words * log) for all predictions of one length.
    """
    index, longest = _runs_of(tuple(train)), []
    for text in predictions:
        mine = index.prefix(index.code(words(text)))
        low, high = 0, min(len(mine), len(index.trained)) - 1
        while low < high:
            n = (low + high + 1) // 2
            if index.shared(mine, n):
                low = n
            else:
                high = n - 1
        longest.append(low)
    return longest


def copied(predictions: Sequence[str], train: Sequence[str]) -> float:
    """Share of predictions that are a training target verbatim, white space aside."""
    known = {" ".join(t.split()) for t in train}
    return float(np.mean([" ".join(p.split()) in known for p in predictions])) if predictions else 0.0


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """distinct_1, distinct_2, rep_4 in 0-1, self_bleu in 0-100, mean words; see those functions."""
    return {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "rep_4": repetition(texts, 4),
        "self_bleu": self_bleu(texts) if len(texts) > 1 else math.nan,
        "words": float(np.mean([len(words(t)) for t in texts])),
    }


# --- Debian's form and tags

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
