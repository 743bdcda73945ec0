"""Generated input, by hypothesis (MacIver et al. 2019, doi:10.21105/joss.01891): rows through the task loader, damage
to compressed files, damage to the report's markers. Right is: every valid row arrives once, and everything else is
refused by a ValueError in a sentence that names the file.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lib import profile
from lib.report.report_text import markers
from lib.tasks import SPLITS, load_task

ROWS = 40  # of one generated file
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)  # halves of pairs are no text
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
VALID = st.fixed_dictionaries(
    {"prompt": TEXT.filter(bool), "target": TEXT.filter(lambda t: bool(t.strip()))},
    optional={"group": TEXT, "references": st.lists(TEXT, max_size=2)},
)
ANY = st.one_of(
    VALID, st.dictionaries(st.sampled_from(["prompt", "target", "id", "group", "references", "x"]), VALUE), VALUE
).map(lambda v: json.dumps(v).encode()) | st.binary(max_size=30)


def _repeat(check: Callable, strategy, times: int, seed: int) -> tuple[int, str]:
    """(0, "") where `check` holds for `times` examples, else (1, what the first that fails raised).

    Without shrinking, which takes minutes for a whole file: the seed finds the example again.
    """
    from hypothesis import seed as seeded

    quiet = settings(
        max_examples=times,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    try:
        seeded(seed)(quiet(given(strategy)(check)))()
    except Exception as error:
        return 1, "".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])[:500]
    return 0, ""


def valid_rows(rows: list[dict], folder: Path) -> None:
    """A file of valid rows: each distinct (prompt, target) is in one split, no group in two."""
    rows = [{**r, "prompt": f"{i % 30} {r['prompt']}"} for i, r in enumerate(rows)]  # 10 groups and more
    path = folder / "rows.jsonl"
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_bytes(text.encode("utf-8"))
    try:
        task = load_task(path)
    except ValueError as error:
        assert "different groups" in str(error), error
        return
    found = [(e.prompt, e.target) for s in SPLITS for e in getattr(task, s)]
    assert sorted(found) == sorted({(r["prompt"], r["target"]) for r in rows})
    groups = [{e.group for e in getattr(task, s)} for s in SPLITS]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def any_rows(lines: list[bytes], folder: Path) -> None:
    """A file of anything: a task, or a ValueError in one sentence that begins with the file."""
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        load_task(path)
    except ValueError as error:
        assert str(error).startswith(str(path)), error


def fuzz_rows(rows: int, seed: int = 0) -> tuple[int, int]:
    """`rows` rows in all through the task loader, half of them valid: (rows, files that went wrong)."""
    files = max(rows // ROWS // 2, 1)
    lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for check, row in ((valid_rows, VALID), (any_rows, ANY)):
            strategy = st.lists(row, min_size=ROWS, max_size=ROWS)
            with contextlib.redirect_stdout(io.StringIO()):  # the loader tells of duplicates
                wrong, what = _repeat(_in(folder, check), strategy, files, seed)
            lost += wrong
            if what:
                print(what)
    return 2 * files * ROWS, lost


def _in(folder: Path, check: Callable) -> Callable:
    return lambda rows: check(rows, folder)  # one argument, without a default: hypothesis fills it


DAMAGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "delete", "garbage"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=9),
)


def damaged(data: bytes, how: str, where: float, more: bytes) -> bytes:
    """`data` with one damage at the share `where` of its length."""
    at = int(where * len(data))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ (more[0] or 1)]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "insert":
        return data[:at] + more + data[at:]
    if how == "delete":
        return data[:at] + data[at + len(more) :]
    return more


def fuzz_archives(files: int, seed: int = 0) -> tuple[int, int]:
    """Damaged copies of a compressed file: (copies, 1 where one was not refused by a ValueError)."""
    from lib.explore.compress import Codec, compress, decompress
    from lib.models import tiny_base

    base = tiny_base()
    codec = Codec(base.model, base.tokenizer, batch=2, window=16)
    whole = compress(codec, ["Debian 春眠不覚暁".encode(), b"\xff\x00 any bytes"]).data

    def check(damage) -> None:
        data = damaged(whole, *damage)
        if data == whole:
            return
        try:
            decompress(codec, data)
        except ValueError:
            return
        raise AssertionError(f"{damage}: not refused")

    lost, what = _repeat(check, DAMAGE, files, seed)
    if what:
        print(what)
    return files, lost


MARKED = "# a\n\n<!-- begin t.x -->\n\n| a |\n\n<!-- end t.x -->\n\nIt is <!--= n.y -->1.25<!--/--> long.\n"


def fuzz_markers(texts: int, seed: int = 0) -> tuple[int, int]:
    """Damaged copies of a text with the report's markers: found, or refused by a sentence that names the line."""

    def check(damage) -> None:
        text = damaged(MARKED.encode(), *damage).decode("utf-8", "replace")
        try:
            found = markers(text)
        except ValueError as error:
            assert "line" in str(error), error
            return
        assert all(0 <= m.start <= m.end <= len(text) for m in found)

    lost, what = _repeat(check, DAMAGE, texts, seed)
    if what:
        print(what)
    return texts, lost


def fuzz(rows: int | None = None) -> list[dict]:
    """Rows of the table `faults`: `rows` (the profile's) through the loader, a tenth of them through each other."""
    rows = rows or profile.current().performance.rows
    parts = {
        "fuzzed row in a task file": (fuzz_rows, rows),
        "fuzzed compressed file": (fuzz_archives, rows // 10),
        "fuzzed report marker": (fuzz_markers, rows // 10),
    }
    out = []
    for name, (run, count) in parts.items():
        injected, lost = run(count)
        out.append({"fault": name, "injected": injected, "lost": lost})
    return out
