import json
import math
import re

import pytest
import torch

from lib import benchmarks, hub, models

RAW = """ \n = First Page = \n \n The cat sat @-@ on 3 @.@ 5 mats ( really ) , " so to say " . \n
 = = A Section = = \n \n It slept , 's all . café \n \n = Second Page = \n \n A dog ; 中文 ! \n \n"""
PASSAGES = [
    "the cat sat on the mat and then the cat slept",
    "a dog saw the cat and the dog ran after the cat",
    "one  two three\n\nfour",
    "so it was . the mat",
    "the dog ran after  cats",  # two spaces: both belong to the last word
    "mat",  # no context: BOS stands in
]
PAIRS = [
    ("island", "islands", "the cat sat on mats .", "the cat sat mats on ."),
    ("island", "islands", "the dog ran .", "dog the ran ."),
    ("island", "islands", "a dog saw .", "dog saw a ."),
    ("agreement", "morphology", "the cats sit .", "the cats sits ."),
    ("agreement", "morphology", 'the "cat sits .', 'the "cat sit .'),
]


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer([RAW, *PASSAGES], 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return models.small_gpt2(len(tokenizer), n_positions=32, initializer_range=0.3)


@pytest.fixture(autouse=True)
def mirror(tmp_path, monkeypatch, float32):
    files = {
        "wikitext2/wiki.test.raw": RAW,
        "lambada/lambada_test.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in PASSAGES),
        "blimp/blimp_all.tsv": "".join("\t".join(p) + "\n" for p in PAIRS),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path))


def log_p(model, context, target):
    """The naive way: one call per token."""
    total, greedy = 0.0, []
    for i, token in enumerate(target):
        with torch.no_grad():
            out = model(torch.tensor([[*context, *target[:i]]])).logits[0, -1].log_softmax(-1)
        total += float(out[token])
        greedy.append(int(out.argmax()) == token)
    return total, greedy


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_wikitext_blocks_equal_a_naive_loop(model, tokenizer):
    ascii_only = RAW.replace("café", "cafe").replace("中文", "zh")  # a token is then whole characters
    (hub.outside("wikitext2") / "wiki.test.raw").write_text(ascii_only, encoding="utf-8")
    rows = [line + "\n" if line.strip() else "" for line in ascii_only.split("\n")[:-1]]
    ids = ids_of(tokenizer, "\n\n".join(rows))
    nats = tokens = 0
    for start in range(0, len(ids), 16):
        block = ids[start : start + 16]
        nats -= log_p(model, block[:1], block[1:])[0]
        tokens += len(block) - 1
    part = benchmarks.wikitext2(model, tokenizer, max_tokens=20)
    assert (part["token_tokens"], part["max_length"]) == (19, 32)
    result = benchmarks.wikitext2(model, tokenizer, max_length=16)
    assert result["token_tokens"] == tokens
    assert result["token_bytes"] == sum(len(tokenizer.decode(ids[s + 1 : s + 16])) for s in range(0, len(ids), 16))
    assert result["token_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_wikitext_words_equal_a_naive_loop(model, tokenizer):
    _, *pages = benchmarks.ARTICLE.split(RAW)
    assert pages[1].startswith(" = Second Page = \n")
    nats = words = tokens = 0
    for page in pages:
        ids = ids_of(tokenizer, benchmarks.detokenize(page))
        for start in range(0, len(ids), 16):
            target = ids[start : start + 16]
            # at least one token of context, and 17 in all
            context = ids[start - (17 - len(target)) : start] if start else [tokenizer.bos_token_id]
            nats -= log_p(model, context, target)[0]
        tokens += len(ids)
        words += len(re.split(r"\s+", page))
    result = benchmarks.wikitext2(model, tokenizer, max_length=16)
    assert (result["pages"], result["words"], result["word_tokens"]) == (2, words, tokens)
    assert result["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    size = sum(len(p.encode()) for p in pages)
    assert result["word_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_detokenizer_by_hand():
    page = ' He said " so what " @-@ 3 @,@ 000 . ( yes ) , the [ b ] : = = X = = \n it \'s 5 ° C \n'
    assert benchmarks.detokenize(page) == ' He said "so what"-3,000. (yes), the [b]: == X ==\nit\'s 5°C\n'


def test_lambada_equals_a_naive_loop(model, tokenizer):
    total, words, last = 0.0, [], []
    for text in PASSAGES:
        context = text[: text.rindex(" ")] if " " in text else ""
        n = len(ids_of(tokenizer, context.rstrip()))
        ids = ids_of(tokenizer, text)
        context_ids, word = (ids[:n], ids[n:]) if n else ([tokenizer.bos_token_id], ids)
        nats, greedy = log_p(model, context_ids, word)
        total -= nats
        words.append(all(greedy))
        last.append(greedy[-1])
    result = benchmarks.lambada(model, tokenizer)
    assert result["word_perplexity"] == pytest.approx(math.exp(total / len(PASSAGES)), rel=1e-4)
    assert result["word_accuracy"] == sum(words) / len(PASSAGES)
    assert result["last_token_accuracy"] == sum(last) / len(PASSAGES)
    assert benchmarks.lambada(model, tokenizer, documents=2)["documents"] == 2


def test_blimp_equals_a_naive_loop(model, tokenizer):
    right = {}
    for paradigm, _, good, bad in PAIRS:
        a, b = (log_p(model, [tokenizer.bos_token_id], ids_of(tokenizer, f" {s}"))[0] for s in (good, bad))
        right.setdefault(paradigm, []).append(a > b)
    means = [sum(v) / len(v) for v in right.values()]
    result = benchmarks.blimp(model, tokenizer)
    variance = sum(m * (1 - m) / len(v) for m, v in zip(means, right.values(), strict=True))
    assert (result["accuracy"], result["standard_error"]) == pytest.approx((sum(means) / 2, math.sqrt(variance) / 2))
    part = benchmarks.blimp(model, tokenizer, pairs=1)
    assert (part["pairs"], part["accuracy"]) == (1, sum(v[0] for v in right.values()) / 2)
