"""What notebook 09 saw, in sentences that are computed from its tables: they hold for whatever numbers a run gave.

Each list begins with one "Finding:", the outcome of the hypothesis against its control; what was not shown to help
is a "Negative result". Differences are paired by seed, with 95 % t intervals; one seed has none and shows nothing.
"""

import math

import pandas as pd

from lib.explore.frontier import GENERAL, VARIANTS
from lib.metrics import mean_interval

TOLERATED = 0.05  # of the control's bits per byte: the cost that the headline calls small
NEGATIVE = "Negative result"


def _difference(a: pd.Series, b: pd.Series | float) -> tuple[str, float, float, float]:
    """a - b by seed, its mean and bounds, and before them in words, such as "+0.0120 [+0.0100, +0.0140] bits per byte,
    shown"; "shown" is an interval without 0.
    """
    found = (a - b).dropna()
    if found.empty:
        return "not measured", math.nan, math.nan, math.nan
    mean, low, high = mean_interval(found)
    if math.isnan(low):
        return f"{mean:+.4f} bits per byte, one seed, no interval", mean, low, high
    shown = "shown" if low * high > 0 else "not shown"
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] bits per byte, {shown}", mean, low, high


def _gain(what: str, a: pd.Series, b: pd.Series) -> str:
    """A sentence on what should lower a measure: a negative result unless a - b is below 0, as far as seeds tell."""
    text, mean, _, high = _difference(a, b)
    lowered = high < 0 if not math.isnan(high) else mean < 0
    return f"{'' if lowered else f'{NEGATIVE}, no gain shown. '}{what}: {text}."


def _names(part: pd.DataFrame) -> str:
    return "; ".join(f"{r.method}, {r.setting}" for r in part.itertuples())


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


# --- 1 Model


def conversion_findings(conversion: pd.DataFrame, damage: pd.DataFrame, decoded: pd.DataFrame) -> list[str]:
    """The cost of each share against the same fine-tuning without conversion, the damage by layer, the other
    controls, and decoding.
    """
    chosen = conversion[conversion["matched"] & (conversion["order"] == "least_damage")]
    tuned = chosen[chosen["stage"] == "fine_tuned"]
    control = _by_seed(tuned[tuned["share"] == 0])
    out = [_conversion_headline(tuned, control, conversion_costs(conversion))]
    for form, part in damage.groupby("form", sort=False):
        mean = part.groupby("layer")["damage"].mean().sort_values()
        out.append(
            f"{form}: one layer alone costs from {mean.iloc[0]:+.4f} (layer {mean.index[0]}) to {mean.iloc[-1]:+.4f} "
            f"bits per byte (layer {mean.index[-1]}); {_concentration(mean)}. Matching takes the output error from "
            f"{part['error_unmatched'].mean():.3f} to {part['matching_error'].mean():.3f}."
        )
    for (form, share), part in tuned[tuned["share"] > 0].groupby(["form", "share"], sort=False):
        text, *_ = _difference(_by_seed(part), control)
        out.append(
            f"{form}, {share:.0%} of the layers, fine-tuned, against the unconverted model with the same "
            f"fine-tuning: {text}."
        )
    both = conversion[conversion["form"] == "linear+window"]
    usual = both["order"] == "least_damage"
    whole_tuned = both[usual & (both["stage"] == "fine_tuned") & (both["share"] == 1)]
    whole, without = (_by_seed(whole_tuned[whole_tuned["matched"] == m]) for m in (True, False))
    near = tuned[(tuned["form"] == "window") & (tuned["share"] == 1)]
    what = "All layers, fine-tuned, with matching against without it"
    out.append(_gain(what, whole, without))
    what = "All layers, fine-tuned, with the linear part against the window alone"
    out.append(_gain(what, whole, _by_seed(near)))
    half = both[(both["stage"] == "converted") & both["matched"] & (both["share"] == 0.5)]
    orders = (_by_seed(half[half["order"] == o]) for o in ("least_damage", "most_damage"))
    what = "Half of the layers, before fine-tuning, harmless ones first against harmful ones first"
    out.append(_gain(what, *orders))
    return [*out, _decoding(decoded)]


def conversion_costs(conversion: pd.DataFrame) -> pd.DataFrame:
    """Of "linear+window", matched and fine-tuned: share, mean cost against the same fine-tuning without conversion (a
    share of its bits per byte), and its bound: the 95 % interval's upper end, with one seed the mean.
    """
    chosen = conversion[conversion["matched"] & (conversion["order"] == "least_damage")]
    tuned = chosen[chosen["stage"] == "fine_tuned"]
    control = _by_seed(tuned[tuned["share"] == 0])
    both = tuned[(tuned["form"] == "linear+window") & (tuned["share"] > 0)]
    rows = []
    for share, part in both.groupby("share"):
        mean, _, high = mean_interval((_by_seed(part) / control - 1).dropna())
        rows.append({"share": share, "mean": mean, "bound": mean if math.isnan(high) else high})
    return pd.DataFrame(rows)


