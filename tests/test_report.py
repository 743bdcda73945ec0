"""report.md: every number from a results file, every place in the code real, bad input told in one sentence."""

import json
import os
import re
import shutil

import pytest
from report_tables import FIGURES, TABLES

from lib import __main__ as command
from lib import profile, results
from lib.report import blocks as report
from lib.report import report_text
from lib.report.project import Project
from lib.report.report_blocks import BLOCKS, NOTEBOOKS, Files, Notebook, render
from lib.report.report_defence import CLAIMS, PARTS, Claim, defence_map, missing
from lib.report.report_defence import check as check_claim
from lib.report.report_forms import interval, table

TEXT = report.read()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the report is made from; code and notebooks are the real ones."""
    for name in ("lib", "tests", "notebooks"):
        (tmp_path / name).symlink_to(profile.ROOT / name)
    shutil.copytree(profile.DATA / "results", tmp_path / "data" / "results")
    for card in profile.DATA.glob("*/card.json"):
        (tmp_path / "data" / card.parent.name).mkdir()
        shutil.copy(card, tmp_path / "data" / card.parent.name)
    for name in ("README.md", "build_debian.py", "gpt2_bpe"):
        (tmp_path / "data" / name).symlink_to(profile.DATA / name)
    (tmp_path / "figures").mkdir()
    for figure in (profile.ROOT / "figures").glob("*.png"):
        (tmp_path / "figures" / figure.name).symlink_to(figure)
    shutil.copy(profile.ROOT / "figures" / "captions.json", tmp_path / "figures")
    (tmp_path / "report.md").write_text(TEXT, encoding="utf-8")
    return tmp_path


def edit(path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def add(checkout, stem: str, **provenance) -> None:
    """Results of a notebook that was not run, made up, with its figures."""
    shipped = results.load("03_evaluate", profile.DATA / "results")["provenance"] | provenance
    tables = {name: results._rows(name, rows) for name, rows in TABLES[stem]().items()}
    results.write_json(
        checkout / "data" / "results" / f"{stem}.json", {"notebook": stem, "provenance": shipped, "tables": tables}
    )
    captions = json.loads((checkout / "figures" / "captions.json").read_text("utf-8"))
    for name in FIGURES[stem[:2]]:
        (checkout / "figures" / f"{name}.png").touch()
        captions[name] = f"{name}, made up."
    results.write_json(checkout / "figures" / "captions.json", captions)


# --- the shipped report


def test_the_report_is_what_the_results_give_and_holds_no_other_number():
    assert report.check() == []


def test_every_block_has_its_place_and_the_appendix_its_25_questions():
    used = {m.name for m in report_text.markers(TEXT)}
    assert used == {*BLOCKS, *report.WHOLE}
    questions = re.findall(r"^\*\*Q(\d+)\. (.+?\?)\*\*(.*?)(?=\n\n|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert [int(n) for n, *_ in questions] == list(range(1, 26))
    for _, question, answer in questions:
        places = [p for p in report.REFERENCE.findall(report_text.outside(answer)) if p.startswith("lib.")]
        assert places, question


def test_what_a_team_fills_in_is_told_and_nothing_else_is_a_placeholder(tmp_path):
    lines = [what for _, what in Project(profile.ROOT).placeholders()]
    assert "[Name of member 1]" in lines
    filled = re.sub(r"\[(Name|Student|What|Share|One)[^\]]*\]", "张三, 520021910000, 50 %", TEXT)
    (tmp_path / "report.md").write_text(filled, encoding="utf-8")
    assert Project(tmp_path).placeholders() == [] and report_text.typed_numbers(filled) == []


# --- numbers


@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        ("## 7 Limits\n", "## 7 Limits\n\nIt reached 1.042 bits.\n", "1.042"),
        ("## 7 Limits\n", "## 7 Limits\n\n| a | b |\n|--|--|\n| x | 70.4 |\n", "70.4"),
        ("## 7 Limits\n", "## 7 Limits\n\nThree of 200 documents, arXiv:2106.09685.\n", "200"),
        ("## 7 Limits\n", "## 7 Limits\n\nThe loss is $L = 1.042$.\n", "1.042"),
        ("## 7 Limits\n", "## 7 Limits\n\nA gain of -0.187 (`0.2`).\n", "-0.187"),
        ("**Experiment.** The same blocks,", "**Experiment.** 12M tokens. The same blocks,", "12M"),
    ],
)
def test_a_typed_number_fails(old, new, number):
    found = report_text.typed_numbers(TEXT.replace(old, new, 1))
    assert number in [n for _, n in found]
    line, _ = found[0]
    assert number.strip("-") in TEXT.replace(old, new, 1).splitlines()[line - 1]


@pytest.mark.parametrize(
    "sentence",
    [
        "In 2019 (Radford et al. 2019).",
        "See section 6.3 and notebooks 04 to 06.",
        "A 95 % interval.",
        "GPT-2 and `tests/test_x2.py`.",
        "arXiv:2106.09685v2 is `python -m lib run 07 08`.",
        "GPT-2's 117M has 29.41 on it.",
        "It is $2^{10} \\cdot 0.044715$.",
    ],
)
def test_years_sections_and_published_constants_are_no_results(sentence):
    assert report_text.typed_numbers(TEXT.replace("## 7 Limits\n", f"## 7 Limits\n\n{sentence}\n", 1)) == []


# --- stale blocks, figures, references


def test_a_stale_number_is_found_and_filled_anew(checkout):
    path = checkout / "report.md"
    edit(path, "124,439,808<!--/-->", "124,439,809<!--/-->")
    (wrong,) = report.check(checkout)
    assert re.match(
        r"report.md, line \d+: `gpt2.size` is not what data/results gives: run `python -m lib report`", wrong
    )
    assert "filled anew" in report.fill(checkout)[0]
    assert path.read_text("utf-8") == TEXT and report.check(checkout) == []
    assert "is as the results say" in report.fill(checkout)[0]


def test_new_results_reach_the_report(checkout):
    edit(checkout / "data" / "results" / "03_evaluate.json", "0.18693042379439584", "0.2")
    assert any("evaluation.tests" in wrong for wrong in report.check(checkout))
    report.fill(checkout)
    assert "difference -0.200" in report.read(checkout)


def test_a_missing_figure_is_named_and_the_file_left_alone(checkout):
    (checkout / "figures" / "03_before_after.png").unlink()
    said = "figures/03_before_after.png is missing: run `python -m lib run 03` again."
    assert report.check(checkout) == [said]
    with pytest.raises(ValueError, match=re.escape(said)):
        report.fill(checkout)
    assert report.read(checkout) == TEXT
    edit(checkout / "report.md", "## 7 Limits\n", "## 7 Limits\n\n![x](figures/none.png)\n")
    (checkout / "figures" / "03_before_after.png").touch()
    assert any(re.search(r"line \d+: figures/none.png is missing", s) for s in report.check(checkout))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("`lib.metrics.score`", "`lib.metrics.scores`", "lib/metrics.py has no scores"),
        ("`tests/test_packing.py`", "`tests/test_packs.py`", "tests/test_packs.py does not exist"),
        ("### 6.3 Attention\n", "### 6.3 Attentions\n", "the heading “### 6.3 Attention” is missing here"),
        ("**Change.** Three.", "Three.", "“### 6.4 Chinese” has no paragraph **Change.**"),
        (
            "The task is called",
            "<!--= gpt2.size -->124,439,808<!--/--> is called",
            "a line may not begin with a marker",
        ),
        ("## 7 Limits\n", f"## 7 Limits\n\n| {'x' * 120} |\n", "a table's row has 124 characters"),
    ],
)
def test_places_headings_and_form_are_checked(checkout, old, new, said):
    edit(checkout / "report.md", old, new)
    assert any(re.match(r"report.md, line \d+: ", s) and said in s for s in report.check(checkout))


# --- markers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n<!--= x -->1\n", "line 2: `<!--= x -->` is never closed"),
        ("a <!--= x -->1\nb <!--= y -->2<!--/-->\n", "line 1: `<!--= x -->` is not closed before line 2"),
        ("a <!--= x -->1\nb<!--/-->\n", "line 1: `<!--= x -->` runs over its line"),
        ("a\n\nb 1<!--/-->\n", "line 3: `<!--/-->` closes nothing"),
        ("<!-- begin x -->\n1\n", "line 1: `<!-- begin x -->` is never closed"),
        ("<!-- begin x -->\n1\n<!-- end y -->\n", "line 3: `<!-- end y -->` stands where `<!-- begin x -->` of line 1"),
        ("<!- begin x -->\n1\n<!-- end x -->\n", "line 3: `<!-- end x -->` closes nothing"),
        ("a\n<!-- beginn x -->\n", "line 2: `<!-- beginn x -->` is no marker of a known form"),
        ("a <!--= x -->1<!--/-->\n\nb <!-/-->\n", "line 3: `<!-` is the rest of a broken marker"),
        ("a <!--= gpt2.sise -->1<!--/-->\n", "line 1: nothing is called `gpt2.sise`; did you mean `gpt2.size`"),
    ],
)
def test_a_broken_marker_is_named_with_its_line(text, said, tmp_path):
    (tmp_path / "report.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)):
        report.fill(tmp_path)
    assert (tmp_path / "report.md").read_text("utf-8") == text
    assert len(report.check(tmp_path)) == 1


# --- results that are missing, damaged, of another profile or model


def test_without_any_results_the_report_is_built_and_says_so(checkout):
    shutil.rmtree(checkout / "data" / "results")
    said = report.fill(checkout)
    text = report.read(checkout)
    assert sum("was not run for this report" in s for s in said) == len(NOTEBOOKS)
    assert report.check(checkout) == []
    assert "1.042" not in text and "`python -m lib run 03`" in text
    inside = text[text.index("## 5 ") : text.index("## 6 ")]
    blocks = re.findall(r"<!-- begin (evaluation\.\w+) -->\n(.*?)<!-- end", inside, re.DOTALL)
    assert sum(bool(body.strip()) for _, body in blocks) == 1  # said once, not by every block


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('{\n "notebook"', '{\n "notebok', "03_evaluate.json is damaged"),
        (
            '"before_after"',
            '"before"',
            "does not hold what it reads (KeyError: 'before_after'): run `python -m lib run 03` again",
        ),
        (
            '"base_model": "SmolLM2-135M-Instruct (stand-in)"',
            '"base_model": "tiny-random-gpt2"',
            "is of the tiny random model that tests run on",
        ),
        ('"profile": "full"', '"profile": "huge"', "names no profile"),
    ],
)
def test_bad_results_are_named_and_the_file_left_alone(checkout, old, new, said):
    edit(checkout / "data" / "results" / "03_evaluate.json", old, new)
    with pytest.raises(ValueError, match=re.escape(said)):
        report.fill(checkout)
    assert report.read(checkout) == TEXT
    assert len(report.check(checkout)) == 1 and said in report.check(checkout)[0]


def test_results_of_two_profiles_or_models_side_by_side_are_told(checkout):
    edit(checkout / "data" / "results" / "02_finetune.json", '"profile": "full"', '"profile": "cpu"')
    edit(checkout / "data" / "results" / "01_load_and_generate.json", '"base_model": "SmolLM2', '"base_model": "Other')
    said = report.notices(TEXT, Files(checkout))
    assert any(s.startswith("Results of different profiles stand side by side (") and "cpu in 02" in s for s in said)
    assert any(s.startswith("Results of different base models") for s in said)


def test_budgets_of_a_test_are_told(checkout):
    edit(checkout / "data" / "results" / "02_finetune.json", '"profile": "full"', '"profile": "fast"')
    assert report.check(checkout) != []  # captions name another profile now
    assert any("Notebooks 02 ran with PROFILE=fast" in s for s in report.notices(TEXT, Files(checkout)))


def as_gpt2(checkout) -> None:
    """What the files look like where GPT-2 was within reach."""
    for path in (checkout / "data" / "results").glob("*.json"):
        value = json.loads(path.read_text("utf-8"))
        if value["provenance"]["base_model"]:
            value["provenance"] |= {"base_model": "GPT-2 117M", "stand_in": False, "parameters": 124_439_808}
        if path.stem.startswith("01"):
            for row in value["tables"]["differences"]:
                row["differs"] = False
        path.write_text(json.dumps(value), encoding="utf-8")
    captions = checkout / "figures" / "captions.json"
    text = captions.read_text("utf-8").replace("SmolLM2-135M-Instruct (stand-in), not GPT-2 117M", "GPT-2 117M")
    captions.write_text(text, encoding="utf-8")


def test_with_gpt2_within_reach_the_same_prose_reports_gpt2(checkout):
    as_gpt2(checkout)
    edit(checkout / "figures" / "captions.json", "of SmolLM2-135M-Instruct (stand-in).", "of GPT-2 117M.")
    report.fill(checkout)
    text = report.read(checkout)
    filled = "".join(text[m.start : m.end] for m in report_text.markers(text) if m.name != "defence.map")
    assert "SmolLM2" not in text and "stand-in" not in text.lower() and "not GPT-2" not in filled
    assert "The loaded model is GPT-2 117M itself" in filled and "; GPT-2 117M." in filled
    assert report_text.outside(text).split() == report_text.outside(TEXT).split()  # no prose was edited
    assert report.check(checkout) == []


def test_a_figure_of_another_model_than_its_numbers_is_refused(checkout):
    old = (checkout / "figures" / "captions.json").read_text("utf-8")
    as_gpt2(checkout)
    (checkout / "figures" / "captions.json").write_text(old, encoding="utf-8")
    with pytest.raises(ValueError, match="is not of the base model of data/results/"):
        report.fill(checkout)


def test_one_seed_has_no_interval_and_shows_nothing(checkout):
    for path in (checkout / "data" / "results").glob("*.json"):
        value = json.loads(path.read_text("utf-8"))
        for name, rows in value["tables"].items():
            value["tables"][name] = [r for r in rows if r.get("seed") in (None, 0)]
        path.write_text(json.dumps(value), encoding="utf-8")
    report.fill(checkout)
    text = report.read(checkout)
    assert "nan" not in "".join(text[m.start : m.end] for m in report_text.markers(text))
    assert "ahead of GPT-2's learned table, paired by seed: none" in text


# --- notebooks 07 to 11, on made-up tables


@pytest.mark.parametrize("stem", list(TABLES))
def test_blocks_of_the_later_notebooks(checkout, stem):
    add(checkout, stem)
    files = Files(checkout)
    own = [name for name, b in BLOCKS.items() if stem in b.files]
    assert len(own) >= 5
    for name in own:
        text = render(name, files)
        assert text and "was not run" not in text and "nan" not in text, (name, text)
        assert all(len(line) <= report.WIDEST for line in text.splitlines() if line.startswith("|")), text
    report.fill(checkout)
    assert report.check(checkout) == []


def test_what_the_later_blocks_say(checkout):
    for stem in TABLES:
        add(checkout, stem)
    files = Files(checkout)
    said = {name: render(name, files) for name in BLOCKS}
    assert "9.00 bits per character to 7.41 (difference -1.590" in said["chinese.headline"]
    assert "the plan decides the rhyme" in said["chinese.findings"] and "| after, random" in said["chinese.form"]
    assert (
        "kept 800 documents: 640 to train on" in said["private.card"]
        and "replaced 7 personal items" in said["private.card"]
    )
    assert "Keep the weights private" in said["private.advice"]
    assert (
        said["innovation.headline"].startswith("(a) No share tried")
        and "(c) 1 of 2 mistakes" in said["innovation.headline"]
    )
    assert "Negative result" in said["frontier.findings"]  # kept
    assert "against trl (default): ours is 1.99 times as fast [1.98, 2.00]; mark 2: not met" in said["speed.findings"]
    assert "the mark asks for 100, and the machine's products give 60" in said["speed.findings"]
    assert "matrix products; mark 60%: met" in said["speed.findings"]
    assert "injected faults and 0 fuzzed inputs, 1 lost something." in said["performance.headline"]
    assert "never pay for themselves" in said["compression.findings"]  # null in the file is infinity
    assert (
        "16 of 16 documents" in said["answer.archives"]
        and "fine-tuning keeps more of the facts" in said["scenario.headline"]
    )
    assert "no pretrained model" in said["traps.table"] and "not GPT-2 117M" in said["conversion.table"]


# --- what did not work


def rows_of(checkout, stem: str, table: str, change) -> None:
    """Every row of a table through `change`, in place."""
    path = checkout / "data" / "results" / f"{stem}.json"
    value = json.loads(path.read_text("utf-8"))
    for row in value["tables"][table]:
        change(row)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_comparison_that_shows_nothing_or_a_loss_is_named(checkout):
    before = render("evaluation.negative", Files(checkout))
    assert "not shown to be better: none. Of 10 single values of general text" in before
    assert "worse: none." in before and "of the tags, people 48%" in before

    def worsen(row):
        if row["method"] == "lora" and row["measure"] == "chrf":
            row["low"] = -1.0
        if row["task"] == "e2e" and row["measure"] == "bits_per_byte":
            row |= {"difference": 0.2, "low": 0.1, "high": 0.3}

    rows_of(checkout, "03_evaluate", "significance", worsen)

    def forget(row):
        if row["method"] == "full" and row["measure"] == "wikitext2_word_perplexity":
            row["value"] += 20

    rows_of(checkout, "03_evaluate", "forgetting", forget)
    said = render("evaluation.negative", Files(checkout))
    assert "better: debian, LoRA, chrF and e2e, full fine-tuning, bits per byte." in said
    assert "worse: WikiText-2, perplexity per word (full fine-tuning)." in said


def test_a_code_that_gains_from_length_and_an_encoding_behind_bytes_are_named(checkout):
    def gain(row):
        if row["position"] == "rope" and row["eval_length"] == 1_024:
            row["bits_per_byte"] = 1.0

    rows_of(checkout, "05_position_encoding", "positions", gain)
    said = render("positions.negative", Files(checkout))
    assert said.endswith("which a longer memory would be: `rope`.") and said.count("`rope`") == 1

    def lose(row):
        if row["corpus"] == "debian" and row["encoding"] == "unigram":
            row["bits_per_byte"] += 5

    rows_of(checkout, "04_token_encoding", "encodings", lose)
    said = render("encodings.negative", Files(checkout))
    assert "unigram 4,096 (English)" in said.split(";")[0]


def test_what_attention_chinese_and_sharing_fall_short_of_is_named(checkout):
    def never(row):
        if row["attention"] == "linear":
            row["faster_than_softmax_sdpa_from"] = None

    rows_of(checkout, "06_attention", "fitted", never)
    assert "not faster than it even at 8,192 tokens: `linear` and `nystrom`" in render(
        "attention.negative", Files(checkout)
    )

    def tones(row):
        if row["source"] == "after" and row["measure"] == "opposition" and row["method"] == "plan":
            row["value"] = 0.8 + row["seed"] / 100

    rows_of(checkout, "07_chinese", "form", tones)
    said = render("chinese.negative", Files(checkout))
    assert "Tone patterns shown to be above chance: opposition (“after, plan”)." in said
    rows_of(checkout, "08_private_domain", "recommendation", lambda r: r.update(advice="Nothing."))
    assert render("private.negative", Files(checkout)).endswith("may not be shared: none.")


def test_an_experiment_that_costs_little_is_not_among_what_fell_short(checkout):
    def cheap(row):
        if row["share"] == 0.5 and row["form"] == "linear+window":
            row["bits_per_byte"] = 1.1

    assert "when converted: 50%, 75% and 100%." in render("innovation.negative", Files(checkout))
    rows_of(checkout, "09_innovation", "conversion", cheap)
    assert "when converted: 75% and 100%." in render("innovation.negative", Files(checkout))


# --- the defence map


def test_every_claim_has_a_cell_a_function_and_a_test():
    assert [w for c in CLAIMS for w in check_claim(c, profile.ROOT)] == []
    assert {c.notebook for c in CLAIMS} == {name[:2] for name in NOTEBOOKS}
    rows = [r for r in defence_map(profile.ROOT).splitlines() if r.startswith("|")]
    assert len(rows) == len(CLAIMS) + 2 * len(PARTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heading": "Nowhere"}, "03_evaluate.py has no heading “Nowhere”"),
        ({"notebook": "33"}, "there is no notebook 33"),
        ({"function": "metrics.nothing"}, "lib/metrics.py has no nothing"),
        ({"function": "nowhere.f"}, "lib/nowhere.py does not exist"),
        ({"test": "test_metrics.test_nothing"}, "tests/test_metrics.py has no test_nothing"),
    ],
)
def test_a_place_that_does_not_exist_is_named(change, said):
    sound = Claim("x", "03", "Measure", "metrics.score", "test_metrics.test_ratios_by_hand")
    assert check_claim(sound, profile.ROOT) == []
    (wrong,) = check_claim(sound._replace(**change), profile.ROOT)
    assert wrong.startswith("Defence map, “x”: ") and said in wrong


def test_methods_and_constants_are_found():
    assert missing("lib.explore.encodings.Encoding.unknown_bits", profile.ROOT) is None
    assert missing("lib.generate.DECODING", profile.ROOT) is None
    assert missing("lib/explore/gpt2.py", profile.ROOT) is None
    assert "has no nothing" in missing("lib.explore.gpt2.nothing", profile.ROOT)


# --- files and the command


def test_a_folder_that_cannot_be_written_leaves_the_file(checkout, monkeypatch):
    edit(checkout / "report.md", "124,439,808<!--/-->", "1<!--/-->")
    before = report.read(checkout)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match=r"was not written .Permission denied.; free space or choose a folder"):
        report.fill(checkout)
    assert report.read(checkout) == before


def test_a_report_that_is_missing_or_not_utf8_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report.md is missing: get it back with `git checkout report.md`"):
        report.fill(tmp_path)
    (tmp_path / "report.md").write_bytes("# é".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        report.check(tmp_path)
    (tmp_path / "report.md").write_bytes("# 题目\r\n\r\n[Name of member 1]\r\n".encode("utf-8-sig"))
    assert report.read(tmp_path) == "# 题目\n\n[Name of member 1]\n"


def test_the_command_fills_or_checks(checkout, monkeypatch, capsys):
    monkeypatch.setattr(report, "fill", lambda: ["report.md: 2 places, filled anew."])
    assert command.main(["report"]) == 0 and "filled anew" in capsys.readouterr().out
    monkeypatch.setattr(report, "check", lambda: ["report.md, line 3: wrong."])
    assert command.main(["report", "--check"]) == 1 and "line 3: wrong" in capsys.readouterr().out
    monkeypatch.setattr(report, "check", list)
    assert command.main(["report", "--check"]) == 0
    assert "[Name of member 1] is still a placeholder" in capsys.readouterr().out


def test_forms():
    assert interval([1.0]) == "1.000" and interval([1, 2, 3], 1, sign=True) == "+2.0 [-0.5, +4.5]"
    made = table(["a", "b"], [["x|y", "1"]]).splitlines()
    assert made == ["| a | b |", "| :----- | ----: |", "| x\\|y | 1 |"]
    notebook = Notebook("03_evaluate", {"base_model": None}, {"t": [{"a": None, "b": 1}]}, profile.ROOT)
    assert notebook["t"]["a"].dtype == float and os.sep not in notebook.name
