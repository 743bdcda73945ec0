"""lib.explore.e2e: the task, and slot errors as counted by hand."""

import math
from pathlib import Path

import pytest
from notebook_code import defined

from lib.explore import e2e
from lib.tasks import load_task

published = defined("03_evaluate", "coco_rouge_l", "cider")

MEANING = (
    "name : Blue Spice | Type : pub | food : Indian | price : more than £ 30 | customer rating : "
    "low | area : riverside | family friendly : no | near : Crowne Plaza Hotel ||"
)
RIGHT = (
    "Blue Spice is a pub with Indian food at prices of more than £ 30 . It has a low customer rating , "
    "is not family - friendly and lies by the river near the Crowne Plaza Hotel ."
)


def errors(text, meaning=MEANING):
    check = e2e.slot_check(meaning, text)
    return check["missing"], check["wrong"], check["added"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", (0, 0, 0)),
        ("pub", "place", (1, 0, 0)),
        ("pub", "coffee shop", (0, 1, 0)),
        ("Indian", "Italian", (0, 1, 0)),
        ("more than £ 30", "less than £ 20", (0, 1, 0)),
        ("low customer rating", "high customer rating", (0, 1, 0)),
        ("low customer rating", "customer rating of 1 out of 5 stars", (0, 0, 0)),
        ("by the river", "in the city centre", (0, 1, 0)),
        ("by the river", "by the river in the city centre", (0, 0, 1)),
        ("is not family", "is family", (0, 1, 0)),
        ("is not family - friendly and", "doesn 't welcome children and", (0, 0, 0)),
        ("Crowne Plaza Hotel", "Burger King", (0, 1, 0)),
        ("Crowne Plaza Hotel", "Crowne Plaza Hotel and Burger King", (0, 0, 1)),
        ("Blue Spice", "The Punter", (0, 1, 0)),
        ("Blue Spice", "It", (1, 0, 0)),
    ],
)
def test_slots_on_hand_made_errors(old, new, expected):
    assert old in RIGHT
    assert errors(RIGHT.replace(old, new, 1)) == expected


@pytest.mark.parametrize(
    ("text", "meaning", "expected"),
    [
        ("Cotto is cheap .", "name : Cotto | customer rating : low", (1, 0, 1)),
        ("Cotto is near Raja Indian Cuisine .", "name : Cotto | near : Raja Indian Cuisine", (0, 0, 0)),
        ("cotto : high prices, low rating .", "name : Cotto | price : high | customer rating : 1 out of 5", (0, 0, 0)),
        ("Cotto has a price range of £ 20 - 25 .", "name : Cotto | price : moderate", (0, 0, 0)),
        ("", "name : Cotto | Type : pub", (2, 0, 0)),
        ("Cotto : kids no , price range moderate .", "name : Cotto | price : moderate", (0, 0, 1)),
        ("Cotto is cheap and not in the high price range .", "name : Cotto | price : cheap", (0, 0, 0)),
        ("Cotto is not only cheap , it costs no more than £ 20 .", "name : Cotto | price : cheap", (0, 0, 0)),
    ],
)
def test_slots_are_told_apart(text, meaning, expected):
    assert errors(text, meaning) == expected


def test_slot_error_rate():
    result = e2e.slot_errors([MEANING, "name : Cotto"], [RIGHT.replace("pub", "place"), "Cotto !"])
    assert (result["missing"], result["slots"]) == (1, 9)
    assert result["ser"] == pytest.approx(1 / 9)
    assert result["perfect"] == 0.5
    with pytest.raises(ValueError, match="one text per input"):
        e2e.slot_errors([MEANING], [])
    with pytest.raises(ValueError, match="not enough values"):
        e2e.slot_check("name Cotto", "Cotto")


def test_cider_by_hand():
    references = [["A b."], ["c d"]]  # every word in one of two inputs: weight ln 2
    assert published.cider(["a b", "c d"], references) == pytest.approx(10 * 2 / 4)  # of 1- to 4-grams, two exist
    # one of two words: 1/2 of the 1-grams; a word twice counts once, and no bigram is shared
    assert published.cider(["a b", "c x"], references) == pytest.approx(10 * (2 / 4 + 1 / 2 / 4) / 2)
    assert published.cider(["a b", "c c"], references) == pytest.approx(10 * (2 / 4 + 8**-0.5 / 4) / 2)
    shorter = 2**-0.5 / 4 * math.exp(-1 / 72)  # a word less than the reference
    assert published.cider(["a b", "c"], references) == pytest.approx(10 * (2 / 4 + shorter) / 2)
    two = published.cider(["a b", "c d"], [["a b", "x y"], ["c d"]])  # the mean over the references
    assert two == pytest.approx(10 * (1 / 4 + 2 / 4) / 2)
    assert published.cider(["a", "a"], [["a b"], ["a c"]]) == 0, "what every input says has no weight"


def test_coco_rouge_l_takes_the_best_precision_and_the_best_recall():
    # of one reference precision 1/2 and recall 1, of the other 1 and 1/2: both count as 1
    assert published.coco_rouge_l(["a b"], [["a", "a b c d"]]) == pytest.approx(1.0)
    assert published.coco_rouge_l(["a b x"], [["a b c d"]]) == pytest.approx(2.44 * 2 / 3 / 2 / (1 / 2 + 1.44 * 2 / 3))
    assert published.coco_rouge_l(["x"], [["a"]]) == 0


LINES = {
    "train": ["name : A | Type : pub||A is a pub . ", "name : A | Type : pub||The pub A . "],
    "valid": ["name : B | food : Thai||B is Thai . ", "name : B | food : Thai||Thai B . "],
    "test": ["name : C||C . ", "name : D||D one . ", "name : C||C again . ", "name : C||C . "],
}


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    (tmp_path / "e2e").mkdir()
    for name, lines in LINES.items():
        (tmp_path / "e2e" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path))
    return tmp_path


def test_e2e_train_has_rows_and_test_has_references(mirror):
    task = load_task("e2e")
    prompt = "name : A | Type : pub ||"
    assert sorted(r["prompt"] + r["target"] for r in task["train"]) == [
        f"{prompt} A is a pub .",
        f"{prompt} The pub A .",
    ]
    assert set(task["train"]["group"]) == {"name : A | Type : pub"}
    assert sorted((r["prompt"], r["target"], r["references"]) for r in task["test"]) == [
        ("name : C ||", " C .", ["C .", "C again ."]),
        ("name : D ||", " D one .", ["D one ."]),
    ]
    assert len(task["validation"]) == 1 and task.source == str(mirror / "e2e")
