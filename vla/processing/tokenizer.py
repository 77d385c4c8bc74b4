"""The embedded model's own small tokenizer, trained here from the sentences it will meet.

Byte-level BPE: any text can be written with its 256 byte tokens, so there is no unknown token.
Text is stripped, lower-cased and given a leading space first, so that "Push the block" and
"please push the block" share the tokens of "push the block".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, IMAGE = "<pad>", "<bos>", "<eos>", "<image>"
# Bins along a side of an image, a token each: with them an answer names image coordinates.
LOCATION_BINS = 64
LOCATIONS = tuple(f"<loc{index:02d}>" for index in range(LOCATION_BINS))
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE, *LOCATIONS)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def train_tokenizer(sentences: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Learn a tokenizer; equal sentences give equal files.

    The special tokens have the first ids, in the order of `SPECIAL_TOKENS`, then come the bytes,
    then the merges. Few sentences give fewer tokens than `vocab_size`.

    Args:
        sentences: the texts to compress well, such as every instruction and template.
        vocab_size: most tokens, special ones and bytes among them.

    Raises:
        ValueError: the vocabulary cannot hold special tokens and bytes, or there is no sentence.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: special tokens and bytes need "
            f"{SMALLEST_VOCABULARY}"
        )
    # Sorted, because the trainer must not see in which order the sentences came.
    corpus = sorted(sentences)
    if not corpus:
        raise ValueError("no sentence to train a tokenizer on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # The second step takes the leading space off again.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        # Sorted, since the order decides the ids. Without all bytes some text could not be written.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE, *LOCATIONS],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """Read what `save_pretrained(folder)` wrote; never touches the network.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer in {folder}: tokenizer.json is missing")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    # A note on where it came from, which would make the next saved copy differ from this one.
    tokenizer.init_kwargs.pop("is_local", None)
    return tokenizer


def location_token(fraction: float) -> str:
    """The token of an image coordinate, 0 = left or top edge, 1 = right or bottom edge.

    Raises:
        ValueError: the fraction is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a location must lie in [0, 1], got {fraction}")
    # 1.0 itself belongs to the last bin.
    return LOCATIONS[min(int(fraction * LOCATION_BINS), LOCATION_BINS - 1)]
