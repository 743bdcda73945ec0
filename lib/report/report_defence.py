"""The defence map of report.md: claim -> notebook cell -> function -> test, each looked up in the source."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jupytext

from lib.report.report_forms import table


class Claim(NamedTuple):
    text: str
    notebook: str  # its number
    heading: str  # of the cell, as the notebook has it
    function: str  # module.name in lib
    test: str  # file without .py, and name: test_x.test_y


CLAIMS = (
    Claim(
        "The written-out GPT-2 is transformers' GPT-2",
        "01",
        "2.4 Is it right?",
        "gpt2.forward",
        "test_gpt2.test_logits_equal_transformers_at_full_size",
    ),
    Claim(
        "The parameter table sums to the model",
        "01",
        "2.2 Where the parameters are",
        "gpt2.parameter_table",
        "test_gpt2.test_parameter_table_of_gpt2_117m",
    ),
    Claim(
        "A left-padded batch generates what each prompt does alone",
        "01",
        "5 A batch with left padding equals one prompt at a time",
        "generate.generate",
        "test_generate.test_batch_equals_one_at_a_time",
    ),
    Claim(
        "Another model never passes for GPT-2",
        "01",
        "1 Load the model",
        "models.load_base",
        "test_models.test_another_model_is_a_stand_in",
    ),
    Claim(
        "Packing changes the speed and not the loss",
        "02",
        "The loss",
        "packing.flatten",
        "test_packing.test_packed_gradients_equal_one_document_at_a_time",
    ),
    Claim(
        "The loss is over targets and EOS, no prompt, no padding",
        "02",
        "The loss",
        "train.completion_loss",
        "test_train.test_the_loss_is_the_mean_over_target_tokens",
    ),
    Claim(
        "A killed run ends at the same loss",
        "02",
        "The runs",
        "train.finetune",
        "test_train.test_kill_9_then_the_same_command_ends_at_the_same_loss",
    ),
    Claim(
        "No held-out document is close to a training document",
        "02",
        "The data",
        "tasks.load_task",
        "test_tasks.test_no_held_out_document_is_close_to_a_training_document",
    ),
    Claim(
        "One function scores before and after",
        "03",
        "Measure",
        "metrics.score",
        "test_metrics.test_score_equals_one_document_at_a_time_and_counts_eos",
    ),
    Claim(
        "Differences are paired by document, groups resampled",
        "03",
        "Is the difference real?",
        "metrics.paired",
        "test_metrics.test_paired_resamples_groups_not_documents",
    ),
    Claim(
        "BLEU is sacrebleu's",
        "03",
        "Before and after",
        "texts.bleu",
        "test_texts.test_bleu_equals_the_sacrebleu_command",
    ),
    Claim(
        "A judge that prefers a side wins nothing",
        "03",
        "A judge model",
        "people.judge",
        "test_people.test_position_biased_judge_wins_nothing",
    ),
    Claim(
        "Our BPE is the library's, with GPT-2's merges GPT-2's",
        "04",
        "2 BPE, step by step",
        "encodings.bpe_train",
        "test_encodings.test_our_bpe_with_gpt2s_merges_is_gpt2s",
    ),
    Claim(
        "UNK is priced in",
        "04",
        "1 The principle",
        "encodings.Encoding.unknown_bits",
        "test_encodings.test_an_unknown_character_is_lost_alone_and_priced",
    ),
    Claim(
        "RoPE's scores depend on the distance alone",
        "05",
        "Is it what it says?",
        "positions.Rope",
        "test_positions.test_ropes_scores_depend_on_the_distance_alone",
    ),
    Claim(
        "The shift test fails for a broken RoPE",
        "05",
        "Is it what it says?",
        "positions.shift_test",
        "test_positions.test_a_broken_rope_fails_the_shift_test",
    ),
    Claim(
        "No attention sees the future",
        "06",
        "Does any see the future?",
        "costs.leak",
        "test_attention.test_no_token_sees_the_future",
    ),
    Claim(
        "Every fast form equals its naive one, gradients too",
        "06",
        "The principle",
        "attention.kernel",
        "test_attention.test_form_equals_naive_in_outputs_and_gradients",
    ),
    Claim(
        "The measures of a poem follow its rules",
        "07",
        "The principle",
        "chinese.form",
        "test_chinese.test_people_rhyme_and_chance_does_not",
    ),
    Claim(
        "New tokens see the same poems in as many steps",
        "07",
        "Vocabulary extension",
        "vocabulary.extend",
        "test_chinese_runs.test_an_extended_vocabulary_sees_the_same_poems_in_the_same_order",
    ),
    Claim(
        "All codes of a canary are scored as one by one",
        "08",
        "The experiment",
        "memorise.exposure",
        "test_memorise.test_the_tree_equals_reading_each_code_alone",
    ),
    Claim(
        "Personal data are found with exact bounds",
        "08",
        "Anonymise",
        "anonymise.find",
        "test_anonymise.test_each_kind_is_found_with_exact_bounds",
    ),
    Claim(
        "The recurrent form equals the parallel one",
        "09",
        "The principle",
        "hybrid.hybrid",
        "test_hybrid.test_a_whole_model_decodes_step_by_step_as_it_reads",
    ),
    Claim(
        "Forgetting is compared at the same gain",
        "09",
        "2 Algorithm: what is gained and what is forgotten",
        "frontier.against_interpolation",
        "test_frontier.test_the_control_is_read_off_at_the_same_gain_of_the_same_seed",
    ),
    Claim(
        "The audit finds every declared mistake",
        "09",
        "The audit",
        "audit.audit",
        "test_audit.test_a_declared_mistake_is_one_finding_with_a_way_out",
    ),
    Claim(
        "Slot errors are counted as by hand",
        "10",
        "Errors by number of slots",
        "slots.slot_errors",
        "test_texts.test_slots_on_hand_made_errors",
    ),
    Claim(
        "An archive comes back byte for byte, or is refused",
        "10",
        "The experiment",
        "compress.decompress",
        "test_compress.test_every_damaged_byte_and_every_cut_is_refused",
    ),
    Claim(
        "A compressed file is hardly longer than the cross-entropy",
        "10",
        "The principle",
        "compress.compress",
        "test_compress.test_the_real_bytes_are_the_cross_entropy",
    ),
    Claim(
        "The loss in pieces is torch's in value and gradient",
        "11",
        "The principle",
        "fast.summed_cross_entropy",
        "test_fast.test_summed_cross_entropy_is_torchs_in_value_and_gradient",
    ),
    Claim(
        "Ratios to other systems are taken within a run",
        "11",
        "Against others",
        "bench.ratios",
        "test_bench.test_ratios_are_taken_run_by_run",
    ),
    Claim(
        "A kill at any moment loses nothing",
        "11",
        "Reliability",
        "faults.kill_training",
        "test_faults.test_nothing_is_lost",
    ),
)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, methods (`Class.method`) and constants that a Python file defines at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return frozenset(found)


@cache
def headings_of(path: Path) -> tuple[str, ...]:
    """The headings in a notebook's Markdown cells, in order."""
    prose = (c.source for c in jupytext.read(path).cells if c.cell_type == "markdown")
    return tuple(h for text in prose for h in re.findall(r"^#+ (.+?) *$", text, re.MULTILINE))


