"""GPT-2's own tokenizer, from its 50,000 merges in data/gpt2_bpe (Radford et al. 2019)."""

from tokenizers import pre_tokenizers
from transformers import GPT2Tokenizer

from lib import models, profile


def merges() -> list[tuple[str, str]]:
    """Pairs in the order in which they were learned, a byte written as a letter as byte-level BPE does."""
    lines = (profile.DATA / "gpt2_bpe" / "merges.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ")) for line in lines[1:]]  # the first names the format


def tokenizer() -> GPT2Tokenizer:
    """Of transformers: 256 bytes, 50,000 merges and <|endoftext|>."""
    pairs = merges()
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs), models.END]
    return GPT2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=pairs, pad_token=models.END)
