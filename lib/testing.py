"""A pytest plugin (pyproject.toml names it): tests and notebooks run in the `fast` profile, and write to a folder of
their own that goes when they end."""

import os
import shutil
import tempfile

os.environ.setdefault("PROFILE", "fast")
# what a user has set is not what is tested
for _name in ("TASK", "TASK_COLUMNS", "RESULTS", "PRIVATE_DATA", "BASE_MODEL", "JUDGE_API_KEY"):
    os.environ.pop(_name, None)
if "PYTEST_XDIST_WORKER" in os.environ:  # several at once share the cores, and waiting threads burn them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
_OUTPUT = os.path.realpath(tempfile.mkdtemp(prefix="gpt2-coursework-test-"))  # on a Mac it lies behind a link
os.environ["FAST_OUTPUT"] = _OUTPUT


def pytest_unconfigure(config) -> None:  # no atexit, which the tests' forked children would run too
    shutil.rmtree(_OUTPUT, ignore_errors=True)
