"""Budgets, seeds, device and number format: one dataclass, three sizes, one code path.

`PROFILE=fast|cpu|full` in the environment chooses; without it `full` with a GPU and `cpu` without.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent  # the checkout: `lib` is installed editable
DATA = ROOT / "data"
NAMES = ("fast", "cpu", "full")
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive


@dataclass(frozen=True)
class Scratch:
    """Budgets of the models trained from scratch (lib.explore.scratch). Text in UTF-8 bytes, lengths in tokens."""

    seeds: tuple[int, ...]
    attention_seeds: tuple[int, ...]  # of notebook 06, whose variants lie closer together
    n_layer: int
    n_embd: int
    encoding_bytes: int  # text that a run of notebook 04 sees
    position_bytes: int  # of notebook 05
    attention_bytes: int  # of notebook 06
    eval_bytes: int  # leading held-out text
    vocab_sizes: tuple[int, ...]  # of the BPEs trained in notebook 04
    position_length: int  # notebook 05 trains at this length and evaluates up to 8 times it
    scaling_lengths: tuple[int, ...]  # of notebook 06's timings
    repeats: int  # of each timing
    heads_tokens: int  # real queries and keys for Nystrom's error


@dataclass(frozen=True)
class Chinese:
    """Budgets of notebook 07 (lib.explore.chinese_runs). Tokens are those of the base model's own tokenizer."""

    seeds: tuple[int, ...]
    poem_tokens: int  # that a fine-tuning run on tang sees; the extended vocabularies see the same poems
    plan_tokens: int  # that the extended vocabulary sees of poems with their plans
    idiom_tokens: int
    pack_tokens: int  # in one row, which is one optimizer step
    evaluations: int  # held-out evaluations of a run, with a checkpoint each
    validation_documents: int  # behind each of them
    new_characters: int  # that become tokens
    score_documents: int  # test documents scored in bits per character
    samples: int  # test titles that a poem is sampled for; half as many idioms
    english_documents: int  # held-out documents of debian, for what was forgotten
    wikitext_tokens: int  # leading tokens of WikiText-2, for the same


@dataclass(frozen=True)
class Private:
    """Budgets of notebook 08 (lib.explore.private): one run's text, canaries and what is measured of a model."""

    packages: tuple[str, ...]  # whose docstrings are the default documents
    train_tokens: int  # canaries among them
    pack_length: int  # tokens in a forward pass and a step; the longest document if longer
    canaries: int  # different ones for each number of repetitions
    controls: int  # canaries that are never inserted
    validation_documents: int
    eval_documents: int  # test documents scored
    generate_documents: int  # test documents generated for
    max_new_tokens: int
    probe_documents: int  # training and test documents continued from their first half


@dataclass(frozen=True)
class Innovation:
    """Budgets of notebook 09. Text in tokens of the base model where nothing else is said."""

    seeds: tuple[int, ...]
    row_length: int  # of the streams that a conversion is trained and measured on
    matching_tokens: int
    tuning_tokens: int
    damage_tokens: int  # validation text behind the order of the layers
    eval_tokens: int  # test text
    contexts: tuple[int, ...]  # of the decoding times
    frontier_tokens: int  # one fine-tuning run
    batch_tokens: int  # behind one step of it
    documents: int  # test documents scored after it
    general_tokens: int  # sampled from the base model: replayed, and as much again to measure with
    wikitext_tokens: int
    trap_bytes: int  # text that a small model from scratch sees
    trap_eval_bytes: int
    trap_layers: int
    trap_width: int


@dataclass(frozen=True)
class Scenario:
    """Budgets of notebook 10."""

    methods: tuple[str, ...]  # fine-tuned on E2E with every seed
    e2e_tokens: int  # that one of these runs sees
    e2e_step: int  # tokens in one forward pass and behind one optimizer step
    e2e_validation: int  # documents behind a held-out evaluation: one before, one after
    e2e_inputs: int  # leading test inputs that every system writes for
    shots: tuple[int, ...]  # examples in the prompt
    shot_seeds: tuple[int, ...]  # draws of the examples
    archive_documents: dict[str, int]  # domain -> documents compressed
    archive_bytes: int  # of the longest of them
    batch: int  # documents coded side by side
    probe_tokens: int  # of each document, where the bits of two computations are compared


@dataclass(frozen=True)
class Performance:
    """Budgets of `python -m lib bench` and notebook 11 (lib.explore.bench). Random weights: speed does not depend on them."""

    runs: int  # of each measurement, the systems taking turns
    n_layer: int
    n_embd: int
    gpt2_tokens: bool  # GPT-2's 50,257 tokens; else the tests' 1,024
    train_tokens: int  # prompt + target tokens drawn for a training; longer than any run lasts
    seconds: float  # a training run ends with the step in which they are over, or the third
    patience: float  # seconds that the first run of a system may take until the held-out loss
    loss: float  # that held-out loss, nats per target token
    held_out: int  # documents behind it
    padded: int  # tokens that the tutorial pads every document to
    documents: int  # held-out documents scored, a share of them in each run
    continuations: int  # written, a share of them in each run
    new_tokens: int  # of each of them
    product_tokens: int  # rows of the matrix products behind the ceiling
    lengths: tuple[int, ...]  # tokens in a row, for the cost against context
    batches: tuple[int, ...]  # rows behind a step, for the cost against the batch
    sizes: tuple[int, ...]  # documents, for the cost against the data
    quality_tokens: int  # that a run behind the comparison with the plain fp32 loop sees
    moments: int  # at which a training and a write of results are killed
    rows: int  # fuzzed through the task loader; a tenth of them through the compressed files


