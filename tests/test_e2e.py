"""lib.explore.e2e: the task, and slot errors as counted by hand."""

import math
from pathlib import Path

import pandas as pd
import pytest
from hub_server import nothing_within_reach
from notebook_code import defined

from lib import hub, tasks
from lib.explore import e2e

published = defined("03_evaluate", "coco_rouge_l", "cider")
MEANING = "name : Blue Spice | Type : pub | food : Indian | price : more than £ 30 | customer rating : low"
MEANING += " | area : riverside | family friendly : no | near : Crowne Plaza Hotel ||"
RIGHT = "Blue Spice is a pub with Indian food at prices of more than £ 30 . It has a low customer rating , "
RIGHT += "is not family - friendly and lies by the river near the Crowne Plaza Hotel ."


def cases(part: int) -> list:
    text = Path(__file__).with_name("sample_slots.md").read_text(encoding="utf-8").split("# ")[part + 1]
    rows = (line.split(" => ") for line in text.splitlines() if "=>" in line)
    return [(one, other, tuple(map(int, expected.split()))) for one, other, expected in rows]


CHANGED = [(RIGHT.replace(old, new, 1), MEANING, expected) for old, new, expected in cases(0)]
assert all(old in RIGHT for old, *_ in cases(0))


@pytest.mark.parametrize(("text", "meaning", "expected"), CHANGED + cases(1))
def test_slots_on_hand_made_errors(text, meaning, expected):
    check = e2e.slot_check(meaning, text)
    assert (check["missing"], check["wrong"], check["added"]) == expected


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


def test_e2e_train_has_rows_and_test_has_references(tmp_path, monkeypatch):
    (tmp_path / "e2e").mkdir()
    for name, lines in LINES.items():
        (tmp_path / "e2e" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path))
    task = tasks.load_task("e2e")
    wanted = ["name : A | Type : pub || A is a pub .", "name : A | Type : pub || The pub A ."]
    assert sorted(r["prompt"] + r["target"] for r in task["train"]) == wanted
    assert set(task["train"]["group"]) == {"name : A | Type : pub"}
    wanted = [("name : C ||", " C .", ["C .", "C again ."]), ("name : D ||", " D one .", ["D one ."])]
    assert sorted((r["prompt"], r["target"], r["references"]) for r in task["test"]) == wanted
    assert len(task["validation"]) == 1 and task.source == str(tmp_path / "e2e")


def test_e2e_from_the_hubs_rows(tmp_path, monkeypatch):
    nothing_within_reach(tmp_path, monkeypatch)
    with pytest.raises(hub.Unavailable, match=r"data/mirror/e2e.*cannot be reached.*--mirror https"):
        tasks.load_task("e2e")

    def download(repository, file, repo_type, revision, **_):
        assert (repository, repo_type, revision) == ("tuetschek/e2e_nlg", "dataset", "refs/convert/parquet")
        path = tmp_path / file.replace("/", "_")
        meaning = "name[The Vaults], eatType[pub], priceRange[£20-25], familyFriendly[no], near[Café Adriatic]"
        texts = ["The Vaults is a pub. ", "A pub."]
        pd.DataFrame({"meaning_representation": [meaning] * 2, "human_reference": texts}).to_parquet(path)
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    task = tasks.load_task("e2e")
    prompt = "name : The Vaults | Type : pub | price : £ 20 - 25 | family friendly : no | near : Café Adriatic ||"
    assert task["test"][0]["prompt"] == prompt
    assert task["test"][0]["references"] == ["The Vaults is a pub.", "A pub."]
    assert len(task["train"]) == 2 and task.source.startswith("https://huggingface.co/")
