"""lib.explore.traps: what each mistake measures, rankings on hand-made values, and the audit of hand-made tables."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from notebook_code import defined

from lib import tasks
from lib.explore import attention, costs, scratch, traps
from lib.explore.traps import Protocol, audit

SEED, N_BYTES = 0, 3_000
SOUND = Protocol(text="held-out", padding_counted=False, overlap=0, tokenizer="gpt2", leak=1e-6)


def trained(**changes):
    sizes = {"train_length": 128, "n_positions": 128, "train_bytes": 96_000, "n_layer": 2, "n_embd": 32}
    return scratch.train(scratch.Recipe(**{"seed": SEED} | sizes | changes))


@pytest.fixture(scope="module")
def run():
    return trained()


def test_scoring_from_prefixes_is_one_pass_for_a_causal_model_and_not_for_a_leaking_one(run, monkeypatch):
    def form(q, k, v, scale, **_):  # a mask that is off by one
        return attention.softmax(q, k, v, scale, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1))

    monkeypatch.setitem(attention.ATTENTIONS, "leaking", None)
    attention.register("leaking", attention.Attention(form))
    leaking = trained(position="rope", attention="leaking")
    assert costs.leak(leaking.model, 40) > 0.01
    score, texts = traps.prefix_bits_per_byte, scratch.documents("debian", "test", N_BYTES)[:6]
    (cheat, honest), (seen, prefix) = ([score(m, texts, p, 4, 20) for p in (False, True)] for m in (leaking, run))
    assert cheat < 0.95 * honest and seen == pytest.approx(prefix, rel=1e-4)


def test_the_leaked_corpus_holds_the_test_text_and_goes_again(run):
    before = tasks.load_task("debian")
    split = {name: scratch.documents("debian", name, N_BYTES) for name in ("validation", "test")}
    with traps.leaked_corpus(N_BYTES):
        leaked = tasks.load_task(traps.LEAKED)
        ids = {row["id"] for row in leaked["train"]}
        assert {row["id"] for row in tasks.head(before["test"], len(split["test"]))} <= ids
        assert ids.isdisjoint(row["id"] for row in before["validation"]) and leaked.sha256 != before.sha256
        assert len({id(scratch.encoding_of(c, "bpe", 1_024)) for c in (traps.LEAKED, "debian")}) == 1
        seen = trained(corpus=traps.LEAKED)
    assert traps.LEAKED not in tasks.TASKS and traps.LEAKED not in scratch.ENCODED_LIKE
    gaps = [r.bits_per_byte(split["test"]) - r.bits_per_byte(split["validation"]) for r in (seen, run)]
    assert gaps[0] < gaps[1]  # it knows what it saw


def values(trap, sound, trapped):
    named = [(s, m, x, trapped[m]) for s in (0, 1, 2) for m, x in sound]
    return [{"trap": trap, "model": m, "seed": s, "sound": x, "trapped": y} for s, m, x, y in named]


def test_flips_and_tau_of_known_rankings_and_which_flips_are_shown():
    sound = [("a", 1.0), ("b", 2.0), ("c", 3.0)]
    rows = values("same", sound, {"a": 10, "b": 20, "c": 30})
    rows += values("reversed", sound, {"a": 3, "b": 2, "c": 1})
    rows += values("last two", sound, {"a": 1, "b": 3, "c": 2})
    table = traps.summary(pd.DataFrame(rows)).set_index("trap")
    assert table["flips"].to_dict() == {"same": 0, "reversed": 3, "last two": 1}
    assert table["tau"].to_dict() == pytest.approx({"same": 1.0, "reversed": -1.0, "last two": 1 / 3})
    assert table["best_changes"].to_dict() == {"same": False, "reversed": True, "last two": False}
    assert table.loc["last two", "ranking_trap"] == "a < c < b" and (table["pairs"] == 3).all()
    # of models that the seeds do not tell apart no flip is shown
    rows = pd.DataFrame(values("x", [("a", 1.0), ("b", 1.1)], {"a": 2, "b": 1}))
    rows["sound"] += [0.0, 0.2, 0.3, -0.2, -0.3, 0.1]
    assert traps.summary(rows)[["flips", "shown_pairs", "shown_flips"]].iloc[0].tolist() == [1, 0, 0]


def table(**columns):
    """Two methods, three seeds, clearly apart; nats, tokens and bytes agree with both ratios."""
    rows = []
    for method, level in (("full", 1.0), ("lora", 1.2)):
        for seed in range(3):
            nats = (level + 0.01 * seed) * 1_000 * math.log(2)
            row = {"method": method, "seed": seed, "nats": nats, "bytes": 1_000, "tokens": 300}
            rows.append(row | {"bits_per_byte": nats / 1_000 / math.log(2), "perplexity": math.exp(nats / 300)})
    return pd.DataFrame(rows).assign(**columns)


def found_in(rows, protocol=SOUND):
    return {f.trap for f in audit(rows, protocol)}


def test_a_sound_table_has_no_finding_and_what_is_missing_is_asked_for():
    assert audit(table(), SOUND) == audit(table().to_dict("records"), SOUND) == []
    found = audit(table(), Protocol())
    assert [f.where for f in found] == ["text", "padding_counted", "overlap", "tokenizer", "leak"]
    assert {f.trap for f in found} == {"not declared"} and "Protocol(text=...)" in found[0].problem
    with pytest.raises(ValueError, match=r"no column 'chrf'; it has method, seed"):
        audit(table(), replace(SOUND, metric="chrf"))


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
    assert finding.trap == trap and finding.way_out


@pytest.mark.parametrize("column", ["perplexity", "bits_per_byte"])
def test_a_ratio_that_its_parts_do_not_give_names_its_row(column):
    rows = table()
    rows.loc[4, column] *= 0.9  # as if padding had been divided by
    assert [f.where for f in audit(rows, SOUND) if f.trap == "padding counted"] == [f"row 4, {column}"]
    rows = table()
    rows.loc[3:, ["nats", "tokens", "bytes"]] *= 2  # of a longer text
    assert found_in(rows) == {"different test texts"}


def test_perplexity_per_token_is_refused_across_tokenizers_and_fine_within_one():
    rows, trap = table(encoding=["bytes"] * 3 + ["bpe"] * 3), "token perplexity across tokenizers"
    per_token = replace(SOUND, metric="perplexity", tokenizer="column:encoding")
    assert trap in found_in(rows, per_token)
    assert trap in found_in(rows.rename(columns={"perplexity": "ppl"}), replace(per_token, metric="ppl"))
    assert trap not in found_in(rows, replace(per_token, metric="bits_per_byte"))
    assert trap not in found_in(rows, replace(per_token, within=("encoding",)))
    assert audit(table(), replace(SOUND, metric="perplexity")) == []


def test_too_few_seeds_and_seeds_that_are_no_column():
    (finding,) = [f for f in audit(table().drop(5), SOUND) if f.trap == "one seed"]
    assert finding.where == "method=lora" and "2 seeds" in finding.problem
    (finding,) = audit(table().drop(columns="seed").iloc[[0, 3]], SOUND)
    assert finding.trap == "one seed" and finding.where == "seed"
    twice = pd.concat([table(), table()], ignore_index=True)
    assert any("6 rows for 3 seeds" in f.problem for f in audit(twice, SOUND))
    copied = table().drop(columns="nats")
    copied.loc[3:, "bits_per_byte"] = 1.2
    (finding,) = audit(copied, SOUND)
    assert finding.where == "method=lora" and "a run that was copied" in finding.problem


def test_one_seed_is_judged_by_every_draw_of_it():
    one_seed = defined("09_innovation", "one_seed").one_seed
    a, b = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], [1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.65]
    (found,) = one_seed(pd.DataFrame({"a": a, "b": b, "c": [1.0, 1.8] * 4}))  # c is told from neither
    assert found["a"] == "a" and found["b"] == "b" and found["difference"] == pytest.approx(-0.16875)
    assert found["draws"] == 64 and found["turned"] == sum(x > y for x in a for y in b)


def test_a_difference_inside_its_interval_is_named_and_pairing_counts():
    rows = table()
    rows["bits_per_byte"] = [1.0, 1.1, 1.2, 1.15, 1.05, 1.25]
    rows = rows.drop(columns=["nats"])
    (finding,) = audit(rows, SOUND)
    assert finding.trap == "no interval" and finding.where == "full against lora"
    rows["bits_per_byte"] = [1.0, 1.5, 2.0, 1.01, 1.51, 2.01]  # far apart by seed, always by the same
    assert audit(rows, SOUND) == []
