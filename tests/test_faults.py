"""Faults on purpose: nothing is lost, and each harness sees a loss where there is one."""

import inspect
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib import profile, results
from lib.explore import faults

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are injected into forked children")


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", [n for n in faults.FAULTS if n not in ("kill during a write of results",)])
def test_nothing_is_lost(name):
    (row,) = faults.inject([name], moments=2)
    assert row["injected"] >= 1 and row["lost"] == 0, row


def test_twenty_kills_during_writes_lose_nothing():
    (row,) = faults.inject(["kill during a write of results"], moments=20)
    assert (row["injected"], row["lost"]) == (20, 0)


# --- each harness can fail


def careless(path: Path, value) -> None:
    """Into the file itself, slowly enough to be killed in the middle."""
    text = json.dumps(value)
    with path.open("w") as file:
        for start in range(0, len(text), 20_000):
            file.write(text[start : start + 20_000])
            file.flush()
            time.sleep(0.001)


def test_kills_find_a_writer_that_is_not_atomic():
    assert faults.kill_results(20, generator(), write=careless)[1] > 0


def test_a_full_disk_finds_a_writer_that_is_not_atomic(monkeypatch):
    monkeypatch.setattr(results, "write_json", careless)
    assert faults.full_disk_results(3, generator())[1] == 3


def test_two_writers_find_a_writer_that_is_not_atomic(monkeypatch):
    monkeypatch.setattr(results, "write_json", careless)
    assert faults.two_writers(200, generator())[1] > 0


def test_a_seed_that_is_not_kept_is_found(monkeypatch):
    draws = iter(range(100))
    monkeypatch.setattr(faults, "undisturbed", lambda: (str(next(draws)), 0.0))
    assert faults.same_seed(2, generator()) == (2, 2)


def test_growing_memory_is_found(monkeypatch):
    kept = []
    real = faults.Resident.on_step_end

    def leaking(self, *args, **kwargs):
        kept.append(torch.ones(1 << 20))  # 4 MB a step
        return real(self, *args, **kwargs)

    monkeypatch.setattr(faults.Resident, "on_step_end", leaking)
    assert faults.memory_growth(20) > faults.FLAT


def test_the_outcome_of_no_run_is_none(tmp_path):
    assert faults.outcome(tmp_path) is None


def test_the_counted_tests_exist():
    for group in faults.TESTS.values():
        for name in group:
            file, _, test = name.partition("::")
            assert f"def {test}(" in (profile.ROOT / "tests" / file).read_text(encoding="utf-8")


def test_tests_are_counted_by_case_and_one_that_does_not_pass_is_a_loss(monkeypatch):
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks' kernels do
    monkeypatch.setattr(
        faults,
        "TESTS",
        {
            "pickle": ("test_models.py::test_base_model_that_is_a_pickle",),
            "rows": ("test_tasks.py::test_custom_bad_files_say_where",),
        },
    )
    rows = {r["fault"]: r for r in faults.tested()}
    assert rows["pickle"] == {"fault": "pickle", "injected": 1, "lost": 0}
    assert rows["rows"]["injected"] > 10 and rows["rows"]["lost"] == 0
    monkeypatch.setattr(
        faults.subprocess,
        "run",
        lambda *a, **k: SimpleNamespace(
            stdout="PASSED tests/test_models.py::test_base_model_that_is_a_pickle\n"
            "FAILED tests/test_tasks.py::test_custom_bad_files_say_where[x] - no\n",
            stderr="",
        ),
    )
    assert [r["lost"] for r in faults.tested()] == [0, 1]


def test_tests_that_do_not_run_are_no_result(monkeypatch):
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setattr(faults, "TESTS", {"x": ("test_models.py::test_that_is_not_there",)})
    with pytest.raises(RuntimeError, match="did not run: ERROR: not found"):
        faults.tested()


# --- security


def test_no_module_loads_pickles_or_remote_code():
    for path in sorted((profile.ROOT / "lib").glob("*.py")) + sorted((profile.ROOT / "data").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for word in (
            "import pickle",
            "pickle.load",
            "torch.load(",
            "joblib",
            "dill",
            "trust_remote_code=True",
            "shell=True",
            "eval(",
            "os.system",
            "allow_pickle=True",
            "yaml.load(",
        ):
            found = [
                line
                for line in text.splitlines()
                if word in line and ".eval(" not in line and "literal_eval(" not in line
            ]
            assert not found, f"{path.name}: {found[0]}"


def test_weights_are_loaded_as_safetensors_alone():
    for path in sorted((profile.ROOT / "lib").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for start in [i for i in range(len(text)) if text.startswith("ModelForCausalLM.from_pretrained(", i)]:
            call = text[start : text.index(")\n", start)]
            # GGUF holds tensors and no code either
            assert "use_safetensors=True" in call or "gguf_file=" in call, f"{path.name}: {call[:80]}"


def test_checkpoints_are_written_as_safetensors():
    from transformers import TrainingArguments

    assert "save_safetensors" not in TrainingArguments.__dataclass_fields__  # always, since transformers 5


def test_docstrings_tell_what_a_fault_is():
    assert all(inspect.getdoc(f) for f in faults.FAULTS.values())
