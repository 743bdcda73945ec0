"""What happens to students, done on purpose: kills, full disks, changed clocks, two runs at once, fuzzed files.

Each function injects one fault many times on a tiny model and counts what was lost: a damaged file, a result that
differs from the undisturbed one by a single bit, or an error that is no sentence. Work that is to be killed runs in
a forked child, which starts in milliseconds; POSIX alone has that, so Windows gets the tests but not the table.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from lib import profile, results, train
from lib.models import tiny_base
from lib.tasks import load_task

TINY = {
    "train_tokens": 8_000,
    "pack_length": 640,
    "batch_tokens": 1_280,
    "evaluations": 3,
    "validation_documents": 4,
    "learning_rate": 3e-3,
}
DONE, DIED = 0, 1
MARK = "FAULTS "  # what the line of the answer begins with


# --- work in a child process


def child(work: Callable[[], object]) -> int:
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


def kill_after(pid: int, seconds: float) -> int:
    """SIGKILL a child after `seconds`, or less where it ended by itself; how it ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gpt2-coursework-faults-") as folder:
        yield Path(folder)


def tiny_run(folder: Path, callbacks=(), **options) -> None:
    """A tiny random GPT-2 fine-tuned on `debian` for a few steps; its run lies in `folder`/data/runs."""
    profile.output_root = lambda: folder  # in a child: nobody else sees it
    base, task = tiny()
    train.finetune(base, task, "full", 0, quiet=True, callbacks=callbacks, **TINY | options)


@functools.cache  # before the first fork: children find it loaded
def tiny():
    """The tiny model and 200 documents."""
    task = load_task("debian")
    task = replace(task, train=task.train[:200], validation=task.validation[:8])
    return tiny_base(), task


def outcome(folder: Path) -> str | None:
    """The hash of a finished run's weights and held-out loss; None where there is none."""
    found = list(folder.glob("data/runs/*/run.json"))
    if not found:
        return None
    loss = json.loads(found[0].read_text(encoding="utf-8"))["summary"]["held_out_loss"]
    weights = (found[0].parent / "model" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights + repr(loss).encode()).hexdigest()


def undisturbed() -> tuple[str, float]:
    """What a tiny run ends with, and its seconds."""
    tiny()
    with scratch() as folder:
        began = time.monotonic()
        code = ended(child(lambda: tiny_run(folder)))
        if code != DONE or not (found := outcome(folder)):
            raise RuntimeError(f"The undisturbed tiny run ended with {code}: `pytest tests/test_train.py`.")
        return found, time.monotonic() - began


# --- the faults: how often injected, how often something was lost


def kill_results(times: int, generator: torch.Generator, write=results.write_json) -> tuple[int, int]:
    """SIGKILL while one results file is written over and over; it must stay whole, old or new."""
    lost = 0
    with scratch() as folder:
        path = folder / "r.json"
        rows = [{"i": i, "x": i / 7} for i in range(20_000)]  # 1 MB: a write takes a while

        def work() -> None:
            while True:
                write(path, {"rows": rows})

        write(path, {"rows": rows})
        for _ in range(times):
            kill_after(child(work), 0.02 + 0.3 * _uniform(generator))
            lost += not _is_one_of(path, [{"rows": rows}])
    return times, lost


def kill_training(times: int, generator: torch.Generator) -> tuple[int, int]:
    """SIGKILL a training at a random moment, give the same command again: the same bits in the end."""
    whole, seconds = undisturbed()
    killed = lost = 0
    bar = tqdm(total=times, desc="killed trainings")
    while killed < times:
        with scratch() as folder:

            def work(folder=folder):
                tiny_run(folder)

            hit = kill_after(child(work), seconds * _uniform(generator)) == -signal.SIGKILL
            again = ended(child(work))
            lost += again != DONE or outcome(folder) != whole
        killed += hit  # a run that was over before its moment counts for nothing
        bar.update(hit)
        seconds *= 1 if hit else 0.8  # the first run is slower than the later ones
    bar.close()
    return killed, lost


