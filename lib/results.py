"""What a notebook hands on: data/results/<notebook>.json and its figures, written atomically, with provenance.

Rows are flat, one measurement each, seeds not averaged. `fast` writes below a temporary folder (lib.profile.kept_root).
"""

import datetime
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lib import profile
from lib.metrics import mean_interval
from lib.profile import write_bytes

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "sacrebleu", "numpy", "scipy")


class Results:
    """One notebook's tables, figures, and what the report takes from it (values, tables, claims).

    `RESULTS=stored` in the environment: tables are read back from data/results, nothing is measured, and `save` writes
    the report's part and the figures anew. `RESULTS=missing` measures the tables that the stored file lacks or has
    empty and no other, `RESULTS=a,b` those two; `tables_made` in the provenance says when, where and by which commit,
    and where all were named the whole provenance is this run's. Nothing is written before `save`. Raises
    FileNotFoundError or ValueError where no stored file is, or one of another profile."""

    def __init__(self, notebook: str, base=None, seeds: Sequence[int] = ()):
        self.notebook, self.seeds = notebook, seeds
        self.began, self.commit = time.monotonic(), git_commit()
        self.anew = os.environ.get("RESULTS", "").split(",")
        self.stored = self.anew != [""]
        self.tables: dict[str, list[dict]] = {}
        self.report: dict[str, dict] = {"values": {}, "tables": {}, "claims": {}}
        self._figures: dict[str, bytes] = {}
        if self.stored:
            self._file = load(notebook)
            made = self._file["provenance"]
            if made["profile"] != profile.name():
                raise ValueError(f"{notebook} was measured with PROFILE={made['profile']}: set it beside RESULTS.")
            print(f"Stored results: measured {made['created'][:10]}, commit {made['git_commit'][:7]}; not again now.")
        self.use(base)

    def use(self, base) -> None:
        """`base` is the model of these results. Raises ValueError where it would complete those of another."""
        self.base = base
        completes = self.stored and self.anew != ["stored"] and self._kept_provenance()
        if base and completes and (other := self._file["provenance"]["base_model"]) != base.name:
            way_out = f"measure all of it, with --profile {profile.name()} and without RESULTS"
            raise ValueError(f"{self.notebook} was measured on {other}, not {base.name}: {way_out}.")

    @property
    def not_yet(self) -> str:
        """What stands in the place of an optional table that was not measured."""
        how = "--results missing" if profile.name() == "full" else "--profile full"
        return f"Not measured yet: `python -m lib run {self.notebook[:2]} {how}`."

    def _kept_provenance(self) -> bool:
        return not self._file["tables"].keys() <= {*self.anew}  # else all were named: this run measured them

    def table(self, name: str, make: Callable[[], pd.DataFrame | Iterable[Mapping]], optional=False) -> pd.DataFrame:
        """`make()`'s flat rows as a frame, kept under `name`; read back instead where results are stored, and empty for
        an `optional` table that was not measured yet."""
        old = self._file["tables"] if self.stored else {}
        anew = not self.stored or name in self.anew or ("missing" in self.anew and not old.get(name))
        if not anew and name not in old:
            if optional:
                return pd.DataFrame()
            raise ValueError(f"data/results/{self.notebook}.json has no table {name!r}: set RESULTS=missing.")
        if anew and self.stored:
            self._file["provenance"].setdefault("tables_made", {})[name] = self._made()
        rows = make() if anew else old[name]
        self.tables[name] = _plain(rows.to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows))
        frame = pd.DataFrame(self.tables[name])
        empty = [c for c in frame if frame[c].isna().all()]
        return frame.astype(dict.fromkeys(empty, float))  # JSON's null is nan again

    def in_two(self, name: str, make: Callable[[Sequence], Iterable[Mapping]], first: Sequence, later: Sequence):
        """`make(first)`'s rows, and those of runs that were added, `make(later)`'s, from the table <name>_seeds."""
        parts = {name: first, f"{name}_seeds": later}
        made = [self.table(part, functools.partial(make, runs), optional=True) for part, runs in parts.items()]
        return pd.concat(made, ignore_index=True)

    def _made(self) -> dict:
        created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        dtype = str(profile.autocast_dtype()).removeprefix("torch.")
        return {"created": created, "git_commit": self.commit, "device": device_name(), "dtype": dtype}

    def provenance(self, data: Mapping[str, str] | None = None) -> dict:
        """Of the run that measured the tables: model, profile, seeds, machine, commit, versions, datasets."""
        if self.stored and self._kept_provenance():
            return self._file["provenance"]
        found = {"base_model": getattr(self.base, "name", None), "stand_in": getattr(self.base, "stand_in", None)}
        found |= {"parameters": getattr(self.base, "parameters", None), "profile": profile.name()}
        found |= {"seeds": list(self.seeds), **self._made(), "wall_seconds": round(time.monotonic() - self.began, 1)}
        return found | {"versions": {p: importlib.metadata.version(p) for p in PACKAGES}, "data": dict(data or {})}

    def caption(self, text: str, tokens: int | None = None, scratch=False, seeds: Sequence[int] | None = None) -> str:
        """`text` and what its numbers hang on: seeds (all of the run's; () for none), training tokens per run, and that
        the model is a stand-in unless from `scratch`."""
        made = self.provenance()
        seeds = list(made["seeds"] if seeds is None else seeds)
        row = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
        said = f"{seeds[0]}\u2013{seeds[-1]}" if row else ", ".join(map(str, seeds))
        parts = [f"Seed{'s' * (len(seeds) > 1)} {said}"] if seeds else []
        parts += [f"{tokens:,} training tokens"] if tokens else []
        text += f" {'; '.join(parts)}." if parts else ""
        return text + " Stand-in." if made["stand_in"] and not scratch else text

    def figure(self, fig, name: str, text: str, **options) -> None:
        """figures/<name>.svg and .png, with `caption(text, **options)`; the same data gives the same bytes.
        The report's block is `NN.figure.<rest of name>`."""
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=suffix, metadata=metadata)
            self._figures[f"{name}.{suffix}"] = buffer.getvalue()
        caption = self.caption(text, **options).replace("[", "(").replace("]", ")")
        self.report["tables"][f"figure.{name.removeprefix(self.notebook[:3])}"] = f"![{caption}](figures/{name}.png)"

    def value(self, name: str, text: object) -> None:
        """What `<!--= NN.name -->` shows: a number, an interval or a short list, already formatted."""
        self.report["values"][name] = " ".join(str(text).split())

    def claim(self, name: str, holds: bool) -> None:
        """The condition of the sentences behind `<!--? NN.name -->`."""
        self.report["claims"][name] = bool(holds)

    def block(self, name: str, text: str) -> None:
        """Markdown between `<!-- begin NN.name -->` and `<!-- end NN.name -->`."""
        self.report["tables"][name] = text.strip("\n")

    def markdown(self, name: str, header: Sequence[str], rows: Sequence[Sequence], text: str, left: int = 1, **options):
        """`block` of a table, its cells formatted, with `caption(text, **options)`; without rows `not_yet`."""
        table = f"{markdown_table(header, rows, left)}\n\nTable: {self.caption(text, **options)}"
        self.block(name, table if len(rows) else self.not_yet)

    def save(self, data: Mapping[str, str] | None = None) -> None:
        """Write the results file and the figures together; `data` is the sha256 of each dataset. Raises OSError where
        one can't be written, and leaves the previous ones."""
        root = profile.kept_root()
        new = {"notebook": self.notebook, "provenance": self.provenance(data), "tables": self.tables}
        value = self._file | new | {"tables": self._file["tables"] | self.tables} if self.stored else new
        path = root / "data" / "results" / f"{self.notebook}.json"
        (root / "build").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root / "build", ignore_cleanup_errors=True) as folder:
            for name, content in self._figures.items():  # all is written before anything is replaced
                write_bytes(Path(folder, "figures", name), content)
            write_json(Path(folder, path.relative_to(root)), value | {"report": self.report})
            for file in [f for f in Path(folder).rglob("*") if f.is_file()]:
                (target := root / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                profile.replace(file, target)
        if self.stored and (unknown := {*self.anew} - {"stored", "missing", *self.tables}):
            print(f"RESULTS: {self.notebook} has no table {listed(sorted(unknown))}.")
        rows = ", ".join(f"{name} {len(table)}" for name, table in value["tables"].items())
        print(f"Results: {path.relative_to(root)} ({rows} rows)")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """A Markdown table, the first `left` columns left-aligned. Of a wide one pandoc takes the columns' widths from the
    rule, which therefore follows the longest cells, up to where one would leave the others no room."""
    cells = [[str(c).replace("|", r"\|").replace("\n", " ") for c in row] for row in [header, *rows]]
    widths = [min(max(3, *map(len, column)), 48) + 2 for column in zip(*cells, strict=True)]
    rule = [":" + "-" * (w - 1) if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def number(x: float, digits: int = 3, sign: bool = False) -> str:
    """`-` for what was not measured."""
    return "-" if pd.isna(x) else f"{x:{'+' if sign else ''},.{digits}f}"


def span(mean: float, low: float, high: float, digits: int = 3, sign: bool = False) -> str:
    """Like "1.042 [1.038, 1.045]"; the mean alone where the bounds are nan, `-` where it is nan itself."""
    m, a, b = (number(x, digits, sign) for x in (mean, low, high))
    return m if a == "-" else f"{m} [{a}, {b}]"


def interval(values: Sequence[float], digits: int = 3, sign: bool = False, top: float = math.inf) -> str:
    """`span` of the mean over seeds and its 95 % interval, `-` of none; `top` is 1 or 100 where they are shares."""
    known = pd.Series(values, dtype=float).dropna()
    return span(*mean_interval(known, top), digits, sign) if len(known) else "-"


def shown(family: Mapping[Hashable, Sequence[float]] | Sequence[float]):
    """-1 or 1 where differences over seeds lie on one side of 0 (t test, p < .05), else 0; one seed shows nothing. Of a
    mapping or frame, a dict, with p corrected over all of them (Holm 1979): for a sentence that picks from them."""
    if not isinstance(family, Mapping | pd.DataFrame):
        return shown({0: family})[0]
    gaps = {name: pd.Series(gap, dtype=float).dropna() for name, gap in family.items()}
    t = [abs(x.mean()) / max(x.sem(), 1e-300) if len(x) > 1 else 0.0 for x in gaps.values()]
    p = [2 * stats.t.sf(size, max(len(x) - 1, 1)) for size, x in zip(t, gaps.values(), strict=True)]
    # alone it has nothing to be corrected for, and statsmodels collects garbage at each call: half a second
    told = multipletests(p, method="holm")[0] if len(p) > 1 else [x <= 0.05 for x in p]
    return {name: int(np.sign(x.mean())) if sure else 0 for (name, x), sure in zip(gaps.items(), told, strict=True)}


def by_seed(frame: pd.DataFrame, columns: str, values: str = "bits_per_byte") -> pd.DataFrame:
    """A row per seed, a column per value of `columns`, in the table's order."""
    return frame.pivot(index="seed", columns=columns, values=values)[frame[columns].unique()]


def listed(names: Sequence) -> str:
    """ "a, b and c"; "none" for nothing."""
    names = [*map(str, names)]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def write_json(path: Path, value) -> None:
    """`write_bytes` of `value` as indented JSON; NaN and infinities become null, which JSON can hold."""
    write_bytes(path, (json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def kept(path: Path, settings: Sequence, make: Callable[[], dict]) -> dict:
    """`make()`'s JSON object, kept in `path`-<hash of settings>.json and read back from there: an interrupted notebook
    goes on where it stopped."""
    path = path.with_name(f"{path.name}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:10]}.json")
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value):
    """`value` in JSON's own types: NumPy numbers as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(notebook: str, folder: Path | None = None) -> dict:
    """Read a results file back. Raises FileNotFoundError or ValueError naming the file and the way out."""
    path = (folder or profile.kept_root() / "data" / "results") / f"{notebook}.json"
    way_out = f"run `python -m lib run {notebook[:2]}`"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {way_out}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {way_out} again.") from error


def git_commit() -> str:
    """The checkout's commit, with "+changes" where tracked files differ from it; "unknown" without git."""
    options = {"cwd": profile.ROOT, "encoding": "utf-8", "stderr": subprocess.DEVNULL, "timeout": 20}
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", "lib", "notebooks/*.py"]
    try:
        changed = subprocess.check_output(status, **options)
        return subprocess.check_output(["git", "rev-parse", "HEAD"], **options).strip() + "+changes" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name() -> str:
    """The GPU's name, or the processor's with its thread count."""
    if profile.device().type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"CPU, {names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}"
