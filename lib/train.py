"""Fine-tuning on transformers' Trainer: completion-only loss over packed documents.

`finetune` is idempotent: a run is named by a hash of all that decides its outcome but the number format. A finished
run is loaded, an interrupted one goes on from its last whole checkpoint, a new one starts."""

import contextlib
import copy
import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
import transformers
from filelock import FileLock, Timeout
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback

from lib import packing, profile, tasks
from lib.fast import fuse_activations, fuse_dropout, peak_memory, summed_cross_entropy, trim
from lib.hub import quiet as silenced
from lib.metrics import bits_per_byte, score_encoded
from lib.packing import Encoded, document_attention
from lib.results import device_name, git_commit, listed, write_json

warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks by an old name

GPU = profile.device().type == "cuda"
# of notebooks 02, 03 and 09 and `python -m lib finetune`; each number as (fast, cpu, full)
BUDGET = {
    "seeds": ((0, 1), (0,), (0, 1, 2)),
    "methods": (("full", "lora"), ("full", "lora"), ("full", "lora")),  # with every seed; the others once
    "train_tokens": (12_000, 40_000, 80_000),  # prompt + target tokens that one run sees
    "pass_tokens": (16_000, 0, 2_000_000),  # of one long run; at most what the training split holds
    "pass_seeds": ((1,), (), (1, 2)),  # of further ones, of each method; in 09 of full fine-tuning's
    "pack_length": (640, 2_048, 2_048),  # tokens in one forward pass
    "batch_tokens": (1_280, 2_048, 2_048),  # tokens behind one optimizer step
    "evaluations": (3, 4, 6),  # held-out evaluations of a run, with a checkpoint each
    "validation_documents": (16, 32, 64),  # behind each of them
    # E2E NLG's own: a GPU sees all 2.37 M tokens five times, as the published rows did; two cores would take ten hours
    "e2e_methods": (("full",), ("full",), ("full", "lora") if GPU else ("full",)),
    "e2e_train_tokens": (12_000, 20_000, 11_850_000 if GPU else 320_000),
    "e2e_pack_length": (640, 2_048, 8_192 if GPU else 2_048),
    "e2e_batch_tokens": (1_280, 2_048, 16_384 if GPU else 2_048),
}


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, beside the base model and the data."""

    method: str
    seed: int
    train_tokens: int  # no document twice before all were drawn; this and the next four are BUDGET's
    pack_length: int
    batch_tokens: int
    evaluations: int
    validation_documents: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_share: float = 0.06  # of the steps; the rest follows `schedule` to 0
    max_grad_norm: float = 1.0
    patience: int = 3  # evaluations without a better held-out loss before the run stops
    gradient_checkpointing: bool = False
    lora_rank: int = 16
    schedule: str = "cosine"  # or another of transformers' SchedulerType


# --- methods: model, settings -> model whose trainable parameters are the ones to train
def with_lora(model: nn.Module, settings: Settings) -> nn.Module:
    """Low-rank updates, alpha twice the rank (Hu et al. 2021, arXiv:2106.09685), of every linear map and not of query
    and value alone: needed to match full fine-tuning (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, figure 2)."""
    transposed = model.config.model_type == "gpt2"  # GPT-2's Conv1D stores (in, out)
    shape = {"r": settings.lora_rank, "lora_alpha": 2 * settings.lora_rank, "fan_in_fan_out": transposed}
    return get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **shape))


def only_last_blocks(model: nn.Module, settings: Settings) -> nn.Module:
    """The last quarter of the transformer blocks and the final norm; embeddings and head stay."""
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    norm = model.base_model.ln_f if hasattr(model.base_model, "ln_f") else model.base_model.norm
    model.requires_grad_(False)
    for part in (*blocks[-math.ceil(len(blocks) / 4) :], norm):
        part.requires_grad_(True)
    return model


METHODS = {"full": lambda model, settings: model, "lora": with_lora, "last_blocks": only_last_blocks}
# by method, or by task and method; notebook 02's grids say whether others do better on the validation split
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3, "last_blocks": 2e-4, "e2e full": 3e-4, "e2e lora": 2e-3}


def collate(batch: Sequence[Sequence[Encoded]]) -> dict[str, torch.Tensor]:
    """Packed rows to one packed batch, labels (1, T) with -100 off target, as Trainer counts them."""
    inputs = packing.flatten([document for row in batch for document in row])
    del inputs["document"]
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, inputs["logits_to_keep"] + 1] = inputs["labels"][0]
    return inputs | {"labels": labels}


def completion_loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Cross-entropy in nats per target token, float32; logits (1, N, V) of the N targets alone."""
    targets = labels[labels != -100]  # (N,)
    # squeeze and not [0]: indexing's backward would zero and fill a second tensor of the logits' size
    total = summed_cross_entropy(outputs.logits.squeeze(0), targets)
    return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


