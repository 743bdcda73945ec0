"""lib.explore.bench: the systems are measured on a tiny model, they do equal work, and ratios are of one run."""

import itertools
import time
from unittest.mock import Mock

import pandas as pd
import pytest
from notebook_code import defined
from transformers.activations import NewGELUActivation

from lib import profile, tasks
from lib.explore import bench
from lib.explore.bench import SYSTEMS, Clock, measured


@pytest.mark.parametrize("system", ["ours", "tutorial"])
def test_a_training_counts_targets_and_leaves_the_model_alone(system, monkeypatch):
    clocks = []
    monkeypatch.setattr(bench, "Clock", lambda seconds: clocks.append(Clock(seconds)) or clocks[-1])
    weights = (bench.model_folder() / "model.safetensors").read_bytes()
    assert measured("training", system, "default", 0, seconds=0.0)["useful_tokens_per_second"] > 0
    steps = clocks[-1].steps
    assert len(steps) == bench.STEPS and [s for s, _ in steps] == sorted(s for s, _ in steps)
    tokenizer, rows = bench.random_base().tokenizer, tasks.load_task("debian")["train"]
    longest = max(len(ids) for ids in tokenizer([row["target"] for row in rows]).input_ids)
    most = 1_280 if system == "ours" else 2 * (longest + 1)  # no padding, no prompt
    assert all(0 < b - a <= most for (_, a), (_, b) in itertools.pairwise(steps))
    assert (bench.model_folder() / "model.safetensors").read_bytes() == weights


def test_evaluations_agree_and_runs_share_the_documents(monkeypatch):
    monkeypatch.setattr(bench, "encode", watched := Mock(wraps=bench.encode))
    for run in range(2):
        ours, loop = (measured("evaluation", s, "default", run, runs=2) for s in ("ours", "tutorial"))
        assert ours["bits_per_byte"] == pytest.approx(loop["bits_per_byte"], rel=2e-3)
    documents = tasks.head(tasks.load_task("debian")["test"], profile.budget(**bench.BUDGET).documents)
    seen = [[row["id"] for row in call.args[1]] for call in watched.call_args_list]
    assert sorted(seen[0] + seen[2]) == sorted(row["id"] for row in documents) and seen[0] == seen[1]


def test_generations_write_equal_numbers_of_tokens(monkeypatch):
    monkeypatch.setattr(bench, "generate", watched := Mock(wraps=bench.generate))
    assert measured("generation", "ours", "default", 0)["tokens_per_second"] > 0
    b = profile.budget(**bench.BUDGET)
    (_, _, prompts, n), options = watched.call_args
    assert (len(prompts), n, options) == (b.continuations, b.new_tokens, {"min_new_tokens": b.new_tokens})
    assert measured("generation", "pipeline", "best", 0)["tokens_per_second"] > 0


def test_the_others_get_transformers_own_model(monkeypatch):
    seen = {}
    for system in ("ours", "tutorial"):
        look = lambda base, system=system: seen.update({system: {type(m) for m in base.model.modules()}})  # noqa: E731
        monkeypatch.setitem(SYSTEMS, ("evaluation", system, "default"), (look, {}, ""))
        with pytest.raises(TypeError):  # it gives no function
            measured("evaluation", system, "default", 0)
    assert NewGELUActivation in seen["tutorial"] and NewGELUActivation not in seen["ours"]


def test_a_training_to_a_quality_ends_there_and_looking_is_no_time(monkeypatch):
    notebook, bits = defined("11_performance", "budget", "Target"), iter([9.0, 9.0, 7.5])
    clock, budget, space = notebook.Target([], 8.0), notebook.budget, notebook.Target.on_step_end.__globals__
    monkeypatch.setitem(space, "score_encoded", lambda model, held_out: time.sleep(0.3))
    monkeypatch.setitem(space, "bits_per_byte", lambda scores: next(bits))
    with pytest.raises(bench.Enough):
        for _ in range(100):
            clock.on_step_begin(None, None, None)
            clock.on_step_end(None, None, None)
    assert len(clock.steps) == budget.first_look + 2 * budget.looks and clock.bits == 7.5
    assert clock.steps[-1][0] < 0.3, "two looks lie before the last step"


def made_up(failing: list[str], speeds: dict[str, list[float]]):
    def measured_apart(kind, system, setting, run):
        if system in failing:
            raise RuntimeError("broken")
        return {bench.SPEED[kind]: speeds[system][run], "peak_megabytes": 2_000.0}

    return measured_apart


def test_ratios_are_taken_run_by_run(monkeypatch):
    monkeypatch.setitem(bench.BUDGET, "runs", (2, 2, 2))
    monkeypatch.setattr(bench, "measured_apart", made_up([], {"ours": [4.0, 10.0], "pipeline": [2.0, 2.5]}))
    made = bench.compare(["generation"])
    for row in made["ratios"].itertuples():
        assert (row.low, row.high, row.ratio) == (2.0, 4.0, 3.0)
    assert made["ratios"]["mark"].tolist() == [2.0, 2.0]
    assert all(key in SYSTEMS for key in bench.MARKS)
    table = bench.summary(made).set_index(["system", "setting"])
    assert table.loc[("ours", "default"), "tokens_per_second"] == 7 and table["peak_gigabytes"].eq(2).all()
    assert table.loc[("pipeline", "best"), "ratio"] == 3 and pd.isna(table.loc[("ours", "default"), "ratio"])


def test_a_peer_that_fails_or_is_not_installed_is_left_out_and_ours_is_not(monkeypatch, capsys):
    failing = ["pipeline"]
    monkeypatch.setattr(bench, "measured_apart", made_up(failing, {"ours": [1.0], "tutorial": [1.0]}))
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert bench.compare(["generation"])["generation"]["system"].tolist() == ["ours"]
    assert bench.compare(["evaluation"])["evaluation"]["system"].tolist() == ["ours", "tutorial"]
    assert "Left out: `pip install lm-eval==0.4.13` brings it." in capsys.readouterr().out
    failing.append("ours")
    with pytest.raises(RuntimeError, match="broken"):
        bench.compare(["generation"])
    with pytest.raises(ValueError, match=r"'speed'.*training, evaluation, generation"):
        bench.compare(["speed"])
