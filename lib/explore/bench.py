"""`python -m lib bench`: this project's training, evaluation and generation against what a user would take instead.

Every measurement is a process of its own (lib.explore.bench_systems) on one machine; the systems take turns, run by run,
so that a slow minute meets all of them. A ratio is taken within a run; shown are the median and the range.
Budget: under 30 minutes on two quiet cores for GPT-2 117M's configuration (profile `cpu`), peers installed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch
from tokenizers import decoders
from tqdm.auto import tqdm

from lib import profile
from lib.explore import bench_peers
from lib.explore.bench_systems import MARK, SYSTEMS, System
from lib.explore.encodings import train_encoding
from lib.hub import Unavailable, quiet
from lib.models import END, Base, _load, _shipped_tokenizer, small_gpt2
from lib.results import device_name, write_text
from lib.tasks import encode, load_task

KINDS = tuple(SYSTEMS)
TIMEOUT = 900  # seconds for one measurement
SPEED = {"training": "useful_tokens_per_second", "evaluation": "tokens_per_second", "generation": "tokens_per_second"}
MARKS = {  # what issue 6 wants ours to be, times the other
    ("training", "trl", "default"): 2.0,
    ("training", "trl", "best"): 1.1,
    ("training", "tutorial", "default"): 4.0,
    ("evaluation", "tutorial", "default"): 5.0,
    ("generation", "pipeline", "default"): 2.0,
}


def model_folder() -> Path:
    """A folder with the model that all systems load: GPT-2 117M's configuration, random weights of seed 0, GPT-2's
    tokenizer (`fast`: a tiny one). Made once, whole or not at all.
    """
    p = profile.current().performance
    folder = profile.output_root() / "data" / "runs" / f"bench-{p.n_layer}x{p.n_embd}"
    if (folder / "config.json").exists():
        return folder
    tokenizer = gpt2_tokenizer() if p.gpt2_tokens else _shipped_tokenizer()
    end = tokenizer.eos_token_id
    model = small_gpt2(
        len(tokenizer), p.n_layer, p.n_embd // 64 or 1, p.n_embd, 1_024, bos_token_id=end, eos_token_id=end
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as new:
        tokenizer.save_pretrained(f"{new}/model")
        model.save_pretrained(f"{new}/model")
        os.replace(f"{new}/model", folder)
    return folder


def random_base() -> Base:
    """The model of `model_folder`, loaded and named for what it is."""
    return _load(model_folder(), "random weights", None)


def gpt2_tokenizer():
    """GPT-2's own, from its merges in data/gpt2_bpe: 50,257 entries, the last <|endoftext|>."""
    from transformers import PreTrainedTokenizerFast

    own = train_encoding("gpt2", []).tokenizer
    own.decoder = decoders.ByteLevel()  # lib.explore.encodings decodes by itself
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def available(kinds: Sequence[str] = KINDS) -> dict[tuple[str, str, str], str]:
    """(kind, system, setting) -> the interpreter that runs it; says in one sentence each what is left out.

    Raises ValueError for an unknown kind.
    """
    if unknown := set(kinds) - set(SYSTEMS):
        raise ValueError(f"Nothing is called {min(unknown)!r}: choose of {', '.join(SYSTEMS)}.")
    found, told = {}, set(bench_peers.LEFT_OUT.values() if "training" in kinds else ())
    for kind in kinds:
        for (system, setting), entry in SYSTEMS[kind].items():
            try:
                found[kind, system, setting] = _interpreter(entry)
            except Unavailable as reason:
                told.add(str(reason))
    for sentence in sorted(told):
        print(sentence)
    return found


def _interpreter(entry: System) -> str:
    if entry.needs == "gpu":
        if not torch.cuda.is_available():
            raise Unavailable("torch.compile's loop is left out: it is measured on a GPU.")
        return sys.executable
    if entry.needs and profile.current().name == "fast":
        raise Unavailable(f"{entry.needs} is left out: the fast profile installs nothing.")
    return bench_peers.python(entry.needs) if entry.needs else sys.executable


