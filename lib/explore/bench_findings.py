"""Sentences from the tables of notebook 11, conditions computed: what was faster, what bounds it, what was lost."""

from collections.abc import Mapping

import pandas as pd

from lib.explore.bench import MARKS

CEILING_MARK = 0.6  # of the machine's matrix products, which training should reach
LOSS_MARK = 0.005  # by which the held-out loss may differ from the plain float32 loop's


def speed_findings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """One sentence per peer with the mark set before measuring, one per mark that this machine has no room for, and
    what share of its matrix products a training reaches."""
    out = []
    for r in tables["ratios"].itertuples():
        mark = "" if pd.isna(r.mark) else f"; mark {r.mark:g}: {_met(r.ratio >= r.mark)}"
        ratio = f"{r.ratio:.2f} times as fast [{r.low:.2f}, {r.high:.2f}]"
        out.append(f"{r.kind}, against {r.system} ({r.setting}): ours is {ratio}{mark}.")
        if r.ratio < (r.mark or 0):
            out += _out_of_reach(tables, r.kind, r.system, r.setting)
    own = _share(tables["limits"], "training", "ours", "default", "share")
    verdict = _met(own >= CEILING_MARK)
    out.append(f"Training reaches {own:.0%} of the machine's matrix products; mark {CEILING_MARK:.0%}: {verdict}.")
    return out


def missed_marks(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The marks that these tables do not reach, each with what was reached."""
    out = [
        f"{r.kind} {r.mark:g} times as fast as {r.system}, {r.setting} ({r.ratio:.2f})"
        for r in tables["ratios"].itertuples()
        if r.ratio < r.mark
    ]
    own = _share(tables["limits"], "training", "ours", "default", "share")
    if own < CEILING_MARK:
        out.append(f"training at {CEILING_MARK:.0%} of the machine's products ({own:.0%})")
    worst = _losses_apart(tables["quality"]).abs().max()
    if worst > LOSS_MARK:
        out.append(f"a held-out loss within {LOSS_MARK:.1%} of the plain loop's ({worst:.2%})")
    return out


def _losses_apart(quality: pd.DataFrame) -> pd.Series:
    """Ours against the plain loop's held-out loss, a share of it, by seed."""
    wide = quality.pivot(index="seed", columns="system", values="held_out_loss")
    return wide["ours"] / wide["plain"] - 1


def _met(yes: bool) -> str:
    return "met" if yes else "not met"


def _share(limits: pd.DataFrame, kind: str, system: str, setting: str, column: str) -> float:
    keys = (limits["kind"] == kind) & (limits["system"] == system) & (limits["setting"] == setting)
    return float(limits.loc[keys, column].median())


def _out_of_reach(tables: Mapping[str, pd.DataFrame], kind: str, system: str, setting: str) -> list[str]:
    """Whether the mark asks for more than the machine's fastest products give."""
    theirs = _share(tables["limits"], kind, system, setting, "gflops")
    top = tables["ceiling"].groupby("dtype")["gflops"].median()
    wanted = MARKS[kind, system, setting] * theirs
    if pd.isna(theirs) or wanted <= top.max():
        return []
    return [
        f"That mark has no room here: {system} computes {theirs:.0f} GFLOP/s, the mark asks for {wanted:.0f}, and the "
        f"machine's products give {top.max():.0f} in {top.idxmax()}; ours computes "
        f"{_share(tables['limits'], kind, 'ours', 'default', 'gflops'):.0f}."
    ]


def equal_findings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Whether what is faster says the same: evaluated bits per byte, and the held-out loss after equal tokens."""
    bits = tables["evaluation"].groupby(["system", "setting"])["bits_per_byte"].mean()
    apart = bits["ours", "default"] / bits["tutorial", "default"] - 1
    gap = _losses_apart(tables["quality"])
    worst = gap.abs().max()
    return [
        f"Evaluation: {bits['ours', 'default']:.4f} bits per byte against the float32 loop's "
        f"{bits['tutorial', 'default']:.4f} ({apart:+.3%}).",
        f"Held-out loss after equal tokens, {len(gap)} seeds: {gap.mean():+.2%} against plain float32, at most "
        f"{worst:.2%} away; mark {LOSS_MARK:.1%}: {_met(worst <= LOSS_MARK)}.",
    ]


def cost_findings(fits: pd.DataFrame) -> list[str]:
    """How cost grows, from `lib.explore.scaling.fits`."""
    named = fits.set_index(["axis", "measure"])
    batch, context = named.loc[("batch", "step_seconds")], named.loc[("context", "step_seconds")]
    return [
        f"A step takes {batch['fixed']:.2f} s whatever its rows, and {batch['each']:.2f} s for each row.",
        f"A step over one document takes time as its length to the {context['exponent']:.2f}.",
    ]


def fault_findings(faults: pd.DataFrame) -> list[str]:
    """What was injected and what was lost."""
    lost = faults[faults["lost"] > 0]
    total = f"{faults['injected'].sum():,} faults of {len(faults)} kinds injected, {faults['lost'].sum()} with a loss"
    return [f"{total}{': ' if len(lost) else ''}{', '.join(lost['fault'])}."]