class CompletionTrainer(Trainer):
    """Trainer whose evaluation is the project's one metric: `score_encoded` on the held-out documents."""

    part_length = math.inf  # tokens of a packed row that go through the model together

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A row in parts of whole documents: their gradients add up to the row's, since the loss is a sum over targets
        by the number of those behind the optimizer step."""
        documents = inputs.pop("documents")
        total, step = 0.0, super().training_step
        for part in packing.pack(documents, self.part_length):
            total += step(model, collate([[documents[i] for i in part]]), num_items_in_batch)
            if self.part_length < math.inf:
                trim()  # what one part has freed does not stand beside the next
        return total

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        trim()  # of the gradients
        scores = score_encoded(self.model, self.eval_dataset, desc="held-out")
        loss = scores["nats"].sum() / scores["tokens"].sum()
        metrics = {"eval_loss": loss, "eval_bits_per_byte": bits_per_byte(scores)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def part_length(model: nn.Module, free: int, pack_length: int) -> float:
    """Tokens that go through `model` together where `free` bytes of memory are left, 256 at least; infinity, so that no
    row is parted, where they are enough for `pack_length`. A line says so."""
    token = 120 * model.config.hidden_size * model.config.num_hidden_layers  # 25 to 30 float32 numbers each, measured
    # still to come: all weights in bfloat16, gradients and AdamW's two moments of those that move
    still = sum(p.numel() * (2 + 12 * p.requires_grad) for p in model.parameters())
    room = max((free - still) // token, 256)
    if room >= pack_length:
        return math.inf
    parts = f"rows of {pack_length:,} tokens are computed in parts of {room:,}"
    print(f"{free / 1e9:.1f} GB of memory are free: {parts}.", flush=True)
    return room


class StepClock(TrainerCallback):
    """Seconds spent in optimizer steps, evaluations and checkpoints left out."""

    seconds, steps = 0.0, 0

    def on_step_begin(self, args, state, control, **_):
        self._begin = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if profile.device().type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._begin
        self.steps += 1


def history_of(log: Sequence[dict], tokens_per_step: float) -> pd.DataFrame:
    """Trainer's log as one row per logged step: step, tokens, train_loss, held_out_loss, bits_per_byte."""
    names = {"loss": "train_loss", "eval_loss": "held_out_loss", "eval_bits_per_byte": "bits_per_byte"}
    frame = pd.DataFrame(log).drop(columns="train_loss", errors="ignore")  # Trainer's own mean over the run
    frame = frame.rename(columns=names).groupby("step", as_index=False).last()
    frame["tokens"] = (frame["step"] * tokens_per_step).round().astype(int)
    return frame.reindex(columns=["step", "tokens", *names.values()])


@dataclass
class Finetuned:
    """A finished run: `model` holds the weights of the best held-out loss, LoRA merged, in eval mode."""

    model: nn.Module
    summary: dict  # flat: method, seed, learning_rate, parameters, tokens, seconds, peak_megabytes, ...
    history: pd.DataFrame  # step, tokens, train_loss (nats per target token), held_out_loss, bits_per_byte
    path: Path


def settings_for(method: str, seed: int, task: tasks.Task, **overrides) -> Settings:
    """The profile's settings for a run. Raises ValueError for an unknown method or setting, and one out of range."""
    if method not in METHODS:
        raise ValueError(f"Method {method!r} is unknown; choose one of {', '.join(METHODS)}.")
    known, budget = Settings.__dataclass_fields__, vars(profile.budget(**BUDGET))
    if unknown := set(overrides) - set(known):
        raise ValueError(f"Setting {min(unknown)!r} is unknown; known: {', '.join(known)}.")
    chosen = {name: number for name, number in budget.items() if name in known}
    if task.name == "e2e":
        chosen |= {name: number for name in known if (number := budget.get(f"e2e_{name}"))}
    rate = LEARNING_RATES.get(f"{task.name} {method}", LEARNING_RATES[method])
    chosen = {"method": method, "seed": seed, "learning_rate": rate} | chosen | overrides
    for name, x in chosen.items():
        zero = name in ("seed", "weight_decay", "warmup_share", "max_grad_norm", "gradient_checkpointing")
        if name not in ("method", "schedule") and not (0 < x < math.inf or (x == 0 and zero)):
            raise ValueError(f"{name}={x}: give a number {'from 0 on' if zero else 'above 0'}.")
    return Settings(**chosen)