def full_disk_results(times: int, generator: torch.Generator) -> tuple[int, int]:
    """No room for a results file (RLIMIT_FSIZE): one sentence, the old file whole, no part of a new one."""
    lost = 0
    with scratch() as folder:
        path = folder / "r.json"
        results.write_json(path, {"old": True})

        for _ in range(times):
            room = int(10_000 * _uniform(generator))

            def work(room=room) -> None:
                _small_disk(room)
                try:
                    results.write_json(path, list(range(10_000)))
                except OSError as error:
                    assert "was not written" in str(error)
                    return
                raise AssertionError("the limit was not reached")

            code = ended(child(work))
            whole = _is_one_of(path, [{"old": True}])
            lost += code != DONE or not whole or len(list(folder.iterdir())) > 1
    return times, lost


def full_disk_training(times: int, generator: torch.Generator) -> tuple[int, int]:
    """No room for a checkpoint or the weights: the run stops; with room the same command ends at the same bits."""
    whole, _ = undisturbed()
    lost = stopped = 0
    for _ in range(times):
        with scratch() as folder:
            room = int(2_000 + 600_000 * _uniform(generator))

            def cramped(folder=folder, room=room):
                _small_disk(room)
                tiny_run(folder)

            stopped += ended(child(cramped)) != DONE
            again = ended(child(lambda folder=folder: tiny_run(folder)))
            lost += again != DONE or outcome(folder) != whole
    return stopped, lost


def _small_disk(room: int) -> None:
    """From here on no file of this process grows past `room` bytes: writing fails as on a full disk."""
    import resource  # Windows has none

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def two_at_once(times: int, generator: torch.Generator) -> tuple[int, int]:
    """Two trainings of one run in one checkout: one trains, the other is told or finds it finished; one result."""
    whole, _ = undisturbed()
    lost = 0
    for _ in range(times):
        with scratch() as folder:
            pair = [child(lambda folder=folder: tiny_run(folder)) for _ in range(2)]
            codes = sorted(map(ended, pair))
            lost += codes[0] != DONE or codes[1] not in (DONE, DIED) or outcome(folder) != whole
    return times, lost


def two_writers(times: int, generator: torch.Generator) -> tuple[int, int]:
    """Two processes write one results file `times` times each: a reader always finds one of the two whole."""
    lost = 0
    with scratch() as folder:
        path = folder / "r.json"
        values = [[name] * 5_000 for name in ("a", "b")]
        results.write_json(path, values[0])

        def work(value):
            for _ in range(times):
                results.write_json(path, value)

        pair = [child(lambda value=value: work(value)) for value in values]
        for pid in pair:
            while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                lost += not _is_one_of(path, values)
            lost += ended(pid) != DONE
        lost += len(list(folder.iterdir())) != 1
    return 2 * times, lost


def _is_one_of(path: Path, values: list) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) in values
    except ValueError:  # half a file
        return False


def clock_changes(times: int, generator: torch.Generator) -> tuple[int, int]:
    """The clock jumps by up to a year at each look and the time zone changes: the same bits in the end."""
    whole, _ = undisturbed()
    lost = 0
    for i in range(times):
        with scratch() as folder:
            zone = ("UTC", "Asia/Shanghai", "America/St_Johns")[i % 3]

            def work(folder=folder, zone=zone):
                real = time.time
                time.time = lambda: real() + 3.15e7 * (2 * _uniform(generator) - 1)
                os.environ["TZ"] = zone
                time.tzset()
                tiny_run(folder)

            lost += ended(child(work)) != DONE or outcome(folder) != whole
    return times, lost


LOCALES = (
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},  # files open as ASCII by default
    {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"},  # a comma for the decimal point
    {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},  # "i" and "I" are no pair there
)


