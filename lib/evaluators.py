"""The project's metrics as `evaluate.Metric`s, found by name without the hub.

`evaluate.load("bleu")` downloads a script from the hub and runs it; that fails offline. These classes
have the same interface (`compute`, `add_batch`) and are thin: the counting is in lib.metrics,
lib.text_metrics, lib.explore.slots and lib.debian_checks. `compute("chrf", predictions=..., references=...)`.
"""

import math
from typing import ClassVar

import datasets
import evaluate

from lib import debian_checks, text_metrics
from lib.explore import slots


class Local(evaluate.Metric):
    """A metric that keeps its rows in memory and writes nothing, to the cache folder or elsewhere."""

    inputs: ClassVar = {"predictions": "string", "references": ["string"]}  # feature -> type, a list for many

    def __init__(self, **options):
        super().__init__(**{"keep_in_memory": True, **options})

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # evaluate would make a folder for cache files here

    def _info(self) -> evaluate.MetricInfo:
        features = {
            name: datasets.Sequence(datasets.Value(kind[0])) if isinstance(kind, list) else datasets.Value(kind)
            for name, kind in self.inputs.items()
        }
        text = (type(self).__doc__ or "").strip()
        return evaluate.MetricInfo(
            description=text, citation="", inputs_description=text, features=datasets.Features(features)
        )


class BitsPerByte(Local):
    """predictions: nats of each document; references: its UTF-8 bytes. Sum / (ln 2 * sum)."""

    inputs: ClassVar = {"predictions": "float64", "references": "int64"}

    def _compute(self, predictions, references):
        return {"bits_per_byte": math.fsum(predictions) / (math.log(2) * sum(references))}


class Bleu(Local):
    """Corpus BLEU-4, 0-100 (lib.text_metrics.bleu; options lowercase, tokenize)."""

    def _compute(self, predictions, references, **options):
        return {"bleu": text_metrics.bleu(predictions, references, **options)}


class Chrf(Local):
    """Corpus chrF2, 0-100 (lib.text_metrics.chrf)."""

    def _compute(self, predictions, references):
        return {"chrf": text_metrics.chrf(predictions, references)}


class RougeL(Local):
    """Mean ROUGE-L F1 of the best reference, 0-1 (lib.text_metrics.rouge_l)."""

    def _compute(self, predictions, references):
        return {"rouge_l": text_metrics.rouge_l(predictions, references)}


class Nist(Local):
    """NIST-5 as mteval-v13a counts it (lib.text_metrics.nist)."""

    def _compute(self, predictions, references, **options):
        return {"nist": text_metrics.nist(predictions, references, **options)}


class SlotErrors(Local):
    """predictions: texts; references: E2E meaning representations (lib.explore.slots.slot_errors)."""

    inputs: ClassVar = {"predictions": "string", "references": "string"}

    def _compute(self, predictions, references):
        return slots.slot_errors(references, predictions)


class DebianChecks(Local):
    """predictions: descriptions; references: their prompts (lib.debian_checks.debian_summary)."""

    inputs: ClassVar = {"predictions": "string", "references": "string"}

    def _compute(self, predictions, references):
        return debian_checks.debian_summary(references, predictions)


class Diversity(Local):
    """predictions alone: distinct-1/2, rep-4, self-BLEU, mean words (lib.text_metrics.diversity)."""

    inputs: ClassVar = {"predictions": "string"}

    def _compute(self, predictions):
        return text_metrics.diversity(predictions)


METRICS: dict[str, type[Local]] = {
    "bits_per_byte": BitsPerByte,
    "bleu": Bleu,
    "chrf": Chrf,
    "rouge_l": RougeL,
    "nist": Nist,
    "slot_errors": SlotErrors,
    "debian_checks": DebianChecks,
    "diversity": Diversity,
}


def compute(name: str, predictions: list, references: list | None = None, **options) -> dict[str, float]:
    """The metric `name` of METRICS. `references`: texts or lists of texts. Raises ValueError for an
    unknown name."""
    if name not in METRICS:
        raise ValueError(f"No metric {name!r}; there are {', '.join(METRICS)}.")
    given = {"predictions": list(predictions)}
    if references is not None:
        many = isinstance(METRICS[name].inputs.get("references"), list)
        given["references"] = [[r] if many and isinstance(r, str) else (list(r) if many else r) for r in references]
    return METRICS[name]().compute(**given, **options)
