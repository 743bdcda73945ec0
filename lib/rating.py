"""Blind A/B ratings by people: which of two texts is better, without knowing which model wrote it.

`Rater` is the logic and the file, `rating_widget` a view of it in a notebook, `summarise` the numbers.
Left and right are shuffled per rater and item, since people favour a side. Interval: Wilson 1927; it
stays inside 0..1 for few ratings. Agreement: Cohen 1960, "A coefficient of agreement for nominal scales".
"""

import datetime
import hashlib
import html
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from lib import profile

SCORE = {"before": 0.0, "tie": 0.5, "after": 1.0}


@dataclass(frozen=True)
class Pair:
    """One prompt and what the model wrote for it before and after fine-tuning."""

    id: str
    prompt: str
    before: str
    after: str

    def digest(self) -> str:
        """Names exactly these texts, so that a rating is never taken for one of later texts."""
        return hashlib.sha256(json.dumps([self.prompt, self.before, self.after]).encode()).hexdigest()[:16]


def append_line(path: Path, row: Mapping) -> None:
    """Add `row` to a JSON-lines file in one write, on disk before this returns.

    A line that an interruption cut short is closed first, so that it cannot swallow this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        cut = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
        line = json.dumps(row, ensure_ascii=False) + "\n"
        file.write((b"\n" if cut else b"") + line.encode("utf-8"))
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSON-lines file that `append_line` wrote; none where there is no file. A line that
    an interruption cut short is left out.
    """
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class Rater:
    """One person's way through `pairs`, resumed from `path`: pairs already rated are not shown again.

    Everyone sees the pairs in the same order, so that people who stop early still share items.
    Raises ValueError for an empty name or a repeated pair id.
    """

    def __init__(self, pairs: Sequence[Pair], name: str, path: Path | None = None, seed: int = 0):
        if not name.strip():
            raise ValueError("The rater has no name: pass one (a pseudonym serves).")
        if len({p.id for p in pairs}) < len(pairs):
            raise ValueError("Two pairs have the same id: ratings could not be told apart.")
        self.name, self.seed = name.strip(), seed
        self.path = Path(path or profile.output_root() / "data" / "runs" / "ratings.jsonl")
        done = {(r.get("id"), r.get("digest")) for r in read_lines(self.path) if r.get("rater") == self.name}
        self.total = len(pairs)
        self.open = [p for p in pairs if (p.id, p.digest()) not in done]

    @property
    def current(self) -> Pair | None:
        return self.open[0] if self.open else None

    def order(self, pair: Pair) -> tuple[str, str]:
        """Which text stands left and which right: ("before", "after") or the reverse, always the same
        for one seed, rater and pair."""
        key = hashlib.sha256(f"{self.seed}\0{self.name}\0{pair.id}".encode()).digest()
        return ("before", "after") if key[0] % 2 else ("after", "before")

    def texts(self) -> tuple[str, str]:
        """The current pair's left and right text."""
        left, right = self.order(self.current)
        return getattr(self.current, left), getattr(self.current, right)

    def choose(self, side: str) -> None:
        """Record "left", "right", "tie" or "skip" for the current pair and go on to the next one."""
        if side not in ("left", "right", "tie", "skip"):
            raise ValueError(f"{side!r} is no choice: left, right, tie or skip.")
        if (pair := self.current) is None:
            raise ValueError("Every pair is rated: nothing is left to choose.")
        order = self.order(pair)
        now = datetime.datetime.now(datetime.timezone.utc)
        choice = {"left": order[0], "right": order[1]}.get(side, side)
        append_line(
            self.path,
            {
                "rater": self.name,
                "id": pair.id,
                "choice": choice,
                "left": order[0],
                "right": order[1],
                "digest": pair.digest(),
                "time": now.isoformat(timespec="seconds"),
            },
        )
        self.open.pop(0)