def locale_changes(times: int, generator: torch.Generator) -> tuple[int, int]:
    """The command line on Chinese text in other locales, each in a process of its own: one held-out loss."""
    chosen = LOCALES[: max(times, 1)]
    losses = []
    for more in ({}, *chosen):
        with scratch() as folder:
            environment = {**os.environ, **more, "PROFILE": "fast", "FAST_OUTPUT": str(folder)}
            command = [sys.executable, "-m", "lib", "finetune", "--task", "tang", "--set", "train_tokens=3000"]
            done = subprocess.run(command, cwd=profile.ROOT, env=environment, capture_output=True)
            found = list(folder.glob("data/runs/*/run.json"))
            loss = json.loads(found[0].read_text(encoding="utf-8"))["summary"]["held_out_loss"] if found else None
            losses.append(loss if done.returncode == 0 else None)
    return len(chosen), sum(loss is None or loss != losses[0] for loss in losses[1:])


def same_seed(times: int, generator: torch.Generator) -> tuple[int, int]:
    """The same seed on the same machine: the same weights and loss, bit for bit."""
    whole, _ = undisturbed()
    return times, sum(undisturbed()[0] != whole for _ in range(times))


class Resident(TrainerCallback):
    """The process's resident megabytes at the end of every step."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def on_step_end(self, args, state, control, **_):
        self.megabytes.append(psutil.Process().memory_info().rss / 1e6)


def memory_growth(steps: int) -> float:
    """Megabytes by which the second half of `steps` steps lies above the first, medians; WARM steps come before."""
    with scratch() as folder:
        path = folder / "memory.json"
        tiny()

        def work():
            # oneDNN keeps its code for the last 1,024 shapes of a product and takes 250 steps to have met so many
            os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8"
            seen = Resident()
            tiny_run(folder, (seen,), train_tokens=1_280 * (WARM + steps), evaluations=1)
            path.write_text(json.dumps(seen.megabytes))

        if ended(child(work)) != DONE:
            raise RuntimeError("The long run failed: `pytest tests/test_train.py`.")
        seen = pd.Series(json.loads(path.read_text())[WARM:])
        half = len(seen) // 2
        return float(seen[half:].median() - seen[:half].median())


FLAT = 16.0  # megabytes: a hidden state kept at every step would be 33 in 200; the allocator jumps by less than 10
WARM = 120  # steps until the allocator's caches have what a step needs


def long_run(times: int, generator: torch.Generator) -> tuple[int, int]:
    """Memory stays flat: `times` stands for ten steps each, what is lost is whether it grew by more than FLAT."""
    return 10 * times, int(memory_growth(10 * times) > FLAT)


def killed_notebook(times: int, generator: torch.Generator) -> tuple[int, int]:
    """A notebook's process killed in mid-cell: the executed twin stays whole; run from the top it ends as ever."""
    from lib import notebooks

    lost = 0
    with scratch() as folder:
        source, flag = folder / "97_trial.py", folder / "running"
        source.write_text(
            "# %%\nimport os, pathlib, time\n"
            f"flag = pathlib.Path({str(flag)!r})\n"
            "if flag.exists():\n    flag.unlink()\n    time.sleep(60)\nprint('whole')\n"
        )
        target = folder / "notebooks" / "97_trial.ipynb"

        def work():
            profile.output_root = lambda: folder
            notebooks._run(source)

        lost += ended(child(work)) != DONE
        before, told = target.read_bytes(), _outputs(target)
        for _ in range(times):
            flag.touch()
            pid = child(work)
            deadline = time.monotonic() + 120
            while flag.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            kill_after(pid, 0.5 * _uniform(generator))
            lost += target.read_bytes() != before
            lost += ended(child(work)) != DONE or _outputs(target) != told
            before = target.read_bytes()  # cells get new ids
    return times, lost


def _outputs(notebook: Path) -> list:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell.get("outputs") for cell in cells]


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


# --- tests that inject a fault each and are counted here rather than written twice