@dataclass(frozen=True)
class Profile:
    """Everything that may differ between a test run, a laptop run and the report's run."""

    name: str
    seeds: tuple[int, ...]  # one fine-tuning run each
    methods: tuple[str, ...]  # names in lib.train.METHODS: trained with every seed and evaluated
    train_tokens: int  # prompt + target tokens that one fine-tuning run sees
    e2e_train_tokens: int  # the same for E2E, whose published rows saw the whole set five times
    pack_length: int  # tokens in one forward pass
    batch_tokens: int  # tokens behind one optimizer step
    evaluations: int  # held-out evaluations of a run, with a checkpoint each
    validation_documents: int  # behind each of them
    eval_documents: int  # test documents scored in bits per byte
    generate_documents: int  # test documents generated for; half of them sampled as well
    max_new_tokens: int
    wikitext_tokens: int  # leading tokens of WikiText-2's test text; 0: the whole of it
    lambada_documents: int  # leading passages; 0: all 5,153
    blimp_pairs: int  # pairs of each of the 67 paradigms
    scratch: Scratch
    chinese: Chinese
    private: Private
    innovation: Innovation
    scenario: Scenario
    performance: Performance


METHODS = ("full", "lora")
LENGTHS = (256, 512, 1_024, 2_048, 4_096, 8_192)
SCRATCH = {
    "fast": Scratch((0, 1), (0, 1), 1, 32, 12_000, 12_000, 12_000, 4_000, (300, 400), 32, (64, 128, 256), 2, 64),
    "cpu": Scratch(
        (0, 1), (0, 1), 4, 128, 150_000, 400_000, 400_000, 30_000, (512, 1_024, 4_096), 128, LENGTHS, 3, 512
    ),
    "full": Scratch(
        (0, 1, 2),
        (0, 1, 2, 3, 4),
        4,
        128,
        500_000,
        1_000_000,
        1_200_000,
        50_000,
        (512, 1_024, 2_048, 4_096, 8_192),
        128,
        LENGTHS,
        5,
        512,
    ),
}
CHINESE = {
    "fast": Chinese((0, 1), 4_000, 4_000, 3_000, 640, 2, 6, 40, 12, 8, 4, 1_024),
    "cpu": Chinese((0,), 20_000, 40_000, 10_000, 512, 2, 32, 2_000, 64, 32, 16, 2_048),
    "full": Chinese((0, 1, 2), 40_000, 150_000, 15_000, 512, 3, 64, 2_000, 100, 64, 32, 4_096),
}
# of requirements.txt: pure Python, documented by many hands
DOCUMENTED = ("accelerate", "datasets", "huggingface_hub", "matplotlib", "nltk", "peft", "sacrebleu")
PRIVATE = {
    "fast": Private(("datasketch", "sacrebleu", "tqdm"), 8_000, 640, 1, 2, 8, 8, 4, 12, 8),
    # short rows: what is remembered grows with the steps that a copy is part of, not with the tokens
    "cpu": Private(DOCUMENTED, 12_000, 256, 2, 3, 8, 40, 16, 32, 32),
    "full": Private(DOCUMENTED, 12_000, 256, 2, 3, 8, 40, 16, 32, 32),
}
INNOVATION = {
    "fast": Innovation((0, 1), 64, 640, 320, 128, 256, (64, 512), 2_600, 640, 6, 640, 512, 96_000, 3_000, 2, 32),
    "cpu": Innovation(
        (0,), 512, 4_096, 2_048, 512, 1_024, (512, 4_096), 4_096, 1_024, 16, 1_024, 2_048, 100_000, 20_000, 4, 128
    ),
    "full": Innovation(
        (0, 1, 2),
        512,
        8_192,
        3_072,
        768,
        2_048,
        (512, 2_048, 8_192),
        7_168,
        1_024,
        40,
        2_048,
        3_072,
        240_000,
        30_000,
        4,
        128,
    ),
}
SCENARIO = {
    "fast": Scenario(
        ("full", "lora"), 3_000, 640, 8, 6, (0, 1), (0, 1), {"debian": 6, "release_notes": 2, "tang": 3}, 700, 4, 6
    ),
    "cpu": Scenario(
        ("full",), 8_000, 512, 16, 24, (0, 3), (0,), {"debian": 12, "release_notes": 6, "tang": 12}, 700, 64, 8
    ),
    "full": Scenario(
        ("full",),
        16_000,
        512,
        16,
        64,
        (0, 1, 3),
        (0, 1, 2),
        {"debian": 16, "release_notes": 8, "tang": 12},
        700,
        64,
        16,
    ),
}
PERFORMANCE = {
    "fast": Performance(
        1,
        2,
        64,
        False,
        12_000,
        0.2,
        20.0,
        6.9,
        4,
        512,
        8,
        8,
        4,
        128,
        (64, 128, 256),
        (1, 2, 4),
        (50, 100, 200),
        4_000,
        2,
        200,
    ),
    "cpu": Performance(
        5,
        12,
        768,
        True,
        24_000,
        10.0,
        180.0,
        9.5,
        8,
        512,
        500,
        256,
        6,
        512,
        (128, 256, 512, 1_024),
        (1, 2, 4),
        (500, 1_000, 2_000, 4_000),
        8_192,
        20,
        10_000,
    ),
    "full": Performance(
        5,
        12,
        768,
        True,
        24_000,
        10.0,
        180.0,
        9.5,
        8,
        512,
        500,
        256,
        6,
        512,
        (128, 256, 512, 1_024),
        (1, 2, 4),
        (500, 1_000, 2_000, 4_000),
        8_192,
        20,
        10_000,
    ),
}
PROFILES = {
    "fast": Profile(
        "fast",
        (0, 1),
        METHODS,
        12_000,
        12_000,
        640,
        1_280,
        3,
        16,
        12,
        4,
        24,
        2_048,
        8,
        1,
        SCRATCH["fast"],
        CHINESE["fast"],
        PRIVATE["fast"],
        INNOVATION["fast"],
        SCENARIO["fast"],
        PERFORMANCE["fast"],
    ),
    "cpu": Profile(
        "cpu",
        (0,),
        METHODS,
        40_000,
        20_000,
        2_048,
        2_048,
        4,
        32,
        100,
        24,
        120,
        8_192,
        100,
        2,
        SCRATCH["cpu"],
        CHINESE["cpu"],
        PRIVATE["cpu"],
        INNOVATION["cpu"],
        SCENARIO["cpu"],
        PERFORMANCE["cpu"],
    ),
    "full": Profile(
        "full",
        (0, 1, 2),
        METHODS,
        80_000,
        320_000,
        2_048,
        2_048,
        6,
        64,
        200,
        64,
        160,
        16_384,
        300,
        10,
        SCRATCH["full"],
        CHINESE["full"],
        PRIVATE["full"],
        INNOVATION["full"],
        SCENARIO["full"],
        PERFORMANCE["full"],
    ),
}


