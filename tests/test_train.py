import copy
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from conftest import plain_nats
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments

from lib import metrics, packing, profile, tasks, train

LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", "lib/accelerate_ddp.yaml")
QUICK = {"train_tokens": 5_200, "batch_tokens": 640, "evaluations": 2, "learning_rate": 3e-3, "quiet": True}
LONG = ["finetune", "--set", "train_tokens=40000", "--set", "batch_tokens=1300", "--set", "pack_length=650"]


def command(folder, launcher=("-m", "lib")):
    environment = {**os.environ, "PROFILE": "fast", "FAST_OUTPUT": str(folder), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, *launcher, *LONG], env=environment, cwd=profile.ROOT, **pipes)


def test_each_method_learns_and_leaves_the_base_alone(base, task):
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    trainable = {}
    for method in train.METHODS:
        run = train.finetune(base, task, method, **QUICK)
        curve = run.history["held_out_loss"].dropna()
        assert curve.iloc[-1] < curve.iloc[0] - 0.01, method
        assert run.summary["held_out_loss"] == pytest.approx(curve.min())
        trainable[method] = run.summary["trainable_parameters"]
        moved = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
        assert not run.model.training and not hasattr(run.model, "peft_config")
    assert method == "last_blocks" and moved
    assert all(k.startswith(("transformer.h.1.", "transformer.ln_f.")) for k in moved)
    assert trainable["full"] == base.parameters
    assert 0 < trainable["lora"] < trainable["full"] and 0 < trainable["last_blocks"] < trainable["full"]
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())