TESTS = {
    "network cut in mid-download": (
        "test_models.py::test_download_that_breaks_off_goes_on",
        "test_hub.py::test_fetch_model_goes_on_and_ends_whole",
    ),
    "wrong bytes from the network": (
        "test_models.py::test_wrong_bytes_are_thrown_away",
        "test_models.py::test_bytes_too_few_are_thrown_away",
        "test_models.py::test_tampered_wheel_is_refused",
        "test_hub.py::test_another_file_on_the_hub_is_not_written",
    ),
    "slow or silent server": ("test_models.py::test_hub_out_of_reach_is_decided_in_five_seconds",),
    "damaged model or run": (
        "test_models.py::test_broken_folder",
        "test_models.py::test_truncated_download_by_hand_is_not_passed_over",
        "test_train.py::test_damaged_runs_say_what_to_delete",
        "test_train.py::test_a_half_written_checkpoint_is_dropped",
    ),
    "pickle instead of weights": ("test_models.py::test_base_model_that_is_a_pickle",),
    "damaged byte or cut in a compressed file": ("test_compress.py::test_every_damaged_byte_and_every_cut_is_refused",),
    "bad row in a task file": ("test_tasks.py::test_custom_bad_files_say_where",),
}


def tested() -> list[dict]:
    """The rows of TESTS: injected are the test cases, lost those that fail."""
    if profile.current().name == "fast":  # the tests are running already
        return []
    names = [f"tests/{t}" for group in TESTS.values() for t in group]
    options = ["-rA", "--color=no", "-p", "no:nbmake", "-o", "addopts=-q -p lib.testing"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *names],
        cwd=profile.ROOT,
        env={**os.environ, "PROFILE": "fast"},
        capture_output=True,
        text=True,
    )
    said = re.findall(r"^(PASSED|FAILED|ERROR) tests/([^\s\[]+)", done.stdout, re.MULTILINE)
    if not said:
        raise RuntimeError(f"The tests that inject faults did not run: {(done.stderr or done.stdout)[-500:]}")
    rows = []
    for fault, group in TESTS.items():
        ends = [how for how, name in said if name in group]
        missing = len(set(group) - {name for _, name in said})
        lost = sum(how != "PASSED" for how in ends) + missing
        rows.append({"fault": fault, "injected": len(ends) + missing, "lost": lost})
    return rows


FAULTS: dict[str, Callable[[int, torch.Generator], tuple[int, int]]] = {
    "kill during a write of results": kill_results,
    "kill during a training": kill_training,
    "disk full at a write of results": full_disk_results,
    "disk full in a training": full_disk_training,
    "two runs at once": two_at_once,
    "two writers of one file": two_writers,
    "notebook killed and run again": killed_notebook,
    "clock and time zone change": clock_changes,
    "other locale": locale_changes,
    "same seed again": same_seed,
    "long run (steps)": long_run,
}
SHARE = {  # of the profile's moments: some faults cost a process or a training each
    "disk full in a training": 4,
    "two runs at once": 5,
    "notebook killed and run again": 7,
    "clock and time zone change": 7,
    "other locale": 7,
    "same seed again": 5,
}


SLOW = ("other locale", "notebook killed and run again")  # processes of their own: not in `fast`


def table() -> list[dict]:
    """`inject` with the profile's moments, in a fresh process: a notebook's kernel has threads, which no fork copies,
    and a GPU can't be used after one.
    """
    if not hasattr(os, "fork"):
        print("Faults are not injected: this system has no fork.")
        return []
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "PROFILE": profile.current().name,
    }
    done = subprocess.run(
        [sys.executable, "-m", "lib.explore.faults"],
        cwd=profile.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    answers = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
    if done.returncode or not answers:
        raise RuntimeError(f"The faults ended with {done.returncode}: `python -m lib.explore.faults` shows why.")
    return json.loads(answers[-1].removeprefix(MARK))


def inject(names: Sequence[str] = (), moments: int | None = None, seed: int = 0) -> list[dict]:
    """The rows of the table `faults`: fault, injected, lost, seconds. Needs fork, and a CPU."""
    if not names:
        fast = profile.current().name == "fast"
        names = [n for n in FAULTS if not (fast and n in SLOW)]
    moments = moments or profile.current().performance.moments
    rows = []
    for name in tqdm(names, desc="faults"):
        generator = torch.Generator().manual_seed(seed)
        began = time.monotonic()
        injected, lost = FAULTS[name](max(moments // SHARE.get(name, 1), 1), generator)
        rows.append({"fault": name, "injected": injected, "lost": lost, "seconds": round(time.monotonic() - began, 1)})
    return rows


if __name__ == "__main__":
    print(MARK + json.dumps(inject()), flush=True)
