"""A pretrained model's softmax attention turned into linear attention, layer by layer.

First the feature maps of all layers learn to give softmax attention's outputs (nothing else moves), then each layer
is converted alone to see what that costs, then more and more layers together, the harmless ones first, with a brief
fine-tuning of all parameters. Feature maps and measurements are kept in data/runs.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from lib import profile
from lib.explore.attention import attention_modules
from lib.explore.hybrid import FORMS, NAME, FeatureMaps, converted, new_maps
from lib.metrics import float32_logits, token_nats
from lib.results import write_json
from lib.tasks import Task

MATCHING_RATE = 1e-2  # LoLCATs' for its feature maps; one of its own per head, so large steps do no harm
TUNING_RATE = 1e-4  # lib.train's for all parameters


@dataclass(frozen=True)
class Conversion:
    """What decides the outcome of a conversion, beside base model and data. Amounts in tokens."""

    form: str  # a name in lib.explore.hybrid.FORMS
    seed: int
    length: int  # of a row: documents end to end, EOS between them
    matching_tokens: int
    tuning_tokens: int
    damage_tokens: int  # validation text behind the order of the layers
    eval_tokens: int  # test text
    matching_rate: float = MATCHING_RATE
    tuning_rate: float = TUNING_RATE


# --- text


@dataclass(frozen=True)
class Rows:
    """A stream of documents in rows (1, length + 1) that overlap by one token: each is predicted once."""

    ids: list[Tensor]
    n_bytes: int  # UTF-8 bytes of the documents; EOS has none


def rows(base, task: Task, split: str, tokens: int, length: int, seed: int | None = None) -> Rows:
    """Whole documents of a split until `tokens` tokens are reached, in `seed`'s order (None: the task's)."""
    examples = getattr(task, split)
    order = range(len(examples))
    if seed is not None:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    end = base.tokenizer.eos_token_id
    ids, n_bytes = [end], 0
    for i in order:
        text = examples[i].prompt + examples[i].target
        ids += base.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids.append(end)
        n_bytes += len(text.encode("utf-8"))
        if len(ids) > tokens:
            break
    else:
        raise ValueError(f"{task.name}'s {split} split holds {len(ids):,} tokens, not {tokens:,}: ask for fewer.")
    stream = torch.tensor(ids)
    starts = range(0, len(stream) - 1, length)
    return Rows([stream[s : s + length + 1][None].to(base.model.device) for s in starts], n_bytes)


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, text: Rows) -> float:
    """Sum of nats / ln 2 over all tokens of the stream, EOS included, per UTF-8 byte of its documents."""
    model.eval()
    nats = 0.0
    with float32_logits(model), profile.autocast():
        for row in text.ids:
            logits = model(row[:, :-1], use_cache=False).logits[0]
            nats += float(token_nats(logits, row[0, 1:]).double().sum())
    return nats / math.log(2) / text.n_bytes


# --- training


def _optimise(parameters, text: Rows, rate: float, loss_of: Callable[[Tensor], Tensor], desc: str) -> None:
    """One pass over `text`, a row a step: AdamW, a tenth of the steps warm-up, then a cosine to 0."""
    parameters = list(parameters)
    steps = len(text.ids)
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 10, 1), steps)
    half = profile.autocast_dtype() == torch.bfloat16  # float16 would need its loss scaled
    for row in tqdm(text.ids, desc=desc):
        with torch.autocast(row.device.type, torch.bfloat16, enabled=half):
            loss = loss_of(row)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def match(model: PreTrainedModel, text: Rows, form: str, rate: float, desc: str) -> dict[int, FeatureMaps]:
    """Feature maps of all layers, trained to give softmax attention's outputs on `text` (attention transfer:
    LoLCATs, section 3.2). The model's own weights stay and get no gradient.
    """
    maps = new_maps(model)
    needed = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    body, modules = model.base_model, attention_modules(model)

    def loss_of(row: Tensor) -> Tensor:
        body(row[:, :-1], use_cache=False)
        return torch.stack([m.matching_error for m in modules]).sum()

    try:
        with converted(model, maps, form, f"{NAME}_matching"):
            trained = [p for m in maps.values() for p in m.parameters()]
            _optimise(trained, text, rate, loss_of, desc)
    finally:
        for parameter, need in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    return maps


@torch.no_grad()
def matching_errors(model: PreTrainedModel, maps: dict[int, FeatureMaps], form: str, text: Rows) -> list[float]:
    """Per layer |hybrid - softmax|^2 / |softmax|^2 of the outputs, mean over the rows; 0: equal, 1: as bad as 0."""
    errors = []
    with converted(model, maps, form, f"{NAME}_matching"), profile.autocast():
        for row in text.ids:
            model.base_model(row[:, :-1], use_cache=False)
            errors.append(torch.stack([m.matching_error for m in attention_modules(model)]).cpu())
    return torch.stack(errors).mean(0).tolist()


def tune(
    model: PreTrainedModel, maps: dict[int, FeatureMaps], form: str, text: Rows, rate: float, desc: str
) -> tuple[PreTrainedModel, dict[int, FeatureMaps]]:
    """Brief fine-tuning with the layers in `maps` converted, all parameters and the maps moving, without dropout:
    copies of the model and of the maps. What was passed stays as it is.
    """
    model, maps = copy.deepcopy(model), copy.deepcopy(maps)

    def loss_of(row: Tensor) -> Tensor:
        logits = model(row[:, :-1], use_cache=False).logits[0]
        return torch.nn.functional.cross_entropy(logits.float(), row[0, 1:])

    with converted(model, maps, form):
        # inside, the maps are children of the attention modules: model.parameters() holds them
        _optimise(model.parameters(), text, rate, loss_of, desc)
    return model, maps


# --- the experiment


class Experiment:
    """The conversion of one base model under one `Conversion`; every step is kept in `path` once it is done."""

    def __init__(self, base, task: Task, settings: Conversion, ranking: "Experiment | None" = None) -> None:
        """`ranking`: the experiment whose damage orders the layers, so that another form converts the same ones."""
        self.base, self.task, self.settings = base, task, settings
        self.ranking = ranking or self
        identity = [
            asdict(settings),
            FORMS[settings.form],
            asdict(self.ranking.settings),
            task.sha256,
            base.name,
            base.revision,
            base.parameters,
        ]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
        name = f"convert-{task.name}-{settings.form}-seed{settings.seed}-{digest}"
        self.path = profile.output_root() / "data" / "runs" / name
        self.who = {"form": settings.form, "seed": settings.seed}
        self.layers = len(attention_modules(base.model))

    def _text(self, split: str, tokens: int, seed: int | None = None) -> Rows:
        return rows(self.base, self.task, split, tokens, self.settings.length, seed)

    def _kept(self, name: str, make: Callable[[], dict]) -> dict:
        """What `make` gave when it was first asked under this name."""
        path = self.path / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, run again.") from error

    def maps(self) -> dict[int, FeatureMaps]:
        """The matched feature maps; the window alone has nothing to match and keeps fresh ones."""
        s = self.settings
        if not FORMS[s.form]["far"]:
            return new_maps(self.base.model)
        path = self.path / "maps.safetensors"
        if not path.exists():
            text = self._text("train", s.matching_tokens, s.seed)
            desc = f"{s.form}, seed {s.seed}: matching"
            found = match(self.base.model, text, s.form, s.matching_rate, desc)
            self.path.mkdir(parents=True, exist_ok=True)
            tensors = {f"{i}.{k}": v.contiguous() for i, m in found.items() for k, v in m.state_dict().items()}
            save_file(tensors, str(path.with_suffix(".part")))
            os.replace(path.with_suffix(".part"), path)
        stored, found = load_file(path), new_maps(self.base.model)
        for i, m in found.items():
            m.load_state_dict({k: stored[f"{i}.{k}"] for k in m.state_dict()})
        return found

    def damage(self) -> pd.DataFrame:
        """Per layer, converted alone on validation text: form, seed, layer, matching_error before and after the
        matching, bits_per_byte, damage = that minus the unconverted model's.
        """
        return pd.DataFrame(self._kept("damage", self._damage)["rows"])

    def _damage(self) -> dict:
        s, model, maps = self.settings, self.base.model, self.maps()
        text = self._text("validation", s.damage_tokens)
        with converted(model, {}, s.form):  # softmax in float32, as the other layers have it below
            start = bits_per_byte(model, text)
        unmatched = matching_errors(model, new_maps(model), s.form, text)
        matched = matching_errors(model, maps, s.form, text)
        found = []
        for layer in tqdm(range(self.layers), desc=f"{s.form}, seed {s.seed}: one layer at a time"):
            with converted(model, {layer: maps[layer]}, s.form):
                value = bits_per_byte(model, text)
            found.append(
                {
                    **self.who,
                    "layer": layer,
                    "error_unmatched": unmatched[layer],
                    "matching_error": matched[layer],
                    "bits_per_byte": value,
                    "damage": value - start,
                }
            )
        return {"rows": found}

    def chosen(self, share: float, order: str = "least_damage") -> list[int]:
        """The layers to convert: the `share` that cost least alone, or with "most_damage" the others' opposite."""
        found = self.ranking.damage()
        ranked = found.sort_values("damage", ascending=order == "least_damage")["layer"]
        return sorted(ranked.tolist()[: round(share * self.layers)])

    def plan(self) -> list[dict]:
        """The rows that are measured, each as converted and fine-tuned: all shares of "linear+window", half and all of
        the others' layers ("linear" is fine-tuned as a whole alone). Share 0 is softmax for every form. Of
        "linear+window" also half of the layers in the opposite order, and the whole model without matching.
        """
        form = self.settings.form
        shares = (0.0, 0.25, 0.5, 0.75, 1.0) if form == "linear+window" else (0.5, 1.0)
        steps = [{"share": s, "stage": "converted"} for s in shares]
        tuned = (1.0,) if form == "linear" else shares
        steps += [{"share": s, "stage": "fine_tuned"} for s in tuned]
        if form == "linear+window":
            steps += [{"share": 0.5, "stage": "converted", "order": "most_damage"}]
            steps += [{"share": 1.0, "stage": s, "matched": False} for s in ("converted", "fine_tuned")]
        return steps

    def row(self, share: float, stage: str, order: str = "least_damage", matched: bool = True) -> dict:
        """One row of the results: bits_per_byte of test text at a share, stage "converted" or "fine_tuned"."""
        name = f"{share:g}-{stage}-{order}-{'matched' if matched else 'unmatched'}"
        return self._kept(name, lambda: self._row(share, stage, order, matched))

    def _row(self, share: float, stage: str, order: str, matched: bool) -> dict:
        s, model = self.settings, self.base.model
        layers = self.chosen(share, order)
        every = self.maps() if matched else new_maps(model)
        maps = {i: every[i] for i in layers}
        if stage == "fine_tuned":
            text = self._text("train", s.tuning_tokens, 1_000 + s.seed)  # another order than the matching's
            desc = f"{s.form}, {share:.0%}, seed {s.seed}: fine-tuning"
            model, maps = tune(model, maps, s.form, text, s.tuning_rate, desc)
        with converted(model, maps, s.form):
            value = bits_per_byte(model, self._text("test", s.eval_tokens))
        errors = self.ranking.damage().set_index("layer")["matching_error"]
        known = self.ranking is self and matched and layers  # the errors are of the ranking's maps
        learns = FORMS[s.form]["far"]  # the window alone has no maps to match
        return {
            **self.who,
            "share": share,
            "layers": len(layers),
            "order": order,
            "matched": matched,
            "stage": stage,
            "bits_per_byte": value,
            "matching_error": float(errors[layers].mean()) if known else math.nan,
            "matching_tokens": s.matching_tokens if matched and learns else 0,
            "tuning_tokens": s.tuning_tokens if stage == "fine_tuned" else 0,
        }
