"""Blocks of report.md, sections 6.2 and 6.3: positions and attention (notebooks 05 and 06)."""

import pandas as pd

from lib.report.report_blocks import Notebook, block, value
from lib.report.report_forms import bullets, by_seed, interval, listed, seeds, shown, table, tiny

POSITIONED, ATTENDED = "05_position_encoding", "06_attention"
SOFTMAX = "softmax_sdpa"
USABLE = 0.1  # relative error of an attention output above which the rest of a model has not seen its like


# --- 6.2 Position encodings


@block("positions.table", POSITIONED)
def positions_table(n: Notebook) -> str:
    df = n["positions"]
    short, long = df["eval_length"].min(), df["eval_length"].max()
    trained = df[(df["eval_length"] == short) & (df["protocol"] == "blocks")]
    wide, rows = by_seed(trained, "position"), []
    for name, part in df.groupby("position", sort=False):
        at = part.set_index(["eval_length", "protocol"]).sort_index()["bits_per_byte"]
        gap = "" if name == "learned" else interval(wide[name] - wide["learned"], sign=True)
        cells = [at[short, "blocks"], at[long, "blocks"], at[long, "sliding"]]
        rows.append([f"`{name}`", *(interval(c) for c in cells), gap])
    header = [
        "position",
        f"at {short:,}",
        f"at {long:,}, blocks",
        f"at {long:,}, sliding",
        f"at {short:,}, minus learned",
    ]
    text = f"Held-out bits per byte after training at {df['train_length'].iloc[0]} tokens; mean, 95 % t interval."
    return n.table(header, rows, text, scratch=True)


@block("positions.figure", POSITIONED)
def positions_figure(n: Notebook) -> str:
    return n.figure("05_extrapolation")


@value("positions.shift", POSITIONED)
def shift(n: Notebook) -> str:
    df = n["shift"].set_index("position")["max_difference"]
    small, large = df[df < 1e-4], df[df >= 1e-4]
    return (
        f"Moved seven tokens to the right, the logits of {listed([f'`{x}`' for x in small.index])} change by "
        f"{tiny(small.max())} at "
        f"most, those of {listed([f'`{x}`' for x in large.index])} by {large.min():.2f} or more"
    )


@value("positions.headline", POSITIONED)
def positions_headline(n: Notebook) -> str:
    df = n["positions"]
    short = df[(df["eval_length"] == df["eval_length"].min()) & (df["protocol"] == "blocks")]
    wide = by_seed(short, "position")
    order = wide.mean().sort_values().index
    ahead = [p for p in wide.columns.drop("learned") if shown(wide[p] - wide["learned"]) < 0]
    level = [p for p in order[1:] if not shown(wide[p] - wide[order[0]])]
    slide, long = stretched(n), df["eval_length"].max()
    flat = min(slide, key=lambda name: abs(slide[name].mean()))
    return (
        f"At the trained length `{order[0]}` has the lowest mean ({interval(wide[order[0]])} bits per byte, "
        f"{seeds(len(wide))}), with no difference shown to {listed([f'`{p}`' for p in level])}; "
        f"shown to be ahead of GPT-2's learned table, paired by seed: {listed([f'`{p}`' for p in ahead])}. At "
        f"{long:,} tokens, {long // df['eval_length'].min()} times as long, `{flat}` changes least "
        f"({interval(slide[flat], sign=True)} with a sliding window)."
    )


def stretched(n: Notebook, protocol: str = "sliding") -> dict[str, pd.Series]:
    """Bits per byte at the longest length minus those at the trained one, by seed, for each position encoding."""
    df = n["positions"]
    short, long = df["eval_length"].min(), df["eval_length"].max()
    parts = df[df["protocol"] == protocol].groupby("position", sort=False)
    at = {name: part.set_index(["eval_length", "seed"])["bits_per_byte"] for name, part in parts}
    return {name: values[long] - values[short] for name, values in at.items()}


@block("positions.change", POSITIONED)
def positions_change(n: Notebook) -> str:
    df = n["positions"]
    short, long = df["eval_length"].min(), df["eval_length"].max()
    blocks, slide = stretched(n, "blocks"), stretched(n)
    rows = [[f"`{name}`", interval(blocks[name], sign=True), interval(slide[name], sign=True)] for name in slide]
    flat = min(slide, key=lambda name: abs(slide[name].mean()))
    header = ["position", "change, blocks", "change, sliding window"]
    text = f"Bits per byte at {long:,} tokens minus those at {short:,}, paired by seed; mean, 95 % t interval."
    return (
        f"{table(header, rows)}\n\n{n.caption(text, scratch=True)}\n\nWith the sliding window, which leaves no "
        "token with a "
        f"short context, `{flat}` changes least: {interval(slide[flat], sign=True)} bits per byte at "
        f"{long // short} times the "
        "trained length."
    )


# --- 6.3 Attention


