"""What has to hold before any library is imported: settings of the environment are clean, children speak UTF-8."""

import os

SETTINGS = ("PROFILE", "TASK", "RESULTS", "BASE_MODEL", "HF_ENDPOINT", "DATA_MIRROR", "PRIVATE_DATA", "FAST_OUTPUT")
SETTINGS += ("TASK_COLUMNS", "DEVICE", "DTYPE", "RATER", "JUDGE_BASE_URL", "JUDGE_MODEL", "JUDGE_API_KEY")

for _name in os.environ.keys() & {*SETTINGS}:  # cmd keeps the blank of `set NAME=value && ...`, and quotes
    os.environ[_name] = os.environ[_name].strip(" \t\"'")
if "LOCAL_RANK" not in os.environ:  # else accelerate gives each process its GPU; one process has one, as budgets say
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}  # of kernels, pip and bench, whatever the locale is
