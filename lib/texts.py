"""How generated texts compare with references, with each other and with the training text; Debian's form and tags.

`predictions` are texts, `references` for each prediction a list of texts, or one. sacrebleu (Post 2018) counts BLEU
and chrF, rouge-score ROUGE-L. Beside the published E2E rows (tuetschek/e2e-metrics): `bleu` with
`lowercase=True` and `nist` follow mteval-13a's definition, but those rows may score detokenised text, and mteval counts
the empty strings that pad its files. ROUGE-L there is coco-caption's F with beta 1.2: not comparable. Left out: METEOR,
which needs WordNet's files, and CIDEr, which needs Java.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest

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


def _lists(predictions: Sequence[str], references: Sequence) -> list[list[str]]:
    """References as lists. Raises ValueError where they do not go with the predictions."""
    lists = [[r] if isinstance(r, str) else list(r) for r in references]
    if not predictions or len(predictions) != len(lists):
        raise ValueError(f"{len(predictions)} predictions and {len(lists)} reference lists: pass one list for each.")
    if not all(lists):
        raise ValueError(f"Prediction {lists.index([])} has no reference: give it one or leave it out.")
    return lists


def _corpus(metric: BLEU | CHRF, predictions: Sequence[str], references: Sequence) -> float:
    # sacrebleu: stream k holds every prediction's k-th reference, or None
    streams = [list(stream) for stream in zip_longest(*_lists(predictions, references))]
    return metric.corpus_score(list(predictions), streams).score


def bleu(predictions: Sequence[str], references: Sequence, lowercase: bool = False, tokenize: str = "13a") -> float:
    """Corpus BLEU-4 in 0-100 with any number of references (Papineni et al. 2002), as the sacrebleu command scores it;
    `tokenize="zh"` for Chinese."""
    return _corpus(BLEU(lowercase=lowercase, tokenize=tokenize, force=True), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence) -> float:
    """Corpus chrF2 in 0-100: character n-grams up to 6, the best reference (Popovic 2015)."""
    return _corpus(CHRF(), predictions, references)


class _Plain:
    """rouge-score's own tokenizer drops everything outside a-z and 0-9, which is all Chinese text."""

    def tokenize(self, text: str) -> list[str]:
        return words(re.sub(r"[^\w\s]|_", " ", text.lower()))


def rouge_l(predictions: Sequence[str], references: Sequence) -> float:
    """Mean ROUGE-L F1 in 0-1, the best reference of each text (Lin 2004), without stemming. Words by `words`, in lower
    case and without the punctuation between them."""
    lists, scorer = _lists(predictions, references), RougeScorer(["rougeL"], tokenizer=_Plain())
    best = [scorer.score_multi(r, p)["rougeL"].fmeasure for p, r in zip(predictions, lists, strict=True)]
    return float(np.mean(best))


def nist(predictions: Sequence[str], references: Sequence, max_n: int = 5) -> float:
    """NIST (Doddington 2002) as mteval-v13a counts it, ignoring case: an n-gram matches if any reference holds it (in
    nltk's corpus_nist, the single best one), and the length goes against the references' average."""
    tokenizer = BLEU(tokenize="13a").tokenizer
    split = cache(lambda text: tuple(tokenizer(text.lower()).split()))
    lists = _lists(predictions, references)
    counts: Counter = Counter()
    for tokens in (split(r) for rs in lists for r in rs):
        counts[()] += len(tokens)
        for n in range(1, max_n + 1):
            counts.update(ngrams(tokens, n))
    score = 0.0
    for n in range(1, max_n + 1):
        gained, possible = 0.0, 0
        for p, rs in zip(predictions, lists, strict=True):
            mine, theirs = ngrams(split(p), n), Counter()
            for r in rs:
                theirs |= ngrams(split(r), n)
            gained += sum(k * math.log2(counts[g[:-1]] / counts[g]) for g, k in (mine & theirs).items())
            possible += mine.total()
        score += gained / possible if possible else 0.0
    length = sum(len(split(p)) for p in predictions)
    expected = sum(np.mean([len(split(r)) for r in rs]) for rs in lists)
    ratio = min(length / expected, 1.0) if expected else 1.0
    beta = math.log(0.5) / math.log(1.5) ** 2  # half the score at two thirds of the length
    return score * math.exp(beta * math.log(ratio) ** 2) if ratio else 0.0


# --- with each other, and with the training text


def self_bleu(texts: Sequence[str], sample: int = 100, seed: int = 0) -> float:
    """Mean BLEU-4 in 0-100 of each text against all the others (Zhu et al. 2018, "Texygen"); high means alike. It grows
    with their number: of more than `sample` texts a fixed random `sample` is taken. nan for one text."""
    if len(texts) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(texts), min(sample, len(texts)), replace=False))
    picked = [" ".join(words(texts[i])) for i in chosen]
    metric = BLEU(tokenize="none", effective_order=True, force=True)
    return float(np.mean([metric.sentence_score(t, picked[:i] + picked[i + 1 :]).score for i, t in enumerate(picked)]))


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """distinct_1, distinct_2: different n-grams / all n-grams of the texts together (Li, Galley et al. 2016 divide by
    tokens), which falls with the amount of text: compare equally many of similar length. rep_4: 1 - different / all
    4-grams in a text, their mean (Welleck et al. 2020); shorter texts repeat nothing. self_bleu; mean words."""
    split = [words(text) for text in texts]
    pooled = {n: Counter(g for tokens in split for g in ngrams(tokens, n).elements()) for n in (1, 2)}
    found = {f"distinct_{n}": len(c) / c.total() if c else 0.0 for n, c in pooled.items()}
    inside = [ngrams(tokens, 4) for tokens in split]
    found["rep_4"] = float(np.mean([1 - len(c) / c.total() if c else 0.0 for c in inside]))
    return found | {"self_bleu": self_bleu(texts), "words": float(np.mean([len(tokens) for tokens in split]))}


