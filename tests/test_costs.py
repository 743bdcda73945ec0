import contextlib
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from lib import profile
from lib.explore import costs
from lib.explore.costs import crossover, leak, scaling
from lib.fast import peak_memory
from lib.models import small_gpt2

LENGTHS = (250, 500, 1_000, 2_000, 4_000)


def table(**milliseconds):
    """A table as `scaling` makes it, from functions of the length."""
    rows = [
        {"attention": name, "length": n, "pass": kind, "milliseconds": f(n) * (1 + (kind != "forward"))}
        for kind in costs.PASSES
        for n in LENGTHS
        for name, f in milliseconds.items()
    ]
    return pd.DataFrame(rows)


def square(n):
    return n**2 / 1_000


CROSSINGS = {  # where it gets faster than `square` -> its milliseconds
    700: lambda n: 0.7 * n,  # between two measured lengths
    250: lambda n: 0.1 * n,  # the shortest measured
    1_000 * math.sqrt(2): lambda n: square(n) * (2 if n in (250, 1_000) else 0.5),  # twice
}
NEVER = (lambda n: 10 * n, square, lambda n: square(n) * (0.5 if 250 < n < 4_000 else 2))  # slower again at the end


@pytest.mark.parametrize(("length", "form"), [*CROSSINGS.items(), *((math.nan, form) for form in NEVER)])
def test_crossover_is_where_it_stays_faster(length, form):
    assert crossover(table(square=square, form=form), "form", "square") == pytest.approx(length, nan_ok=True)


def test_scaling_takes_the_median_of_turns(monkeypatch):
    turns = [1.0, 10.0, 2.0, 20.0, 9.0, 30.0]  # two variants by turns, three rounds
    taken = iter(turns * 4)  # of two lengths and two passes
    monkeypatch.setattr(costs, "seconds", lambda run: next(taken))
    df = scaling(["softmax", "linear"], (4, 8), repeats=3)
    assert df["length"].tolist() == [4] * 4 + [8] * 4
    assert df["milliseconds"].tolist() == [2_000, 20_000] * 4
    assert df["spread"].tolist() == [2_000, 5_000] * 4  # quartiles 1.5 and 5.5, 15 and 25


def test_peak_memory_sees_what_is_gone_again():
    with peak_memory(seconds=0.001) as peak:
        numbers = torch.ones(50_000_000, device=profile.device())  # 200 MB
        numbers.sum().item()
        del numbers
        added = peak(above=True)
    assert added == pytest.approx(200, abs=20) and peak() > added


def test_what_could_outgrow_the_memory_is_left_out(monkeypatch, capsys):
    ten = contextlib.nullcontext(lambda above: 10.0)  # MB a pass
    monkeypatch.setattr(costs.fast, "peak_memory", lambda seconds: ten)
    monkeypatch.setattr(costs.psutil, "virtual_memory", lambda: SimpleNamespace(available=100e6))
    df = scaling(["softmax", "linear"], (8, 16, 64), repeats=2)
    assert set(df["length"]) == {8, 16}, "16: 10 MB x 4 of 100; 64: 10 MB x 4 x 4"
    assert "softmax, forward, 64 tokens: left out, could need 160 MB of 100" in capsys.readouterr().out


def test_leak_is_zero_for_transformers_own_gpt2_and_leaves_it_alone():
    model = small_gpt2(97, n_embd=32)
    assert leak(model, 40) == 0 and model.config._attn_implementation == "sdpa"
    model.transformer.ln_f.weight.data[0] = math.nan
    assert math.isnan(leak(model, 40)), "a model without numbers is no zero"