def one(key: tuple[str, str, str], run: int, interpreter: str, model: Path) -> dict:
    """One measurement in a fresh process. Raises RuntimeError with the end of what it wrote when it fails."""
    kind, system, setting = key
    request = {
        "kind": kind,
        "system": system,
        "setting": setting,
        "run": run,
        "model": str(model),
        "load": asdict(profile.current().performance),
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(profile.ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PROFILE": profile.current().name,
    }
    done = subprocess.run(
        [interpreter, "-m", "lib.explore.bench_systems", json.dumps(request)],
        cwd=profile.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    answers = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
    if done.returncode or not answers:
        raise RuntimeError(f"{system} ({setting}), {kind}: {(done.stderr or done.stdout)[-1500:]}")
    return json.loads(answers[-1].removeprefix(MARK))


def measure(kinds: Sequence[str] = KINDS, runs: int | None = None) -> dict[str, pd.DataFrame]:
    """The raw answers per kind, a row per system, setting and run. A peer that fails is left out with its reason;
    ours failing raises.
    """
    todo, model = available(kinds), model_folder()
    rows: dict[str, list] = {kind: [] for kind in kinds}
    count = runs or profile.current().performance.runs
    turns = [(run, key) for run in range(count) for key in todo]
    failed = set()
    for run, key in tqdm(turns, desc="measurements"):
        if key in failed:
            continue
        try:
            got = one(key, run, todo[key], model)
        except (RuntimeError, subprocess.TimeoutExpired) as reason:
            if key[1] == "ours":
                raise
            failed.add(key)
            tqdm.write(f"Left out: {reason}")
            continue
        rows[key[0]].append({"system": key[1], "setting": key[2], "device": device_name(), "run": run, **got})
    return {kind: pd.DataFrame(r) for kind, r in rows.items()}


# --- raw answers to the tables of the results file


def training(raw: pd.DataFrame) -> pd.DataFrame:
    """system, setting, device, run, useful_tokens_per_second, peak_megabytes, seconds_to_loss, steps_to_loss.

    Useful tokens are the targets' and their EOS, counted once each time a training step learns from one; prompts and
    padding are none. Their rate leaves the first step out, which sets up. Memory is the process's peak in 10^6
    bytes (on a GPU, the allocated). The step that first brings the held-out documents to the fixed loss is found in
    a system's first run, since steps repeat and only their seconds vary; seconds_to_loss is that step's end in each
    run, at the run's own seconds per step where it was shorter; null where the loss wasn't reached.
    """
    loss = profile.current().performance.loss
    needed = {}
    for row in raw[raw["run"] == 0].to_dict("records"):
        reached = [i for i, s in enumerate(row["steps"]) if s["loss"] <= loss]
        needed[row["system"], row["setting"]] = reached[0] if reached else None
    rows = []
    for row in raw.to_dict("records"):
        steps, last = row.pop("steps"), needed.get((row["system"], row["setting"]))
        seconds = steps[-1]["seconds"] - steps[0]["seconds"]
        each = seconds / (len(steps) - 1)
        tokens = steps[-1]["tokens"] - steps[0]["tokens"]
        row["useful_tokens_per_second"] = tokens / seconds
        short = None if last is None else max(last - len(steps) + 1, 0)
        row["seconds_to_loss"] = None if last is None else steps[min(last, len(steps) - 1)]["seconds"] + short * each
        row["steps_to_loss"] = None if last is None else last + 1
        rows.append(row)
    return pd.DataFrame(rows)


def evaluation(raw: pd.DataFrame) -> pd.DataFrame:
    """system, setting, device, run, tokens_per_second, bits_per_byte (of the run's documents), peak_megabytes."""
    bits = raw["nats"] / raw["bytes"] / 0.6931471805599453  # ln 2
    return _rate(raw.assign(bits_per_byte=bits))


def generation(raw: pd.DataFrame) -> pd.DataFrame:
    """system, setting, device, run, tokens_per_second (new tokens), peak_megabytes."""
    return _rate(raw)


def _rate(raw: pd.DataFrame) -> pd.DataFrame:
    out = raw.assign(tokens_per_second=raw["tokens"] / raw["seconds"])
    return out.drop(columns=["seconds", "tokens", "nats", "bytes"], errors="ignore")


def ceiling(raw: pd.DataFrame) -> pd.DataFrame:
    """device, dtype, run, gflops."""
    return raw.rename(columns={"setting": "dtype"}).drop(columns="system")


TABLES = {"training": training, "evaluation": evaluation, "generation": generation, "ceiling": ceiling}


def tables(raw: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """All tables of one `measure`, with `ratios` and `limits` where their parts are there."""
    made = {kind: TABLES[kind](frame) for kind, frame in raw.items() if len(frame)}
    made["ratios"] = ratios(made)
    if "ceiling" in made:
        made["limits"] = limits(made)
    return made


def ratios(made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Ours over each other system, run by run: kind, system, setting, ratio (median), low, high (range), mark."""
    rows = []
    for kind, column in SPEED.items():
        if kind not in made:
            continue
        wide = made[kind].pivot(index="run", columns=["system", "setting"], values=column)
        for system, setting in (c for c in wide if c[0] != "ours"):
            ratio = (wide["ours", "default"] / wide[system, setting]).dropna()
            rows.append(
                {
                    "kind": kind,
                    "system": system,
                    "setting": setting,
                    "ratio": ratio.median(),
                    "low": ratio.min(),
                    "high": ratio.max(),
                    "mark": MARKS.get((kind, system, setting)),
                }
            )
    return pd.DataFrame(rows)


def flop_per_useful_token(kind: str = "training") -> float:
    """Model FLOP behind one target token of the task `debian` in `training` or `evaluation`, its prompt's share in it.

    Forward 2 FLOP per weight and token, backward twice that (Kaplan et al. 2020, arXiv:2001.08361, section 2.1); the
    output layer for targets alone; attention's two products over half a document on average. Embeddings look up.
    """
    p, task = profile.current().performance, load_task("debian")
    tokenizer = gpt2_tokenizer() if p.gpt2_tokens else _shipped_tokenizer()
    examples, passes = (task.train[:500], 3) if kind == "training" else (task.test[: p.documents], 1)
    documents = encode(tokenizer, examples, 1_024)
    targets = sum(len(d.input_ids) - d.prompt_length for d in documents)
    lengths = [len(d.input_ids) for d in documents]
    body = 2 * 12 * p.n_layer * p.n_embd**2 * sum(lengths)
    attention = 2 * p.n_layer * p.n_embd * sum(n * n for n in lengths)
    return passes * ((body + attention) / targets + 2 * p.n_embd * len(tokenizer))


def limits(made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Model FLOP of trainings and evaluations against the ceiling of the same run: kind, system, setting, run, gflops,
    share.

    Padding, recomputation and logits that no loss needs are time and no model FLOP: MFU in the sense of Chowdhery et
    al. 2022, arXiv:2204.02311, appendix B, with the machine's own matrix products as its peak: the faster format's.
    """
    top = made["ceiling"].groupby("run")["gflops"].max()
    parts = []
    for kind in ("training", "evaluation"):
        if kind in made:
            out = made[kind][["system", "setting", "run"]].copy()
            out.insert(0, "kind", kind)
            out["gflops"] = made[kind][SPEED[kind]] * flop_per_useful_token(kind) / 1e9
            parts.append(out.assign(share=out["gflops"] / out["run"].map(top)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summary(made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What the command prints: kind, system, setting, tokens per second, peak GB, seconds to the loss, ours over it."""
    found = made["ratios"].set_index(["kind", "system", "setting"]) if len(made["ratios"]) else None
    rows = []
    for kind, column in SPEED.items():
        groups: Iterable = made[kind].groupby(["system", "setting"], sort=False) if kind in made else ()
        for (system, setting), part in groups:
            row = {
                "kind": kind,
                "system": system,
                "setting": setting,
                "tokens_per_second": round(part[column].median(), 1),
                "peak_gigabytes": round(part["peak_megabytes"].median() / 1_000, 2),
                "seconds_to_loss": _median(part.get("seconds_to_loss")),
            }
            if found is not None and (key := (kind, system, setting)) in found.index:
                r = found.loc[key]
                row["ours_over_it"] = f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
            rows.append(row)
    table = pd.DataFrame(rows).astype(object)
    return table.where(table.notna(), "")


def _median(values: pd.Series | None) -> float | None:
    known = pd.to_numeric(values).dropna() if values is not None else ()
    return round(float(known.median()), 1) if len(known) else None


def shown(made: dict[str, pd.DataFrame]) -> str:
    """`summary` and the ceiling as text."""
    lines = [summary(made).to_string(index=False)]
    if "ceiling" in made:
        for dtype, part in made["ceiling"].groupby("dtype"):
            lines.append(f"ceiling, {dtype}: {statistics.median(part['gflops']):.0f} GFLOP/s")
    if len(made.get("limits", ())):
        groups = made["limits"].groupby(["kind", "system", "setting"], sort=False)
        for (kind, system, setting), part in groups:
            lines.append(f"{kind}, {system} ({setting}): {part['share'].median():.0%} of the faster ceiling")
    return "\n".join(lines)


def measured() -> dict[str, pd.DataFrame]:
    """The answers that a whole `python -m lib bench` left on this machine with these budgets, else new ones."""
    path = _kept()
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["conditions"] == _conditions(KINDS, None):
            print(f"Measured by `python -m lib bench`, {kept['measured']}; that command measures again.")
            return {kind: pd.DataFrame(rows) for kind, rows in kept["answers"].items()}
    raw = measure()
    keep(raw, KINDS, None)
    return raw


def keep(raw: dict[str, pd.DataFrame], kinds: Sequence[str], runs: int | None) -> None:
    """The answers beside the runs, so that notebook 11 need not measure again."""
    kept = {
        "conditions": _conditions(kinds, runs),
        "measured": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "answers": {kind: frame.to_dict("records") for kind, frame in raw.items()},
    }
    write_text(_kept(), json.dumps(kept))


def _kept() -> Path:
    return profile.output_root() / "data" / "runs" / "bench.json"


def _conditions(kinds: Sequence[str], runs: int | None) -> dict:
    load = profile.current().performance
    return {
        "load": json.loads(json.dumps(asdict(load))),
        "kinds": sorted(kinds),
        "runs": runs or load.runs,
        "device": device_name(),
        "torch": torch.__version__,
    }