def _conversion_headline(tuned: pd.DataFrame, control: pd.Series, found: pd.DataFrame) -> str:
    """The largest share of "linear+window" whose cost is small; with seeds by the interval's upper bound."""
    small = found.loc[found["bound"] < TOLERATED, "share"].tolist()
    how = "by the upper end of the 95 % interval over" if len(control) > 1 else "by the mean of"
    largest = (
        f"{max(small):.0%} is the largest share of layers whose conversion costs"
        if small
        else f"no share tried ({', '.join(f'{s:.0%}' for s in found['share'])}) is converted at a cost of"
    )
    alone = _by_seed(tuned[(tuned["form"] == "window") & (tuned["share"] == 1)])
    alone = mean_interval((alone / control - 1).dropna())[0]
    costs = ", ".join(f"{r.share:.0%}: {r.mean:+.1%}" for r in found.itertuples())
    return (
        f"Finding: {largest} less than {TOLERATED:.0%} more bits per byte than the control, the same fine-tuning "
        f"without conversion ({how} {_seeds(len(control))}; mean costs by share {costs}; all layers with the window "
        f"alone {alone:+.1%})."
    )


def _decoding(decoded: pd.DataFrame) -> str:
    longest = decoded[decoded["context"] == decoded["context"].max()].set_index(["form", "share"])
    cache, state = longest.loc[("softmax", 0.0)], longest.loc[("linear+window", 1.0)]
    size, kept = state["state_kilobytes"], cache["state_kilobytes"]
    faster = state["milliseconds"] < cache["milliseconds"]
    return (
        f"{'' if faster else f'{NEGATIVE}, decoding is not faster. '}At {int(cache['context']):,} earlier tokens the "
        f"state is {size:,.0f} kB and the KV cache {kept:,.0f} kB ({kept / size:.1f} times as much); a token takes "
        f"{state['milliseconds']:.1f} against {cache['milliseconds']:.1f} ms."
    )


