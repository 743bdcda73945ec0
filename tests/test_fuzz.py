"""Generated input, by hypothesis (MacIver et al. 2019): what is valid arrives once, all else is refused in a sentence.
`FAULTS_OUT` (conftest.py) makes it the numbers of notebook 11: 10,000 rows, 1,000 damages of each kind."""

import json
from functools import partial

import pytest
from conftest import OUT
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lib.explore.compress import Codec, compress, decompress
from lib.report import fill
from lib.tasks import SPLITS, load_task

ROWS = 40  # of one generated file
FILES, DAMAGES = (125, 1_000) if OUT else (8, 100)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)  # halves of pairs are no text
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
VALID = {"prompt": TEXT.filter(bool), "target": TEXT.filter(lambda t: bool(t.strip()))}
VALID = st.fixed_dictionaries(VALID, optional={"group": TEXT, "references": st.lists(TEXT, max_size=2)})
NAMES = st.sampled_from(["prompt", "target", "id", "group", "references", "x"])
ANY = st.one_of(VALID, st.dictionaries(NAMES, VALUE), VALUE).map(lambda v: json.dumps(v).encode())
HOW = st.sampled_from(["flip", "cut", "insert", "delete", "garbage"])
DAMAGE = st.tuples(HOW, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9))


def repeat(check, strategy, times: int) -> None:
    """`check` on `times` examples, the same in every run; without shrinking, which takes minutes for a whole file."""
    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    chosen = settings(max_examples=times, phases=(Phase.generate,), **options)
    seed(0)(chosen(given(strategy)(lambda example: check(example))))()


def valid_rows(path, load, rows: list[dict]) -> None:
    """Each distinct (prompt, target) is in one split, no group in two."""
    rows = [{**r, "prompt": f"{i % 30} {r['prompt']}"} for i, r in enumerate(rows)]  # 10 groups and more
    path.write_bytes("\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode())
    try:
        task = load(path)
    except ValueError as error:
        assert "different groups" in str(error), error
        return
    found = [(e["prompt"], e["target"]) for s in SPLITS for e in task[s]]
    assert sorted(found) == sorted({(r["prompt"], r["target"]) for r in rows})
    a, b, c = ({e["group"] for e in task[s]} for s in SPLITS)
    assert not (a & b or a & c or b & c)


def any_rows(path, load, lines: list[bytes]) -> None:
    """A task, or a ValueError in a sentence that begins with the file."""
    path.write_bytes(b"\n".join(lines))
    try:
        load(path)
    except ValueError as error:
        assert str(error).startswith(str(path)), error


@pytest.mark.fault("fuzzed row in a task file")
@pytest.mark.parametrize(("check", "row"), [(valid_rows, VALID), (any_rows, ANY | st.binary(max_size=30))])
def test_rows_through_the_loader(check, row, tmp_path, record_property):
    record_property("injected", FILES * ROWS)
    rows = st.lists(row, min_size=ROWS, max_size=ROWS)
    repeat(partial(check, tmp_path / "rows.jsonl", load_task), rows, FILES)


def damaged(data: bytes, how: str, where: float, more: bytes) -> bytes:
    """`data` with one damage at the share `where` of its length."""
    at = int(where * len(data))
    return {
        "flip": data[:at] + bytes([data[at] ^ (more[0] or 1)]) + data[at + 1 :],
        "cut": data[:at],
        "insert": data[:at] + more + data[at:],
        "delete": data[:at] + data[at + len(more) :],
        "garbage": more,
    }[how]


@pytest.mark.fault("fuzzed compressed file")
def test_damaged_archives_are_refused(base, record_property):
    record_property("injected", DAMAGES)
    codec = Codec(base.model, base.tokenizer, batch=2, window=16)
    whole = compress(codec, ["Debian 春眠不覚暁".encode(), b"\xff\x00 any bytes"])[0]

    def check(damage):
        if (data := damaged(whole, *damage)) != whole:
            with pytest.raises(ValueError, match=r"damaged|LMZ"):
                decompress(codec, data)

    repeat(check, DAMAGE, DAMAGES)


@pytest.mark.fault("fuzzed report marker")
def test_damaged_marks_of_the_report_are_filled_or_named(tmp_path, record_property):
    record_property("injected", DAMAGES)
    text = "#\n\n<!-- begin 03.x -->\n\n| a |\n\n<!-- end 03.x -->\n\nIs <!--= 03.y -->so<!--/-->, <!--? 03.z -->so.\n"
    answers = {"values": {"03.y": "so"}, "tables": {"03.x": "| a |"}, "claims": {"03.z": True}}
    assert fill._marks(text, answers) == [] and fill.filled(text, answers) == text

    def check(damage):
        found = damaged(text.encode(), *damage).decode("utf-8", "replace")
        again = fill.filled(found, answers)
        assert fill.filled(again, answers) == again  # filled once is filled
        for line, sentence in fill._marks(found, answers):
            assert 0 <= line <= len(found) and sentence.endswith(".")
        if "<!--=" in found and "<!--= 03.y -->" not in found:
            assert fill._marks(found, answers)

    repeat(check, DAMAGE, DAMAGES)
