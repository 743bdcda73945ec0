"""The plan before a quatrain, against poems whose rhymes are known."""

import pytest

from lib import tasks
from lib.explore import chinese_tables, planning
from lib.explore.chinese_runs import Measured, given_plans

POEM = "红豆生南国，\n春来发几枝。\n愿君多采撷，\n此物最相思。"  # 枝 zhi, 思 si: -i
OTHER = "白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。"  # 流 liu, 楼 lou: -ou


def test_a_plan_says_metre_final_and_the_ends_of_lines_2_and_4():
    assert planning.plan_of(POEM) == "五i枝思"
    assert planning.plan_of(POEM, last="楼") == "五ou枝楼"
    with pytest.raises(ValueError, match="Not a quatrain, 1 line"):
        planning.plan_of("红豆生南国，")


def test_a_planned_task_is_the_task_with_a_line_more():
    tang = tasks.load_task("tang")
    planned = planning.with_plan(tang)
    assert planned.name == "tang-plan" and planned.sha256 != tang.sha256
    for split in ("train", "validation", "test"):
        for before, after in zip(getattr(tang, split), getattr(planned, split), strict=True):
            assert after.prompt == before.prompt and after.id == before.id
            plan, _, poem = after.target.partition("\n")
            assert poem == before.target == planning.without_plan(after.target)
            assert plan == planning.plan_of(poem)
            assert [planning.without_plan(r) for r in after.references] == list(before.references)


def test_given_plans_rhyme_as_people_do_or_not_at_all():
    plans = given_plans([POEM, OTHER, POEM])
    assert plans["people's plan"] == ["五i枝思", "五ou流楼", "五i枝思"]
    assert plans["unrhymed plan"] == ["五ou枝楼", "五i流思", "五ou枝楼"]  # never 枝 with 思
    with pytest.raises(ValueError, match="fails to rhyme with 枝"):
        planning.unrhymed_plans([POEM, POEM])


@pytest.mark.parametrize(
    ("text", "rhymes", "metre", "ends"),
    [
        (f"五i枝思\n{POEM}", 1, 1, 1),
        (f"七i枝思\n{POEM}", 1, 0, 1),
        (f"五ou枝楼\n{POEM}", 0, 1, 0),
        (f"五i思枝\n{POEM}", 1, 1, 0),
        ("五i枝思\n红豆生南国，", 1, 0, 0),
        (POEM, 0, 0, 0),  # the plan was left out: the first line is read as one
        ("", 0, 0, 0),
    ],
)
def test_how_a_text_follows_its_plan(text, rhymes, metre, ends):
    found = planning.follows(text)
    assert found == {"plan_rhymes": rhymes, "metre_kept": metre, "ends_kept": ends}


def test_the_plans_table_has_own_and_given_plans():
    texts = [f"五i枝思\n{POEM}", f"五ou流楼\n{POEM}"]
    forced = {"unrhymed plan": [f"五ou枝楼\n{POEM}"]}
    measured = Measured("tang", "after", "plan", 3, None, texts, forced, 1.0, {}, {}, None)
    assert measured.poems == [POEM, POEM]
    table = chinese_tables.plans([measured]).set_index(["source", "measure"])
    assert table.loc[("own plan", "ends_kept"), "value"] == 0.5
    assert table.loc[("own plan", "plan_rhymes"), "value"] == 1
    assert table.loc[("own plan", "rhyme"), "value"] == 1
    assert table.loc[("own plan", "exact_form"), "texts"] == 2
    assert table.loc[("unrhymed plan", "ends_kept"), "value"] == 0
    assert set(table["seed"]) == {3}
    assert chinese_tables.rate(table.reset_index(), "ends_kept", "own plan")["mean"] == 0.5
