"""lib.explore.traps: what each mistake measures, and rankings on hand-made values."""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lib import profile, results, tasks
from lib.explore import innovation_plots, scratch, traps
from lib.explore.attention import ATTENTIONS
from lib.explore.findings import trap_findings

SEED = 0


@pytest.fixture(scope="module")
def runs():
    names = ("plain", "one layer", "linear attention")
    return {(n, SEED): scratch.train(traps.recipe(SEED, **traps.MODELS[n])) for n in names}


@pytest.fixture(scope="module")
def texts():
    return traps.held_out()[:6]


def test_recipes_differ_in_what_their_name_says():
    plain = traps.recipe(3)
    p = profile.current().innovation
    assert plain.seed == 3 and plain.train_bytes == p.trap_bytes and plain.n_layer == p.trap_layers
    assert traps.recipe(3, **traps.MODELS["half the text"]).train_bytes == p.trap_bytes // 2
    assert traps.recipe(3, **traps.MODELS["one layer"]).n_layer == 1


def test_padding_counts_only_where_it_is_counted(runs, texts):
    run = runs["plain", SEED]
    short = [t[:60] for t in texts]
    counted, masked = (traps.padded_perplexity(run, short, c) for c in (True, False))
    assert counted != pytest.approx(masked, rel=0.05)
    end, nats = run.encoding.eos_token_id, []
    for ids in run.encoding.encode_batch(short):  # one document at a time has no padding
        row = torch.tensor([[end, *ids, end]])
        with torch.no_grad():
            logits = run.model(row[:, :-1]).logits[0]
        nats.append(F.cross_entropy(logits, row[0, 1:], reduction="none"))
    assert masked == pytest.approx(math.exp(float(torch.cat(nats).mean())), rel=1e-4)


def test_own_samples_are_the_models_own_and_seeded(runs):
    run = runs["plain", SEED]
    first = traps.sample_perplexity(run, 4)
    assert first == traps.sample_perplexity(run, 4)
    held_out = traps.padded_perplexity(run, traps.held_out(), counted=False)
    assert first < held_out  # truncated sampling picks likely tokens


def test_scoring_from_prefixes_is_one_pass_for_a_causal_model_and_not_for_a_leaking_one(runs, texts):
    for run in runs.values():
        both = [traps.prefix_bits_per_byte(run, texts, p, 4, 20) for p in (True, False)]
        assert both[0] == pytest.approx(both[1], rel=1e-4)
    rows = traps.leaking_attention(runs, (SEED,), texts)
    leaking = next(r for r in rows if r["model"] == "mask off by one")
    assert leaking["trapped"] < 0.95 * leaking["sound"]  # the others differ by rounding
    assert all(r["trapped"] == pytest.approx(r["sound"], rel=1e-3) for r in rows if r is not leaking)
    assert traps.leaks((SEED,)) > 0.01
    assert traps.LEAKING not in ATTENTIONS  # gone after use


def test_the_leaked_corpus_holds_the_test_text_and_goes_again(runs):
    before = tasks.load_task("debian")
    with traps.leaked_corpus():
        leaked = tasks.load_task(traps.LEAKED)
        held_out = {e.id for e in before.test[: len(traps.held_out())]}
        assert held_out <= {e.id for e in leaked.train}
        assert leaked.sha256 != before.sha256 and leaked.test == before.test
        assert {e.id for e in leaked.train}.isdisjoint(e.id for e in before.validation)
        mine = traps.recipe(SEED, corpus=traps.LEAKED)
        assert scratch.encoding_of(mine.corpus, mine.encoding, mine.vocab_size) is scratch.encoding_of(
            "debian", mine.encoding, mine.vocab_size
        )  # one thing changes
    assert traps.LEAKED not in tasks.TASKS and traps.LEAKED not in scratch.ENCODED_LIKE
    rows = pd.DataFrame(traps.overlap(runs, (SEED,)))
    names = set(rows["model"])
    assert {"plain", "plain, test text in training", "one layer, test text in training"} <= names
    clean = next(r for r in rows.itertuples() if r.model == "plain")
    seen = next(r for r in rows.itertuples() if r.model == "plain, test text in training")
    assert seen.trapped - seen.sound < clean.trapped - clean.sound  # it knows what it saw


