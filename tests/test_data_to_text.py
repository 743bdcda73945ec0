"""lib.explore.data_to_text: the prompts, the tables and the sentences of notebook 10's first half."""

from types import SimpleNamespace

import pandas as pd
import pytest

from lib import results
from lib.explore import data_to_text as module
from lib.explore.data_to_text import Written, against_shots, by_slots, distance, draw_examples, e2e_table
from lib.models import load_base
from lib.tasks import Example, Task


def example(i: int, meaning: str, *texts: str) -> Example:
    return Example(f"e{i}", f"{meaning} ||", f" {texts[0]}", texts, meaning)


ALIMENTUM = "name : Alimentum | Type : pub"
COTTO = "name : Cotto | Type : pub | food : French | area : riverside"


@pytest.fixture
def task() -> Task:
    train = [example(i, f"name : Cocum | food : {f}", "Cocum is there .") for i, f in enumerate("AABBCCD")]
    test = [
        example(10, ALIMENTUM, "Alimentum is a pub .", "A pub is Alimentum ."),
        example(11, COTTO, "Cotto is a French pub by the riverside ."),
    ]
    return Task("e2e", train, train[:2], test, "0" * 64, "here")


def test_examples_are_of_different_inputs_and_nested(task):
    for seed in range(5):
        four = draw_examples(task, 4, seed)
        assert len({e.group for e in four}) == 4
        assert draw_examples(task, 2, seed) == four[:2]
    assert draw_examples(task, 0, 0) == []
    assert len({tuple(e.id for e in draw_examples(task, 4, s)) for s in range(5)}) > 1
    with pytest.raises(ValueError, match="5 examples of 4 different inputs"):
        draw_examples(task, 5, 0)


def test_the_prompt_shows_examples_in_the_form_of_the_input(task):
    prompt = module.few_shot_prompt(task.train[:2], "name : X ||")
    assert prompt == (
        "name : Cocum | food : A || Cocum is there .\nname : Cocum | food : A || Cocum is there .\nname : X ||"
    )
    assert module.few_shot_prompt([], "name : X ||") == "name : X ||"


@pytest.mark.parametrize(("text", "line"), [("\n one . \ntwo", "one ."), ("", ""), (" a", "a")])
def test_only_the_first_line_counts(text, line):
    assert module.first_line(text) == line


def written(system, seed, *texts, shots=0, tokens=0) -> Written:
    return Written(system, shots, seed, tokens, list(texts))


GOOD = ("Alimentum is a pub .", "Cotto is a French pub by the riverside .")
LOST = ("Alimentum is a pub .", "Cotto is a pub .")


def test_by_slots_counts_by_hand(task):
    rows = by_slots(task, [written("1-shot", 0, *LOST)]).set_index(["system", "slots"])
    assert rows.loc[("1-shot", 2), ["missing", "ser", "perfect"]].tolist() == [0, 0, 1]
    assert rows.loc[("1-shot", 4), ["missing", "ser", "perfect"]].tolist() == [2, 0.5, 0]
    assert rows.loc[("people", 2), "texts"] == 2 and rows.loc[("people", 4), "ser"] == 0


def shipped(base_model: str) -> dict:
    row = {
        "task": "e2e",
        "method": "full",
        "seed": 0,
        "generated": 630,
        "bleu": 64.0,
        "nist": 8.0,
        "rouge_l": 0.6,
        "chrf": 60.0,
        "missing": 1,
        "wrong": 1,
        "added": 1,
        "slots": 9,
        "ser": 0.3,
        "perfect": 0.5,
    }
    rows = [row | {"stage": "after"}, row | {"stage": "before"}, row | {"task": "debian", "stage": "after"}]
    return {"provenance": {"base_model": base_model, "profile": "full"}, "tables": {"before_after": rows}}


