"""Tokenizers: a byte-level BPE trained here, GPT-2's two files, llama2.c's `tok512.bin`, Hugging Face names.

    python -m sat_lens.tokenizers --corpus A+B --vocab-size 4096 --out FOLDER

trains one and writes `FOLDER/tokenizer.json`. Text is split as by GPT-2 (a word takes its leading space). The
only special token is `<|endoftext|>`, id 0, which stands between stories: beginning, end and padding at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sat_lens.boundaries import SEPARATOR
from sat_lens.commands import command_parser, run
from sat_lens.llama2c_tokenizer import TokenizerError, llama2c_tokenizer
from sat_lens.stories import NAMES, OBJECTS, PLACES

if TYPE_CHECKING:
    import transformers

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "tokenizers"
_WEIGHT = 1000
"""How often each whole word is said over, per million characters of text, so that its merges come early."""


def story_words() -> tuple[str, ...]:
    """The words that should be one id: names with and without a leading space, places and objects with it."""
    return (*NAMES, *(f" {word}" for word in (*NAMES, *PLACES, *OBJECTS)))


def train_bpe(texts: Iterable[str], vocab_size: int = 4096, *, whole_words: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of exactly or, for little text, at most `vocab_size` ids; the same for the same texts.

    Args:
        texts: any pieces of text; special tokens in them are plain text here.
        vocab_size: at least 257, the bytes and `<|endoftext|>`; at most a million.
        whole_words: words, a leading space included, to become one id each by ordinary merges: they are said
            over after the texts, often enough to be among the frequent ones. `split_words` names those that
            are not.
    """
    if not 257 <= vocab_size <= 1_000_000:
        raise ValueError(
            f"vocab_size must be at least 257, the 256 bytes and {SEPARATOR}, and at most 1,000,000; got {vocab_size}"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_words(texts, whole_words), trainer)
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_words(texts: Iterable[str], whole_words: Sequence[str]) -> Iterator[str]:
    n_characters = 0
    for text in texts:
        n_characters += len(text)
        yield text
    for word in whole_words:
        for _ in range(1 + _WEIGHT * n_characters // 1_000_000):
            yield word


def split_words(tokenizer: Tokenizer, words: Sequence[str]) -> list[str]:
    """Those of `words` that take more than one id."""
    return [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) != 1]


def load_tokenizer(source: str | Path) -> "transformers.PreTrainedTokenizerFast":
    """A tokenizer with beginning, end and padding tokens, padding on the right; it adds no token unasked.

    Args:
        source: the name of a shipped one (`stories-4096`); a `tokenizer.json` or a folder with one; a folder
            with GPT-2's `*vocab.json` and `*merges.txt`; a llama2.c `.bin`; else a name on the Hugging Face
            hub.

    Raises:
        FileNotFoundError: a path that is not there. TokenizerError: anything else that is no tokenizer.
    """
    path = Path(source)
    if (SHIPPED / path / "tokenizer.json").is_file() and len(path.parts) == 1:
        path = SHIPPED / path
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _finished(llama2c_tokenizer(path) if path.suffix == ".bin" else _from_json(path), path)
    if path.suffix in (".json", ".bin") or path.is_absolute():
        raise FileNotFoundError(f"no such tokenizer: {source}")
    return _from_hub(str(source))


def _from_folder(folder: Path) -> "transformers.PreTrainedTokenizerFast":
    if (folder / "tokenizer.json").is_file():
        return _finished(_from_json(folder / "tokenizer.json"), folder)
    vocabularies, merges = sorted(folder.glob("*vocab.json")), sorted(folder.glob("*merges.txt"))
    if len(vocabularies) != 1 or len(merges) != 1:
        raise TokenizerError(
            f"a tokenizer folder must hold tokenizer.json, or one *vocab.json and one *merges.txt; {folder} "
            f"has {len(vocabularies)} and {len(merges)}"
        )
    try:
        model = models.BPE.from_file(str(vocabularies[0]), str(merges[0]))
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"{vocabularies[0]} and {merges[0]} are no GPT-2 tokenizer: {error}") from None
    tokenizer = _byte_level(model)
    tokenizer.add_special_tokens([SEPARATOR])
    return _finished(tokenizer, folder)


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"{path} is no tokenizer.json: {error}") from None


