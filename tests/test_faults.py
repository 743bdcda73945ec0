"""What happens to students, done on purpose: kills, full disks, changed clocks, two runs at once. Nothing may be lost,
no file damaged, no result off by a bit. Work that is to be killed runs in forked children, which start at once.
Quick by default; `FAULTS_OUT=data/faults.json pytest -m fault -n 0` injects ten times as many, counted by conftest.
"""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ELSEWHERE, OUT
from transformers import TrainerCallback

from lib import models, profile, results, run, tasks, train
from lib.__main__ import main

FORKS = hasattr(os, "fork") and hasattr(os, "waitid") and sys.platform != "darwin"  # whose libraries outlive no fork
pytestmark = pytest.mark.skipif(not FORKS, reason="faults are injected into forked children")
TIMES = 20 if OUT else 2
SETTINGS = {"train_tokens": 8_000, "pack_length": 640, "batch_tokens": 1_280, "evaluations": 3, "learning_rate": 3e-3}
DONE, DIED = 0, 1
random = torch.Generator().manual_seed(0)


def uniform() -> float:
    return float(torch.rand((), generator=random))


def child(work) -> int:
    """The id of a forked process that does `work` in one thread and silence, and leaves without cleaning up."""
    if pid := os.fork():
        return pid
    code = DIED
    try:
        torch.set_num_threads(1)  # OpenMP's threads don't survive a fork
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        work()
        code = DONE
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_after(pid: int, seconds: float) -> bool:
    """SIGKILL a child after `seconds`; whether it still ran."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


@functools.cache  # before the first fork: children find it loaded
def tiny():
    base, task = models.load_base(), tasks.load_task("debian")
    return base, task.replace(train=tasks.head(task["train"], 200), validation=tasks.head(task["validation"], 8))


def tiny_run(folder: Path, callbacks=(), **options) -> None:
    """In a child: a tiny random GPT-2 fine-tuned for a few steps, its run below `folder`."""
    profile.output_root = lambda: folder
    train.finetune(*tiny(), "full", 0, quiet=True, callbacks=callbacks, validation_documents=4, **SETTINGS | options)


def outcome(folder: Path) -> str | None:
    """The hash of a finished run's weights and held-out loss; None where there is none."""
    for path in folder.glob("data/runs/*/run.json"):
        loss = json.loads(path.read_text(encoding="utf-8"))["summary"]["held_out_loss"]
        weights = (path.parent / "model" / "model.safetensors").read_bytes()
        return hashlib.sha256(weights + repr(loss).encode()).hexdigest()
    return None


def finished(folder: Path) -> str | None:
    """The outcome of a tiny run given in `folder`, whatever lies there; None where it fails."""
    return outcome(folder) if ended(child(lambda: tiny_run(folder))) == DONE else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[str, float]:
    """What a tiny run ends with, and its seconds."""
    tiny()
    began, found = time.monotonic(), finished(tmp_path_factory.mktemp("undisturbed"))
    assert found, "the undisturbed run failed: pytest tests/test_train.py"
    return found, time.monotonic() - began