def longest_overlap(predictions: Sequence[str], train: Sequence[str]) -> list[int]:
    """Words of each prediction's longest run of words that also stands in one training text."""
    # runs grow by a word at a time, and only those places are looked at again whose run was shared so far
    mine, theirs = [words(t) for t in predictions], [words(t) for t in train]
    longest, n = [0] * len(mine), 0
    here, there = (
        [(tokens, i, at) for i, tokens in enumerate(side) for at in range(len(tokens))] for side in (mine, theirs)
    )
    while here:
        n += 1
        known = {tuple(tokens[at : at + n]) for tokens, _, at in there}
        here = [p for p in here if p[2] + n <= len(p[0]) and tuple(p[0][p[2] : p[2] + n]) in known]
        shared = {tuple(tokens[at : at + n]) for tokens, _, at in here}
        there = [p for p in there if tuple(p[0][p[2] : p[2] + n]) in shared]
        for _, i, _ in here:
            longest[i] = n
    return longest


def copied(predictions: Sequence[str], train: Sequence[str]) -> float:
    """Share of predictions that are a training target verbatim, white space aside."""
    known = {" ".join(t.split()) for t in train}
    return float(np.mean([" ".join(p.split()) in known for p in predictions])) if predictions else 0.0


# --- Debian's form and tags

# Debtags facets whose values a description talks about: on the validation split a human description mentions 54 % of
# these tags and that of the next package 11 %. Without such a contrast: role, scope, interface, uitoolkit, devel, x11.
_FACETS = """accessibility admin biology culture field game hardware mail made-of network office protocol
science security sound suite system use web works-with works-with-format"""
# A tag's value and other words that say it, as prefixes; short on purpose.
_SYNONYMS = """gameplaying game play; timekeeping time clock date; text string word; viewing display show; monitor
watch; checking test verif valid; configuring setting setup; organizing manag; analysing analy;
learning teach educat tutor; storing storage backup archiv; chatting irc messag; synchronizing sync;
transmission send transfer; downloading fetch; image graphic picture photo; audio sound music; video
movie film; db database sql; source code; package deb apt; logfile log; plaintext text; jpg jpeg;
oggvorbis ogg vorbis; ssl tls; http web; mathematics math; cryptography encrypt crypt;
virtualization virtual xen qemu kvm; filesystem disk mount; vcs git version; raster image picture
photo; vector svg drawing; biology bio gene dna protein sequenc; bioinformatics bio gene dna;
entertaining fun game amus; storage disk drive tape; cd disc"""
SYNONYMS = {value: tuple(others) for value, *others in map(str.split, _SYNONYMS.split(";"))}


def tag_reflected(tag: str, text: str) -> bool:
    """Does a word of `text` begin with the tag's value, its stem or a synonym of it? Values of fewer than four letters
    ("c", "r", "x11") must be the whole word."""
    value = tag.rpartition("::")[2].split(":")[-1]
    said = set(re.findall(r"[a-z0-9]+\+*", text.lower()))
    # a crude stem: the word less one ending, at least four letters of it ("converting" -> "convert")
    short = {w: re.sub(r"(?:ings?|ers?|ors?|ions?|ies|ed|es|s|e|y)$", "", w) for w in value.split("-") if len(w) > 3}
    stems = [stem if len(stem) >= 4 else w for w, stem in short.items()]
    wanted = {value, *SYNONYMS.get(value, ()), *stems}
    return any(w in said if len(w) < 4 else any(s.startswith(w) for s in said) for w in wanted)


def debian_checks(prompt: str, output: str) -> dict[str, float]:
    """Does one generated description keep Debian's form, and say what its tags say?

    The form (Debian Policy 3.4.1, Developer's Reference 6.2.2): a synopsis of at most 80 characters without a leading
    article and a full stop; `synopsis_form` is all three. All are 0 or 1 but tags_reflected: the share of the prompt's
    tags in _FACETS that a word of the output says, nan without one. The rate of human descriptions is the ceiling."""
    synopsis, long = map(str.strip, output.strip().partition("\n")[::2])
    line = re.search(r"^Tags:(.*)$", prompt, re.MULTILINE)
    parts = [tag.strip().partition("::") for tag in (line[1].split(",") if line else ())]
    tags = ["".join(part) for part in parts if part[0] in _FACETS.split() and part[1]]
    form = {
        "synopsis_at_most_80": float(0 < len(synopsis) <= 80),
        "no_article": float(not re.match(r"(?:an?|the)\b(?!-)", synopsis, re.IGNORECASE)),
        "no_full_stop": float(not (synopsis.endswith(".") and not synopsis.endswith(("...", "etc.")))),
    }
    return form | {
        "has_long_description": float(bool(long)),
        "synopsis_form": float(all(form.values())),
        "tags_reflected": sum(tag_reflected(t, output) for t in tags) / len(tags) if tags else math.nan,
    }
