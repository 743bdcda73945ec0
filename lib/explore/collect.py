"""Data of one's own: documents from a folder, or by default the docstrings of installed packages.

`PRIVATE_DATA=/path/to/folder` names the folder. What is collected is anonymised (lib.explore.anonymise), freed of
exact and near duplicates, written to data/private (which git ignores) and loaded by lib.tasks, which splits it
by document. The data card holds counts, never text, file names or paths.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH
from tqdm.auto import tqdm

from lib import profile
from lib.explore.anonymise import anonymise, read_names
from lib.explore.readers import BY_SUFFIX, Skip, decode
from lib.results import write_text
from lib.tasks import MIN_GROUPS, SPLITS, Example, Task, load_task
from lib.texts import words

NAMES = "names.txt"  # in the folder's top: names to be replaced, one a line
LEFT_OUT = {"node_modules", "__pycache__", "site-packages", "venv", "env", "build", "dist"}
THRESHOLD = 0.3  # Jaccard similarity of word 3-shingles, as for `debian` (data/README.md says why)
BANDS, ROWS = 128, 2  # miss a pair at 0.3 with probability (1 - 0.3^2)^128 = 6e-6
CONSENT = """\
Before you train on this folder: every person whose words are in it must know and agree. Chats and mail hold
other people's words as well as yours. The anonymiser replaces what it recognises and misses some of it: read
samples in data/private before training. Nothing leaves this machine: collected text stays in data/private,
weights and generated text in data/runs, both ignored by git. Treat a model trained on it as you would treat
the text itself, and delete both when you are done."""


@dataclass(frozen=True)
class Collection:
    task: Task
    card: pd.DataFrame  # what, key, value: counts of what was found and done
    own: bool  # a folder of one's own: then no text of it belongs into an output


def collect(packages: Sequence[str], folder: str | os.PathLike | None = None) -> Collection:
    """The documents of `folder`, else of the environment's PRIVATE_DATA, else docstrings of `packages`.

    Raises FileNotFoundError for a folder that is not there and ValueError for one without readable
    documents or with fewer than a split needs.
    """
    folder = folder or os.environ.get("PRIVATE_DATA", "").strip()
    found = _Found()
    if folder:
        name, root = "private", _folder(folder)
        listed = root / NAMES
        found.names = read_names(listed) if listed.is_file() else []
        documents = found.documents([(p, p.relative_to(root).as_posix()) for p in _files(root)])
    else:
        name, root = "docstrings", None
        documents = found.documents(_package_files(packages))
    distinct = _without_duplicates(documents, found.facts)
    _check_enough(distinct, root, found.facts)
    path = profile.output_root() / "data" / "private" / f"{name}.jsonl"
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in distinct]
    write_text(path, "".join(rows))
    task = load_task(path)
    card = _card(task, found, [] if folder else packages)
    write_text(path.with_suffix(".card.csv"), card.to_csv(index=False))
    return Collection(task, card, bool(folder))


def _folder(folder: str | os.PathLike) -> Path:
    """The folder, seen from here or, since a notebook runs in its own folder, from the checkout."""
    path = Path(folder).expanduser()
    found = [p for p in (Path.cwd() / path, profile.ROOT / path) if p.is_dir()]
    if not found:
        raise FileNotFoundError(f"PRIVATE_DATA={folder} is no folder; name one that holds your files.")
    return found[0].resolve()


def _files(root: Path) -> list[Path]:
    """Files below `root` in a fixed order; hidden and installed things and links are left out."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(d for d in below if not d.startswith(".") and d not in LEFT_OUT)
        paths = (Path(folder, n) for n in sorted(names) if not n.startswith("."))
        found += [p for p in paths if p != root / NAMES and p.is_file() and not p.is_symlink()]
    return found


def _package_files(packages: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, name) of the packages' own modules, tests left out. Raises ValueError for a missing one."""
    files = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"The package {package} is missing: pip install -r requirements.txt.")
        root = Path(spec.submodule_search_locations[0])
        own = sorted(p.relative_to(root) for p in root.rglob("*.py"))
        own = [p for p in own if not any("test" in part for part in p.parts)]
        files += [(root / p, f"{package}/{p.as_posix()}") for p in own]
    return files


