"""Token encodings behind one interface: bytes, characters, BPE, GPT-2's BPE, WordPiece and Unigram.

`train_encoding` makes any of them from texts; the `tokenizers` library does the work. All but bytes and
characters cut text into words by GPT-2's pattern first, so that they differ in the algorithm alone. Every
encoding has EOS as its last entry, which no text can produce. Below them BPE is written out step by step
(`bpe_train`, `bpe_encode`), with the same merges and the same tokens as the library.

BPE: Sennrich et al. 2016, arXiv:1508.07909; on bytes, with the pattern: Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners"; bytes: Xue et al. 2022 (ByT5), arXiv:2105.13626; WordPiece:
Schuster & Nakajima 2012, Wu et al. 2016, arXiv:1609.08144; Unigram: Kudo 2018, arXiv:1804.10959;
SentencePiece: Kudo & Richardson 2018, arXiv:1808.06226.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lib.profile import DATA

EOS, UNK = "<|endoftext|>", "[UNK]"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
GPT2_MERGES = DATA / "gpt2_bpe" / "merges.txt"
GPT2_SIZE = 50_257  # 256 bytes, 50,000 merges, EOS
MIN_COUNT = 2  # seen once is no pattern, and without rare characters training would never show UNK
ALPHABET_SHARE = 0.5  # of a vocabulary may be single characters; the rest is left for longer pieces
MIN_COVERAGE = 0.5  # an alphabet that loses more of its own training text is no encoding of it
WORD_LIMIT = 200  # characters; longer words are cut: WordPiece would lose them, and its time is quadratic
SCORE_DIGITS = 6  # Unigram's sums run in the order of a hash table and differ in the 14th
CHUNK = 256  # documents per library call: its results cost 100 bytes a token until they are dropped

BYTE_CHARACTERS = bytes_to_unicode()  # byte -> the letter byte-level BPE writes it as
CHARACTER_BYTES = {c: b for b, c in BYTE_CHARACTERS.items()}


@dataclass(frozen=True)
class Encoding:
    """One encoding: text to token ids and back.

    `pieces[i]` are the UTF-8 bytes that id i stands for: U+FFFD for UNK, nothing for EOS, the last id.
    """

    name: str
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
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without EOS."""
        starts = range(0, len(texts), CHUNK)
        chunks = (self.tokenizer.encode_batch_fast(texts[i : i + CHUNK]) for i in starts)
        return [encoded.ids for chunk in chunks for encoded in chunk]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`: EOS is dropped, UNK and bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")

    def tokens(self, text: str) -> list[str]:
        """The pieces of `text` as a reader can see them; a part of a character as <E6 98>."""
        ids = self.encode(text)
        return [UNK if i == self.unk_token_id else piece_text(self.pieces[i]) for i in ids]

    def lost(self, text: str) -> list[str]:
        """The stretches of `text` that became UNK, neighbours joined."""
        encoded = self.tokenizer.encode(text)
        stretches: list[tuple[int, int]] = []
        for token_id, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token_id != self.unk_token_id:
                continue
            if stretches and stretches[-1][1] == start:
                start = stretches.pop()[0]
            stretches.append((start, end))
        return [text[start:end] for start, end in stretches]

    def unknown_bits(self, text: str) -> float:
        """Bits that spell out what UNK hides, so that an encoding cannot win by losing text.

        An escape code behind the UNKs of a stretch: 8 bits per UTF-8 byte and 8 for its end (a byte that
        UTF-8 never uses). It needs no model, so it is an upper bound of what the stretches cost.
        """
        return float(sum(8 * (len(s.encode("utf-8")) + 1) for s in self.lost(text)))

    def lossless(self, texts: Sequence[str]) -> float:
        """Share of `texts` that decode(encode(text)) gives back as they were."""
        if not texts:
            raise ValueError("No text to measure the encoding on.")
        decoded = map(self.decode, self.encode_batch(texts))
        return sum(d == t for d, t in zip(decoded, texts, strict=True)) / len(texts)


def is_text(piece: bytes) -> bool:
    """Whether a piece is valid UTF-8 alone."""
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def piece_text(piece: bytes) -> str:
    """A piece as text, or, where it is not valid UTF-8 alone, its bytes as <E6 98>."""
    return piece.decode("utf-8") if is_text(piece) else f"<{piece.hex(' ').upper()}>"


def train_encoding(name: str, texts: Sequence[str], vocab_size: int | None = None) -> Encoding:
    """The encoding `name` of ENCODINGS, trained on `texts`; the same texts give the same encoding.

    `vocab_size` counts every entry, EOS and UNK included. `bytes` and `gpt2` are not trained and have
    theirs; for `characters` it is an upper limit, by frequency; the others reach it or raise.
    Raises ValueError for an unknown name, no text, a vocab_size that is missing, too small for the
    alphabet, or larger than the texts can fill; FileNotFoundError for `gpt2` without its merges.
    """
    if name not in ENCODINGS:
        raise ValueError(f"Encoding {name!r} is unknown: choose one of {', '.join(ENCODINGS)}.")
    if isinstance(texts, str):
        raise ValueError("texts is one string: pass a list of texts.")
    texts = list(texts)
    if name not in UNTRAINED and not any(texts):
        raise ValueError(f"No text to train {name} on: texts is empty or holds empty strings only.")
    if name in NEED_SIZE and vocab_size is None:
        raise ValueError(f"{name} needs a vocab_size, such as 4096.")
    return ENCODINGS[name](texts, vocab_size)


def _bytes(texts: list[str], vocab_size: int | None) -> Encoding:
    return _byte_level("bytes", models.BPE(CHARACTER_BYTES, []))  # no merges: the id is the byte


def _characters(texts: list[str], vocab_size: int | None) -> Encoding:
    limit = None if vocab_size is None else vocab_size - 2  # UNK and EOS
    alphabet = _alphabet("characters", texts, vocab_size, limit)
    vocabulary = {c: i for i, c in enumerate([UNK, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(1)
    return _on_characters("characters", tokenizer)


def _bpe(texts: list[str], vocab_size: int) -> Encoding:
    if vocab_size < 257:
        raise ValueError(f"bpe with vocab_size={vocab_size}: 256 bytes and EOS already need 257.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=MIN_COUNT, initial_alphabet=list(CHARACTER_BYTES), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _full(_byte_level("bpe", tokenizer.model), texts, vocab_size)


def _gpt2(texts: list[str], vocab_size: int | None) -> Encoding:
    if vocab_size not in (None, GPT2_SIZE):
        raise ValueError(
            f"gpt2 is not trained: its vocab_size is {GPT2_SIZE:,}, not {vocab_size:,}; leave it out, or train bpe."
        )
    merges = [(_letters(a), _letters(b)) for a, b in gpt2_merges()]
    vocabulary = {_letters(p): i for p, i in bpe_vocabulary(gpt2_merges()).items()}
    return _byte_level("gpt2", models.BPE(vocabulary, merges))


def _wordpiece(texts: list[str], vocab_size: int) -> Encoding:
    """WordPiece as in BERT, but with blanks and newlines as text, and an unknown character alone becomes
    UNK, not its word. The library picks pieces by BPE's counts, not by the papers' likelihood.
    """
    limit = int(ALPHABET_SHARE * vocab_size / 2)  # a character takes two entries: "a" and "##a"
    alphabet = _alphabet("wordpiece", texts, vocab_size, limit)
    # "#" stands alone, so that no word begins like a continuation
    split = [*_WORDS, pre_tokenizers.Split("#", "isolated")]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=MIN_COUNT,
        # named here because the library numbers them by the order of a hash table, which breaks ties
        special_tokens=[UNK, *(f"##{c}" for c in alphabet if c != "#")],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained = _train(models.WordPiece(unk_token=UNK), split, alphabet, trainer, texts)
    model = models.WordPiece(trained.get_vocab(), unk_token=UNK, max_input_chars_per_word=WORD_LIMIT)
    return _full(_on_characters("wordpiece", _final(model, split, alphabet)), texts, vocab_size)


def _unigram(texts: list[str], vocab_size: int) -> Encoding:
    """SentencePiece's Unigram, its alphabet limited as by `character_coverage`."""
    alphabet = _alphabet("unigram", texts, vocab_size, int(ALPHABET_SHARE * vocab_size))
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 1, unk_token=UNK, special_tokens=[UNK], initial_alphabet=alphabet, show_progress=False
    )
    # Each character once as a text of its own: else EM may drop one that stands in longer pieces alone, and
    # the library's pruning never ends when too many pieces have nothing to be split into.
    trained = _train(models.Unigram(), _WORDS, alphabet, trainer, [*texts, *alphabet])
    learned = json.loads(trained.to_str())["model"]["vocab"]  # [piece, log-probability]
    scores = {piece: round(score, SCORE_DIGITS) for piece, score in learned if piece != UNK}
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    model = models.Unigram([(UNK, 0.0), *ordered], unk_id=0)
    return _full(_on_characters("unigram", _final(model, _WORDS, alphabet)), texts, vocab_size)


ENCODINGS: dict[str, Callable[[list[str], int | None], Encoding]] = {
    "bytes": _bytes,
    "characters": _characters,
    "bpe": _bpe,
    "gpt2": _gpt2,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}
UNTRAINED = ("bytes", "gpt2")
NEED_SIZE = ("bpe", "wordpiece", "unigram")
_PATTERN = pre_tokenizers.Split(Regex(PATTERN), "isolated")
_WORDS = [_PATTERN, pre_tokenizers.FixedLength(WORD_LIMIT)]


def _alphabet(name: str, texts: list[str], vocab_size: int | None, limit: int | None) -> list[str]:
    """The characters seen MIN_COUNT times, at most `limit`, the most frequent first."""
    counts = Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted((-n, c) for c, n in counts.items() if n >= MIN_COUNT)
    if limit is not None:
        frequent = frequent[: max(limit, 0)]
    if -sum(n for n, _ in frequent) < MIN_COVERAGE * counts.total():
        raise ValueError(
            f"{name} with vocab_size={vocab_size} knows {len(frequent):,} of its training text's {len(counts):,} "
            f"characters, and more than half of the text becomes {UNK}: raise vocab_size or train on more text."
        )
    return [c for _, c in frequent]


def _unknown(alphabet: list[str]) -> Regex:
    return Regex("[^" + "".join(f"\\x{{{ord(c):X}}}" for c in alphabet) + "]+")


def _train(model, split, alphabet: list[str], trainer, texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(model)
    rest = pre_tokenizers.Split(_unknown(alphabet), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, rest])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _final(model, split, alphabet: list[str]) -> Tokenizer:
    """A fresh tokenizer around the trained model: the trainer registers UNK as a special token, and
    those are found inside text.
    """
    tokenizer = Tokenizer(model)
    rest = pre_tokenizers.Split(_unknown(alphabet), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, rest])
    return tokenizer


def _byte_level(name: str, model: models.BPE) -> Encoding:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = [bytes(CHARACTER_BYTES[c] for c in token) for token in _by_id(tokenizer)]
    return Encoding(name, (*pieces, b""), tokenizer, None)


def _on_characters(name: str, tokenizer: Tokenizer) -> Encoding:
    tokens = _by_id(tokenizer)
    if name == "wordpiece":
        tokens = [t[2:] if t.startswith("##") else t for t in tokens]
    tokens[0] = "\ufffd"  # UNK
    return Encoding(name, (*(t.encode("utf-8") for t in tokens), b""), tokenizer, 0)


def _by_id(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def _full(encoding: Encoding, texts: list[str], vocab_size: int) -> Encoding:
    if encoding.vocab_size < vocab_size:
        n_bytes = sum(len(t.encode("utf-8")) for t in texts)
        raise ValueError(
            f"{encoding.name} with vocab_size={vocab_size} needs more text: {n_bytes:,} bytes gave only "
            f"{encoding.vocab_size:,} entries; lower vocab_size or train on more."
        )
    return encoding


def encoding_statistics(encoding: Encoding, texts: Sequence[str]) -> dict[str, float]:
    """What `encoding` makes of `texts`; EOS is counted nowhere.

    vocab_size; bytes, characters, tokens: totals; bytes_per_token, characters_per_token;
    lossless_percent: of the texts; unknown_percent: of the characters, lost to UNK;
    unknown_bits_per_byte: what spelling those out adds; invalid_percent: of the tokens in the text,
    those whose bytes alone are not valid UTF-8.
    """
    batch = encoding.encode_batch(texts)
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    n_characters = sum(map(len, texts))
    if not n_bytes:
        raise ValueError("No text to measure the encoding on.")
    used = Counter()
    for ids in batch:
        used.update(ids)
    with_unknown = [t for t, ids in zip(texts, batch, strict=True) if encoding.unk_token_id in ids]
    lost = sum(len(s) for t in with_unknown for s in encoding.lost(t))
    same = sum(encoding.decode(ids) == t for t, ids in zip(texts, batch, strict=True))
    invalid = sum(n for i, n in used.items() if not is_text(encoding.pieces[i]))
    return {
        "vocab_size": encoding.vocab_size,
        "bytes": n_bytes,
        "characters": n_characters,
        "tokens": used.total(),
        "bytes_per_token": n_bytes / used.total(),
        "characters_per_token": n_characters / used.total(),
        "lossless_percent": 100 * same / len(texts),
        "unknown_percent": 100 * lost / n_characters,
        "unknown_bits_per_byte": sum(map(encoding.unknown_bits, with_unknown)) / n_bytes,
        "invalid_percent": 100 * invalid / used.total(),
    }


# --- BPE, step by step. A symbol is a byte string, a merge a pair of symbols. ---


class Merge(NamedTuple):
    """One step of training: the most frequent pair of neighbours becomes a symbol."""

    step: int  # from 1
    pair: tuple[bytes, bytes]
    count: int  # how often the pair stood in the text
    symbol: bytes


def split_words(text: str) -> list[str]:
    """GPT-2's pre-tokenisation: merges never cross these words. Joined they are `text` again."""
    return [word for word, _ in _PATTERN.pre_tokenize_str(text)]


def bpe_steps(texts: Sequence[str]) -> Iterator[Merge]:
    """The training of byte-level BPE, merge after merge, until no pair stands in the text twice.

    Among equally frequent pairs the one of the older symbols is taken, as in the library.
    """
    frequency = Counter(word for text in texts for word in split_words(text))
    spelled = {word: _single_bytes(word) for word in frequency}
    age = {symbol: i for i, symbol in enumerate(bpe_vocabulary([]))}
    counts: Counter[tuple[bytes, bytes]] = Counter()
    where = defaultdict(set)  # pair -> words it stands, or once stood, in

    def count(word: str, sign: int) -> None:
        for pair in pairwise(spelled[word]):
            counts[pair] += sign * frequency[word]
            where[pair].add(word)

    for word in spelled:
        count(word, +1)
    step = 0
    while counts and (most := max(counts.values())) >= MIN_COUNT:
        pair = min((p for p, n in counts.items() if n == most), key=lambda p: (age[p[0]], age[p[1]]))
        symbol = b"".join(pair)
        age.setdefault(symbol, len(age))
        yield Merge(step := step + 1, pair, most, symbol)
        for word in where.pop(pair):
            count(word, -1)
            spelled[word] = _merged(spelled[word], pair)
            count(word, +1)
        del counts[pair]


def bpe_train(texts: Sequence[str], merges: int) -> list[tuple[bytes, bytes]]:
    """The first `merges` merges of BPE on `texts`; fewer where no pair stands in the text twice."""
    return [merge.pair for merge in islice(bpe_steps(texts), merges)]


def bpe_encode_steps(word: str, merges: Sequence[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
    """The pieces of one word of `split_words`: first its bytes, then after each merge."""
    yield from _encode_steps(word, _ranks(merges))


def bpe_encode(text: str, merges: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The pieces of `text`; `bpe_vocabulary(merges)` has their ids."""
    ranks = _ranks(merges)
    pieces = []
    for word in split_words(text):
        *_, last = _encode_steps(word, ranks)
        pieces += last
    return pieces


def bpe_decode(pieces: Sequence[bytes]) -> str:
    """The text of `pieces`; bytes that are not valid UTF-8 become U+FFFD."""
    return b"".join(pieces).decode("utf-8", errors="replace")


def bpe_vocabulary(merges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
    """Symbol -> id, in GPT-2's order: the 256 bytes (printable ones first), then the merges."""
    symbols = [bytes([b]) for b in BYTE_CHARACTERS] + [a + b for a, b in merges]
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}


def gpt2_merges() -> list[tuple[bytes, bytes]]:
    """GPT-2's 50,000 merges, from data/gpt2_bpe. Raises FileNotFoundError where the file is missing."""
    if not GPT2_MERGES.is_file():
        raise FileNotFoundError(f"{GPT2_MERGES} is missing: run `git checkout -- data/gpt2_bpe`.")
    lines = GPT2_MERGES.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return [(_raw(a), _raw(b)) for a, b in pairs]


def _encode_steps(word: str, ranks: dict[tuple[bytes, bytes], int]) -> Iterator[list[bytes]]:
    pieces = _single_bytes(word)
    yield pieces
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        pieces = _merged(pieces, min(known, key=ranks.get))
        yield pieces


def _merged(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """`pieces` with every `pair` of neighbours joined, from the left."""
    out, i = [], 0
    while i < len(pieces):
        found = (*pieces[i : i + 2],) == pair
        out.append(b"".join(pair) if found else pieces[i])
        i += 2 if found else 1
    return out


def _ranks(merges: Sequence[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], int]:
    return {pair: rank for rank, pair in enumerate(merges)}


def _single_bytes(word: str) -> list[bytes]:
    return [bytes([b]) for b in word.encode("utf-8")]


def _letters(piece: bytes) -> str:
    return "".join(BYTE_CHARACTERS[b] for b in piece)


def _raw(letters: str) -> bytes:
    return bytes(CHARACTER_BYTES[c] for c in letters)