def run_path(base, task: tasks.Task, settings: Settings, variant: str = "") -> Path:
    """data/runs/<task>-<method>-<variant>-seed<seed>-<hash>: another model, dataset or setting is another folder."""
    chosen = asdict(settings) | ({"variant": variant} if variant else {})
    identity = [chosen, task.sha256, base.name, base.revision, base.parameters]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    named = re.sub(r"\W+", "-", f"{task.name} {settings.method} {variant}".strip())
    return profile.output_root() / "data" / "runs" / f"{named}-seed{settings.seed}-{digest}"


def finetune(
    base, task, method="full", seed=0, *, variant="", draw=None, optimizer=None, callbacks=(), quiet=False, **overrides
) -> Finetuned:
    """Fine-tune a copy of `base` (lib.models.Base; itself left untouched) on `task` (lib.tasks.Task).

    The loss is that of the target's tokens, EOS included, given the prompt; documents are packed without attention
    across them. `overrides` replace fields of Settings. `draw(documents, tokens, seed)` puts other documents into the
    run, `optimizer(model, settings)` builds another than fused AdamW, `callbacks` are transformers';
    `variant` names what these change (all that decides the outcome belongs in it), and is another run. Raises
    ValueError for an unknown method or setting or a change without a name, OSError for a folder that can't be written
    or a disk too small, RuntimeError while another process trains."""
    settings = settings_for(method, seed, task, **overrides)
    if (draw or optimizer) and not variant:
        raise ValueError("Another draw or optimizer is another run: name the change in variant.")
    path = run_path(base, task, settings, variant)
    if not (path / "run.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        # two checkpoints (weights and AdamW's two moments in float32) and the finished weights
        needed, free = 7 * 4 * base.parameters, shutil.disk_usage(path).free
        if free < needed:
            why = f"{path} needs {needed / 1e6:,.0f} MB for checkpoints and has {free / 1e6:,.0f} MB: free some space"
            raise OSError(errno.ENOSPC, why)
        first = os.environ.get("RANK", "0") == "0"
        try:
            with FileLock(path / ".lock", timeout=0) if first else contextlib.nullcontext():
                _train(base, task, settings, path, draw or packing.draw, optimizer, callbacks, quiet)
        except Timeout:
            raise RuntimeError(f"{path} is being trained by another process: wait, or stop it and run again.") from None
    elif not quiet:
        print(f"Run {path.name}: finished before, loaded.")
    return load(base, path)


def _train(base, task, settings: Settings, path: Path, draw, optimizer, callbacks, quiet: bool) -> None:
    transformers.set_seed(settings.seed)
    model = METHODS[settings.method](fuse_dropout(copy.deepcopy(base.model)), settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    held_out = tasks.head(task["validation"], settings.validation_documents)
    documents, held_out = (tasks.encode(base.tokenizer, part, base.context) for part in (task["train"], held_out))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    pack_length = max(settings.pack_length, max(len(d.input_ids) for d in documents))
    rows_per_step = max(settings.batch_tokens // pack_length, 1)
    if rows_per_step % world:
        raise ValueError(f"{rows_per_step} rows a step cannot be shared by {world} processes: set batch_tokens higher.")
    data = packing.rows(draw(documents, settings.train_tokens, settings.seed), pack_length, rows_per_step)
    steps = max(len(data) // rows_per_step, 1)
    interval, dtype, device = max(steps // settings.evaluations, 1), profile.autocast_dtype(), profile.device().type
    once = settings.evaluations == 1  # there is no best to keep, but an hour's run must not be lost with its process
    start = last_checkpoint(path / "checkpoints")
    args = transformers.TrainingArguments(
        output_dir=str(path / "checkpoints"),
        num_train_epochs=1,  # the data already hold every epoch; Trainer shuffles their rows
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows_per_step // world,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=max(round(settings.warmup_share * steps), 1),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,  # Trainer scales the loss: float16 gradients underflow unscaled
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        eval_strategy="steps",
        eval_steps=interval,
        eval_on_start=not start,  # again it would count against the patience,
        restore_callback_states_from_checkpoint=True,  # which goes on where it was
        save_steps=max(steps // 10, 40) if once else interval,
        save_total_limit=1,  # and the best one, which load_best_model_at_end keeps
        load_best_model_at_end=not once,
        metric_for_best_model="eval_loss",
        logging_steps=max(steps // 40, 1),
        seed=settings.seed,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=quiet,
    )
    clock, commit = StepClock(), git_commit()
    trainer = CompletionTrainer(
        model=model,
        args=args,
        data_collator=lambda batch: collate(batch) | {"documents": [document for row in batch for document in row]},
        train_dataset=data,
        eval_dataset=held_out,
        compute_loss_func=completion_loss,
        optimizers=(optimizer(model, settings) if optimizer else None, None),
        callbacks=[clock, *([] if once else [EarlyStoppingCallback(settings.patience)]), *callbacks],
    )
    if device == "cpu" and world == 1:
        trainer.part_length = part_length(model, psutil.virtual_memory().available, pack_length)
    if start and args.should_save:
        print(f"Run {path.name} goes on from {Path(start).name.replace('-', ' ')} of {steps} steps.", flush=True)
    trainer.remove_callback(PrinterCallback)  # what `quiet` puts in place of the progress bar
    transformers.logging.disable_progress_bar()  # a bar per checkpoint would hide the training's own
    with document_attention(model), silenced(bars=True), peak_memory() as peak:
        trainer.train(resume_from_checkpoint=start)
    if args.should_save:
        tokens = sum(len(d.input_ids) for row in data for d in row)
        targets = sum(len(d.input_ids) - d.prompt_length for row in data for d in row)
        done = trainer.state.global_step / steps  # less than 1 after an early stop
        rate = tokens / steps * clock.steps / clock.seconds if clock.steps else math.nan  # all was done before
        summary = asdict(settings) | {"task": task.name, "base_model": base.name, "base_parameters": base.parameters}
        summary["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        summary |= {"git_commit": commit, "steps": trainer.state.global_step, "tokens": round(tokens * done)}
        # of training steps alone; the clock knows those since the last resumption, the rate holds for all
        summary |= {"target_tokens": round(targets * done), "tokens_per_second": rate, "seconds": tokens * done / rate}
        summary |= {"peak_megabytes": peak(), "processes": world, "device": device_name()}
        summary |= {"best_step": trainer.state.best_global_step, "held_out_loss": trainer.state.best_metric}
        with silenced():
            model.save_pretrained(path / "model")
            base.tokenizer.save_pretrained(path / "model")
        history = history_of(trainer.state.log_history, tokens / steps).to_dict("records")
        write_json(path / "run.json", {"summary": summary, "history": history})  # the mark of a finished run
        profile.remove(path / "checkpoints", needed=False)
    trainer.accelerator.wait_for_everyone()  # the other processes load what the first has written


def load(base, path: Path) -> Finetuned:
    """A finished run. FileNotFoundError for none, RuntimeError for another base model's, ValueError for damage."""
    if not (path / "run.json").exists():
        there = listed(sorted(p.parent.name for p in path.parent.glob("*/run.json")))
        raise FileNotFoundError(f"{path} holds no finished run: run notebook 02 first. Finished: {there}.")
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        trained_from = record["summary"]["base_model"]
        if (trained_from, record["summary"]["base_parameters"]) != (base.name, base.parameters):
            why = f"{path} was fine-tuned from {trained_from}, not from {base.name}: set BASE_MODEL or train again."
            raise RuntimeError(why)
        with silenced():
            if (path / "model" / "adapter_config.json").exists():
                model = PeftModel.from_pretrained(copy.deepcopy(base.model), path / "model").merge_and_unload()
            else:
                local = {"use_safetensors": True, "local_files_only": True}
                model = transformers.AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32, **local)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder, run again.") from error
    model = fuse_activations(model.to(profile.device()).eval())
    model.generation_config = copy.deepcopy(base.model.generation_config)
    return Finetuned(model, record["summary"], pd.DataFrame(record["history"]), path)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint (Trainer writes trainer_state.json last); what a kill left half-written goes."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda c: -int(c.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            return str(checkpoint)
        except (OSError, ValueError):
            profile.remove(checkpoint, needed=False)
    return None
