"""Text from a model in batches.

Decoding is transformers' own; here is what goes wrong around it: batches of unequal prompts, stopping, seeds, number
formats. Sources of the settings: nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751; beam search with length
normalisation, Wu et al. 2016, arXiv:1609.08144 (transformers divides by length^a, they by ((5 + length) / 6)^a)."""

import sys
from contextlib import redirect_stdout
from unittest import mock

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib import profile, train
from lib.metrics import float32_logits
from lib.models import load_base

DECODING = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0},
    "beam": {"do_sample": False, "num_beams": 4, "length_penalty": 1.0},
}
OTHERS = "all other tokens"  # a row of a table of next tokens


def generate(
    model, tokenizer, prompts, max_new_tokens=160, batch_size=32, seed=0, desc="Generating", processors=(), **decoding
) -> list[str]:
    """The continuation of each prompt, in the order given: the new tokens before EOS, decoded as they are.

    An empty prompt starts from EOS. `decoding` is one of `DECODING` or any setting of transformers' GenerationConfig;
    the default is greedy, and a setting not named is off, whatever the model's own generation_config says. `processors`
    make transformers' LogitsProcessors of the width of a batch's prompts. Prompts are batched by length, `batch_size`
    sequences (prompts x beams) at a time; under sampling the same seed, prompts and batch_size give the same texts, and
    torch's global random state is untouched. Raises ValueError for a prompt that leaves no room for `max_new_tokens` in
    the context, and for a setting that is unknown or would have no effect."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: pass a list of prompts.")
    config = {"do_sample": False, **decoding}  # transformers would ignore a wrong setting or only warn
    if unknown := [k for k in config if not hasattr(GenerationConfig(), k)]:
        raise ValueError(f"Unknown decoding setting {unknown}: see transformers' GenerationConfig.")
    if config["do_sample"]:
        config.setdefault("top_k", 0)  # transformers' default of 50 would truncate unasked
    elif idle := {"temperature", "top_k", "top_p", "min_p", "typical_p"} & set(config):
        raise ValueError(f"{sorted(idle)} has no effect on greedy or beam search: add do_sample=True.")
    context = model.config.max_position_embeddings
    # as lib.tasks.encode: a chat template writes special tokens' names
    options = {"add_special_tokens": False, "split_special_tokens": not tokenizer.chat_template, "verbose": False}
    ids = [tokenizer(p, **options).input_ids or [tokenizer.eos_token_id] for p in prompts]
    for i, row in enumerate(ids):
        if len(row) + max_new_tokens > context:
            long = f"Prompt {i} ({prompts[i][:40]!r}...) is {len(row)} tokens long: with {max_new_tokens} new ones"
            raise ValueError(f"{long} it exceeds the context of {context}. Shorten it or lower max_new_tokens.")
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # the slowest first: an honest bar
    rows = max(1, batch_size // config.get("num_beams", 1))
    device = next(model.parameters()).device
    texts = [""] * len(ids)
    own = torch.random.fork_rng([device] if device.type == "cuda" else [])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    alone = GenerationConfig(max_new_tokens=max_new_tokens, use_cache=True, **ends, **config)
    bar = tqdm(total=len(ids), desc=desc, unit="text", disable=len(ids) < 2)
    with own, bar, mock.patch.object(model, "generation_config", alone), float32_logits(model), profile.autocast():
        torch.manual_seed(seed)
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            # Padding stands on the left, where the next token never is; transformers counts positions from the mask.
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
            width = padded["input_ids"].shape[1]
            out = model.generate(**padded.to(device), logits_processor=[make(width) for make in processors])
            for i, new in zip(batch, out[:, width:].tolist(), strict=True):
                # EOS, and the padding that transformers appends after it, are special tokens.
                texts[i] = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            bar.update(len(batch))
    return texts


def write(prompt: str, run: str | None, samples: int, tokens: int, seed: int) -> None:
    """Print what the base model, or `run` (a folder in data/runs), writes after `prompt`, in which \\n begins a line:
    the greedy text, or `samples` drawn ones, of at most `tokens` tokens. Nothing else goes to stdout."""
    with redirect_stdout(sys.stderr):
        base = load_base()
        model = train.load(base, profile.output_root() / "data" / "runs" / run).model if run else base.model
    prompts, decoding = [prompt.replace("\\n", "\n")] * max(samples, 1), DECODING["sample" if samples else "greedy"]
    print(*generate(model, base.tokenizer, prompts, tokens, seed=seed, **decoding), sep="\n---\n")


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """One token as a reader can see it: its text, or the bytes of a broken character as <E6 98>, as which two thirds of
    GPT-2's Chinese tokens would else print as U+FFFD."""
    if "\ufffd" not in (text := tokenizer.decode([token_id])):
        return text
    values = {c: b for b, c in bytes_to_unicode().items()}  # byte-level BPE writes a byte as a letter
    token = tokenizer.convert_ids_to_tokens(token_id)
    return f"<{bytes(values[c] for c in token).hex(' ').upper()}>" if set(token) <= values.keys() else token
