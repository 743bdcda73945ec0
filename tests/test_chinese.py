"""lib.explore.chinese: form by hand-made, broken and shipped poems; plans; new tokens; equal text."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import plain_nats
from small_llama import small_llama
from tokenizers import AddedToken

from lib import metrics, models, packing, tasks
from lib.explore import chinese

HERON = "白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。"  # by the rule throughout, in Mandarin too; -ou
LUSHAN = "日照香炉生紫烟，\n遥看瀑布挂前川。\n飞流直下三千尺，\n疑是银河落九天。"
BEAN = "红豆生南国，\n春来发几枝。\n愿君多采撷，\n此物最相思。"  # 枝 zhi, 思 si: -i
BROKEN = [HERON.replace(*change) for change in (("黄河", "黄"), ("河", "X"), ("楼", "\ufffd"))]
TRACKS = "麻家花 a|波多歌 o|月切 ê|来怀 ai|飞归 ei|高遥 ao|楼流 ou|山天川泉 an|人新春云 en|香光长 ang|风城情东穷翁 eng"
NO_PINYIN = "𬭭"
CHARACTERS = ["山", "日", "香"]


@pytest.fixture(scope="module")
def tang():
    return tasks.load_task("tang")


def lines(*patterns: str) -> list[str]:
    """Lines of level and oblique characters from patterns such as "-|-||"."""
    return [p.replace("-", "天").replace("|", "地") for p in patterns]


def test_a_quatrain_is_read_without_its_punctuation():
    for text in (HERON, HERON.translate({ord(c): None for c in "，。"}), HERON.replace("，", "！")):
        assert chinese.quatrain(text) == ["白日依山尽", "黄河入海流", "欲穷千里目", "更上一层楼"]
    assert [len(x) for x in chinese.quatrain(f"\n{LUSHAN} \n")] == [7, 7, 7, 7]


@pytest.mark.parametrize("text", ["", "\n".join(["白日依山尽去"] * 4), HERON + "\n更上一层楼。", *BROKEN])
def test_what_is_no_quatrain_scores_nothing(text):
    assert chinese.quatrain(text) is None
    assert chinese.form(text) == {"exact_form": 0, "rhyme": 0, "copied_line": 0}
    with pytest.raises(ValueError, match="Not a quatrain, four lines"):
        chinese.plan_of(text)


def test_rhyme_needs_two_different_characters_that_sound_alike():
    for characters, final in (part.split() for part in f"{TRACKS}|衣知诗鱼居儿 i|无孤 u".split("|")):
        assert {chinese.rhyme_of(c) for c in characters} == {final}
    assert chinese.rhyme("流", "楼") and chinese.rhyme("歌", "多") and not chinese.rhyme("歌", "切")
    assert not chinese.rhyme("流", "天") and not chinese.rhyme("流", "流") and not chinese.rhyme("山", "香")
    for other in (NO_PINYIN, "a", "，", "\ufffd"):
        assert chinese.rhyme_of(other) is None and chinese.tone_of(other) is None
    assert not chinese.rhyme(NO_PINYIN, "𦶟")  # neither has a final: None is not equal to None
    assert chinese.form(HERON.replace("流", NO_PINYIN))["rhyme"] == 0
    assert not math.isnan(chinese.form(HERON.replace("日", NO_PINYIN))["alternation"])


def test_tone_measures_of_poems_counted_by_hand():
    tones = ["".join(map(chinese.tone_of, line)) for line in chinese.quatrain(HERON)]
    assert tones == ["平仄平平仄", "平平仄仄平", "仄平平仄仄", "仄仄平平平"]
    assert chinese.tone_of("吗") is None  # neutral
    found = chinese.form(HERON)
    assert (found["rhyme"], found["alternation"], found["opposition"]) == (1, 1, 1)
    assert chinese.alternation(lines("---|-", "-|---", "-----", "-|-|-")) == 0.5  # inside a line
    assert chinese.alternation(lines("---|---", "-|---|-", "-------", "-----|-")) == 5 / 8  # 2, 4, 6: two pairs a line
    assert chinese.alternation(lines("|-|-|", "|-|-|")) == 0  # other positions do not count
    assert chinese.opposition(lines("-----", "-----", "-|-|-", "-|-|-")) == 0  # in a couplet, not between couplets
    assert chinese.opposition(lines("-------", "-|-|-|-", "-------", "-----|-")) == 4 / 6
    unknown = [NO_PINYIN * 5] * 4
    assert math.isnan(chinese.alternation(unknown)) and math.isnan(chinese.opposition(unknown))


def test_a_copied_line_is_one_of_the_training_lines_whole():
    known = frozenset(chinese.quatrain(LUSHAN))
    one_line = "\n".join([*HERON.split("\n")[:3], "疑是银河落九天！"])
    assert chinese.form(one_line, known)["copied_line"] == 1  # whatever the form and the mark
    assert chinese.form(HERON, known)["copied_line"] == 0
    assert chinese.form("\n".join(["天地玄黄宇"] * 4))["repeated"] == 0.75
    almost = "".join("云" if i % 9 == 3 else c for i, c in enumerate(LUSHAN))
    assert chinese.form(almost, known)["copied_line"] == 0


def test_people_rhyme_and_chance_does_not(tang):
    people = [row["target"] for row in tang["test"]]
    assert all(map(chinese.quatrain, people))
    found = pd.DataFrame(map(chinese.form, people)).mean()
    assert 0.8 < found["rhyme"] < 0.9
    assert found["alternation"] > 0.75 and found["opposition"] > 0.75
    poems = [p for p in map(chinese.quatrain, people) if len(p[0]) == 7]  # chance once more, by shuffling
    drawn = np.random.default_rng(0).integers(0, len(poems), (20_000, 2))
    rate = np.mean([chinese.rhyme(poems[i][1][-1], poems[j][3][-1]) for i, j in drawn if i != j])
    assert chinese.rhyme_by_chance(["\n".join(p) for p in poems]) == pytest.approx(rate, abs=0.01)


def test_a_planned_task_is_the_task_with_a_line_more_and_given_plans_do_not_rhyme(tang):
    assert chinese.plan_of(BEAN) == "五i枝思" and chinese.plan_of(BEAN, last="楼") == "五ou枝楼"
    planned = chinese.with_plan(tang)
    assert planned.name == "tang-plan" and planned.sha256 != tang.sha256
    for split in ("train", "validation", "test"):
        for before, after in zip(tang[split], planned[split], strict=True):
            assert after["prompt"] == before["prompt"] and after["id"] == before["id"]
            assert after["target"] == f"{chinese.plan_of(before['target'])}\n{before['target']}"
            assert [r.partition("\n")[2] for r in after["references"]] == list(before["references"])
    assert chinese.unrhymed_plans([BEAN, HERON, BEAN]) == ["五ou枝楼", "五i流思", "五ou枝楼"]  # never 枝 with 思
    with pytest.raises(ValueError, match="fails to rhyme with 枝"):
        chinese.unrhymed_plans([BEAN, BEAN])


def test_marks_name_the_tones_that_the_rules_bind_and_change_no_measure(tang):
    assert chinese.marked(HERON) == "/-白日依山尽，\n-/黄河入海流。\n-/欲穷千里目，\n/-更上一层楼。"
    assert chinese.marked(LUSHAN).split("\n")[0] == "/-/日照香炉生紫烟，"
    assert chinese.marked(HERON.replace("日", NO_PINYIN)).startswith("?-白")
    planned = chinese.with_plan(tang, tones=True)
    assert planned.sha256 not in (tang.sha256, chinese.with_plan(tang).sha256)
    for before, after in zip(tang["test"], planned["test"], strict=True):
        plan, _, poem = after["target"].partition("\n")
        assert plan == chinese.plan_of(before["target"]) and chinese.marks_kept(poem) == 1
        assert chinese.form(poem) == pytest.approx(chinese.form(before["target"]), nan_ok=True)
    assert chinese.marks_kept("//白日依山尽，\n-/黄河入海流。\n----欲穷") == 3 / 4  # no character, no count
    assert math.isnan(chinese.marks_kept(HERON)) and math.isnan(chinese.marks_kept(""))


def test_the_reward_counts_the_rules_that_are_kept_and_no_copies():
    assert chinese.reward(HERON) == chinese.reward(chinese.marked(HERON)) == 4
    assert chinese.reward(HERON.replace("流", "山")) == 3  # no rhyme; a last character has no bound tone
    assert 2 < chinese.reward(LUSHAN) < 4
    assert chinese.reward("红豆生南国") == 0 and chinese.reward(HERON, frozenset(["黄河入海流"])) == 0


@pytest.mark.parametrize(
    ("text", "rhymes", "metre", "ends"),
    [
        (f"五i枝思\n{BEAN}", 1, 1, 1),
        (f"七ou枝楼\n{BEAN}", 0, 0, 0),
        ("五i枝思\n红豆生南国，", 1, 0, 0),
        (BEAN, 0, 0, 0),  # the plan was left out: the first line is read as one
        ("", 0, 0, 0),
    ],
)
def test_how_a_text_follows_its_plan(text, rhymes, metre, ends):
    assert chinese.follows(text) == {"plan_rhymes": rhymes, "metre_kept": metre, "ends_kept": ends}


MODELS = {
    "gpt2 tied": lambda v: models.small_gpt2(v, 1, 2, 32),
    "gpt2 with spare rows": lambda v: models.small_gpt2(v + 64, 1, 2, 32),
    "llama untied": small_llama,
}


@pytest.fixture(scope="module", params=MODELS)
def any_base(request, base) -> models.Base:
    """Its tokenizer knows English only, as GPT-2's nearly does."""
    model = MODELS[request.param](len(base.tokenizer))
    return models.Base(model, base.tokenizer, request.param, True, "a seed", None, model.num_parameters(), 256)