def test_the_table_keeps_published_rows_apart(task, monkeypatch):
    base = SimpleNamespace(name="this model")
    monkeypatch.setattr(results, "load", lambda *_: shipped("this model"))
    table = e2e_table(base, task, [written("0-shot", 0, *LOST), written("fine-tuned, full", 1, *GOOD, tokens=9)])
    assert table["kind"].tolist() == ["ours", "ours", "human", *["published"] * 5, "longer"]
    ours = table.set_index("system")
    assert ours.loc["fine-tuned, full", "bleu"] == pytest.approx(100)
    assert ours.loc["fine-tuned, full", ["ser", "n_train_tokens"]].tolist() == [0, 9]
    assert ours.loc["0-shot", "ser"] == pytest.approx(2 / 6)
    assert table[table["kind"] == "published"]["base_model"].isna().all()  # not ours
    assert table[table["kind"] == "published"]["source"].notna().all()
    assert ours.loc["fine-tuned, full, longer", ["bleu", "n_train_tokens"]].tolist() == [64.0, 320_000]


def test_the_longer_run_of_another_model_is_left_out(task, monkeypatch):
    monkeypatch.setattr(results, "load", lambda *_: shipped("another"))
    table = e2e_table(SimpleNamespace(name="this model"), task, [written("0-shot", 0, *LOST)])
    assert "longer" not in set(table["kind"])


def rows(**measures) -> pd.DataFrame:
    """A table `e2e` with given (bleu, ser) per system, two seeds each."""
    out = [
        {
            "system": name.replace("_", "-"),
            "kind": "ours",
            "shots": 3 if "shot" in name else 0,
            "seed": seed,
            "inputs": 9,
            "bleu": bleu + seed,
            "ser": ser + 0.01 * seed,
        }
        for name, (bleu, ser) in measures.items()
        for seed in (0, 1)
    ]
    out.append({"system": "people", "kind": "human", "ser": 0.08})
    out += [{"kind": "published", **row} for row in module.PUBLISHED]
    return pd.DataFrame(out)


def test_the_distance_is_to_every_published_row():
    table = distance(rows(full=(60, 0.1)))
    assert table["published"].tolist() == [row["system"] for row in module.PUBLISHED]
    assert table["difference"].tolist() == pytest.approx([60.5 - row["bleu"] for row in module.PUBLISHED])


def test_the_sentences_follow_the_numbers():
    slots = pd.DataFrame({"system": "full", "seed": 0, "slots": [3, 8], "texts": [4, 9], "ser": [0.05, 0.2]})
    lines = "\n".join(module.findings(rows(full=(60, 0.1), **{"3_shot": (10, 0.5)}), slots))
    assert "fine-tuning keeps more of the facts" in lines and "errors per slot rise" in lines
    assert "5.0% slot errors at 3 slots (inputs: 4)" in lines and "9 of 630 inputs" in lines
    assert "-7.7 from GPT-2 medium, full (68.2)" in lines
    slots["ser"] = [0.2, 0.1]
    lines = "\n".join(module.findings(rows(full=(70, 0.5), **{"3_shot": (10, 0.1)}), slots))
    assert (
        "prompting keeps more of the facts" in lines and "nan" not in lines and "errors per slot do not rise" in lines
    )
    assert "+2.3 from GPT-2 medium, full (68.2)" in lines
    near = "\n".join(module.findings(rows(full=(60, 0.1), **{"3_shot": (10, 0.11)}), slots))
    assert "difference -1.0 [-4.0, +2.0] points, no difference is shown" in near
    level = rows(full=(60, 0.1), **{"3_shot": (10, 0.5)})
    level["ser"] = level["ser"].round(1)
    assert "equal runs, so no difference is shown" in "\n".join(module.findings(level, slots))


def test_level_lines_for_what_has_no_examples():
    frame = against_shots(rows(full=(60, 0.1), **{"3_shot": (10, 0.5)}), {"bleu": "BLEU", "ser": "slot errors"})
    series = frame.groupby("series")
    assert set(series.get_group("full")["shots"]) == {0, 3}
    assert set(series.get_group("few-shot")["shots"]) == {3}
    assert set(series.get_group("people")["measure"]) == {"slot errors"}


def test_what_was_written_is_read_back(task, monkeypatch):
    base, calls = load_base(), []
    monkeypatch.setattr(module, "generate", lambda *a, **_: calls.append(a[2]) or [" a\nb" for _ in a[2]])
    first = module.write_texts(base, task, 2, shots=1, seed=0)
    assert first.texts == ["a", "a"] and first.system == "1-shot" and first.n_train_tokens == 0
    assert module.write_texts(base, task, 2, shots=1, seed=0) == first and len(calls) == 1
    module.write_texts(base, task, 2, shots=1, seed=1)
    assert len(calls) == 2