def rating_widget(rater: Rater):
    """The view of `rater`: prompt, two texts, four buttons. Needs ipywidgets; works without a browser."""
    import ipywidgets as widgets

    def block(title: str, text: str) -> str:
        body = html.escape(text) or "<i>(empty)</i>"
        return f"<b>{title}</b><div style='white-space:pre-wrap;line-height:1.4'>{body}</div>"

    status, prompt, left, right = (widgets.HTML() for _ in range(4))
    half = widgets.Layout(width="50%", padding="8px", border="1px solid #ccc")
    left.layout, right.layout = half, half
    choices = {"Left better": "left", "Tie": "tie", "Right better": "right", "Skip": "skip"}
    buttons = [widgets.Button(description=label) for label in choices]

    def show() -> None:
        status.value = f"{html.escape(rater.name)}: {rater.total - len(rater.open)} of {rater.total} rated"
        pair = rater.current
        for button in buttons:
            button.disabled = pair is None
        prompt.value = block("Prompt", pair.prompt) if pair else "<b>Done, thank you.</b>"
        left.value, right.value = map(block, ("Left", "Right"), rater.texts()) if pair else ("", "")

    def clicked(button) -> None:
        if rater.current is not None:
            rater.choose(choices[button.description])
            show()

    for button in buttons:
        button.on_click(clicked)
    show()
    return widgets.VBox([status, prompt, widgets.HBox([left, right]), widgets.HBox(buttons)])


def wilson(mean: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson interval of a share `mean` of `n` items; half points for ties make it a little wide."""
    z = stats.norm.ppf((1 + confidence) / 2)
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def win_rate(scores: Sequence[float]) -> dict:
    """Of one score per item (1 after is better, 0.5 tie, 0 before): n, win_rate, its interval low..high
    and p_value, the two-sided sign test without ties. None where there is nothing to compute.
    """
    n = len(scores)
    wins, losses = sum(s > 0.5 for s in scores), sum(s < 0.5 for s in scores)
    mean = sum(scores) / n if n else None
    low, high = wilson(mean, n) if n else (None, None)
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None
    return {
        "n": n,
        "after": wins,
        "before": losses,
        "tie": n - wins - losses,
        "win_rate": mean,
        "low": low,
        "high": high,
        "p_value": p,
    }


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond chance of two raters' choices on the same items; None where chance is certain."""
    if not pairs:
        return None
    n = len(pairs)
    seen = sum(a == b for a, b in pairs) / n
    chance = sum(sum(a == c for a, _ in pairs) * sum(b == c for _, b in pairs) for c in SCORE) / n**2
    return None if chance == 1 else (seen - chance) / (1 - chance)


def summarise(ratings: pd.DataFrame | Iterable[Mapping]) -> dict:
    """`win_rate` over items (an item's score is the mean of its raters', who are no independent items),
    with ratings, skipped, raters, common_items, agreement (share of equal choices) and kappa, the last
    two averaged over the pairs of raters that share items; `message` says what could not be computed.
    """
    rows = ratings.to_dict("records") if isinstance(ratings, pd.DataFrame) else list(ratings)
    # The last rating of an item counts; texts that changed since are another item.
    latest = {(r["rater"], (r["id"], r.get("digest"))): r["choice"] for r in rows}
    rated = {key: choice for key, choice in latest.items() if choice in SCORE}
    by_item: dict[tuple, dict[str, str]] = {}
    for (rater, item), choice in rated.items():
        by_item.setdefault(item, {})[rater] = choice
    scores = [sum(SCORE[c] for c in choices.values()) / len(choices) for choices in by_item.values()]
    raters = sorted({rater for rater, _ in rated})
    shared = [
        [(c[a], c[b]) for c in by_item.values() if a in c and b in c] for a, b in itertools.combinations(raters, 2)
    ]
    shared = [s for s in shared if s]
    equal = [sum(a == b for a, b in s) / len(s) for s in shared]
    kappas = [k for k in map(cohen_kappa, shared) if k is not None]
    missing = []
    if not rated:
        missing.append("no ratings yet")
    elif not shared:
        missing.append("no item has two raters, so agreement is unknown")
    elif not kappas:
        missing.append("kappa is undefined where both raters give every item one and the same choice")
    return {
        **win_rate(scores),
        "ratings": len(rated),
        "skipped": len(latest) - len(rated),
        "raters": len(raters),
        "common_items": sum(len(c) > 1 for c in by_item.values()),
        "agreement": sum(equal) / len(equal) if equal else None,
        "kappa": sum(kappas) / len(kappas) if kappas else None,
        "message": "; ".join(missing),
    }
