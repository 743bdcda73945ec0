import json
import re

import pandas as pd
import pytest

from lib import results
from lib.explore import anonymise, detectors
from lib.explore.anonymise import LABELLED, Found, Labelled, evaluate, find, labelled, mistakes, read_names
from lib.profile import ROOT

NAMES = read_names(LABELLED / "names.txt")


def items(text, names=()):
    return [(f.category, text[f.start : f.end]) for f in find(text, names)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to a.b+c@sub.holm.example.", [("email", "a.b+c@sub.holm.example")]),
        ("邮箱a@holm.example，电话19900001111。", [("email", "a@holm.example"), ("phone", "19900001111")]),
        ("reach kim at holm dot example", [("email", "kim at holm dot example")]),
        ("call +44 20 7946 0000 (day)", [("phone", "+44 20 7946 0000")]),
        ("传真０１０-５５５５０１０１。", [("phone", "０１０-５５５５０１０１")]),
        ("card 4000 5749 1186 2528", [("id", "4000 5749 1186 2528")]),
        ("IBAN DE18 0009 0786 6661 7603 13 ABC", [("id", "DE18 0009 0786 6661 7603 13")]),
        ("身份证994205197511020757", [("id", "994205197511020757")]),
        ("from 10.3.44.7:22 and fd00::12", [("ip", "10.3.44.7"), ("ip", "fd00::12")]),
        ('password="kettle!Moss9"', [("key", "kettle!Moss9")]),
        ("git clone https://me:q9wErTy7@holm.example/x", [("key", "q9wErTy7")]),
        ("in /home/kim/x or C:\\Users\\Kim L\\x", [("path", "/home/kim"), ("path", "C:\\Users\\Kim L")]),
    ],
)
def test_each_kind_is_found_with_exact_bounds(text, wanted):
    assert items(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "card 4000 5749 1186 2529, one digit off",
        "IBAN GB35ZZZZ13962459571177, one digit off",
        "the number 994205197511020758, one digit off",
        "the number 994205197513020754 whose month is 13",
        "version 10.3.44.7, then 192.0.2.7 and 127.0.0.1",
        "std::map x[::2] 12:34:56 2001:db8::7",
        "token = tokenizer.decode(ids), password = getpass(), max_tokens=100000",
        "commit ed46725a2a7b860dcd6c8a1f8b46287cced9041d of 2024-01-15",
        "ISBN 978-3-16-148410-0, react@18.2.0, icon@2x.png, git@holm.example:x",
        "https://holm.example/home/index.html, /home/$USER, C:\\Users\\Public\\x",
    ],
)
def test_look_alikes_are_left_alone(text):
    assert items(text) == []


def test_names_come_from_the_list_alone():
    names = ["Mira Holm", "Will", "李雷"]
    text = "mira  holm, Holm, Mira and Will will ask 李雷, not Willa or Mira Holmes."
    assert [t for _, t in items(text, names)] == ["mira  holm", "Holm, Mira", "Will", "李雷"]
    assert items(text) == [] == items(text, ["", " "])


def test_replacing_keeps_the_rest_and_counts():
    text = "Mira Holm <m@holm.example>, m@holm.example: 10.0.0.8."
    out, counts = anonymise.anonymise(text, ["Mira Holm"])
    assert out == "[NAME] <[EMAIL]>, [EMAIL]: [IP]."
    assert counts == {"name": 1, "email": 2, "ip": 1}
    assert anonymise.anonymise(out, ["Mira Holm"]) == (out, {})  # nothing of a mark is personal


def test_no_pattern_takes_long_on_hostile_text():
    for piece in (
        "1 ",
        "a.",
        "0-",
        "A1 ",
        "x@",
        "::",
        "token=",
        "12.",
        "(0) ",
        "C:\\Users\\",
        "ab at c dot ",
        "pass_",
        "mail",
    ):
        find(piece * 20_000)  # quadratic patterns would run into the timeout


def test_a_log_with_an_address_in_every_line_takes_no_long_time():
    text = "".join(f"10.3.{i // 250}.{i % 250} GET /\n" for i in range(50_000))
    assert len(find(text)) == 50_000


