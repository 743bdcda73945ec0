"""lib.explore.chinese: the form of a quatrain by hand-made poems, by broken ones, and by the shipped ones."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib.explore import chinese, chinese_plots
from lib.tasks import load_task

HERON = "白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。"  # by the rule throughout, in Mandarin too
LUSHAN = "日照香炉生紫烟，\n遥看瀑布挂前川。\n飞流直下三千尺，\n疑是银河落九天。"
NO_PINYIN = "𬭭"
LEVEL, OBLIQUE = "天", "地"


@pytest.fixture(scope="module")
def tang():
    return load_task("tang")


def lines(*patterns: str) -> list[str]:
    """Lines of level and oblique characters from patterns such as "-|-||"."""
    return [p.replace("-", LEVEL).replace("|", OBLIQUE) for p in patterns]


# ---- the form


def test_a_quatrain_is_read_without_its_punctuation():
    assert chinese.quatrain(HERON) == ("白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼")
    assert [len(x) for x in chinese.quatrain(f"\n{LUSHAN} \n")] == [7, 7, 7, 7]
    bare = HERON.translate({ord(c): None for c in "，。"})
    assert chinese.quatrain(bare) == chinese.quatrain(HERON)
    assert chinese.is_quatrain(HERON.replace("，", "！").replace("。", "？"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"1 line\(s\)"),
        ("\n".join(HERON.split("\n")[:3]), r"3 line\(s\)"),
        (HERON + "\n更上一层楼。", r"5 line\(s\)"),
        (HERON.replace("，\n", "，\n\n", 1), r"5 line\(s\)"),
        (HERON.replace("\n", ""), r"1 line\(s\)"),
        (HERON.replace("黄河", "黄"), "lines of 5, 4, 5, 5"),
        ("\n".join(["白日依山尽去"] * 4), "lines of 6, 6, 6, 6"),
        ("\n".join([*LUSHAN.split("\n")[:2], *HERON.split("\n")[2:]]), "lines of 7, 7, 5, 5"),
        (HERON.replace("河", "X"), "line 2 is '黄X入海流'"),
        (HERON.replace("楼", "\ufffd"), "line 4"),
        (HERON.replace("流", "1"), "line 2"),
        ("，。\n" * 4, "line 1 is ''"),
    ],
)
def test_what_is_no_quatrain_is_named_and_scores_nothing(text, reason):
    with pytest.raises(ValueError, match=f"Not a quatrain, .*{reason}"):
        chinese.quatrain(text)
    assert not chinese.is_quatrain(text)
    found = chinese.form(text)
    assert found["exact_form"] == found["rhyme"] == 0
    assert all(math.isnan(found[k]) for k in ("alternation", "opposition", "repeated"))


# ---- sounds


def test_finals_without_their_medials():
    wanted = {
        "a": "麻家花",
        "o": "波多",
        "e": "歌",
        "ê": "月切",
        "ai": "来怀",
        "ei": "飞归",
        "ao": "高遥",
        "ou": "楼流",
        "an": "山天川泉",
        "en": "人新春云",
        "ang": "香光长",
        "eng": "风城情东穷",
        "i": "衣知诗",
        "u": "无孤",
        "v": "鱼居",
        "er": "儿",
    }
    found = {c: chinese.rhyme_of(c) for characters in wanted.values() for c in characters}
    assert found == {c: f for f, characters in wanted.items() for c in characters}


def test_rhyme_needs_two_different_characters_that_sound_alike():
    assert chinese.rhyme("流", "楼") and chinese.rhyme("家", "花")
    assert not chinese.rhyme("流", "天")
    assert not chinese.rhyme("流", "流")
    assert not chinese.rhyme("山", "香")  # -an, -ang


def test_a_character_without_pinyin_has_no_sound_and_rhymes_with_nothing():
    for other in (NO_PINYIN, "a", "，", "\ufffd"):
        assert chinese.rhyme_of(other) is None and chinese.tone_of(other) is None
    assert not chinese.rhyme(NO_PINYIN, "𦶟")  # neither has a final: None is not equal to None
    with_it = HERON.replace("流", NO_PINYIN)
    assert chinese.form(with_it)["exact_form"] == 1 and chinese.form(with_it)["rhyme"] == 0
    assert not math.isnan(chinese.form(HERON.replace("日", NO_PINYIN))["alternation"])
    with pytest.raises(ValueError, match="'流楼' is not one character"):
        chinese.rhyme_of("流楼")


def test_tones_are_level_or_oblique():
    assert [chinese.tone_of(c) for c in "天年"] == ["level", "level"]
    assert [chinese.tone_of(c) for c in "马地"] == ["oblique", "oblique"]
    assert chinese.tone_of("吗") is None  # neutral


def test_tone_measures_of_a_poem_by_the_rule():
    found = chinese.form(HERON)
    assert (found["rhyme"], found["alternation"], found["opposition"]) == (1, 1, 1)
    scanned = chinese.scan(HERON)
    assert list(scanned["tones"]) == ["平仄平平仄", "平平仄仄平", "仄平平仄仄", "仄仄平平平"]
    assert list(scanned["rhyme"]) == ["en", "ou", "u", "ou"]


def test_alternation_counts_the_pairs_inside_a_line():
    assert chinese.alternation(lines("---|-", "-|---", "-----", "-|-|-")) == 0.5
    # positions 2, 4, 6: two pairs a line
    assert chinese.alternation(lines("---|---", "-|---|-", "-------", "-----|-")) == 5 / 8
    # other positions do not count
    assert chinese.alternation(lines("|-|-|", "|-|-|")) == 0
    unknown = [NO_PINYIN * 5] * 4
    assert math.isnan(chinese.alternation(unknown)) and math.isnan(chinese.opposition(unknown))


def test_opposition_counts_the_pairs_of_a_couplet():
    assert chinese.opposition(lines("-----", "-|-|-", "-----", "-----")) == 0.5
    assert chinese.opposition(lines("-----", "-----", "-|-|-", "-|-|-")) == 0  # between couplets
    assert chinese.opposition(lines("-------", "-|-|-|-", "-------", "-----|-")) == 4 / 6


def test_repetition_is_the_share_of_characters_seen_before():
    assert chinese.repeated(["天地玄黄宇", "宙洪荒日月", "盈昃辰宿列", "张寒来暑往"]) == 0
    assert chinese.repeated(["天地玄黄宇"] * 4) == 0.75


# ---- against the training poems


def test_a_copied_line_is_one_of_the_training_lines_whole():
    known = chinese.training_lines([LUSHAN])
    assert len(known) == 4
    one_line = "\n".join([*HERON.split("\n")[:3], "疑是银河落九天！"])
    assert chinese.form(one_line, known)["copied_line"] == 1  # whatever the form and the mark
    assert chinese.form(HERON, known)["copied_line"] == 0
    assert chinese.form(LUSHAN.replace("九", "青").replace("三", "几"), known)["copied_line"] == 1
    almost = "".join("云" if i % 9 == 3 else c for i, c in enumerate(LUSHAN))
    assert chinese.form(almost, known)["copied_line"] == 0


def test_the_table_averages_what_is_defined_and_says_over_how_many():
    table = chinese.form_table([HERON, LUSHAN, "no poem"], [LUSHAN]).set_index("measure")
    assert tuple(table.index) == chinese.MEASURES
    assert table.loc["exact_form", "value"] == pytest.approx(2 / 3)
    assert table.loc["copied_line", "value"] == pytest.approx(1 / 3)
    assert table.loc["alternation", "texts"] == 2 and table.loc["rhyme", "texts"] == 3
    assert chinese.form_table([LUSHAN], [LUSHAN]).set_index("measure").loc["longest_run", "value"] == 32
    with pytest.raises(ValueError, match="form of no text"):
        chinese.form_table([], [LUSHAN])


def ending(second: str, fourth: str) -> str:
    """A quatrain whose lines 2 and 4 end so."""
    return "\n".join(["天" * 5, "天" * 4 + second, "天" * 5, "天" * 4 + fourth])


def test_rhyme_by_chance_pairs_every_poem_with_every_other():
    poems = [ending("流", "楼"), ending("愁", "山"), ending(NO_PINYIN, "流")]
    # lines 2 x 4 of other poems: 流-山, 流-流 (the same), 愁-楼 (rhymes), 愁-流 (rhymes), 𬭭-楼, 𬭭-山
    assert chinese.rhyme_by_chance(poems) == pytest.approx(2 / 6)
    assert math.isnan(chinese.rhyme_by_chance(poems[:1])) and math.isnan(chinese.rhyme_by_chance([]))
    # only poems of the same line length are paired
    assert chinese.rhyme_by_chance([*poems, LUSHAN]) == pytest.approx(2 / 6)
    # who ends in one sound rhymes by that alone
    assert chinese.rhyme_by_chance([ending("流", "楼"), ending("愁", "秋"), ending("州", "舟")]) == 1
    with pytest.raises(ValueError, match="Not a quatrain"):
        chinese.rhyme_by_chance([HERON, "no poem"])


def test_mixed_characters_stay_in_their_poem(tang):
    people = [e.target for e in tang.test[:300]]
    shuffled = chinese.characters_mixed(people, seed=1)
    for a, b in zip(people, shuffled, strict=True):
        x, y = (chinese.quatrain(t) for t in (a, b))
        assert sorted("".join(x)) == sorted("".join(y)) and len(x[0]) == len(y[0])
        assert x != y
    assert shuffled == chinese.characters_mixed(people, seed=1)
    assert shuffled != chinese.characters_mixed(people, seed=2)
    with pytest.raises(ValueError, match="Not a quatrain"):
        chinese.characters_mixed([HERON, "no poem"])


def test_people_rhyme_and_chance_does_not(tang):
    people = [e.target for e in tang.test]
    assert all(map(chinese.is_quatrain, people))

    def rates(texts):
        return pd.DataFrame([chinese.form(t) for t in texts]).mean()

    found = rates(people)
    assert 0.75 < found["rhyme"] < 0.9
    assert found["alternation"] > 0.75 and found["opposition"] > 0.75
    # chance once more, by shuffling
    poems = [p for p in map(chinese.quatrain, people) if len(p[0]) == 7]
    rng = np.random.default_rng(0)
    drawn = [
        chinese.rhyme(poems[i][1][-1], poems[j][3][-1]) for i, j in rng.integers(0, len(poems), (20_000, 2)) if i != j
    ]
    sevens = ["\n".join(p) for p in poems]
    assert chinese.rhyme_by_chance(sevens) == pytest.approx(np.mean(drawn), abs=0.01)
    tones = rates(chinese.characters_mixed(people))
    assert tones["alternation"] == pytest.approx(0.5, abs=0.03)
    assert tones["opposition"] == pytest.approx(0.5, abs=0.03)


def test_the_figure_shows_every_rate_and_says_where_there_is_none():
    df = pd.DataFrame(
        [("people", 0, 0.821), ("after", 0, 0.2), ("after", 1, 0.3), ("before", 0, np.nan)],
        columns=["source", "seed", "value"],
    ).assign(measure="rhyme")
    sources = ["people", "chance", "before", "after"]  # chance has no row: its place stays empty
    figure = chinese_plots.form_panels(df, {"rhyme": "rhyme"}, sources)
    shown = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert shown == ["82.1 %", "no poem to measure", "25.0 %"]
    plt.close(figure)
