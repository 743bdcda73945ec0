"""README's numbers are those of data/results, and it names the stand-in."""

import re
from itertools import combinations

import pandas as pd
import pytest

from lib import evaluate, profile, results
from lib.explore import bench_findings, findings, frontier, memorise
from lib.explore.chinese_tables import differences, percent, rate
from lib.metrics import mean_interval

README = (profile.ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = ("bits_per_byte", "perplexity", "chrf", "rouge_l", "synopsis_form", "tags_reflected")
ROWS = {"before": "none", "after, full": "full", "after, LoRA": "lora"}


@pytest.fixture(scope="module")
def shipped():
    return results.load("03_evaluate", profile.DATA / "results")


def test_the_result_table_is_that_of_the_results_file(shipped):
    table = pd.DataFrame(shipped["tables"]["before_after"])
    summary = evaluate.seed_summary(table[table.task == "debian"], COLUMNS)
    summary = summary.set_index(["method", "measure"])
    for label, method in ROWS.items():
        (line,) = re.findall(rf"^\| {label} \| (.*) \|$", README, re.MULTILINE)
        for cell, measure in zip(line.split(" | "), COLUMNS, strict=True):
            shown = [float(x) for x in re.findall(r"-?[\d.]+", cell)]
            row = summary.loc[(method, measure)]
            wanted = [row["mean"], row["low"], row["high"]][: len(shown)]
            digits = len(cell.split()[0].partition(".")[2])
            assert shown == [round(x, digits) for x in wanted], (label, measure)


def test_the_differences_are_those_of_the_results_file(shipped):
    rows = [r for r in shipped["tables"]["significance"] if r["task"] == "debian"]
    assert len(rows) == 4
    for row in rows:
        text = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        assert text in README
        assert row["low"] * row["high"] > 0, "README says that the interval excludes zero"
        assert row["seeds"] == 3


def test_the_stand_in_is_named_where_it_was_used(shipped):
    if shipped["provenance"]["stand_in"]:
        assert "not of GPT-2" in README
        assert "67.27" in README, "the published row stands beside ours"


# --- the explorations inside the model


def numbers(first: str, *more: str) -> list[list[float]]:
    """The numbers of each further cell of README's one table row that begins with these cells."""
    start = re.escape(" | ".join((first, *more)))
    (line,) = re.findall(rf"^\| {start} \| (.*) \|$", README, re.MULTILINE)
    return [[float(x) for x in re.findall(r"-?[\d.]+", cell)] for cell in line.split(" | ")]


def close(shown: list[float], values: pd.Series) -> bool:
    return shown == pytest.approx(list(mean_interval(values)), abs=0.00051)


@pytest.fixture(scope="module", params=["04_token_encoding", "05_position_encoding", "06_attention"])
def exploration(request):
    return request.param, results.load(request.param, profile.DATA / "results")


def test_the_explorations_tables_are_those_of_the_results_files(exploration):
    name, shipped = exploration
    tables = {key: pd.DataFrame(rows) for key, rows in shipped["tables"].items()}
    if name.startswith("04"):
        table = tables["encodings"]
        rows = table[(table.budget == "bytes") & (table.corpus == "debian")]
        for (encoding, size), runs in rows.groupby(["encoding", "vocab_size"]):
            shown = "all seen twice" if encoding == "characters" else f"{size:,.0f}"
            per_token, bits, _ = numbers(encoding, shown)
            assert close(bits, runs.bits_per_byte), encoding
            assert per_token == pytest.approx([runs.bytes_per_token.iloc[0]], abs=0.0051)
            timed = tables["speed"].query("corpus == 'debian' and encoding == @encoding and vocab_size == @size")
            assert README.count(f" | {timed.bytes_per_second.item():,.0f} |") == 1, encoding
    elif name.startswith("05"):
        for position, runs in tables["positions"].groupby("position"):
            long = 8 * runs.train_length.iloc[0]
            cells = numbers(position)
            wanted = [(long // 8, "blocks"), (long, "blocks"), (long, "sliding")]
            for shown, (length, protocol) in zip(cells, wanted, strict=True):
                own = runs[(runs.eval_length == length) & (runs.protocol == protocol)]
                assert close(shown, own.bits_per_byte), (position, length, protocol)
    else:
        fitted = tables["fitted"].set_index("attention")
        for attention, runs in tables["quality"].groupby("attention"):
            bits, exponent, *_ = numbers(attention)
            assert close(bits, runs.bits_per_byte), attention
            wanted = fitted.loc[attention, "time_exponent_forward+backward"]
            assert exponent == pytest.approx([wanted], abs=0.0051)
            start = fitted.loc[attention, "faster_than_softmax_sdpa_from"]
            found = f"{start:,.0f} tokens |" if start == start else "not up to 8,192 |"
            (line,) = re.findall(rf"^\| {attention} \| .*$", README, re.MULTILINE)
            assert attention == "softmax_sdpa" or line.endswith(found), attention
    assert len(shipped["provenance"]["seeds"]) >= 3


def interval(values) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*mean_interval(values))


def test_the_differences_between_encodings_are_those_of_the_results_file():
    tables = results.load("04_token_encoding", profile.DATA / "results")["tables"]
    text = " ".join(README.split())
    shown = [
        ("debian", "bpe 8,192", "bytes"),
        ("debian", "gpt2", "bytes"),
        ("debian", "bpe 8,192", "compute"),
        ("tang", "characters", "bytes"),
        ("tang", "bpe 1,024", "bytes"),
        ("tang", "wordpiece 4,096", "bytes"),
    ]
    for row in tables["against_bytes"]:
        if (row["corpus"], row["label"], row["budget"]) in shown:
            found = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            assert found in text, row
            shown.remove((row["corpus"], row["label"], row["budget"]))
    assert not shown
    table = pd.DataFrame(tables["encodings"])
    table = table[(table.budget == "bytes") & (table.corpus == "debian")]
    keys = ["encoding", "vocab_size"]
    means = table.groupby(keys)[["perplexity", "bits_per_byte"]].mean().to_numpy()
    pairs = list(combinations(means, 2))
    wrong = sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs)
    assert f"orders {wrong} of the {len(pairs)} English pairs" in text


def test_the_differences_to_softmax_are_those_of_the_results_file():
    table = pd.DataFrame(results.load("06_attention", profile.DATA / "results")["tables"]["quality"])
    wide = table.pivot(index="seed", columns="attention", values="bits_per_byte")
    assert len(wide) >= 3
    for name in wide.columns.drop("softmax_sdpa"):
        (line,) = re.findall(rf"^\| {name} \| .*$", README, re.MULTILINE)
        assert interval(wide[name] - wide["softmax_sdpa"]) in line
    assert f"delta rule by {interval(wide['linear'] - wide['delta'])}" in " ".join(README.split())


def test_no_shipped_attention_sees_the_future():
    tables = results.load("06_attention", profile.DATA / "results")["tables"]
    assert len(tables["leak"]) >= 6
    assert all(row["max_difference"] < 1e-5 for row in tables["leak"])
    assert all(row["max_difference"] > 0.01 for row in tables["leak_controls"])


# --- the explorations around the model

POEMS = {  # README's row -> source and method in the table `form`
    "Tang poets": ("people", "none"),
    "base model": ("before", "none"),
    "fine-tuned, base tokens": ("after", "none"),
    "fine-tuned, characters from pieces": ("after", "pieces"),
    "fine-tuned, characters at random": ("after", "random"),
    "fine-tuned, characters and plan": ("after", "plan"),
}


@pytest.fixture(scope="module")
def chinese():
    shipped = results.load("07_chinese", profile.DATA / "results")
    assert len(shipped["provenance"]["seeds"]) >= 3
    return {key: pd.DataFrame(rows) for key, rows in shipped["tables"].items()}


def test_the_chinese_table_is_that_of_the_results_file(chinese):
    form, table = chinese["form"], chinese["before_after"]
    for label, (source, method) in POEMS.items():
        (line,) = re.findall(rf"^\| {label} \| (.*) \|$", README, re.MULTILINE)
        exact, rhymes, bits = line.split(" | ")
        assert exact == percent(rate(form, "exact_form", source, method)), label
        assert rhymes == percent(rate(form, "rhyme", source, method)), label
        same = (table["task"] == "tang") & (table["stage"] == source) & (table["method"] == method)
        shown = [float(x) for x in re.findall(r"[\d.]+", bits)]
        assert len(shown) == {"people": 0, "before": 1, "after": 3}[source]
        if shown:
            wanted = mean_interval(table.loc[same, "bits_per_character"])
            assert shown == [round(x, 2) for x in wanted[: len(shown)]], label


def test_the_chinese_sentences_are_those_of_the_results_file(chinese):
    form, plans, text = chinese["form"], chinese["plans"], " ".join(README.split())
    rhymes = form[form["measure"] == "rhyme"].groupby("source")["value"].mean()
    assert f"By chance {100 * rhymes['chance']:.1f} % of people's" in text
    means = chinese["vocabulary"].groupby("method")[["tokens_per_poem", "train_seconds"]].mean()
    ratio = means.loc["pieces"] / means.loc["none"]
    assert f"{ratio['tokens_per_poem']:.2f} times the tokens" in text
    assert f"{ratio['train_seconds']:.2f} times the seconds" in text
    worse = differences(chinese["vocabulary"]).groupby("pair")["difference"]
    assert f"slightly worse, {interval(worse.get_group('pieces - none'))}" in text
    assert f"mean they are {interval(worse.get_group('random - none'))}" in text
    people, unrhymed = (rate(plans, "rhyme", s) for s in ("people's plan", "unrhymed plan"))
    assert f"people's plans {percent(people)} of" in text
    assert f"not rhyme {percent(unrhymed)}." in text
    copied = form[(form["measure"] == "copied_line") & (form["source"] == "after")]
    assert (copied["value"] == 0).all(), "README says that no training line was copied"
    planned = form[(form["method"] == "plan") & (form["source"] == "after")]
    for measure in ("alternation", "opposition"):
        _, low, high = mean_interval(planned.loc[planned["measure"] == measure, "value"])
        assert low < 0.5 < high, "README says that the tones stay at chance"


# --- private data


AUDITS = {"full": "full", "LoRA": "lora"}


def test_the_private_table_is_that_of_the_results_file():
    shipped = results.load("08_private_domain", profile.DATA / "results")
    tables = {key: pd.DataFrame(rows) for key, rows in shipped["tables"].items()}
    assert len(shipped["provenance"]["seeds"]) >= 3
    scores, evidence = tables["before_after"], tables["evidence"]
    before = scores.loc[scores["stage"] == "before", "bits_per_byte"].mean()
    assert f"Before: {before:.3f} bits per byte" in README
    whole, text = tables["anonymiser"].set_index("category").loc["all"], " ".join(README.split())
    for measure in ("recall", "precision"):
        shown = f"{whole[measure]:.3f} [{whole[f'{measure}_low']:.3f}, {whole[f'{measure}_high']:.3f}]"
        assert f"{measure} {shown}" in text
    for label, method in AUDITS.items():
        for dedup, kept in (("no", "duplicates left in"), ("yes", "duplicates removed")):
            own = scores[(scores["method"] == method) & (scores["deduplicated"] == dedup)]
            wanted = [[round(x, 3) for x in mean_interval(own["bits_per_byte"])]]
            found = evidence[(evidence["method"] == method) & (evidence["deduplicated"] == dedup)]
            found = found.set_index("repetitions").loc[[1, 16, 64]]
            wanted += [[round(x, 2)] for x in found["exposure"]]
            wanted += [[*found.loc[64, ["extracted", "canaries"]]]]
            assert numbers(f"{label}, {kept}") == wanted


def test_the_private_sentences_hold_in_the_results_file():
    shipped = results.load("08_private_domain", profile.DATA / "results")["tables"]
    memory = pd.DataFrame(shipped["memorisation"])
    after = memory[(memory["stage"] == "after") & (memory["repetitions"] > 0)]
    for (_, dedup), part in after.groupby(["method", "deduplicated"]):
        assert (memorise.rises(part)[1] < 0.05) == (dedup == "no")
    advice = {(r["method"], r["deduplicated"]): r["advice"] for r in shipped["recommendation"]}
    assert [k for k, v in advice.items() if not v.startswith("Keep")] == [("lora", "yes")]


# --- new scenarios


@pytest.fixture(scope="module")
def scenario():
    shipped = results.load("10_new_scenario", profile.DATA / "results")
    assert len(shipped["provenance"]["seeds"]) >= 3
    return {key: pd.DataFrame(rows) for key, rows in shipped["tables"].items()}


COMPRESSORS = ["gzip -9", "brotli 11", "zstd -22 after the training text", "model before", "model after"]


def test_the_compression_table_is_that_of_the_results_file(scenario):
    table = scenario["compression"][scenario["compression"]["packaging"] != "each"]
    for label in ("debian (the domain)", "release_notes (2026)", "tang (Chinese)"):
        own = table[table["domain"] == label.split()[0]]
        wanted = []
        for name in COMPRESSORS:
            values = own.loc[own["compressor"] == name, "bits_per_byte"]
            wanted.append([round(x, 3) for x in mean_interval(values)[: 1 if len(values) == 1 else 3]])
        assert numbers(label) == wanted


def test_the_scenario_sentences_are_those_of_the_results_file(scenario):
    text, e2e = " ".join(README.split()), scenario["e2e"]

    def over_seeds(system: str, measure: str, times: int = 1) -> str:
        mean, low, high = mean_interval(times * e2e.loc[e2e["system"] == system, measure].astype(float))
        return f"{mean:.1f} [{low:.1f}, {high:.1f}]"

    few, tuned = "3-shot", "fine-tuned, full"
    assert f"give {over_seeds(few, 'bleu')} BLEU and {over_seeds(few, 'ser', 100)} % slot" in text
    assert f"tokens {over_seeds(tuned, 'bleu')} and {over_seeds(tuned, 'ser', 100)} %, people" in text
    by_system = e2e.set_index("system")
    assert f"people {100 * by_system.ser['people']:.1f} %." in text
    longer = by_system.bleu["fine-tuned, full, longer"]
    assert f"is {67.27 - longer:.1f} BLEU below" in text and f"{70.4 - longer:.1f} below GPT-2 medium" in text
    table = scenario["compression"]
    coded = table[table["packaging"] == "archive"]
    assert coded["round_trip"].all()
    assert f"All {coded['documents'].sum()} documents came back" in text
    assert f"{coded['encode_kb_per_s'].mean():.2f} kB per second" in text
    after = scenario["break_even"].query("domain == 'debian' and compressor == 'model after'")
    assert f"from {after['megabytes'].mean():,.0f} MB" in text
    change = scenario["compression_by_document"].set_index("domain")
    for domain, words in (("debian", "its own domain"), ("release_notes", "some on release notes")):
        row = change.loc[domain]
        shown = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        assert f"{words}, {shown}" in text and row.low * row.high > 0


# --- innovation


def test_the_innovation_sentences_are_those_of_the_results_file():
    shipped = results.load("09_innovation", profile.DATA / "results")
    assert len(shipped["provenance"]["seeds"]) >= 3
    tables = {key: pd.DataFrame(rows) for key, rows in shipped["tables"].items()}
    general = frontier.general_measure(tables["frontier"])
    said = [
        findings.conversion_findings(*(tables[k] for k in ("conversion", "layer_damage", "decoding"))),
        findings.frontier_findings(*(tables[k] for k in ("frontier", "front", "against_interpolation")), general),
        findings.trap_findings(tables["traps"]),
    ]
    text = " ".join(README.split())
    for sentences in said:
        assert sentences[0].removeprefix("Finding: ") in text
    assert any(findings.NEGATIVE in s for sentences in said for s in sentences)


# --- speed and faults


def test_the_speed_table_and_the_faults_are_those_of_the_results_file():
    tables = results.load("11_performance", profile.DATA / "results")["tables"]
    for r in tables["ratios"]:
        cell = f"{r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        assert f"| {r['kind']} | {r['system']}, {r['setting']} | {cell} |" in README
    text = " ".join(README.split())
    for line in bench_findings.equal_findings({k: pd.DataFrame(v) for k, v in tables.items()}):
        assert line in text
    assert bench_findings.fault_findings(pd.DataFrame(tables["faults"]))[0] in text