def test_tokens_of_several_sizes_come_from_notebook_04_or_are_trained(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    folder = tmp_path / "data" / "results"
    row = {
        "corpus": "debian",
        "budget": "bytes",
        "encoding": "bpe",
        "vocab_size": 512,
        "seed": 1,
        "bits_per_byte": 2.0,
        "perplexity": 30.0,
    }
    kept = {
        "notebook": "04_token_encoding",
        "provenance": {"profile": "full"},
        "tables": {"encodings": [row, {**row, "corpus": "tang"}, {**row, "budget": "compute"}]},
    }
    results.write_json(folder / "04_token_encoding.json", kept)
    rows, source = traps.token_perplexity((SEED,), texts)
    assert rows == [
        {"trap": "token perplexity across tokenizers", "model": "bpe 512", "seed": 1, "sound": 2.0, "trapped": 30.0}
    ]
    assert "04_token_encoding" in source
    (folder / "04_token_encoding.json").unlink()
    monkeypatch.setattr(traps, "ENCODINGS", {"bytes": None, "bpe 512": 512})
    rows, source = traps.token_perplexity((SEED,), texts)
    assert {r["model"] for r in rows} == {"bytes", "bpe 512"} and "trained" in source
    assert all(r["trapped"] > 1 and r["sound"] > 0 for r in rows)


def values(trap, sound, trapped, seeds=(0, 1)):
    return [
        {"trap": trap, "model": m, "seed": s, "sound": sound[m], "trapped": trapped[m] + 0.001 * s}
        for s in seeds
        for m in sound
    ]


def test_flips_and_tau_of_known_rankings():
    sound = {"a": 1.0, "b": 2.0, "c": 3.0}
    rows = values("same", sound, {"a": 10, "b": 20, "c": 30})
    rows += values("reversed", sound, {"a": 3, "b": 2, "c": 1})
    rows += values("last two", sound, {"a": 1, "b": 3, "c": 2})
    table = traps.summary(pd.DataFrame(rows)).set_index("trap")
    assert table["flips"].to_dict() == {"same": 0, "reversed": 3, "last two": 1}
    assert table["tau"].to_dict() == pytest.approx({"same": 1.0, "reversed": -1.0, "last two": 1 / 3})
    assert table["best_changes"].to_dict() == {"same": False, "reversed": True, "last two": False}
    assert table.loc["last two", "ranking_trap"] == "a < c < b" and (table["pairs"] == 3).all()


def test_sentences_count_what_changed():
    sound = {"a": 1.0, "b": 2.0, "c": 3.0}
    rows = values("same", sound, sound) + values("last two", sound, {"a": 1, "b": 3, "c": 2})
    rows += values("reversed", sound, {"a": 3, "b": 2, "c": 1})
    said = trap_findings(traps.summary(pd.DataFrame(rows)))
    assert said[0].startswith("Finding: 2 of 3 mistakes turn round a pair of models that the control")
    assert said[0].endswith("2 change the order of some pair, 1 the best model.")
    assert (
        "last two: 1 of 3 pairs ordered differently, 1 of the 3 that the sound measure tells apart; the best model "
        "stays." in said
    )
    assert said[-1] == "Negative result, mistakes that left this ranking as it was: same."


def test_a_flip_of_models_that_the_seeds_do_not_tell_apart_is_not_shown():
    rows = values("x", {"a": 1.0, "b": 1.1}, {"a": 2, "b": 1}, range(3))
    for r, noise in zip(rows, (0.0, 0.2, 0.3, -0.2, -0.3, 0.1), strict=True):
        r["sound"] += noise
    table = traps.summary(pd.DataFrame(rows))
    assert table[["flips", "shown_pairs", "shown_flips"]].iloc[0].tolist() == [1, 0, 0]
    single = traps.summary(pd.DataFrame(values("x", {"a": 1.0, "b": 2}, {"a": 2, "b": 1}, (0,))))
    for each in (table, single):
        said = trap_findings(each)[0]
        assert said.startswith("Finding: 1 of 1 mistakes change the order of some pair of models")
        assert "tell no pair apart, so chance may have done it" in said


def test_one_seed_shows_the_seed_that_differs_most():
    df = pd.DataFrame(
        [("a", 0, 1.0), ("b", 0, 2.0), ("a", 1, 1.0), ("b", 1, 2.0), ("a", 2, 1.6), ("b", 2, 1.5)],
        columns=["model", "seed", "bits_per_byte"],
    )
    table = traps.summary(pd.DataFrame(traps.one_seed(df)))
    assert table["flips"].item() == 1 and table["ranking_trap"].item() == "b < a"
    assert table["ranking_sound"].item() == "a < b" and table["seeds"].item() == 3
    assert table["shown_pairs"].item() == 0
    assert traps.one_seed(df[df["seed"] == 0]) == []


def test_an_order_without_interval_is_not_an_order():
    rows = [("a", s, 1.0 + 0.1 * s) for s in range(3)] + [("b", s, 1.01 + 0.1 * s) for s in range(3)]
    rows += [("c", s, (1.0, 1.4, 1.2)[s]) for s in range(3)]
    found = traps.no_interval(pd.DataFrame(rows, columns=["model", "seed", "bits_per_byte"]))
    assert found["ranking_sound"] == "a < b = c" and found["ranking_trap"] == "a < b < c"
    assert found["flips"] == 2 and found["pairs"] == 3 and not found["best_changes"]
    single = pd.DataFrame([("a", 0, 1.0), ("b", 0, 2.0)], columns=["model", "seed", "bits_per_byte"])
    assert traps.no_interval(single)["flips"] == 1  # one seed orders nothing


def test_the_figure_has_a_panel_per_trap_and_both_ranks():
    rows = values("x", {"a": 1, "b": 2}, {"a": 2, "b": 1}) + values("y", {"a": 1, "b": 2}, {"a": 1, "b": 2})
    figure = innovation_plots.rankings(pd.DataFrame(rows))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["x", "y"]
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert "a  1" in texts and "b  2" in texts and texts.count("1") == 1
