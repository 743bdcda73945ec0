"""lib.explore.bench: the systems answer on a tiny model, they do equal work, and the tables follow from their answers."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from lib import profile
from lib.explore import bench, bench_peers, bench_quality, bench_systems
from lib.explore.bench_systems import SYSTEMS, Clock, answer
from lib.models import load_base
from lib.packing import draw, rows
from lib.tasks import encode, load_task


@pytest.fixture(scope="module")
def model():
    return bench.model_folder()


@pytest.fixture
def ask(model, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", str(model))  # `answer` sets it too: restored afterwards

    def request(kind, system, setting="default", run=0, **load):
        load = asdict(profile.current().performance) | {"runs": 2} | load
        return answer(
            {"kind": kind, "system": system, "setting": setting, "run": run, "model": str(model), "load": load}
        )

    return request


def test_the_model_is_gpt2s_configuration_with_gpt2s_tokenizer(monkeypatch):
    tokenizer = bench.gpt2_tokenizer()
    assert len(tokenizer) == 50_257 and tokenizer.eos_token_id == 50_256
    assert tokenizer("Hello world").input_ids == [15496, 995]  # GPT-2's published example
    text = "The Nile, isn't it? 春眠不覺曉"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    for name in ("cpu", "full"):
        p = profile.PROFILES[name].performance
        assert (p.n_layer, p.n_embd, p.gpt2_tokens) == (12, 768, True)
        assert p.runs >= 5 and p.documents == 500 and p.continuations == 256


def test_training_counts_the_targets_of_the_rows_that_were_trained_on(ask, model):
    got = ask("training", "ours", seconds=math.inf, loss=0.0)  # to the end of what was drawn
    assert len(got["steps"]) > bench_systems.STEPS and got["peak_megabytes"] > 100
    base, p = load_base(), profile.current()
    train = encode(base.tokenizer, load_task("debian").train, base.context)
    documents = draw(train, p.performance.train_tokens, 0)
    each = p.batch_tokens // p.pack_length
    drawn = rows(documents, p.pack_length, each)
    targets = sum(len(d.input_ids) - d.prompt_length for row in drawn for d in row)
    assert len(got["steps"]) == len(drawn) // each and not len(drawn) % each
    assert got["steps"][-1]["tokens"] == targets
    assert [s["seconds"] for s in got["steps"]] == sorted(s["seconds"] for s in got["steps"])


def test_a_first_run_goes_on_until_the_loss_and_a_later_one_does_not_measure_it(ask):
    first = ask("training", "ours", run=0, loss=6.9, seconds=0.0, patience=60.0)
    assert first["steps"][-1]["loss"] <= 6.9 < first["steps"][0]["loss"]
    later = ask("training", "ours", run=1, loss=6.9, seconds=0.0)
    assert "loss" not in later["steps"][0] and len(later["steps"]) == bench_systems.STEPS


def test_the_tutorial_pads_and_counts_no_padding_and_no_prompt(ask):
    got = ask("training", "tutorial", seconds=0.0, loss=0.0)
    documents = encode(load_base().tokenizer, load_task("debian").train, 1_024)
    longest = max(len(d.input_ids) - d.prompt_length for d in documents)
    assert 0 < got["steps"][-1]["tokens"] <= 4 * bench_systems.STEPS * longest


def test_the_clock_counts_labels_while_training_alone():
    clock = Clock([], 0.0, 0.0, 0.0)
    module = torch.nn.Linear(1, 1).train()
    clock._count(module, (), {"labels": torch.tensor([[-100, 5, 6]])})
    clock._count(module, (), {"logits_to_keep": torch.tensor([3, 4, 5])})
    assert clock.tokens == 5
    clock._count(module.eval(), (), {"labels": torch.tensor([[7]])})
    assert clock.tokens == 5


def test_evaluations_agree_and_runs_share_the_documents(ask):
    ours = [ask("evaluation", "ours", run=r) for r in range(2)]
    loop = [ask("evaluation", "tutorial", run=r) for r in range(2)]
    for a, b in zip(ours, loop, strict=True):
        assert (a["tokens"], a["bytes"]) == (b["tokens"], b["bytes"])
        assert a["nats"] == pytest.approx(b["nats"], rel=2e-3)
    wanted = load_task("debian").test[: profile.current().performance.documents]
    assert sum(a["bytes"] for a in ours) == sum(len(e.target.encode()) for e in wanted)


def test_generations_write_equal_numbers_of_tokens(ask):
    ours, pipe = ask("generation", "ours"), ask("generation", "pipeline")
    assert ours["tokens"] == pipe["tokens"] > 0
    assert ours["seconds"] > 0 and pipe["seconds"] > 0


def test_a_best_setting_is_passed_on(ask):
    assert ask("generation", "pipeline", "best")["tokens"] > 0


def test_products_are_counted_as_a_step_has_them(ask, monkeypatch):
    monkeypatch.setattr(bench_systems, "_second_time", lambda a, b: 2 * a.shape[0] * a.shape[1] * b.shape[1] / 7e9)
    assert ask("ceiling", "products", "float32")["gflops"] == pytest.approx(7)


def test_one_measurement_in_a_process_of_its_own(model):
    got = bench.one(("ceiling", "products", "float32"), 0, sys.executable, model)
    assert got["gflops"] > 0


def test_a_failing_measurement_shows_why(model):
    with pytest.raises(RuntimeError, match=r"(?s)none \(default\), ceiling: .*KeyError"):
        bench.one(("ceiling", "none", "default"), 0, sys.executable, model)


# --- tables


def raw_training():
    def steps(seconds, tokens, losses=()):
        rows = [{"seconds": s, "tokens": t} for s, t in zip(seconds, tokens, strict=True)]
        return [{**r, "loss": x} for r, x in zip(rows, losses, strict=True)] if losses else rows

    shared = {"setting": "default", "device": "d", "peak_megabytes": 5.0}
    return pd.DataFrame(
        [
            {"system": "ours", "run": 0, "steps": steps([3, 5, 7], [10, 20, 30], [9.0, 7.0, 6.0]), **shared},
            {"system": "ours", "run": 1, "steps": steps([3, 4, 5], [10, 20, 30]), **shared},
            {"system": "slow", "run": 0, "steps": steps([8, 12, 16, 20], [10, 20, 30, 40], [9, 8, 7, 6]), **shared},
            {"system": "slow", "run": 1, "steps": steps([8, 12], [10, 20]), **shared},
            {"system": "never", "run": 0, "steps": steps([1, 2], [1, 2], [9, 9]), **shared},
        ]
    )


def test_training_rates_leave_the_first_step_out_and_seconds_to_loss_are_of_one_step():
    table = bench.training(raw_training()).set_index(["system", "run"])
    assert table.loc[("ours", 0), "useful_tokens_per_second"] == 5
    assert table.loc[("ours", 1), "useful_tokens_per_second"] == 10
    assert table.loc[("ours", 0), "steps_to_loss"] == 3  # the loss of `fast` is 6.9
    assert table.loc[("ours", 1), "seconds_to_loss"] == 5
    assert table.loc[("slow", 0), "seconds_to_loss"] == 20
    assert table.loc[("slow", 1), "seconds_to_loss"] == 8 + 4 + 2 * 4, "a shorter run goes on at its own rate"
    assert pd.isna(table.loc[("never", 0), "seconds_to_loss"])


def test_ratios_are_taken_run_by_run():
    made = {"training": bench.training(raw_training())}
    row = bench.ratios(made).set_index("system").loc["slow"]
    assert (row["low"], row["high"]) == (2.0, 4.0) and row["ratio"] == 3.0


def test_limits_are_model_flop_over_the_faster_products():
    made = {
        "training": bench.training(raw_training()),
        "ceiling": pd.DataFrame(
            [
                {"device": "d", "dtype": t, "run": r, "gflops": g}
                for r in (0, 1)
                for t, g in (("float32", 1.0), ("bfloat16", 4.0))
            ]
        ),
    }
    made["evaluation"] = pd.DataFrame([{"system": "ours", "setting": "default", "run": 0, "tokens_per_second": 7.0}])
    both = bench.limits(made).set_index("kind")
    assert both.loc["evaluation", "gflops"] == pytest.approx(7 * bench.flop_per_useful_token("evaluation") / 1e9)
    table = both.loc["training"].set_index(["system", "run"])
    flop = bench.flop_per_useful_token()
    assert table.loc[("ours", 1), "share"] == pytest.approx(10 * flop / 1e9 / 4)
    assert table.loc[("ours", 1), "gflops"] == pytest.approx(10 * flop / 1e9)


def test_flop_of_a_token_are_six_times_the_weights_and_the_prompts_share():
    p = profile.current().performance
    base = load_base()
    documents = encode(base.tokenizer, load_task("debian").train[:500], 1_024)
    every = sum(len(d.input_ids) for d in documents)
    targets = every - sum(d.prompt_length for d in documents)
    weights = 12 * p.n_layer * p.n_embd**2
    low = 6 * (weights * every / targets + p.n_embd * len(base.tokenizer))
    assert low < bench.flop_per_useful_token() < 1.7 * low  # attention is the rest, much in a tiny model
    # forward is a third of a step; other documents have another share of prompts
    assert bench.flop_per_useful_token("evaluation") * 3 == pytest.approx(bench.flop_per_useful_token(), rel=0.15)


def test_shown_and_the_figure_name_every_system():
    from lib.explore.bench_plots import speeds

    made = {"training": bench.training(raw_training())}
    made["ratios"] = bench.ratios(made)
    text = bench.shown(made)
    assert all(name in text for name in ("ours", "slow", "never", "3.00 [2.00, 4.00]"))
    labels = [t.get_text() for t in speeds(made, bench.SPEED).axes[0].get_yticklabels()]
    assert labels == ["ours", "slow", "never"]


def test_every_mark_is_of_a_system_that_is_measured():
    for kind, system, setting in bench.MARKS:
        assert (system, setting) in SYSTEMS[kind]
        assert ("ours", "default") in SYSTEMS[kind]


# --- peers


def test_without_a_package_index_peers_are_left_out_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_peers, "folder", lambda: tmp_path / "peers")
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PROFILE", "cpu")
    found = bench.available(["evaluation"])
    assert set(found) == {("evaluation", "ours", "default"), ("evaluation", "tutorial", "default")}
    said = [x for x in capsys.readouterr().out.splitlines() if "left out" in x]
    assert len(said) == 1 and said[0].startswith("lm-eval is left out: lm-eval==")


def test_the_fast_profile_installs_nothing(capsys):
    assert all(key[1] in ("ours", "tutorial", "pipeline", "products") for key in bench.available())
    said = capsys.readouterr().out
    assert "trl is left out" in said and "litgpt 0.5.13 has no GPT-2" in said


def test_the_others_get_transformers_own_model(ask, monkeypatch):
    from transformers.activations import NewGELUActivation

    seen = {}

    def look(request, base):
        seen[request["system"]] = {type(m) for m in base.model.modules()}
        return {}

    for system in ("ours", "tutorial"):
        entry = bench_systems.System(look, {})
        monkeypatch.setitem(SYSTEMS["evaluation"], (system, "default"), entry)
        ask("evaluation", system)
    assert NewGELUActivation in seen["tutorial"] and NewGELUActivation not in seen["ours"]


def test_peers_see_this_environment_and_may_not_replace_it(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_peers, "folder", lambda: tmp_path / "peers")
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    pins = bench_peers.installed()
    assert f"torch=={torch.__version__.split('+')[0]}" in pins
    ran = []
    real = subprocess.run

    def run(command, **options):
        if "install" not in command:
            return real(command, **options)
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    python = bench_peers.python("trl")
    assert "-c" in ran[0] and ran[0][-1] == bench_peers.PEERS["trl"]
    code = "import sys, filelock; print(sys.prefix, filelock.__file__)"
    prefix, place = real([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert prefix == str(tmp_path / "peers") and not place.startswith(prefix)
    bench_peers.python("trl")
    assert len(ran) == 1, "installed once"
    mark = tmp_path / "peers" / "trl.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "peer": "trl==0.1"}))
    bench_peers.python("trl")
    assert len(ran) == 2, "another pinned version is another installation"


def test_an_unknown_kind_lists_the_known():
    with pytest.raises(ValueError, match=r"'speed'.*training, evaluation, generation, ceiling"):
        bench.available(["speed"])


def test_a_peer_that_fails_is_left_out_and_ours_is_not(monkeypatch):
    keys = {("generation", "ours", "default"): "p", ("generation", "pipeline", "default"): "p"}
    monkeypatch.setattr(bench, "available", lambda kinds: keys)
    monkeypatch.setattr(bench, "model_folder", lambda: None)
    failing = ["pipeline"]

    def one(key, run, interpreter, model):
        if key[1] in failing:
            raise RuntimeError("broken")
        return {"seconds": 1.0, "tokens": 3, "peak_megabytes": 1.0}

    monkeypatch.setattr(bench, "one", one)
    raw = bench.measure(["generation"], 2)
    assert raw["generation"]["system"].tolist() == ["ours", "ours"]
    failing.append("ours")
    with pytest.raises(RuntimeError, match="broken"):
        bench.measure(["generation"], 2)


def test_the_notebook_takes_what_the_command_measured_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_kept", lambda: tmp_path / "bench.json")
    raw = {kind: pd.DataFrame([{"system": "ours", "run": 0}]) for kind in bench.KINDS}
    calls = []
    monkeypatch.setattr(bench, "measure", lambda *given: calls.append(given) or raw)
    bench.keep(raw, ["generation"], None)  # a part of it
    assert bench.measured() is raw and len(calls) == 1
    again = bench.measured()
    assert len(calls) == 1 and "measured by" in capsys.readouterr().out.lower()
    assert {kind: frame.to_dict("records") for kind, frame in again.items()} == {
        kind: frame.to_dict("records") for kind, frame in raw.items()
    }
    monkeypatch.setattr(bench, "device_name", lambda: "another machine")
    assert bench.measured() is raw and len(calls) == 2


def test_the_base_that_ours_trains_is_left_alone(ask, model):
    before = (model / "model.safetensors").read_bytes()
    ask("training", "ours", seconds=0.0, loss=0.0)
    assert (model / "model.safetensors").read_bytes() == before
    assert not list((profile.output_root() / "data" / "runs").glob("debian-full-seed0-*/model.part"))


# --- quality


def test_the_fast_step_learns_what_the_plain_loop_learns(model):
    rows = bench_quality.quality(str(model), bench.random_base(), (0, 1), 4_000)
    losses = {(r["system"], r["seed"]): r["held_out_loss"] for r in rows}
    assert all(r["steps"] > 0 for r in rows) and losses["plain", 0] != losses["plain", 1]
    for seed in (0, 1):
        assert losses["ours", seed] == pytest.approx(losses["plain", seed], rel=0.005)


def test_no_dropout_is_left_in_the_comparison():
    network = bench_quality.without_dropout(copy.deepcopy(bench.random_base().model).train())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(network(ids).logits, network(ids).logits)
