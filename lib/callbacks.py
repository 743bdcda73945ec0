"""What a training run shows and records while it goes on."""

import time
from collections.abc import Sequence

import pandas as pd
import torch
from transformers import ProgressCallback, TrainerCallback

from lib import profile


def history_of(log: Sequence[dict], tokens_per_step: float) -> list[dict]:
    """Trainer's log as one flat row per logged step: step, tokens, train_loss, held_out_loss, bits_per_byte."""
    by_step: dict[int, dict] = {}
    for entry in log:
        row = by_step.setdefault(entry["step"], {"step": entry["step"]})
        row["tokens"] = round(entry["step"] * tokens_per_step)
        if "loss" in entry:
            row["train_loss"] = entry["loss"]
        if "eval_bits_per_byte" in entry:
            row |= {"held_out_loss": entry["eval_loss"], "bits_per_byte": entry["eval_bits_per_byte"]}
    return [by_step[s] for s in sorted(by_step)]


class Bar(ProgressCallback):
    """Trainer's progress bar without a line of numbers per logged step: the newest go behind the bar."""

    def on_log(self, args, state, control, logs=None, **_):
        if self.training_bar is not None and logs and "eval_bits_per_byte" in logs:
            self.training_bar.set_postfix_str(f"held out {logs['eval_bits_per_byte']:.3f} bits/byte")


class StepClock(TrainerCallback):
    """Seconds spent in optimizer steps, evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0

    def on_step_begin(self, args, state, control, **_):
        self._begin = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if profile.device().type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._begin
        self.steps += 1


class LiveCurve(TrainerCallback):
    """One figure in the notebook, redrawn at each held-out evaluation: every run of the session."""

    def __init__(self) -> None:
        self.frames: dict[tuple, pd.DataFrame] = {}
        self.handle = None
        self.run: tuple = ()

    def follow(self, method: str, seed: int) -> "LiveCurve":
        """Name the run whose curve comes next, and return the callback."""
        self.run = (method, seed)
        return self

    def on_evaluate(self, args, state, control, **_):
        import matplotlib.pyplot as plt
        from IPython.display import display

        from lib import plots

        frame = pd.DataFrame(history_of(state.log_history, 0))
        self.frames[self.run] = frame.assign(method=self.run[0], seed=self.run[1])
        figure = plots.loss_curves(pd.concat(self.frames.values(), ignore_index=True), x="step")
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        plt.close(figure)