def _concentration(mean: pd.Series) -> str:
    """Of sorted means, what the last quarter makes of all that is above 0."""
    cost, quarter = mean.clip(lower=0), max(len(mean) // 4, 1)
    if not cost.sum():
        return "none costs anything"
    share = cost.iloc[-quarter:].sum() / cost.sum()
    return f"the costliest {quarter} of {len(mean)} layers make {share:.0%} of what all cost"


def _by_seed(part: pd.DataFrame) -> pd.Series:
    return part.groupby("seed")["bits_per_byte"].mean()


# --- 2 Algorithm

VERDICTS = {  # of a method against the control at the same gain
    "less": "forgets less",
    "more": "forgets more",
    "unclear": "no difference shown",
    "one seed": "one seed, so nothing is shown",
    "beyond": "gains more than full fine-tuning, where the control's way ends: nothing at the same gain",
    "none": "gains nothing, so there is nothing to compare",
}


def _verdict(row) -> str:
    """A key of VERDICTS for a row of lib.explore.frontier.against_interpolation."""
    if not row.seeds:
        return "beyond" if row.beyond else "none"
    if math.isnan(row.low):
        return "one seed"
    return "less" if row.high < 0 else "more" if row.low > 0 else "unclear"


def frontier_findings(df: pd.DataFrame, means: pd.DataFrame, against: pd.DataFrame, general: str) -> list[str]:
    """Each method against the free control at the same gain, what full fine-tuning forgets at all, Muon against
    AdamW, ranks of LoRA, and the front.
    """
    against = against.assign(verdict=[_verdict(r) for r in against.itertuples()])
    out = [_frontier_headline(against, df["seed"].nunique())]
    if len(rest := against[against["verdict"] != "less"]):
        out.append(f"{NEGATIVE}, not shown to beat the free control: {_names(rest)}.")
    out.append(_forgetting(df, general))
    for r in against.itertuples():
        if not r.seeds:
            out.append(f"{r.method}, {r.setting}: {VERDICTS[r.verdict]}.")
            continue
        span = "" if math.isnan(r.low) else f" [{r.low:+.4f}, {r.high:+.4f}]"
        left_out = f" ({_seeds(r.beyond)} beyond full fine-tuning left out)" if r.beyond else ""
        out.append(
            f"{r.method}, {r.setting}, against interpolation at the same gain: {r.difference:+.4f}{span} bits "
            f"per byte of general text{left_out}: {VERDICTS[r.verdict]}."
        )
    full = VARIANTS[0].method, VARIANTS[0].setting
    settings = list(df[["method", "setting"]].drop_duplicates().itertuples(index=False, name=None))
    lora = [s for s in settings if s[0] == "LoRA"]
    beyond = against.loc[against["verdict"] == "beyond", ["method", "setting"]]
    beyond = list(beyond.itertuples(index=False, name=None))
    pairs = [(s, full) for s in settings if s[0] == "Muon" or s in beyond]
    pairs += [(lora[-1], lora[0])] if len(lora) > 1 else []
    for one, other in pairs:
        task, text = (_against(df, one, other, column) for column in ("bits_per_byte", general))
        names = f"{', '.join(one)}, against {', '.join(other)}{', AdamW' if one[0] == 'Muon' else ''}"
        out.append(f"{names}: task {task}; general text {text}.")
    front = means[means["front"]].sort_values("task")
    points = "; ".join(f"{r.method}, {r.setting} ({r.task:.3f}, {r.general:.3f})" for r in front.itertuples())
    return [*out, f"On the front of means (task, general text), from most to least gained: {points}."]


def _frontier_headline(against: pd.DataFrame, seeds: int) -> str:
    better = against[against["verdict"] == "less"]
    what = "general text than the free control, interpolation, at the same gain"
    if seeds < 2:
        below = against[against["difference"] < 0]
        return (
            f"Finding: one seed shows no method to forget less {what}; below it, without an interval: "
            f"{_names(below) or 'none'} ({len(against)} settings tried)."
        )
    counts = against["verdict"].value_counts()
    tally = ", ".join(f"{VERDICTS[v].split(',')[0]} {counts[v]}" for v in VERDICTS if v in counts)
    return (
        f"Finding: shown to forget less {what}: {_names(better) or 'none'} ({len(against)} settings tried on "
        f"{_seeds(seeds)}, intervals not corrected for their number: {tally})."
    )


def _forgetting(df: pd.DataFrame, general: str) -> str:
    """Whether the plain full run forgets at all, on this measure and on the others of general text."""
    before = df[df["method"] == "none"].iloc[0]
    full = df[(df["method"] == VARIANTS[0].method) & (df["setting"] == VARIANTS[0].setting)]
    full = full.set_index("seed")
    found = {c: _difference(full[c], before[c]) for c in ("bits_per_byte", *GENERAL) if c in df}
    _, mean, low, _ = found[general]
    forgets = low > 0 if not math.isnan(low) else mean > 0
    premise = f"{NEGATIVE}, no forgetting shown, so that to forget less means to end lower here. "
    names = {"bits_per_byte": "task"} | GENERAL
    said = [f"{names[c].removesuffix(', bits per byte')} {found[c][0]}" for c in found]
    return f"{'' if forgets else premise}Full fine-tuning against before: {'; '.join(said)}."


def _against(df: pd.DataFrame, one: tuple, other: tuple, column: str) -> str:
    rows = df.set_index(["method", "setting", "seed"])[column].sort_index()
    return _difference(rows.loc[one], rows.loc[other])[0]


# --- 3 Benchmark


def trap_findings(table: pd.DataFrame) -> list[str]:
    """How many mistakes turn pairs of models round that the sound measure tells apart, one sentence per trap, and the
    mistakes that changed nothing.
    """
    turned = table[table["trap"] != "no interval"]
    shown, best = int((turned["shown_flips"] > 0).sum()), int(turned["best_changes"].sum())
    some = int((turned["flips"] > 0).sum())
    if turned["shown_pairs"].sum():
        head = (
            f"Finding: {shown} of {len(turned)} mistakes turn round a pair of models that the control, the sound "
            f"ranking, tells apart by its seeds (95 % intervals); {some} change the order of some pair, {best} the "
            "best model."
        )
    else:
        head = (
            f"Finding: {some} of {len(turned)} mistakes change the order of some pair of models, {best} the best one; "
            "the seeds of the control, the sound ranking, tell no pair apart, so chance may have done it."
        )
    out = [head]
    for row in table.itertuples():
        best = "the best model changes" if row.best_changes else "the best model stays"
        if row.trap == "no interval":
            best = "the best model among them" if row.best_changes else "not the best model's"
            out.append(
                f"{row.trap}: {row.flips} of {row.pairs} pairs are ordered without being shown to differ, {best}."
            )
            continue
        out.append(
            f"{row.trap}: {row.flips} of {row.pairs} pairs ordered differently, {row.shown_flips} of the "
            f"{row.shown_pairs} that the sound measure tells apart; {best}."
        )
    kept = ", ".join(table.loc[table["flips"] == 0, "trap"])
    return [*out, f"{NEGATIVE}, mistakes that left this ranking as it was: {kept or 'none'}."]
