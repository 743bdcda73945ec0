"""Token encodings behind one interface: bytes, characters, BPE, GPT-2's BPE, WordPiece and Unigram.

An encoding is one function and one line of ENCODINGS, made from texts by `train_encoding`; the `tokenizers` library
does the work. All but bytes and characters cut text into words by GPT-2's pattern first, so that they differ in the
algorithm alone. Every encoding has EOS as its last entry, which no text can produce.
BPE: Sennrich et al. 2016, 1508.07909; on bytes, with the pattern: Radford et al. 2019 (GPT-2); bytes: Xue et al. 2022
(ByT5), 2105.13626; WordPiece: Wu et al. 2016, 1609.08144; Unigram: Kudo 2018, 1804.10959 (SentencePiece, 1808.06226).
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib.explore import gpt2_bpe

UNK = "[UNK]"
MIN_COUNT = 2  # seen once is no pattern, and without rare characters training would never show UNK
ALPHABET_SHARE = 0.5  # of a vocabulary may be single characters; the rest is left for longer pieces
WORD_LIMIT = 200  # characters; longer words are cut: WordPiece would lose them, and its time is quadratic
BYTE_CHARACTERS = bytes_to_unicode()  # byte -> the letter byte-level BPE writes it as
CHARACTER_BYTES = {c: b for b, c in BYTE_CHARACTERS.items()}


class Encoding(NamedTuple):
    """Text to token ids and back. `pieces[i]` are id i's UTF-8 bytes: U+FFFD for UNK, nothing for EOS, the last."""

    pieces: tuple[bytes, ...]
    tokenizer: Tokenizer  # without special tokens: "<|endoftext|>" in a document is text
    unk_token_id: int | None  # None: every text survives the round trip

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table, EOS included."""
        return len(self.pieces)

    @property
    def eos_token_id(self) -> int:
        return len(self.pieces) - 1

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without EOS."""
        return self.tokenizer.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self.tokenizer.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`: EOS is dropped, UNK and bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")

    def lost(self, text: str) -> list[str]:
        """The stretches of `text` that became UNK, neighbours joined."""
        encoded, stretches = self.tokenizer.encode(text), []
        for token_id, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token_id == self.unk_token_id:
                if stretches and stretches[-1][1] == start:
                    start = stretches.pop()[0]
                stretches.append((start, end))
        return [text[start:end] for start, end in stretches]

    def unknown_bits(self, text: str) -> float:
        """Bits that spell out what UNK hides, so that an encoding cannot win by losing text: an escape code of 8 bits
        per UTF-8 byte and 8 for a stretch's end. It needs no model, so it is an upper bound of what they cost."""
        return float(sum(8 * (len(s.encode("utf-8")) + 1) for s in self.lost(text)))


def train_encoding(name: str, texts: Sequence[str], vocab_size: int | None = None) -> Encoding:
    """The encoding `name` of ENCODINGS, trained on `texts`; the same texts give the same encoding. `vocab_size` counts
    every entry, EOS and UNK included; OWN_SIZE take none. Raises ValueError for an unknown name, no text, or a
    vocab_size that does not fit the encoding or the texts."""
    if name not in ENCODINGS:
        raise ValueError(f"Encoding {name!r} is unknown: choose one of {', '.join(ENCODINGS)}.")
    if isinstance(texts, str) or (name not in ("bytes", "gpt2") and not any(texts)):
        raise ValueError(f"No text to train {name} on: pass a list of texts.")
    asked = f"{name} with vocab_size={vocab_size}"
    if (name in OWN_SIZE) != (vocab_size is None):
        way_out = "needs a vocab_size, such as 4096" if vocab_size is None else "has its own vocabulary: leave it out"
        raise ValueError(f"{asked}: it {way_out}.")
    encoding = ENCODINGS[name](list(texts), vocab_size)
    if vocab_size not in (None, encoding.vocab_size):
        found = f"{sum(len(t.encode()) for t in texts):,} bytes gave {encoding.vocab_size:,} entries"
        raise ValueError(f"{asked}: {found}. Choose a size that fits or train on more text.")
    return encoding


def characters(texts: list[str], vocab_size: None) -> Encoding:
    """Every character that was seen MIN_COUNT times."""
    vocabulary = {c: i for i, c in enumerate([UNK, *_alphabet(texts)])}
    return _encoding(models.WordLevel(vocabulary, unk_token=UNK), [pre_tokenizers.FixedLength(1)])


def bpe(texts: list[str], vocab_size: int) -> Encoding:
    """Byte-level BPE as in GPT-2."""
    settings = {"vocab_size": vocab_size - 1, "min_frequency": MIN_COUNT, "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=list(CHARACTER_BYTES), **settings)
    return _encoding(_tokenizer(models.BPE(), _BYTE_LEVEL, trainer, texts).model)


def gpt2(texts: list[str], vocab_size: None) -> Encoding:
    """GPT-2's own 50,257 tokens, not trained here."""
    merges = gpt2_bpe.merges()
    vocabulary = dict.fromkeys([*CHARACTER_BYTES, *map("".join, merges)])
    return _encoding(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges))


def wordpiece(texts: list[str], vocab_size: int) -> Encoding:
    """As in BERT, but with blanks and newlines as text, and an unknown character alone becomes UNK, not its word. The
    library picks pieces by BPE's counts, not by the papers' likelihood."""
    alphabet = _alphabet(texts, int(ALPHABET_SHARE * vocab_size / 2))  # a character takes two entries: "a" and "##a"
    split = [*_WORDS, pre_tokenizers.Split("#", "isolated")]  # alone, so that no word begins like a continuation
    # named here because the library numbers them by the order of a hash table, which breaks ties
    named = {"special_tokens": [UNK, *(f"##{c}" for c in alphabet if c != "#")], "initial_alphabet": alphabet}
    named |= {"vocab_size": vocab_size - 1, "min_frequency": MIN_COUNT, "show_progress": False}
    trainer = trainers.WordPieceTrainer(**named)
    trained = _tokenizer(models.WordPiece(unk_token=UNK), [*split, _rest(alphabet, "removed")], trainer, texts)
    model = models.WordPiece(trained.get_vocab(), unk_token=UNK, max_input_chars_per_word=WORD_LIMIT)
    return _encoding(model, [*split, _rest(alphabet, "isolated")], lambda t: t.removeprefix("##").encode())


def unigram(texts: list[str], vocab_size: int) -> Encoding:
    """SentencePiece's Unigram, its alphabet limited as by `character_coverage`."""
    alphabet = _alphabet(texts, int(ALPHABET_SHARE * vocab_size))
    named = {"unk_token": UNK, "special_tokens": [UNK], "initial_alphabet": alphabet}
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size - 1, show_progress=False, **named)
    # Each character once as a text of its own: else EM may drop one that stands in longer pieces alone, and
    # the library's pruning never ends when too many pieces have nothing to be split into.
    trained = _tokenizer(models.Unigram(), [*_WORDS, _rest(alphabet, "removed")], trainer, [*texts, *alphabet])
    learned = json.loads(trained.to_str())["model"]["vocab"]  # [piece, log-probability]
    # the sums behind the scores run in the order of a hash table and differ in the 14th digit
    scores = {piece: round(score, 6) for piece, score in learned if piece != UNK}
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return _encoding(models.Unigram([(UNK, 0.0), *ordered], unk_id=0), [*_WORDS, _rest(alphabet, "isolated")])


# bytes: no merges, the id is the byte
OWN_SIZE = {"bytes": lambda *_: _encoding(models.BPE(CHARACTER_BYTES, [])), "characters": characters, "gpt2": gpt2}
ENCODINGS = OWN_SIZE | {"bpe": bpe, "wordpiece": wordpiece, "unigram": unigram}  # (texts, vocab_size) -> Encoding
_GPT2_WORD = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
PATTERN = pre_tokenizers.Split(_GPT2_WORD, "isolated")
_WORDS = [PATTERN, pre_tokenizers.FixedLength(WORD_LIMIT)]
_BYTE_LEVEL = [pre_tokenizers.ByteLevel(add_prefix_space=False)]


def _alphabet(texts: list[str], limit: int | None = None) -> list[str]:
    """The characters seen MIN_COUNT times, at most `limit`, the most frequent first. Raises ValueError where they are
    less than half of the texts."""
    counts = Counter(c for text in texts for c in text)
    frequent = sorted((-n, c) for c, n in counts.items() if n >= MIN_COUNT)[:limit]
    if -2 * sum(n for n, _ in frequent) < counts.total():
        few = f"An alphabet of {len(frequent):,} of the text's {len(counts):,} characters"
        raise ValueError(f"{few} leaves more than half of it to {UNK}: raise vocab_size or train on more text.")
    return [c for _, c in frequent]


def _rest(alphabet: list[str], behaviour: str) -> pre_tokenizers.Split:
    """What `alphabet` lacks, cut out."""
    return pre_tokenizers.Split(Regex("[^" + "".join(f"\\x{{{ord(c):X}}}" for c in alphabet) + "]+"), behaviour)


def _tokenizer(model, split, trainer=None, texts: Sequence[str] = ()) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    if trainer:
        tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _encoding(model, split=None, piece: Callable[[str], bytes] = str.encode) -> Encoding:
    """Around a fresh tokenizer: a trainer registers UNK as a special token, and those are found inside text. Without a
    `split` byte-level, else UNK is id 0; `piece` gives the bytes of a token."""
    tokenizer = _tokenizer(model, split or _BYTE_LEVEL)
    vocabulary = tokenizer.get_vocab()
    piece = piece if split else lambda letters: bytes(CHARACTER_BYTES[c] for c in letters)
    pieces = [piece(token) for token in sorted(vocabulary, key=vocabulary.get)]
    if split:
        pieces[0] = "\ufffd".encode()
    return Encoding((*pieces, b""), tokenizer, 0 if split else None)