def test_checksums_against_published_numbers():
    assert detectors.luhn("4111111111111111") and not detectors.luhn("4111111111111112")
    assert detectors.iban("GB82 WEST 1234 5698 7654 32")  # the example of ISO 13616's registry
    assert not detectors.iban("GB82 WEST 1234 5698 7654 33")
    assert detectors.resident_id("11010519491231002X")  # the example of GB 11643-1999
    assert not detectors.resident_id("110105194912310021")


# --- the labelled set and its measure


def test_the_labelled_set_is_large_held_apart_and_invented():
    rows = labelled()
    spans = [(f.category, r.text[f.start : f.end]) for r in rows for f in r.spans]
    assert len(spans) >= 250 and len({r.text for r in rows}) == len(rows)
    for half in anonymise.HALVES:
        own = pd.Series([f.category for r in labelled(half) for f in r.spans]).value_counts()
        assert set(own.index) == {*detectors.CATEGORIES, "name"} and own.min() >= 10
        assert {r.lang for r in labelled(half)} == {"en", "zh"}
        assert sum(not r.spans for r in labelled(half)) >= 25  # traps
    for category, item in spans:
        if category == "email":  # names that RFC 2606 keeps out of the real world
            assert re.search(r"(\.|\bdot |\[dot\] )(example|test)$", item.lower()), item
        if category == "name":
            parts = set(re.split(r"[\s,]+", item.lower()))
            assert any(parts == set(n.lower().split()) for n in NAMES), item


def test_marks_become_spans(tmp_path):
    path = tmp_path / "x.jsonl"
    row = {"id": "1", "half": "tune", "lang": "en", "text": "a {{ip|10.0.0.1}}, {{{name|B C}}}"}
    path.write_text(json.dumps(row))
    assert labelled(path=path) == [
        Labelled("1", "tune", "en", "a 10.0.0.1, {B C}", (Found("ip", 2, 10), Found("name", 13, 16)))
    ]
    for wrong in ({"text": "{{street|X}}"}, {"half": "train"}):
        path.write_text(json.dumps(row | wrong))
        with pytest.raises(ValueError, match=r"x\.jsonl, line 1"):
            labelled(path=path)


def test_precision_and_recall_are_counted_by_exact_spans():
    text = "10.0.0.1 10.0.0.2 m@holm.example k@holm.example."
    spans = (Found("ip", 0, 8), Found("email", 18, 33))  # the second a character too wide
    table = evaluate([Labelled("1", "test", "en", text, spans)], []).set_index("category")
    assert list(table.loc["ip", ["found", "labelled", "correct", "precision", "recall"]]) == [2, 1, 1, 0.5, 1]
    assert list(table.loc["email", ["found", "labelled", "correct", "precision", "recall"]]) == [2, 1, 0, 0, 0]
    assert list(table.loc["all", ["found", "labelled", "correct"]]) == [4, 2, 1]
    assert table.loc["all", "recall_low"] < 0.5 < table.loc["all", "recall_high"]
    found = mistakes([Labelled("1", "test", "en", text, spans)], [])
    assert list(found["kind"]) == ["missed", "wrong", "wrong", "wrong"]


@pytest.mark.parametrize("half", anonymise.HALVES)
def test_the_anonymiser_reaches_what_the_project_promises(half):
    whole = evaluate(labelled(half), NAMES).set_index("category").loc["all"]
    assert whole["recall"] >= 0.95 and whole["precision"] >= 0.9


def test_a_list_of_names_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffMira\n\n# note\n 李雷 \n", encoding="utf-8")
    assert read_names(path) == ["Mira", "李雷"]
    path.write_bytes("Jürgen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt: not UTF-8"):
        read_names(path)


def test_shipped_numbers_are_those_of_the_test_half():
    path = ROOT / "data" / "results" / "08_private_domain.json"
    if not path.exists():
        pytest.skip("notebook 08 has not been run")
    shown = pd.DataFrame(results.load(path.stem, path.parent)["tables"]["anonymiser"])
    now = evaluate(labelled("test"), NAMES)
    assert shown[["category", "found", "labelled", "correct"]].equals(now[["category", "found", "labelled", "correct"]])
