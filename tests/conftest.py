"""Faults on purpose, counted: `FAULTS_OUT=data/faults.json pytest -m fault -n 0` writes what notebook 11 shows."""

import os
from pathlib import Path

import pytest
import torch

from lib import models, profile, results, tasks

OUT = os.environ.get("FAULTS_OUT")
ELSEWHERE = {  # tests of other files that inject a fault each -> its kind
    "test_download_that_breaks_off_goes_on": "network cut in mid-download",
    "test_fetch_model_goes_on_and_ends_whole": "network cut in mid-download",
    "test_wrong_bytes_are_thrown_away": "wrong bytes from the network",
    "test_tampered_wheel_is_refused": "wrong bytes from the network",
    "test_hub_out_of_reach_is_decided_in_five_seconds": "slow or silent server",
    "test_broken_folder": "damaged model or run",
    "test_damaged_runs_say_what_to_delete": "damaged model or run",
    "test_a_half_written_checkpoint_is_dropped": "damaged model or run",
    "test_base_model_that_is_a_pickle": "pickle instead of weights",
    "test_bad_json_lines_say_where": "bad row in a task file",
    "test_bad_tables_say_where": "bad row in a task file",
}
TEXTS = ["A small editor for plain text files.", "This package contains the documentation."] * 20
rows: dict[str, dict] = {}


def plain_nats(model, ids, prompt_length) -> list[float]:
    """Of one document's target tokens, by one plain call: the definition of the loss."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(log_p[t - 1, ids[t]]) for t in range(max(prompt_length, 1), len(ids))]


def everything(task) -> list[dict]:
    return [row for split in tasks.SPLITS for row in tasks.head(task[split])]


@pytest.fixture(scope="module")
def base():
    return models.load_base()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Path:
    """A whole model folder of a small GPT-2."""
    folder = tmp_path_factory.mktemp("model") / "small"
    tokenizer = models.tiny_tokenizer(TEXTS, 300)
    models.small_gpt2(len(tokenizer), eos_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task():
    """A small part of the default task."""
    whole = tasks.load_task("debian")
    return whole.replace(train=tasks.head(whole["train"], 300), validation=tasks.head(whole["validation"], 16))


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr(profile, "autocast_dtype", lambda: torch.float32)  # bfloat16 would differ by rounding


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if kind := ELSEWHERE.get(getattr(item, "originalname", None)):
            item.add_marker(pytest.mark.fault(kind))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test is a loss; a test that injects several says how many by `record_property("injected", n)`."""
    report = (yield).get_result()
    mark = item.get_closest_marker("fault")
    if mark and (report.when == "call" or report.failed) and not report.skipped:
        row = rows.setdefault(mark.args[0], {"fault": mark.args[0], "injected": 0, "lost": 0, "seconds": 0.0})
        row["injected"] += dict(item.user_properties).get("injected", 1) if report.when == "call" else 0
        row["lost"] += int(report.failed)
        row["seconds"] = round(row["seconds"] + report.duration, 1)


def pytest_sessionfinish():
    if OUT and rows:
        made = results.Results("faults").provenance()
        made = {key: made[key] for key in ("device", "git_commit", "created")}
        results.write_json(Path(OUT), {"provenance": made, "faults": list(rows.values())})
