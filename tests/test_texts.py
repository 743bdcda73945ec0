import math
import random
import subprocess
import sys

import pytest
from nltk.translate.nist_score import corpus_nist
from notebook_code import defined

from lib import texts as t

own = defined("03_evaluate", "FACETS", "SYNONYMS", "says", "debian_form", "tags_reflected", "repeats", "diversity_of")
PREDICTIONS = ["the cat sat on the mat .", "a dog, barked at 3.50 pounds"]
REFERENCES = [["The cat sat on a mat .", "a cat was sitting on the mat ."], ["a dog barked loudly, at 3.50 pounds"]]


def test_bleu_and_chrf_equal_the_sacrebleu_command(tmp_path):
    lists = [REFERENCES[0], REFERENCES[1] * 2]
    files = [tmp_path / name for name in ("reference 1", "reference 2", "out")]
    for file, lines in zip(files, [*zip(*lists, strict=True), PREDICTIONS], strict=True):
        file.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def command(*options):
        run = [sys.executable, "-m", "sacrebleu", *files[:2], "-i", files[2], "-b", "-w", "6", *options]
        return float(subprocess.run(run, capture_output=True, encoding="utf-8", check=True).stdout)

    assert t.bleu(PREDICTIONS, lists) == pytest.approx(command(), abs=1e-5)
    assert t.chrf(PREDICTIONS, lists) == pytest.approx(command("-m", "chrf"), abs=1e-5)
    lower = t.bleu(PREDICTIONS, lists, lowercase=True)
    assert lower == pytest.approx(command("-lc"), abs=1e-5) and lower > t.bleu(PREDICTIONS, lists)


def test_references_of_different_number():
    padded = [*REFERENCES[1], REFERENCES[1][0]]
    for metric in (t.bleu, t.chrf, t.rouge_l):
        assert metric(PREDICTIONS, REFERENCES) == pytest.approx(metric(PREDICTIONS, [REFERENCES[0], padded]))


def test_rouge_l_takes_the_best_reference_and_reads_chinese():
    # longest common subsequence 2 of 3 and 2 of 2 words
    assert t.rouge_l(["a b c"], [["x y z", "A, c."]]) == pytest.approx(2 * 2 / 5)
    assert t.rouge_l(["春眠不觉晓"], ["春眠处处晓"]) == pytest.approx(3 / 5)


def test_nist_equals_nltk_with_one_reference_and_pools_several_by_hand():
    rng = random.Random(0)
    texts, refs = ([" ".join(rng.choices("abcdefghijkl", k=rng.randint(6, 15))) for _ in range(30)] for _ in "12")
    expected = corpus_nist([[r.split()] for r in refs], [text.split() for text in texts])
    assert t.nist([text.upper() for text in texts], refs) == t.nist(texts, refs) == pytest.approx(expected)
    # "b" and "c" each in one reference: both count, log2(4/1) each, 2 of 2 words; no bigram; length as the mean's
    assert t.nist(["b c"], [["b x", "y c"]]) == pytest.approx(2.0)
    # "b" is in each reference once: of two in the text one counts, with information log2(4/2)
    assert t.nist(["b b"], [["b x", "b y"]]) == pytest.approx(1 / 2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 predictions and 1 reference"):
        t.bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="Prediction 1 has no reference"):
        t.nist(["a", "b"], [["a"], []])


def test_diversity_by_hand():
    found = own.diversity_of(["a b a b", "a c"])
    assert (found["distinct_1"], found["distinct_2"]) == pytest.approx((3 / 6, 3 / 4)) and found["words"] == 3
    assert own.diversity_of(["a b c d a b c d", "x y"])["rep_4"] == pytest.approx((1 - 4 / 5) / 2)
    assert t.words("两只 cats, 黄鹂") == ["两", "只", "cats,", "黄", "鹂"]
    assert own.diversity_of(["a b c d e"] * 3)["self_bleu"] == pytest.approx(100)
    assert own.diversity_of(["a b c d", "e f g h", "i j k l"])["self_bleu"] < 1
    assert math.isnan(own.diversity_of(["a"])["self_bleu"])


def naive_overlap(text, train):
    words, spaced = text.split(), [f" {' '.join(other.split())} " for other in train]
    runs = [words[a:b] for a in range(len(words)) for b in range(a + 1, len(words) + 1)]
    return max((len(run) for run in runs if any(f" {' '.join(run)} " in other for other in spaced)), default=0)


def test_longest_overlap_equals_the_naive_search():
    rng = random.Random(1)
    train = [" ".join(rng.choices("abcde", k=rng.randint(1, 14))) for _ in range(12)]
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(0, 12))) for _ in range(40)]
    texts += [train[0], f"f {train[3]} f", f"{train[1]} {train[2]}", ""]
    expected = [naive_overlap(t, train) for t in texts]
    assert t.longest_overlap(texts, train) == expected and max(expected) > 5 and 0 in expected


@pytest.mark.parametrize(
    ("synopsis", "failed"),
    [
        ("converts chess boards", set()),
        ("A converter of boards", {"no_article", "synopsis_form"}),
        ("theatre tickets", set()),
        ("converts boards.", {"no_full_stop", "synopsis_form"}),
        ("boards, pieces etc.", set()),
        ("x" * 79, set()),
        ("x" * 80, {"synopsis_under_80", "synopsis_form"}),
    ],
)
def test_debian_form(synopsis, failed):
    assert {k for k, v in own.debian_form(f"{synopsis}\nMore about it.").items() if not v} == failed
    assert not any(own.debian_form(x)["has_long_description"] for x in (synopsis, "tool\n \n", ""))


def test_debian_tags():
    tags = "game::board:chess, role::program, works-with-format::png, use::converting"
    prompt = f"Package: wow\nTags: {tags}\nDescription:\n"
    shares = {
        "Converts chess games\nfrom PNG images": 1,  # role:: is not asked for
        "plays chess": 1 / 3,
        "plays pngcrush": 0,  # three letters must be the whole word
    }
    for text, share in shares.items():
        assert own.tags_reflected(prompt, text) == pytest.approx(share)
    assert math.isnan(own.tags_reflected("Package: x\n", "y"))