def name() -> str:
    """`fast`, `cpu` or `full`: the environment's PROFILE, else `full` with a GPU or for stored results, else `cpu`.
    Raises ValueError for another name."""
    chosen = os.environ.get("PROFILE")
    if not chosen:
        return "full" if torch.cuda.is_available() or os.environ.get("RESULTS") == "stored" else "cpu"
    if chosen not in NAMES:
        raise ValueError(f"PROFILE={chosen!r} is unknown; choose one of {', '.join(NAMES)}.")
    return chosen


def seeds() -> tuple[int, ...]:
    """One training each, of whatever is compared."""
    return budget(seeds=((0, 1), (0,), (0, 1, 2))).seeds


def budget(**sizes: tuple) -> SimpleNamespace:
    """This profile's numbers of a notebook, each given as (fast, cpu, full)."""
    at = NAMES.index(name())
    return SimpleNamespace(**{key: triple[at] for key, triple in sizes.items()})


def current() -> Profile:
    """The profile of this process. Raises ValueError for a name that is not one of the three."""
    return PROFILES[name()]


def output_root() -> Path:
    """Where results, figures and trained weights go: the checkout, or for `fast` a temporary folder,
    so that a test run never touches what the report shows. `FAST_OUTPUT` names that folder.
    """
    if current().name != "fast":
        return ROOT
    default = Path(tempfile.gettempdir()) / f"gpt2-coursework-fast-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return Path(os.environ.get("FAST_OUTPUT") or default)


def kept_root() -> Path:
    """Where results, figures, executed notebooks and ratings go: on Colab a folder of Google Drive if that is mounted,
    since the disk goes with the session; else `output_root()`. Checkpoints never go to Drive: those that training
    deletes would fill its bin.
    """
    root = output_root()
    return DRIVE / "gpt2-coursework" if root == ROOT and DRIVE.is_dir() else root


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype() -> torch.dtype:
    """bfloat16 where the hardware computes in it, float16 on older GPUs (a T4), float32 otherwise.

    Compute capability 8.0 (Ampere) is the first with bf16 units; torch's own is_bf16_supported also
    counts emulation. A CPU without bf16 instructions runs bf16 slower than float32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def autocast() -> torch.autocast:
    """Autocast to `autocast_dtype()` on `device()`; a no-op for float32."""
    dtype = autocast_dtype()
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)
