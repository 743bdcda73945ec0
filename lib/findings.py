"""What notebook 09 saw, in sentences that are computed from its tables: they hold for whatever numbers a run gave."""

import math

import pandas as pd

from lib.metrics import mean_interval


def conversion_findings(
    conversion: pd.DataFrame, damage: pd.DataFrame, decoded: pd.DataFrame
) -> list[str]:
    """Sentences from the tables alone: damage by layer, the cost of each share against the same fine-tuning without
    conversion, both controls, and decoding. Differences are paired by seed, with 95 % t intervals.
    """
    out = []
    for form, part in damage.groupby("form", sort=False):
        mean = part.groupby("layer")["damage"].mean().sort_values()
        out.append(
            f"{form}: one layer alone costs from {mean.iloc[0]:+.4f} (layer {mean.index[0]}) to {mean.iloc[-1]:+.4f} "
            f"bits per byte (layer {mean.index[-1]}); the costliest quarter makes "
            f"{_share_of_damage(mean):.0%} of the sum. Matching takes the output error from "
            f"{part['error_unmatched'].mean():.3f} to {part['matching_error'].mean():.3f}."
        )
    tuned = conversion[
        (conversion["order"] == "least_damage") & (conversion["stage"] == "fine_tuned")
    ]
    control = _by_seed(tuned[(tuned["share"] == 0) & tuned["matched"]])
    out.insert(0, _headline(tuned, control))
    for (form, share), part in tuned[(tuned["share"] > 0) & tuned["matched"]].groupby(
        ["form", "share"], sort=False
    ):
        difference = _difference(_by_seed(part), control)
        out.append(f"{form}, {share:.0%} of the layers, fine-tuned, against the unconverted model with the same "
                   f"fine-tuning: {difference} bits per byte.")  # fmt: skip
    both = tuned[tuned["form"] == "linear+window"]
    for name, other in (
        ("with matching against without it", both[~both["matched"]]),
        ("with the linear part against the window alone", tuned[(tuned["form"] == "window")]),
    ):
        whole = both[both["matched"] & (both["share"] == 1)]
        values = _by_seed(whole), _by_seed(other[other["share"] == 1])
        _, _, high = mean_interval(values[0] - values[1])
        helps = "" if high < 0 else "Negative result, no gain shown. "
        out.append(f"{helps}All layers, {name}: {_difference(*values)} bits per byte.")
    orders = conversion[
        (conversion["stage"] == "converted") & (conversion["form"] == "linear+window")
    ]
    orders = orders[orders["matched"] & (orders["share"] == 0.5)]
    first, last = (_by_seed(orders[orders["order"] == o]) for o in ("least_damage", "most_damage"))
    out.append(
        f"Half of the layers, harmless ones first against harmful ones first: {_difference(first, last)}."
    )
    longest = decoded[decoded["context"] == decoded["context"].max()].set_index(["form", "share"])
    cache, state = longest.loc[("softmax", 0.0)], longest.loc[("linear+window", 1.0)]
    size, kept = state["state_kilobytes"], cache["state_kilobytes"]
    faster = "faster" if state["milliseconds"] < cache["milliseconds"] else "not faster"
    out.append(
        f"At {int(cache['context']):,} earlier tokens the state is {size:,.0f} kB and the KV cache {kept:,.0f} kB "
        f"({kept / size:.1f} times as much); a token is {faster}: {state['milliseconds']:.1f} against "
        f"{cache['milliseconds']:.1f} ms."
    )
    return out


TOLERATED = 0.05  # of the control's bits per byte: the cost that the headline calls small


def _headline(tuned: pd.DataFrame, control: pd.Series) -> str:
    """The largest share of "linear+window" whose cost is small; with seeds by the interval's upper bound."""
    small, whole = 0.0, ""
    both = tuned[(tuned["form"] == "linear+window") & tuned["matched"] & (tuned["share"] > 0)]
    for share, part in both.groupby("share"):
        cost = _by_seed(part) - control
        mean, _, high = mean_interval(cost / control.mean())
        bound = mean if math.isnan(high) else high
        small = share if bound < TOLERATED else small
        whole = f"{mean:+.1%}"
    return (
        f"Finding: {small:.0%} is the largest share of converted layers that costs less than {TOLERATED:.0%} more bits "
        f"per byte than the same fine-tuning without conversion; all layers cost {whole}."
    )


def _share_of_damage(mean: pd.Series) -> float:
    worst = mean.iloc[-max(len(mean) // 4, 1) :].clip(lower=0).sum()
    return worst / max(mean.clip(lower=0).sum(), 1e-12)


def _by_seed(part: pd.DataFrame) -> pd.Series:
    return part.groupby("seed")["bits_per_byte"].mean()


def _difference(a: pd.Series, b: pd.Series) -> str:
    """a - b over seeds: "+0.012 [+0.010, +0.014], shown"; without an interval for one seed."""
    mean, low, high = mean_interval(a - b)
    if math.isnan(low):
        return f"{mean:+.4f} (one seed, no interval)"
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}], {'shown' if low * high > 0 else 'not shown'}"


def frontier_findings(
    df: pd.DataFrame, means: pd.DataFrame, against: pd.DataFrame, general: str
) -> list[str]:
    """Sentences from the tables: the front, each method against the control, BLiMP where it was measured."""
    front = means[means["front"]].sort_values("task")
    out = ["On the front, from most to least gained: " + "; ".join(
        f"{r.method}, {r.setting} ({r.task:.3f}, {r.general:.3f})" for r in front.itertuples()) + "."]  # fmt: skip
    for r in against.itertuples():
        if not r.seeds:
            verdict = "its gain lies outside the control's way, so there is nothing to compare"
        elif math.isnan(r.low):
            verdict = f"{r.difference:+.4f} bits per byte of general text (one seed, no interval)"
        else:
            word = (
                "not shown"
                if r.low * r.high <= 0
                else "forgets less"
                if r.high < 0
                else "forgets more"
            )
            verdict = f"{r.difference:+.4f} [{r.low:+.4f}, {r.high:+.4f}]: {word}"
        out.append(f"{r.method}, {r.setting}, against interpolation at the same gain: {verdict}.")
    shown = against[(against["seeds"] > 1) & (against["high"] < 0)]
    names = "; ".join(f"{r.method}, {r.setting}" for r in shown.itertuples())
    out.append(
        f"Shown to beat the free control: {names or 'none'} ({len(against)} settings tried)."
    )
    if "blimp_accuracy" in df:
        before = df.loc[df["method"] == "none", "blimp_accuracy"].iloc[0]
        after = df[df["method"] != "none"].groupby(["method", "setting"])["blimp_accuracy"].mean()
        out.append(
            f"BLiMP: {before:.3f} before, from {after.min():.3f} to {after.max():.3f} after."
        )
    return out


def trap_findings(table: pd.DataFrame) -> list[str]:
    """One sentence per trap, and the mistakes that changed nothing."""
    out = []
    for row in table.itertuples():
        best = "the best model changes" if row.best_changes else "the best model stays"
        what = (
            "ordered without being shown to differ"
            if row.trap == "no interval"
            else "ordered differently"
        )
        out.append(f"{row.trap}: {row.flips} of {row.pairs} pairs {what}; {best}.")
    kept = ", ".join(table.loc[table["flips"] == 0, "trap"])
    changed, best = int((table["flips"] > 0).sum()), int(table["best_changes"].sum())
    headline = f"Finding: {changed} of {len(table)} mistakes change the order of some models, {best} the best one."
    return [
        headline,
        *out,
        f"Negative result, mistakes that left this ranking as it was: {kept or 'none'}.",
    ]