@block("attention.table", ATTENDED)
def attention_table(n: Notebook) -> str:
    wide, fitted = by_seed(n["quality"], "attention"), n["fitted"].set_index("attention")
    longest = n["scaling"]["length"].max()
    rows = []
    for name in wide:
        start = fitted.loc[name, "faster_than_softmax_sdpa_from"]
        faster = f"{start:,.0f} tokens" if start == start else f"not up to {longest:,}"
        gap = interval(wide[name] - wide[SOFTMAX], sign=True)
        own = name == SOFTMAX
        rows.append(
            [
                f"`{name}`",
                interval(wide[name]),
                "" if own else gap,
                f"{fitted.loc[name, 'time_exponent_forward+backward']:.2f}",
                "" if own else faster,
            ]
        )
    header = ["attention", "bits per byte", "minus softmax, by seed", "time exponent", "faster from"]
    text = (
        f"Held-out bits per byte after {n['quality']['tokens'].iloc[0]:,} training tokens; “time exponent” is "
        "that of the "
        f"length, forward and backward, on {n.provenance['device']}; mean, 95 % t interval."
    )
    return n.table(header, rows, text, scratch=True)


@block("attention.figure", ATTENDED)
def attention_figure(n: Notebook) -> str:
    return n.figure("06_scaling")


@block("attention.recall_figure", ATTENDED)
def recall_figure(n: Notebook) -> str:
    return n.figure("06_recall")


@value("attention.leak", ATTENDED)
def leak(n: Notebook) -> str:
    controls = [f"{r.attention} {r.max_difference:.1f}" for r in n["leak_controls"].itertuples()]
    return (
        "With all tokens after a place changed, the outputs up to it move by "
        f"{tiny(n['leak']['max_difference'].max())} at most in "
        f"{len(n['leak'])} mechanisms; in the controls, which must fail, by: {listed(controls)}"
    )


@value("attention.headline", ATTENDED)
def attention_headline(n: Notebook) -> str:
    wide = by_seed(n["quality"], "attention")
    sides = {-1: [], 0: [], 1: []}
    for name in wide.columns.drop(SOFTMAX):
        sides[shown(wide[name] - wide[SOFTMAX])].append(f"`{name}`")
    return (
        f"Against fused softmax, paired by seed ({seeds(len(wide))}): ahead {listed(sides[-1])}; no difference shown "
        f"{listed(sides[0])}; behind {listed(sides[1])}."
    )


@block("attention.findings", ATTENDED)
def attention_findings(n: Notebook) -> str:
    wide = by_seed(n["quality"], "attention")
    order = wide[[SOFTMAX, "delta", "linear"]].mean().sort_values().index.tolist()
    known = order == [SOFTMAX, "delta", "linear"]
    said = [
        attention_headline(n),
        f"Order of means: {' < '.join(order)}; larger published runs (Schlag et al. 2021) find softmax < delta "
        "< linear, "
        f"{'the same order' if known else 'another order'}. linear minus delta, by seed: "
        f"{interval(wide['linear'] - wide['delta'], sign=True)} bits per byte.",
    ]
    recall = n["recall"]
    pairs = recall["pairs"].max() // 2
    at = recall[(recall["pairs"] == pairs) & (recall["task"] == "recall")].groupby("attention", sort=False)["accuracy"]
    parts = [f"{name} {interval(v, 2)}" for name, v in at]
    said.append(
        f"Associative recall, {pairs} pairs in one head, share retrieved ({seeds(recall['seed'].nunique())}): "
        f"{'; '.join(parts)}."
    )
    times = n["decoding"].pivot(index="context", columns="attention", values="milliseconds")
    ratio = (times.iloc[-1] / times.iloc[0]).reindex(n["decoding"]["attention"].unique())
    parts = [f"{name} {x:.1f}" for name, x in ratio.items()]
    said.append(
        f"Decoding one token behind {times.index[-1]:,} instead of {times.index[0]:,} tokens takes so many "
        "times as long: "
        f"{'; '.join(parts)}."
    )
    return bullets(said)


def nystrom_errors(n: Notebook) -> dict[str, pd.Series]:
    """Form -> relative error of the output, mean over layers, by number of landmarks; {} where nothing was measured."""
    df = n["nystrom_error"]
    if df.empty:
        return {}
    return {form: part.groupby("landmarks")["error"].mean() for form, part in df.groupby("form")}


@value("attention.nystrom", ATTENDED)
def nystrom(n: Notebook) -> str:
    errors = nystrom_errors(n)
    if not errors:
        return "No pretrained model was within reach, so Nyström's error on real queries and keys was not measured."
    causal, near = errors["causal"], errors["near_only"]
    verdict = "a negative result: " if causal.min() > USABLE else ""
    return (
        f"On the queries and keys of {n.model}, the causal Nyström form has a relative error of {causal.min():.2f} to "
        f"{causal.max():.2f} (mean over layers, by number of landmarks); its exact near part alone has "
        f"{near.min():.2f} to "
        f"{near.max():.2f}. {verdict.capitalize()}{'no' if verdict else 'some'} number of landmarks keeps the "
        "error at or "
        f"below {USABLE:g} of the output, so "
        f"{'the model would have to be trained again' if verdict else 'it could be tried'}"
    )
