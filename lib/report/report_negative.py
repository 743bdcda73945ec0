"""Values of report.md, “What did not work”: what fell short, a notebook a line, by the tables its findings come from.

Each names what would have been a success and what was not shown to be one; the conditions are computed, so a line says
“none” where nothing fell short.
"""

from lib.explore.chinese_tables import differences, rate
from lib.explore.private import named
from lib.report.report_blocks import Notebook, value
from lib.report.report_chinese import METHODS, NAME
from lib.report.report_evaluation import MEASURED, compared, worse_than_before
from lib.report.report_forms import listed, shown
from lib.report.report_model import main_task
from lib.report.report_private import PRIVATE


@value("evaluation.negative", MEASURED)
def evaluation(n: Notebook) -> str:
    rows = compared(n)
    short = [what for what, verdict in rows if verdict != "better"]
    worse, count = worse_than_before(n)
    said = (
        f"Of {len(rows)} comparisons of before and after, not shown to be better: {listed(short)}. Of {count} single "
        f"values of general text (one seed, no interval), worse: {listed(worse)}."
    )
    greedy = n["diversity"].query(
        "method == 'full' and decoding == 'greedy' and task == @task", local_dict={"task": main_task(n)}
    )
    said += f" Greedy texts still repeat {greedy['rep_4'].mean():.0%} of their 4-grams."
    if "tags_reflected" in n["human"]:
        own = n["before_after"].query("method == 'full' and task == @task", local_dict={"task": main_task(n)})
        people = n["human"]["tags_reflected"].iloc[0]
        said += f" They reflect {own['tags_reflected'].mean():.0%} of the tags, people {people:.0%}."
    return said


@value("chinese.negative", NAME)
def chinese(n: Notebook) -> str:
    form = n["form"]
    chance = form[form["source"] == "chance"].groupby("measure")["value"].mean()
    trained = form[form["source"] == "after"]
    above = [
        f"{measure} (“{METHODS[method]}”)"
        for (measure, method), part in trained.groupby(["measure", "method"], sort=False)
        if measure in ("alternation", "opposition") and measure in chance and shown(part["value"] - chance[measure]) > 0
    ]
    missed = [f"“{label}”" for m, label in METHODS.items() if rate(form, "exact_form", "after", m)["mean"] < 0.9]
    english = n["forgetting"].query("measure == 'debian_bits_per_byte'")
    start = english[english["stage"] == "before"]["value"].mean()
    groups = english[english["stage"] == "after"].groupby(["task", "method"], sort=False)["value"]
    lost = {key: values.mean() - start for key, values in groups if shown(values - start) > 0}
    most = f", by up to {max(lost.values()):.3f} bits per byte" if lost else ""
    pairs = differences(n["vocabulary"]).groupby("pair", sort=False)["difference"]
    worse = [pair.split(" - ")[0] for pair, gap in pairs if pair.endswith("none") and shown(gap) > 0]
    return (
        f"Tone patterns shown to be above chance: {listed(above)}. Exact form below the goal of 90 %: "
        f"{listed(missed)}. English shown to be damaged in {len(lost)} of {len(groups)} kinds of training{most}. "
        f"New tokens shown to predict worse than none, by how their rows start: {listed(worse)}."
    )


@value("private.negative", PRIVATE)
def private(n: Notebook) -> str:
    df = n["before_after"]
    base = df[df["method"] == "none"]["chrf"].iloc[0]
    groups = list(df[df["method"] != "none"].groupby(["method", "deduplicated"], sort=False))
    flat = [named(*key) for key, part in groups if shown(part["chrf"] - base) <= 0]
    fell = sum(part["chrf"].mean() < base for _, part in groups)
    advised = n["recommendation"]
    closed = [named(r.method, r.deduplicated) for r in advised.itertuples() if r.advice.startswith("Keep")]
    return (
        f"chrF not shown to rise: {listed([f'“{x}”' for x in flat])}; its mean fell in {fell} of {len(groups)}. "
        "Weights that may not be shared: "
        f"{listed([f'“{x}”' for x in closed])}."
    )
