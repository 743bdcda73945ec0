"""lib.explore.audit: each trap is found in a hand-made table, and a sound table gives no finding."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from lib.explore import audit as module
from lib.explore.audit import SHIPPED, Protocol, audit, audit_results, shipped_results

SOUND = Protocol(text="held-out", padding_counted=False, overlap=0, tokenizer="gpt2", leak=1e-6)


def table(**columns):
    """Two methods, three seeds, clearly apart; nats, tokens and bytes agree with both ratios."""
    rows = []
    for method, level in (("full", 1.0), ("lora", 1.2)):
        for seed in range(3):
            nats = (level + 0.01 * seed) * 1_000 * math.log(2)
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "nats": nats,
                    "bytes": 1_000,
                    "tokens": 300,
                    "bits_per_byte": nats / 1_000 / math.log(2),
                    "perplexity": math.exp(nats / 300),
                }
            )
    return pd.DataFrame(rows).assign(**columns)


def traps(rows, protocol=SOUND):
    return {f.trap for f in audit(rows, protocol)}


def test_a_sound_table_has_no_finding():
    assert audit(table(), SOUND) == []
    assert audit(table().to_dict("records"), SOUND) == []
    before = pd.DataFrame([{"method": "none", "seed": 0, "bits_per_byte": 2.0}])
    both = pd.concat([table(), before], ignore_index=True)
    assert audit(both, replace(SOUND, exempt={"method": "none"})) == []
    assert traps(both) == {"one seed", "no interval"}  # without the exemption


@pytest.mark.parametrize(
    ("change", "trap"),
    [
        ({"text": "own samples"}, "own samples"),
        ({"padding_counted": True}, "padding counted"),
        ({"overlap": 12}, "overlapping train and test"),
        ({"text": "training"}, "overlapping train and test"),
        ({"leak": 0.3}, "leaking attention"),
        ({"leak": math.nan}, "leaking attention"),
    ],
)
def test_a_declared_mistake_is_one_finding_with_a_way_out(change, trap):
    (finding,) = audit(table(), replace(SOUND, **change))
    assert finding.trap == trap and finding.way_out and str(finding).startswith(f"{trap}: ")


@pytest.mark.parametrize("name", ["text", "padding_counted", "overlap", "tokenizer", "leak"])
def test_what_is_not_declared_is_asked_for(name):
    (finding,) = audit(table(), replace(SOUND, **{name: None}))
    assert finding.trap == "not declared" and finding.where == name
    assert f"Protocol({name}=...)" in finding.way_out


@pytest.mark.parametrize("column", ["perplexity", "bits_per_byte"])
def test_a_ratio_that_its_parts_do_not_give_names_its_row(column):
    rows = table()
    rows.loc[4, column] *= 0.9  # as if padding had been divided by
    found = [f for f in audit(rows, SOUND) if f.trap == "padding counted"]
    assert [f.where for f in found] == [f"row 4, {column}"]


def test_perplexity_per_token_is_refused_across_tokenizers_and_fine_within_one():
    rows = table(encoding=["bytes"] * 3 + ["bpe"] * 3)
    per_token = replace(SOUND, metric="perplexity", tokenizer="column:encoding")
    (finding,) = [f for f in audit(rows, per_token) if "token" in f.trap]
    assert finding.trap == "token perplexity across tokenizers" and "bytes, bpe" in finding.problem
    assert "token perplexity across tokenizers" not in traps(rows, replace(per_token, metric="bits_per_byte"))
    assert audit(table(), replace(SOUND, metric="perplexity")) == []
    inside = replace(per_token, within=("encoding",))
    assert "token perplexity across tokenizers" not in traps(rows, inside)


def test_a_leak_in_a_row_is_named():
    rows = table(future_leak=[0, 1e-5, 0, 0, 0.2, math.nan])
    (finding,) = audit(rows, SOUND)
    assert finding.trap == "leaking attention" and finding.where == "row 4, future_leak"


def test_too_few_seeds_and_seeds_that_are_no_column():
    rows = table().query("not (method == 'lora' and seed == 2)")
    (finding,) = [f for f in audit(rows, SOUND) if f.trap == "one seed"]
    assert finding.where == "method=lora" and "2 seeds" in finding.problem
    (finding,) = audit(table().drop(columns="seed").iloc[[0, 3]], SOUND)
    assert finding.trap == "one seed" and finding.where == "seed"
    twice = pd.concat([table(), table()], ignore_index=True)
    assert any("6 rows for 3 seeds" in f.problem for f in audit(twice, SOUND))


def test_a_difference_inside_its_interval_is_named_and_pairing_counts():
    rows = table()
    rows["bits_per_byte"] = [1.0, 1.1, 1.2, 1.15, 1.05, 1.25]
    rows = rows.drop(columns=["nats"])
    (finding,) = audit(rows, SOUND)
    assert finding.trap == "no interval" and finding.where == "full against lora"
    rows["bits_per_byte"] = [1.0, 1.5, 2.0, 1.01, 1.51, 2.01]  # far apart by seed, always by the same
    assert audit(rows, SOUND) == []


def test_claims_are_checked_in_their_direction_and_others_left_alone():
    rows = table()
    assert audit(rows, replace(SOUND, claims=(("full", "lora"),))) == []
    (finding,) = audit(rows, replace(SOUND, claims=(("lora", "full"),)))
    assert finding.trap == "no interval" and "the other way round" in finding.problem
    with pytest.raises(ValueError, match="A claim names 'lore', which method never is"):
        audit(rows, replace(SOUND, claims=(("lore", "full"),)))
    rows["bits_per_byte"] = [1.0, 1.1, 1.2, 1.15, 1.05, 1.25]
    rows = rows.drop(columns=["nats"])
    assert audit(rows, replace(SOUND, claims=())) == []
    higher = table().assign(bits_per_byte=lambda d: -d["bits_per_byte"]).drop(columns="nats")
    assert audit(higher, replace(SOUND, lower_is_better=False, claims=(("full", "lora"),))) == []


def test_comparisons_stay_inside_their_groups():
    rows = pd.concat([table(task="a"), table(task="b").assign(method=lambda d: d["method"] + "2")])
    inside = replace(SOUND, within=("task",))
    assert audit(rows, inside) == []
    rows.loc[rows["task"] == "b", "bits_per_byte"] = 1.0  # equal
    rows = rows.drop(columns="nats")
    assert {f.where for f in audit(rows, inside)} == {"task=b: full2 against lora2"}


def test_only_some_rows_take_part():
    rows = pd.concat([table(measure="x"), table(measure="y").iloc[:1]], ignore_index=True)
    assert traps(rows, replace(SOUND, within=("measure",))) == {"one seed"}
    assert audit(rows, replace(SOUND, within=("measure",), only={"measure": ("x",)})) == []
    with pytest.raises(ValueError, match="No row is left"):
        audit(rows, replace(SOUND, only={"measure": ("z",)}))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="An audit of no row"):
        audit([], SOUND)
    with pytest.raises(ValueError, match=r"no column 'chrf'; it has method, seed"):
        audit(table(), replace(SOUND, metric="chrf"))
    with pytest.raises(ValueError, match="no column 'words'"):
        audit(table(), replace(SOUND, tokenizer="column:words"))


def test_shipped_tables_are_audited_and_a_clean_one_says_none():
    found = audit_results(shipped_results())
    assert set(found.columns) == {"notebook", "table", "trap", "where", "problem", "way_out"}
    assert (
        not found["trap"]
        .isin(
            [
                "own samples",
                "padding counted",
                "overlapping train and test",
                "leaking attention",
                "token perplexity across tokenizers",
                "not declared",
            ]
        )
        .any()
    )
    # 03 fine-tuned E2E with one seed, and says so: a finding that must not get lost
    assert ((found["notebook"] == "03_evaluate") & (found["trap"] == "one seed")).any()
    files = {"09_innovation": {"tables": {"frontier": table(setting="s").to_dict("records")}}}
    files["03_evaluate"] = {"tables": {name: [] for book, name in SHIPPED if book == "03_evaluate"}}
    clean = audit_results(files)  # a benchmark that was not within reach leaves an empty table
    assert clean[["notebook", "table", "trap"]].values.tolist() == [["09_innovation", "frontier", "none"]]


def test_every_shipped_protocol_fits_its_table():
    files = shipped_results()
    audited = [key for key in SHIPPED if key[1] in files.get(key[0], {}).get("tables", {})]
    assert len(audited) >= 3
    for notebook, name in audited:
        audit(files[notebook]["tables"][name], SHIPPED[notebook, name])  # no column is missing
    assert module.as_table([]).columns.tolist() == ["trap", "where", "problem", "way_out"]
