"""What report.md is filled with: a registry of short functions, results -> text, and what they share.

A function is registered under the name of its marker with the files that it reads: results of notebooks by stem, other
JSON files of the checkout by path. Where a notebook was not run, the registry says so in a sentence instead.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib import profile, results
from lib.models import TINY
from lib.plots import caption
from lib.report.report_forms import table

NOTEBOOKS = {
    "01_load_and_generate": "loading and generating",
    "02_finetune": "fine-tuning",
    "03_evaluate": "evaluation",
    "04_token_encoding": "token encodings",
    "05_position_encoding": "position encodings",
    "06_attention": "attention",
    "07_chinese": "Chinese",
    "08_private_domain": "private-domain data",
    "09_innovation": "innovation",
    "10_new_scenario": "new scenarios",
    "11_performance": "speed and faults",
}
GPT2 = "GPT-2 117M"


@dataclass(frozen=True)
class Notebook:
    """A results file: `notebook["table"]` is a data frame."""

    name: str
    provenance: Mapping
    tables: Mapping[str, Sequence[Mapping]]
    root: Path

    def __getitem__(self, table: str) -> pd.DataFrame:
        """A table. JSON's null in a column of numbers is nan again."""
        frame = pd.DataFrame(self.tables[table])
        for column in frame:
            if pd.api.types.is_object_dtype(frame[column]) and frame[column].isna().all():
                frame[column] = frame[column].astype(float)
        return frame

    @property
    def stand_in(self) -> bool:
        return bool(self.provenance["stand_in"])

    @property
    def model(self) -> str:
        """The base model in a sentence."""
        name = str(self.provenance["base_model"]).removesuffix(" (stand-in)")
        return f"the stand-in {name}" if self.stand_in else GPT2

    @property
    def budget(self) -> profile.Profile:
        return profile.PROFILES[self.provenance["profile"]]

    def caption(self, text: str, scratch: bool = False, seeds: Sequence[int] = ()) -> str:
        """A table's caption, with seeds (the results' own by default), profile and model; `scratch`: no pretrained
        model is behind it."""
        other = {"base_model": None, "stand_in": None} if scratch else {}
        other |= {"seeds": list(seeds)} if seeds else {}
        return f"Table: {caption(text, {**self.provenance, **other})}"

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], text: str, left: int = 1, **options) -> str:
        """`table` of this module with a `caption` of `text`."""
        return f"{table(header, rows, left)}\n\n{self.caption(text, **options)}"

    def figure(self, name: str) -> str:
        """The figure with the caption that it was saved with. Raises ValueError where file or caption is missing or the
        caption names another base model than the results."""
        again = f"run `python -m lib run {self.name[:2]}` again"
        path = self.root / "figures" / f"{name}.png"
        if not path.is_file():
            raise ValueError(f"figures/{name}.png is missing: {again}.")
        captions = json.loads((self.root / "figures" / "captions.json").read_text(encoding="utf-8"))
        if name not in captions:
            raise ValueError(f"figures/captions.json has no caption of {name}: {again}.")
        text = captions[name]
        own = caption("", self.provenance).rsplit("; ", 1)[1]
        if "; profile " in text and text.rsplit("; ", 1)[1] not in (own, "no pretrained model."):
            raise ValueError(f"figures/{name}.png is not of the base model of data/results/{self.name}.json: {again}.")
        return f"![{text.replace('[', '(').replace(']', ')')}](figures/{name}.png)"


@dataclass(frozen=True)
class Block:
    make: Callable[..., str]
    files: tuple[str, ...]
    inline: bool


BLOCKS: dict[str, Block] = {}


def block(name: str, *files: str, inline: bool = False) -> Callable:
    """Register a function under a marker's name; `files` are read and passed to it in order."""

    def register(make: Callable[..., str]) -> Callable[..., str]:
        if name in BLOCKS:
            raise ValueError(f"Two blocks are called {name}.")
        BLOCKS[name] = Block(make, files, inline)
        return make

    return register


def value(name: str, *files: str) -> Callable:
    """`block` for a marker inside a line."""
    return block(name, *files, inline=True)


class Files:
    """The files below a checkout that the blocks read, each once."""

    def __init__(self, root: Path = profile.ROOT):
        self.root = root
        self._read: dict[str, object] = {}

    def __getitem__(self, name: str) -> object:
        """A Notebook, None for one that was not run, or the content of another JSON file. Raises ValueError for what is
        damaged, of the tiny model that tests run on, or is missing and no notebook's."""
        if name not in self._read:
            self._read[name] = self._notebook(name) if name in NOTEBOOKS else self._json(name)
        return self._read[name]

    def _notebook(self, name: str) -> Notebook | None:
        try:
            found = results.load(name, self.root / "data" / "results")
        except FileNotFoundError:
            return None
        where, again = f"data/results/{name}.json", f"run `python -m lib run {name[:2]}` again"
        made_by = found["provenance"].get("profile")
        if made_by not in profile.PROFILES:
            raise ValueError(f"{where} names no profile: {again}.")
        if found["provenance"].get("base_model") == TINY:
            raise ValueError(f"{where} is of the tiny random model that tests run on: {again}, without PROFILE=fast.")
        return Notebook(name, found["provenance"], found["tables"], self.root)

    def _json(self, name: str) -> object:
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{name} is missing: get it back with `git checkout {name}`.") from None
        except ValueError as error:
            raise ValueError(f"{name} is damaged ({error}): get it back with `git checkout {name}`.") from None

    def notebooks(self) -> dict[str, Notebook]:
        """Those that were run."""
        return {name: found for name in NOTEBOOKS if (found := self[name])}


def not_run(name: str, inline: bool = False) -> str:
    if inline:
        return f"Notebook {name[:2]} was not run for this report (`python -m lib run {name[:2]}` does)."
    return (
        f"Notebook {name[:2]} ({NOTEBOOKS[name]}) was not run for this report, so nothing of it is reported here; "
        f"`python -m lib run {name[:2]}` and then `python -m lib report` fill it in."
    )


def render(name: str, files: Files, said: set[str] | None = None) -> str:
    """What belongs between the markers called `name`. Of a section's blocks of a notebook that was not run the first
    says so, and the others, whose notebook is then in `said`, stay empty; values say it each time.

    Raises ValueError for a file that does not hold what the block reads.
    """
    entry = BLOCKS[name]
    given = [files[f] for f in entry.files]
    missing = [f for f, found in zip(entry.files, given, strict=True) if found is None]
    if missing:
        told = said is not None and missing[0] in said and not entry.inline
        if said is not None and not entry.inline:
            said.add(missing[0])
        return "" if told else not_run(missing[0], entry.inline)
    try:
        text = entry.make(*given)
    except (LookupError, TypeError, AttributeError, NameError, StopIteration) as error:
        stem = entry.files[0] if entry.files else ""
        way_out = f"run `python -m lib run {stem[:2]}` again" if stem in NOTEBOOKS else "get it back from git"
        raise ValueError(
            f"Block {name}: {', '.join(entry.files)} does not hold what it reads ({type(error).__name__}: {error}): "
            f"{way_out}."
        ) from error
    return " ".join(text.split()) if entry.inline else text.strip("\n")