def tables(model) -> list[torch.Tensor]:
    """Embedding and head, once each."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embedding] if output is embedding else [embedding, output]


@torch.no_grad()
@pytest.mark.parametrize("init", chinese.INITS)
def test_old_rows_stay_and_new_ones_start_as_named(any_base, init):
    weights = copy.deepcopy(any_base.model.state_dict())
    wide, size = chinese.extend(any_base, CHARACTERS, init, seed=3), len(any_base.tokenizer)
    ids = wide.tokenizer.convert_tokens_to_ids(CHARACTERS)
    assert ids == list(range(size, size + 3))
    assert len(tables(wide.model)) == len(tables(any_base.model)) == (2 if "untied" in any_base.name else 1)
    for old, new in zip(tables(any_base.model), tables(wide.model), strict=True):
        assert torch.equal(new[:size], old[:size])
        pieces = any_base.tokenizer(CHARACTERS, add_special_tokens=False).input_ids
        means = torch.stack([old[ids].mean(0) for ids in pieces])
        if init == "pieces":
            assert torch.allclose(new[ids], means, atol=1e-7)
        else:
            assert not torch.allclose(new[ids], means, atol=1e-3)
            assert new[ids].std() == pytest.approx(means.std(), rel=0.25)
            assert abs(new[ids].mean()) < means.std() / 3
    inputs = any_base.tokenizer("a tool for developers 水", return_tensors="pt")  # no new character in it
    before, after = (model(**inputs).logits[..., :size] for model in (any_base.model, wide.model))
    assert torch.allclose(after, before, atol=1e-5)
    wide.model.get_input_embeddings().weight.zero_()
    now = any_base.model.state_dict()
    assert len(any_base.tokenizer) == size and all(torch.equal(now[k], weights[k]) for k in weights)


def test_any_text_survives_the_extended_tokenizer(any_base, tang):
    tokenizer = any_base.tokenizer
    characters = chinese.split_characters(tokenizer, [row["prompt"] + row["target"] for row in tang["train"]], 300)
    wide = chinese.extend(any_base, characters, "pieces").tokenizer
    odd = ["日", "山日山", " 日 x日x ", "a\n\n日,", "日<|endoftext|>山", "🙂日\ufffd", "𬭭日", "ｶ日ﬁ"]
    for text in [*odd, *(row["prompt"] + row["target"] for row in tasks.head(tang["test"], 200))]:
        ids, own = (t(text, add_special_tokens=False, split_special_tokens=True).input_ids for t in (wide, tokenizer))
        assert wide.decode(ids, clean_up_tokenization_spaces=False) == text
        assert len(ids) <= len(own) - sum(text.count(c) * (len(tokenizer(c).input_ids) - 1) for c in characters)


def test_split_characters_are_the_frequent_ones_that_the_tokenizer_splits(base):
    tokenizer, known = base.tokenizer, copy.deepcopy(base.tokenizer)
    known.add_tokens([AddedToken("山", normalized=False)])
    texts = ["山山山山日日日，，，，，x", "香香水水"]
    assert chinese.split_characters(tokenizer, texts, 3) == ["山", "日", "水"]
    assert chinese.split_characters(known, texts, 3) == ["日", "水", "香"]
    with pytest.raises(ValueError, match=r"hold 4 characters .* fewer than 5"):
        chinese.split_characters(tokenizer, texts, 5)
    for characters in (["日", "a"], ["日", "日"], []):
        with pytest.raises(ValueError, match="a character that the tokenizer splits, given once"):
            chinese.extend(base, characters, "pieces")


def test_an_extended_vocabulary_sees_the_same_poems(base, tang):
    characters = chinese.split_characters(base.tokenizer, [row["target"] for row in tang["train"]], 50)
    wide = chinese.extend(base, characters, "pieces")
    for tokens, drawn in ((3_000, tang), (20_000, tang), (3_000, chinese.with_plan(tang))):
        own = packing.draw(tasks.encode(base.tokenizer, drawn["train"], base.context), tokens, 5)
        budget = chinese.same_documents(base, wide, drawn, 5, tokens, tang)
        other = packing.draw(tasks.encode(wide.tokenizer, tang["train"], base.context), budget, 5)
        assert [d.id for d in other] == [d.id for d in own]
        assert sum(len(d.input_ids) for d in other) == budget < tokens + 200


def test_bits_per_character_equals_a_loop_over_single_documents(base, tang):
    rows, nats, characters = tasks.head(tang["test"], 8), 0, 0
    for row in rows:
        prompt, target = (base.tokenizer(row[key]).input_ids for key in ("prompt", "target"))
        nats += sum(plain_nats(base.model, [*prompt, *target, base.tokenizer.eos_token_id], len(prompt)))
        characters += len(row["target"])
    found = chinese.bits_per_character(metrics.score(base.model, base.tokenizer, rows, ""), tang["test"])
    assert found == pytest.approx(nats / math.log(2) / characters, rel=2e-3)  # bfloat16 inside