def small_disk(room: int) -> None:
    """In a child: from here on no file grows past `room` bytes, writing fails as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def is_one_of(path: Path, values: list) -> bool:
    with contextlib.suppress(ValueError):  # half a file
        return json.loads(path.read_text(encoding="utf-8")) in values
    return False


def careless(path: Path, value) -> None:
    """Into the file itself, slowly enough to be caught in the middle."""
    text = json.dumps(value)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(text), 20_000):
            file.write(text[start : start + 20_000])
            file.flush()
            time.sleep(0.001)


def kills_during_writes(folder: Path, write, times: int) -> int:
    path, value = folder / "r.json", [{"i": i, "x": i / 7} for i in range(20_000)]  # 1 MB: a write takes a while

    def forever():
        while True:
            write(path, value)

    write(path, value)
    lost = 0
    for _ in range(times):
        killed_after(child(forever), 0.02 + 0.3 * uniform())
        lost += not is_one_of(path, [value])
    return lost


def full_disks(folder: Path, write, times: int) -> int:
    path, lost = folder / "r.json", 0
    write(path, {"old": True})

    def cramped():
        small_disk(int(10_000 * uniform()))
        with pytest.raises(OSError, match="was not written"):
            write(path, list(range(10_000)))

    for _ in range(times):
        code = ended(child(cramped))
        lost += code != DONE or not is_one_of(path, [{"old": True}]) or len(list(folder.iterdir())) > 1
    return lost


def two_writers(folder: Path, write, times: int) -> int:
    path, values = folder / "r.json", [[name] * 5_000 for name in ("a", "b")]
    write(path, values[0])
    pids, lost = [child(lambda v=v: [write(path, v) for _ in range(times)]) for v in values], 0
    for pid in pids:
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            lost += not is_one_of(path, values)
        lost += ended(pid) != DONE
    return lost + len(list(folder.iterdir())) - 1


WRITES = {
    "kill during a write of results": (kills_during_writes, 20),
    "disk full at a write of results": (full_disks, TIMES),
    "two writers of one file": (two_writers, 20),
}


@pytest.mark.parametrize("fault", [pytest.param(name, marks=pytest.mark.fault(name)) for name in WRITES])
def test_a_results_file_is_the_old_one_or_the_new(fault, tmp_path, record_property):
    harness, times = WRITES[fault]
    record_property("injected", 2 * times if harness is two_writers else times)
    assert harness(tmp_path, results.write_json, times) == 0


@pytest.mark.parametrize(("harness", "times"), [(kills_during_writes, 20), (full_disks, 3), (two_writers, 200)])
def test_a_writer_that_is_not_atomic_is_found(harness, times, tmp_path):
    assert harness(tmp_path, careless, times) > 0


@pytest.mark.fault("kill during a training")
def test_a_killed_training_given_again_ends_at_the_same_bits(undisturbed, tmp_path, record_property):
    whole, seconds = undisturbed
    record_property("injected", TIMES)
    killed = 0
    for i in range(10 * TIMES):
        folder = tmp_path / str(i)
        hit = killed_after(child(lambda folder=folder: tiny_run(folder)), seconds * uniform())
        assert finished(folder) == whole
        killed += hit  # a run that was over before its moment counts for nothing
        seconds *= 1 if hit else 0.8
        if killed == TIMES:
            return
    pytest.fail(f"only {killed} of {10 * TIMES} trainings were hit")


def often(share: int):
    """A test for each of so many moments; some faults cost a process or a training each."""
    return pytest.mark.parametrize("moment", range(max(TIMES // share, 1)))


@pytest.mark.fault("disk full in a training")
@often(4)
def test_a_training_on_a_full_disk_goes_on_when_there_is_room(undisturbed, tmp_path, moment):
    room = int(2_000 + 600_000 * uniform())

    def cramped():
        small_disk(room)
        tiny_run(tmp_path)

    assert ended(child(cramped)) != DONE
    assert finished(tmp_path) == undisturbed[0]


@pytest.mark.fault("two runs at once")
@often(5)
def test_two_trainings_of_one_run_give_one_result(undisturbed, tmp_path, moment):
    codes = sorted(map(ended, [child(lambda: tiny_run(tmp_path)) for _ in range(2)]))
    # one trains; the other is told so, or finds it finished
    assert codes[0] == DONE and codes[1] in (DONE, DIED) and outcome(tmp_path) == undisturbed[0]


@pytest.mark.fault("clock and time zone change")
@often(7)
def test_a_jumping_clock_changes_no_bit(undisturbed, tmp_path, moment):
    def work():
        real = time.time
        time.time = lambda: real() + 3.15e7 * (2 * uniform() - 1)  # by up to a year at each look
        os.environ["TZ"] = ("Asia/Shanghai", "America/St_Johns")[moment % 2]
        time.tzset()
        tiny_run(tmp_path)

    assert ended(child(work)) == DONE and outcome(tmp_path) == undisturbed[0]


@pytest.mark.fault("same seed again")
@often(5)
def test_the_same_seed_gives_the_same_bits_and_another_rate_others(undisturbed, tmp_path, moment):
    assert finished(tmp_path / "same") == undisturbed[0]
    assert ended(child(lambda: tiny_run(tmp_path / "other", learning_rate=2e-3))) == DONE
    assert outcome(tmp_path / "other") not in (None, undisturbed[0])


class Resident(TrainerCallback):
    """The process's resident megabytes at the end of every step; from step `leaking` on 4 MB are kept at each."""

    def __init__(self, leaking: int) -> None:
        self.megabytes, self.leaking, self.kept = [], leaking, []

    def on_step_end(self, args, state, control, **_):
        self.kept.append(torch.ones(1 << 20 if len(self.megabytes) >= self.leaking else 0))
        self.megabytes.append(psutil.Process().memory_info().rss / 1e6)


