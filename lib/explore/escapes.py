"""Between bytes and tokens without loss: what a tokenizer can't give back is cut out and kept beside."""

import re

from transformers import PreTrainedTokenizerBase

from lib.explore.container import Escapes

SURROGATES = re.compile("[\ud800-\udfff]")


def split(data: bytes, tokenizer: PreTrainedTokenizerBase) -> tuple[str, Escapes]:
    """The part of `data` that survives the tokenizer, and what must be stored beside it.

    Bytes that are no UTF-8, and characters that the tokenizer does not give back, are cut out of the text
    with their offsets; where it still comes back changed, all of it is stored.
    """
    # a byte that is no UTF-8 becomes a lone surrogate
    text = data.decode("utf-8", "surrogateescape")
    if not SURROGATES.search(text) and _survives(tokenizer, text):
        return text, []
    lost = [c for c in set(text) if SURROGATES.match(c) or not _survives(tokenizer, c)]
    pieces, escapes, offset = [], [], 0
    for piece in re.split(f"([{re.escape(''.join(lost))}]+)", text) if lost else [text]:
        if piece and piece[0] in lost:
            escapes.append((offset, piece.encode("utf-8", "surrogateescape")))
        else:
            pieces.append(piece)
            offset += len(piece.encode())
    kept = "".join(pieces)
    return (kept, escapes) if _survives(tokenizer, kept) else ("", [(0, data)])


def join(text: str, escapes: Escapes) -> bytes:
    """The inverse of `split`."""
    kept, parts, start = text.encode(), [], 0
    for offset, data in escapes:
        parts += [kept[start:offset], data]
        start = offset
    return b"".join([*parts, kept[start:]])


def _survives(tokenizer, text: str) -> bool:
    return to_text(tokenizer, to_ids(tokenizer, text)) == text


def to_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone; the name of a special token inside it is text."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(text, **options).input_ids if text else []


def to_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