class _Found:
    """Reads files and counts: kinds, encodings, reasons to skip, replacements."""

    def __init__(self):
        self.facts: Counter = Counter()
        self.names: list[str] = []

    def clean(self, text: str, names: Sequence[str] = ()) -> str:
        whole = text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a surrogate pair
        text, counts = anonymise(whole, [*self.names, *names])
        self.facts.update({("replaced", c): n for c, n in counts.items()})
        return text

    def documents(self, files: Sequence[tuple[Path, str]]) -> list[dict]:
        """Rows of a task file. `files`: (path, a name that stays the same on every machine)."""
        rows = []
        for path, name in tqdm(files, desc="reading", disable=len(files) < 200):
            try:
                found = list(self._read(path))
            except Skip as reason:
                self.facts["skipped", str(reason)] += 1
                continue
            except OSError as error:
                self.facts["skipped", error.strerror or "unreadable"] += 1
                continue
            kind = BY_SUFFIX[path.suffix.lower()].name
            self.facts["files", kind if found else f"{kind} without a document"] += 1
            for i, pair in enumerate(found):
                group = _digest(pair.part if kind == "mail" else f"{name}\n{pair.part}")
                rows.append(
                    {
                        "id": f"{kind}-{_digest(f'{name} {i}')}",
                        "prompt": pair.prompt,
                        "target": pair.target,
                        "group": group,
                        "kind": kind,
                    }
                )
        return rows

    def _read(self, path: Path) -> Iterator:
        kind = BY_SUFFIX.get(path.suffix.lower())
        if kind is None:
            raise Skip("another kind of file")
        if path.stat().st_size > kind.max_bytes:
            raise Skip(f"larger than {kind.max_bytes / 2**20:.0f} MB")
        if kind.name == "mail":
            return kind.read(path, self.clean)
        text, encoding = decode(path.read_bytes())
        self.facts["encoding", encoding] += 1
        return kind.read(text, self.clean)


def _digest(text: str) -> str:
    """Short and silent about what it names: paths and subjects are private too."""
    data = text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 hold such halves
    return hashlib.sha256(data).hexdigest()[:12]


# --- duplicates


def shingles(text: str, n: int = 3) -> frozenset[str]:
    """Runs of `n` words in lower case, each Chinese character a word; the whole of a shorter text."""
    parts = words(text.lower())
    return frozenset(" ".join(parts[i : i + n]) for i in range(max(1, len(parts) - n + 1)))


def exact(targets: Iterable[str]) -> list[int]:
    """Indices of the first of each text, white space and case aside."""
    first: dict[str, int] = {}
    for i, target in enumerate(targets):
        first.setdefault(" ".join(target.lower().split()), i)
    return list(first.values())


def near(targets: Sequence[str], threshold: float = THRESHOLD) -> list[int]:
    """Indices kept when of texts whose word 3-shingles reach this Jaccard similarity the first stays.

    MinHash (Broder 1997) with LSH proposes, the exact similarity decides.
    """
    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    sets: dict[int, frozenset[str]] = {}
    for i, target in enumerate(tqdm(targets, desc="near-duplicates", disable=len(targets) < 1000)):
        own = shingles(target)
        signature = MinHash(num_perm=BANDS * ROWS, seed=1)
        signature.update_batch([s.encode() for s in sorted(own)])
        others = (sets[j] for j in index.query(signature))
        if not any(len(own & o) / len(own | o) >= threshold for o in others):
            index.insert(i, signature)
            sets[i] = own
    return list(sets)


def deduplicate(examples: Sequence[Example]) -> list[Example]:
    """Examples without exact and near duplicates of an earlier target."""
    once = [examples[i] for i in exact(e.target for e in examples)]
    return [once[i] for i in near([e.target for e in once])]


def _without_duplicates(rows: list[dict], facts: Counter) -> list[dict]:
    facts["documents", "found"] = len(rows)
    once = [rows[i] for i in exact(r["target"] for r in rows)]
    facts["documents", "exact duplicates removed"] = len(rows) - len(once)
    kept = [once[i] for i in near([r["target"] for r in once])]
    facts["documents", "near-duplicates removed"] = len(once) - len(kept)
    facts["documents", "kept"] = len(kept)
    return kept


def _check_enough(rows: list[dict], root: Path | None, facts: Counter) -> None:
    where = f"PRIVATE_DATA={root}" if root else "The packages"
    if not rows:
        reasons = ", ".join(f"{n} {key}" for (what, key), n in facts.items() if what == "skipped")
        kinds = " ".join(sorted(BY_SUFFIX))
        raise ValueError(f"{where}: no readable document (files skipped: {reasons or 'none'}); kinds read: {kinds}.")
    groups = len({r["group"] for r in rows})
    if groups < MIN_GROUPS:
        raise ValueError(
            f"{where}: {len(rows)} documents from {groups} files, threads or days are too few to split "
            f"into train, validation and test; {MIN_GROUPS} are the least, some 200 do."
        )


# --- the card


def _card(task: Task, found: _Found, packages: Sequence[str]) -> pd.DataFrame:
    facts = dict(sorted(found.facts.items()))
    for package in packages:
        facts["package", f"{package} {importlib.metadata.version(package)}"] = 1
    for split in SPLITS:
        examples = getattr(task, split)
        facts["split", split] = len(examples)
        facts["groups", split] = len({e.group for e in examples})
    everything = [*task.train, *task.validation, *task.test]
    facts["characters", "target, median"] = float(np.median([len(e.target) for e in everything]))
    facts["characters", "all"] = sum(len(e.prompt + e.target) for e in everything)
    rows = [{"what": what, "key": key, "value": value} for (what, key), value in facts.items()]
    return pd.DataFrame(rows)
