"""How generated texts compare with references and with the training text.

`predictions` are texts, `references` for each prediction a list of texts, or one. sacrebleu (Post 2018) counts BLEU
and chrF, rouge-score ROUGE-L. Beside the published E2E rows (tuetschek/e2e-metrics): `bleu` with
`lowercase=True` and `nist` follow mteval-13a's definition, but those rows may score detokenised text, and mteval counts
the empty strings that pad its files. ROUGE-L and CIDEr of those rows: notebook 03."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cache
from itertools import zip_longest
from types import SimpleNamespace

import numpy as np
from nltk import everygrams, ngrams
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from tqdm.auto import tqdm

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """Whitespace-separated words; each Chinese character is a word of its own."""
    return _WORD.findall(text)


# rouge-score's own tokenizer drops everything outside a-z and 0-9, which is all Chinese text
PLAIN = SimpleNamespace(tokenize=lambda text: words(re.sub(r"[^\w\s]|_", " ", text.lower())))


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


def bleu(predictions: Sequence[str], references: Sequence, lowercase: bool = False) -> float:
    """Corpus BLEU-4 in 0-100 with any number of references (Papineni et al. 2002), as sacrebleu's command scores it."""
    return _corpus(BLEU(lowercase=lowercase, force=True), predictions, references)


def chrf(predictions: Sequence[str], references: Sequence) -> float:
    """Corpus chrF2 in 0-100: character n-grams up to 6, the best reference (Popovic 2015)."""
    return _corpus(CHRF(), predictions, references)


def rouge_l(predictions: Sequence[str], references: Sequence) -> float:
    """Mean ROUGE-L F1 in 0-1, the best reference of each text (Lin 2004), without stemming. Words by `words`, in lower
    case and without the punctuation between them."""
    lists, scorer = _lists(predictions, references), RougeScorer(["rougeL"], tokenizer=PLAIN)
    best = [scorer.score_multi(r, p)["rougeL"].fmeasure for p, r in zip(predictions, lists, strict=True)]
    return float(np.mean(best))


def nist(predictions: Sequence[str], references: Sequence) -> float:
    """NIST-5 (Doddington 2002) as mteval-v13a counts it, ignoring case: an n-gram matches if any reference holds it (in
    nltk's corpus_nist, the single best one), and the length goes against the references' average."""
    tokenizer = BLEU(tokenize="13a").tokenizer
    split = cache(lambda text: tokenizer(text.lower()).split())
    lists, counts = _lists(predictions, references), Counter()
    for tokens in (split(r) for rs in lists for r in rs):
        counts[()] += len(tokens)
        counts.update(everygrams(tokens, max_len=5))
    score = 0.0
    for n in range(1, 6):
        gained, possible = 0.0, 0
        for p, rs in zip(predictions, lists, strict=True):
            mine, theirs = Counter(ngrams(split(p), n)), Counter()
            for r in rs:
                theirs |= Counter(ngrams(split(r), n))
            gained += sum(k * math.log2(counts[g[:-1]] / counts[g]) for g, k in (mine & theirs).items())
            possible += mine.total()
        score += gained / possible if possible else 0.0
    length = sum(len(split(p)) for p in predictions)
    expected = sum(np.mean([len(split(r)) for r in rs]) for rs in lists)
    ratio = min(length / expected, 1.0) if expected else 1.0
    beta = math.log(0.5) / math.log(1.5) ** 2  # half the score at two thirds of the length
    return score * math.exp(beta * math.log(ratio) ** 2) if ratio else 0.0


def without_near_duplicates(features: Sequence[Collection[str]], threshold: float = 0.3) -> list[int]:
    """Indices of the texts that stay when of those whose sets of `features` (such as runs of three words) reach this
    Jaccard similarity the first does. Exact: an index from each feature to the kept counts what two sets share."""
    index, sizes = defaultdict(list), {}
    for i, own in enumerate(tqdm(features, desc="near-duplicates", disable=len(features) < 1000)):
        shared = Counter(j for feature in own for j in index[feature])
        if not any(n / (len(own) + sizes[j] - n) >= threshold for j, n in shared.items()):
            sizes[i] = len(own)
            for feature in own:
                index[feature].append(i)
    return list(sizes)


def longest_overlap(predictions: Sequence[str], train: Sequence[str]) -> list[int]:
    """Words of each prediction's longest run of words that also stands in one training text."""
    mine, theirs = [words(t) for t in predictions], [words(t) for t in train]
    longest, n = [0] * len(mine), 0
    while theirs:
        n += 1
        wanted = {gram for tokens in mine for gram in ngrams(tokens, n)}
        shared = [wanted.intersection(ngrams(tokens, n)) for tokens in theirs]
        theirs = [tokens for tokens, found in zip(theirs, shared, strict=True) if found]  # else no longer run either
        known = set().union(*shared)
        longest = [best if known.isdisjoint(ngrams(t, n)) else n for t, best in zip(mine, longest, strict=True)]
    return longest
