"""Values of report.md, “What did not work”: what fell short, a notebook a line, by the tables its findings come from.

Each names what would have been a success and what was not shown to be one; the conditions are computed, so a line says
“none” where nothing fell short.
"""

from lib.report.report_blocks import Notebook, value
from lib.report.report_evaluation import MEASURED, compared, worse_than_before
from lib.report.report_forms import listed
from lib.report.report_model import main_task


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