WARM = 120  # steps until the allocator's caches have what a step needs
FLAT = 16.0  # megabytes: a hidden state kept at every step would be 33 in 200; the allocator jumps by less than 10


def long_run(folder: Path, steps: int) -> None:
    # oneDNN keeps its code for the last 1,024 shapes of a product and takes 250 steps to have met so many
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8"
    torch.set_num_threads(1)
    seen = Resident(steps)
    tiny_run(folder, (seen,), train_tokens=640 * (steps + 20), batch_tokens=640, evaluations=1)
    (folder / "memory.json").write_text(json.dumps(seen.megabytes), "utf-8")


@pytest.mark.fault("long run (steps)")
def test_memory_stays_flat_and_a_leak_is_found(tmp_path, record_property):
    """Medians of the second half of the steps and the first, in a process without other tests' freed memory."""
    steps = 10 * TIMES
    record_property("injected", steps)

    def growth(megabytes):
        first, second = torch.tensor(megabytes).chunk(2)
        return float(second.median() - first.median())

    process = multiprocessing.get_context("spawn").Process(target=long_run, args=(tmp_path, WARM + steps))
    process.start()
    process.join()
    seen = json.loads((tmp_path / "memory.json").read_text("utf-8"))
    assert growth(seen[WARM : WARM + steps]) < FLAT < growth(seen[WARM + steps :])


@pytest.mark.fault("other locale")
def test_the_command_line_trains_on_chinese_text_in_another_locale(tmp_path, record_property, monkeypatch):
    others = [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},  # files open as ASCII by default
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},  # "i" and "I" are no pair there
    ]
    others, command = others[: 2 if OUT else 1], ["finetune", "--task", "debian", "--set", "train_tokens=3000"]
    record_property("injected", len(others))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # each process measures its own, and beside other work may choose another
    monkeypatch.setenv("DTYPE", str(profile.autocast_dtype()).removeprefix("torch."))
    for i, more in enumerate(others):
        environment = {**os.environ, **more, "FAST_OUTPUT": str(tmp_path / str(i))}
        subprocess.run([sys.executable, "-m", "lib", *command], cwd=profile.ROOT, env=environment, check=True)
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path / "here"))
    assert main(command) == 0
    found = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*/data/runs/*/run.json")]
    assert len(found) == len(others) + 1 and len({run["summary"]["held_out_loss"] for run in found}) == 1


@pytest.mark.fault("notebook killed and run again")
@often(7)
def test_a_notebook_killed_in_mid_cell_leaves_its_twin_whole(tmp_path, moment):
    source, flag, target = tmp_path / "97_trial.py", tmp_path / "running", tmp_path / "notebooks" / "97_trial.ipynb"
    waits = "if flag.exists():\n    flag.unlink()\n    time.sleep(60)\nprint('whole')\n"
    source.write_text(f"# %%\nimport pathlib, time\nflag = pathlib.Path({str(flag)!r})\n{waits}", "utf-8")

    def work():
        profile.output_root = lambda: tmp_path
        run.execute(source)

    def outputs():
        return [cell.get("outputs") for cell in json.loads(target.read_text(encoding="utf-8"))["cells"]]

    assert ended(child(work)) == DONE
    before, told = target.read_bytes(), outputs()
    flag.touch()
    pid, deadline = child(work), time.monotonic() + 120
    while flag.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert killed_after(pid, 0.5 * uniform()) and target.read_bytes() == before
    assert ended(child(work)) == DONE and outputs() == told


def test_the_tests_that_are_counted_exist():
    text = "".join(p.read_text(encoding="utf-8") for p in (profile.ROOT / "tests").glob("test_*.py"))
    assert [name for name in ELSEWHERE if f"def {name}(" not in text] == []