@pytest.mark.parametrize("case", ["full", "lora", "lora, new tokens"])
def test_a_finished_run_is_loaded_here_and_by_transformers_with_equal_logits(base, task, case, tmp_path, capsys):
    """New tokens as notebook 07 makes them; GPT-2's head is its embedding, so both ends must come back."""
    if "tokens" in case:
        base = pytest.importorskip("lib.explore.chinese").extend(base, "床前明月光", "pieces")
    options = {"train_tokens": 2_600, "evaluations": 1, "learning_rate": 3e-2}
    run = train.finetune(base, task, case.split(",")[0], quiet=True, **options)
    again = train.finetune(base, task, case.split(",")[0], **options)
    assert "finished before, loaded" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True))
    folder = run.path / "model"
    if case != "full":
        run.model.save_pretrained(folder := tmp_path)
        base.tokenizer.save_pretrained(folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids, others = (t("Package: 床前明月光\n", return_tensors="pt").input_ids for t in (tokenizer, base.tokenizer))
    with torch.no_grad():
        expected, found, before = (m(ids).logits for m in (run.model, model, base.model))
    assert torch.equal(ids, others) and not torch.allclose(expected, before, atol=1e-3), "nothing was learned"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_over_target_tokens(base, task):
    docs = tasks.encode(base.tokenizer, tasks.head(task["train"], 3), base.context)
    batch = train.collate([docs[:2], docs[2:]])
    labels = batch.pop("labels")
    with train.document_attention(base.model), torch.no_grad():
        loss = train.completion_loss(base.model(**batch), labels)
    nats = [x for doc in docs for x in plain_nats(base.model, doc.input_ids, doc.prompt_length)]
    assert docs[-1].input_ids[-1] == base.tokenizer.eos_token_id
    assert loss.item() == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert len(nats) == packing.flatten(docs)["labels"].numel() == (labels != -100).sum()


def test_parts_of_a_row_give_the_rows_loss_and_gradients(base, task, tmp_path):
    documents, found = tasks.encode(base.tokenizer, tasks.head(task["train"], 8), base.context), []
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    for length in (math.inf, 150):
        model = copy.deepcopy(base.model)
        for module in model.modules():
            module.p = 0.0  # of dropout
        trainer = train.CompletionTrainer(model=model, args=args, compute_loss_func=train.completion_loss)
        trainer.part_length, batch = length, train.collate([documents])
        targets = (batch["labels"] != -100).sum()
        with train.document_attention(model):
            loss = trainer.training_step(model, batch | {"documents": documents}, targets)
        found.append([loss, *(p.grad for p in model.parameters())])
    assert len(packing.pack(documents, 150)) > 2
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_parts_are_sized_by_the_memory_that_is_free(base, capsys):
    token, still = 120 * 64 * 2, 14 * base.parameters
    assert train.part_length(base.model, still + 1_000 * token, 1_000) == math.inf
    assert train.part_length(base.model, still + 999 * token, 1_000) == 999
    assert train.part_length(base.model, 10**6, 2_048) == 256, "and no less"
    assert "0.0 GB of memory are free: rows of 2,048 tokens are computed in parts of 256" in capsys.readouterr().out


def finished(folder, **how):
    """What a command prints to its end, and its run's summary."""
    process = command(folder, **how)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    (path,) = (folder / "data" / "runs").glob("*/run.json")
    return said, json.loads(path.read_text("utf-8"))["summary"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of one process."""
    return finished(tmp_path_factory.mktemp("whole"))


def test_kill_9_then_the_same_command_ends_at_the_same_loss(tmp_path, whole):
    process = command(killed := tmp_path)
    deadline = time.monotonic() + 120
    while not list(killed.glob("data/runs/*/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not list(killed.glob("data/runs/*/run.json")), "killed too late to show anything"
    again = finished(killed)
    assert ["goes on from checkpoint" in said for said, _ in (again, whole)] == [True, False]
    assert [again[1][key] == whole[1][key] for key in ("steps", "held_out_loss")] == [True, True]


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_an_early_stop_keeps_the_best_and_comes_at_the_same_step_after_an_interruption(base, task):
    few = task.replace(train=tasks.head(task["train"], 4), sha256="few")  # soon learned by heart
    options = QUICK | {"train_tokens": 24_000, "evaluations": 9, "learning_rate": 1e-2, "schedule": "constant"}
    whole = train.finetune(base, few, **options)
    steps = whole.history.dropna(subset="held_out_loss")["step"].tolist()
    assert whole.summary["best_step"] == steps[-4], "three evaluations without a better one"
    shutil.rmtree(whole.path)
    with pytest.raises(KeyboardInterrupt):
        train.finetune(base, few, callbacks=[Stop(steps[-2])], **options)
    again = train.finetune(base, few, **options)
    for key in ("steps", "best_step", "held_out_loss"):
        assert again.summary[key] == whole.summary[key], key
    found = metrics.bits_per_byte(metrics.score(again.model, base.tokenizer, few["validation"]))
    assert found == pytest.approx(whole.history["bits_per_byte"].min(), rel=1e-3)


def test_a_long_run_that_is_evaluated_once_goes_on_too(base, task, capsys):
    options = QUICK | {"train_tokens": 30_000, "evaluations": 1}
    with pytest.raises(KeyboardInterrupt):
        train.finetune(base, task, "lora", 5, callbacks=[Stop(43)], **options)
    assert train.finetune(base, task, "lora", 5, **options).summary["steps"] > 43
    assert "goes on from checkpoint 40 of" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="torch's Windows wheel has no libuv, which the launcher asks for")
def test_two_gloo_processes_reach_the_loss_of_one(tmp_path, whole):
    one, two = whole[1], finished(tmp_path, launcher=(*LAUNCH, "-m", "lib"))[1]
    assert (one["processes"], two["processes"]) == (1, 2) and one["steps"] == two["steps"]
    assert two["held_out_loss"] == pytest.approx(one["held_out_loss"], rel=0.01)


def test_bad_settings_are_one_sentence(base, task, monkeypatch):
    with pytest.raises(ValueError, match="'adapter' is unknown; choose one of full, lora, last_blocks"):
        train.finetune(base, task, "adapter")
    with pytest.raises(ValueError, match="lora_rank=0: give a number above 0"):
        train.finetune(base, task, "lora", lora_rank=0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        train.finetune(base, task, "full", seed=5)


def test_a_variant_is_another_run_and_a_change_needs_its_name(base, task):
    def backwards(documents, tokens, seed):
        return packing.draw(documents, tokens, seed)[::-1]

    with pytest.raises(ValueError, match="name the change in variant"):
        train.finetune(base, task, draw=backwards)
    options = QUICK | {"train_tokens": 2_600, "evaluations": 1}
    plain = train.finetune(base, task, **options)
    changed = train.finetune(base, task, variant="backwards", draw=backwards, **options)
    plainest = {"optimizer": lambda m, s: torch.optim.SGD(m.parameters(), s.learning_rate)}
    sgd = train.finetune(base, task, variant="sgd", **plainest, **options)
    assert len({run.path for run in (plain, changed, sgd)}) == 3
    others = [(base, task), (base, task.replace(sha256="of others")), (replace(base, revision="another"), task)]
    assert len({train.run_path(*other, train.settings_for("full", 0, task)) for other in others}) == 3
    losses = [run.summary["held_out_loss"] for run in (plain, changed, sgd)]
    assert losses[0] != losses[1] and losses[2] > losses[0] + 0.01, "SGD moves little at this rate"


def test_damaged_runs_say_what_to_delete(base, task, tmp_path):
    run = train.finetune(base, task, "lora", **QUICK)
    with pytest.raises(RuntimeError, match=r"was fine-tuned from tiny-random-gpt2, not from other"):
        train.load(replace(base, name="other"), run.path)
    copied = shutil.copytree(run.path, tmp_path / "copy")
    weights = copied / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is damaged .* delete the folder, run again"):
        train.load(base, copied)
    (copied / "run.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        train.load(base, copied)
    (copied / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        train.load(base, copied)


def test_a_run_that_lacks_only_its_record_gets_it(base, task, monkeypatch):
    options = QUICK | {"train_tokens": 2_600, "evaluations": 1, "learning_rate": 2e-3}
    with monkeypatch.context() as disk_full:
        disk_full.delattr(train, "write_json")
        with pytest.raises(NameError):
            train.finetune(base, task, **options)
    run = train.finetune(base, task, **options)
    assert run.summary["steps"] and run.summary["tokens_per_second"] is None, "no step was timed"


def test_a_half_written_checkpoint_is_dropped(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"glob'), (15, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state, "utf-8")
    assert train.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_second_process_on_one_run_is_told(base, task):
    path = train.run_path(base, task, train.settings_for("full", 6, task))
    path.mkdir(parents=True)
    with FileLock(path / ".lock"), pytest.raises(RuntimeError, match="is being trained by another process"):
        train.finetune(base, task, "full", seed=6)


def test_a_small_disk_is_told_early(base, task, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"needs 3,484 MB for checkpoints and has 1 MB: free some space"):
        train.finetune(replace(base, parameters=124_439_808), task, seed=9)
