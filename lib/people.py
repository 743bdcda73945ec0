"""Which of two texts is better: blind ratings by people in a notebook."""

import datetime
import html
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets


class Pair(NamedTuple):
    """One prompt and what the model wrote for it before and after fine-tuning."""

    id: str
    prompt: str
    before: str
    after: str


def read_lines(path: Path) -> list[dict]:
    """The ratings in a JSON-lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line] if path.exists() else []


def sides(rater: str, pair: Pair) -> list[str]:
    """Which text stands left and which right: drawn, since people favour a side, once for a rater and pair."""
    return random.Random(f"{rater}\n{pair.id}").sample(["before", "after"], 2)


def rating_widget(pairs: Sequence[Pair], rater: str, path: Path) -> widgets.VBox:
    """Prompt, two texts and four buttons; each click adds a line to `path`. A pair that `rater` rated there, with these
    texts, is not shown again. Everyone sees the pairs in one order, so that people who stop early still share items."""
    done = {Pair(*map(row.get, Pair._fields)): row["choice"] for row in read_lines(path) if row["rater"] == rater}
    todo = [pair for pair in pairs if pair not in done]
    block = "<b>{}</b><div style='white-space:pre-wrap;line-height:1.4'>{}</div>"
    status, prompt, left, right = (widgets.HTML() for _ in range(4))
    left.layout = right.layout = widgets.Layout(width="50%", padding="8px", border="1px solid #ccc")
    buttons = [widgets.Button(description=label) for label in ("Left better", "Tie", "Right better", "Skip")]

    def show() -> None:
        skipped = sum(done.get(pair) == "skip" for pair in pairs)
        rated = f"{len(pairs) - len(todo) - skipped} of {len(pairs)} rated"
        status.value = f"{html.escape(rater)}: {rated}" + f", {skipped} skipped" * bool(skipped)
        for button in buttons:
            button.disabled = not todo
        left.value, right.value, prompt.value = "", "", "<b>Done, thank you.</b>"
        if todo:
            texts = [todo[0].prompt, *(getattr(todo[0], side) for side in sides(rater, todo[0]))]
            for box, title, text in zip((prompt, left, right), ("Prompt", "Left", "Right"), texts, strict=True):
                box.value = block.format(title, html.escape(text) or "<i>(empty)</i>")

    def clicked(button: widgets.Button) -> None:
        pair, chosen = todo[0], button.description.split()[0].lower()
        shown = dict(zip(("left", "right"), sides(rater, pair), strict=True))
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        row = {"rater": rater, "choice": shown.get(chosen, chosen), **shown, "time": now, **pair._asdict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        done[todo.pop(0)] = row["choice"]
        show()

    for button in buttons:
        button.on_click(clicked)
    show()
    return widgets.VBox([status, prompt, widgets.HBox([left, right]), widgets.HBox(buttons)])