def _finished(tokenizer: Tokenizer, source: Path) -> "transformers.PreTrainedTokenizerFast":
    """The tokenizer as transformers wraps it; story separators are told by their names."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing, where some add a BOS
    _refuse_unusable(tokenizer, source)
    for begin, end in ((SEPARATOR, SEPARATOR), ("<s>", "</s>"), ("<|begin_of_text|>", "<|end_of_text|>")):
        if tokenizer.token_to_id(begin) is not None and tokenizer.token_to_id(end) is not None:
            special = {"bos_token": begin, "eos_token": end, "pad_token": end}
            knobs = {"padding_side": "right", "clean_up_tokenization_spaces": False}
            try:
                return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **knobs)
            except Exception as error:  # it copies the tokenizer, and the Rust side raises bare Exception
                raise TokenizerError(f"{source} is no usable tokenizer: {error}") from None
    raise TokenizerError(f"a tokenizer must have {SEPARATOR} or <s> and </s> between stories; {source} has neither")


def _refuse_unusable(tokenizer: Tokenizer, source: Path) -> None:
    """Some files can be read and not used: an unknown token that is not in the vocabulary shows at the first text."""
    try:
        tokenizer.decode(tokenizer.encode("Once upon a time, \u2603 1,2!\n\tqzx", add_special_tokens=False).ids)
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"{source} is a tokenizer that cannot encode text: {error}") from None


def _from_hub(name: str) -> "transformers.PreTrainedTokenizerFast":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # many kinds: offline, unknown name, gated, no fast version
        reason = " ".join(str(error).split())[:200]
        shipped = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
        raise TokenizerError(
            f"{name!r} is no file here and not one that is shipped ({', '.join(shipped)}), "
            f"nor could the Hugging Face hub give it: {reason}"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(f"a tokenizer must be a fast one; {name!r} is a {type(tokenizer).__name__}")
    if tokenizer.eos_token is None:
        raise TokenizerError(f"a tokenizer must have an end-of-text token; {name!r} has none")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Train a byte-level BPE on a corpus and write it as tokenizer.json."""
    parser = command_parser("sat_lens.tokenizers", main.__doc__)
    parser.add_argument("--corpus", required=True, help="`stories`, a .txt, .jsonl, .json or .parquet file, a Hugging "
        "Face name, or a mixture A:0.5+B:0.5 (needed)")  # fmt: skip
    parser.add_argument("--vocab-size", type=int, default=4096, help="ids (default: 4096)")
    parser.add_argument("--characters", type=int, default=8_500_000, help="characters of the corpus to read, at most "
        "(default: 8,500,000)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the generator `stories` (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json (needed)")
    arguments = parser.parse_args(argv)

    import sys

    from sat_lens.corpora import read_stories
    from sat_lens.files import write_whole

    corpus = read_stories(arguments.corpus, seed=arguments.seed)
    tokenizer = train_bpe(
        first_characters(corpus, arguments.characters), arguments.vocab_size, whole_words=story_words()
    )
    write_whole(arguments.out / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    split = split_words(tokenizer, story_words())
    pieces = f": {' '.join(split)}" if split else ""
    sys.stdout.write(f"{tokenizer.get_vocab_size()} ids; {len(split)} story words in pieces{pieces}\n")
    sys.stdout.write(f"{arguments.out / 'tokenizer.json'}\n")


def first_characters(texts: Iterable[str], n_characters: int) -> Iterator[str]:
    """Whole texts until `n_characters` are reached."""
    n_read = 0
    for text in texts:
        if n_read >= n_characters:
            return
        n_read += len(text)
        yield text


if __name__ == "__main__":
    run(main)