def missing(reference: str, root: Path) -> str | None:
    """Why `lib.module.name`, `lib/file.py`, `tests/file.py::name` or another path of the checkout does not exist; None
    where it does."""
    path, _, name = reference.partition("::")
    if match := re.fullmatch(r"lib\.(\w+)(?:\.([\w.]+))?", reference):
        path, name = f"lib/{match[1]}.py", match[2] or ""
    if not (root / path).exists():
        return f"{path} does not exist"
    if name and name not in names_in((root / path).resolve()):
        return f"{path} has no {name}"
    return None


def check(claim: Claim, root: Path) -> list[str]:
    """What of a claim's cell, function and test does not exist."""
    file, test = claim.test.split(".")
    found = [missing(f"lib.{claim.function}", root), missing(f"tests/{file}.py::{test}", root)]
    sources = sorted((root / "notebooks").glob(f"{claim.notebook}_*.py"))
    if not sources:
        found.append(f"there is no notebook {claim.notebook}")
    elif claim.heading not in headings_of(sources[0].resolve()):
        found.append(f"{sources[0].name} has no heading “{claim.heading}”")
    return [f"Defence map, “{claim.text}”: {what}." for what in found if what]


PARTS = {
    "Part one": ("01", "02", "03"),
    "From scratch": ("04", "05", "06"),
    "Around the model": ("07", "08", "09", "10", "11"),
}


def defence_map(root: Path) -> str:
    """The map in three tables, each short enough for a page. Raises ValueError for the first cell, function or test
    that does not exist."""
    parts = []
    for name, notebooks in PARTS.items():
        rows = [_row(claim, root) for claim in CLAIMS if claim.notebook in notebooks]
        shape = table(["claim", "notebook, heading", "function", "test"], rows, 4, (24, 20, 32, 24))
        parts.append(f"{shape}\n\nTable: {name}, notebooks {notebooks[0]} to {notebooks[-1]}.")
    return "\n\n".join(parts)


def _row(claim: Claim, root: Path) -> list[str]:
    if wrong := check(claim, root):
        raise ValueError(wrong[0])
    file, test = claim.test.split(".")
    heading = re.sub(r"^[\d.]+ ", "", claim.heading)
    said = test.removeprefix("test_").replace("_", " ")
    return [claim.text, f"{claim.notebook}, {heading}", f"`{claim.function}`", f"`{file}`: {said}"]
