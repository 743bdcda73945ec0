"""One model's measurements: what they hold, and that they are read back instead of made again."""

import pytest

from lib import evaluate
from lib.hub import Unavailable
from lib.models import tiny_base
from lib.tasks import Task, head

PROMPT = "Package: p{}\nTags: use::viewing\nDescription:\n"
ROWS = [{"id": f"r{i}", "prompt": PROMPT.format(i), "target": f"views {i}\n", "group": f"g{i}"} for i in range(5)]
SIZES = {"documents": 4, "generated": 3, "sampled": 2, "max_new_tokens": 4}


@pytest.fixture
def task(monkeypatch, tmp_path):
    monkeypatch.setenv("PROFILE", "fast")
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    monkeypatch.setattr(evaluate, "outside", lambda name: None)
    evaluate.out_of_reach.cache_clear()
    rows = [row | {"references": [row["target"]]} for row in ROWS]
    yield Task({"validation": rows, "test": rows}, "debian", "x")
    evaluate.out_of_reach.cache_clear()


def test_a_model_is_measured_once(task, monkeypatch):
    base = tiny_base()
    monkeypatch.setattr(evaluate.benchmarks, "blimp", lambda model, tokenizer, size: {"accuracy": 0.5, "protocol": "x"})
    first = evaluate.measure(base, task, general={"blimp": 1}, **SIZES)
    assert (first.stage, first.method, first.seed) == ("before", "none", 0)
    assert list(first.scores["id"]) == ["r0", "r1", "r2", "r3"]
    assert (len(first.texts), len(first.sampled), first.forgetting) == (3, 2, {"blimp_accuracy": 0.5})
    monkeypatch.setattr(evaluate, "generate", None)  # or it would be called again
    again = evaluate.measure(base, task, general={"blimp": 1}, **SIZES)
    assert again.texts == first.texts and again.scores.equals(first.scores)
    with pytest.raises(TypeError):  # other settings are another measurement
        evaluate.measure(base, task, general={"blimp": 1}, **SIZES | {"generated": 2})


def test_what_is_out_of_reach_is_left_out_and_said(task, monkeypatch):
    def nowhere(name):
        raise Unavailable(f"{name} is nowhere")

    monkeypatch.setattr(evaluate, "outside", nowhere)
    assert evaluate.measure(tiny_base(), task, general={"blimp": 1}, **SIZES).forgetting == {}
    assert evaluate.out_of_reach("blimp") == "blimp is nowhere"


def test_debians_own_checks(task):
    checks = evaluate.CHECKS["debian"](head(task["test"], 2), ["views pictures\nMore.", "The thing."])
    assert (checks["tags_reflected"], checks["synopsis_form"], checks["has_long_description"]) == (0.5, 0.5, 0.5)
