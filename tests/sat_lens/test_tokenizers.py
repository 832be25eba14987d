"""Tokenizers: trained, shipped, GPT-2's, llama2.c's; what goes in comes out, and nothing is added."""

import json
import random
import struct
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from sat_lens import tokenizers as module
from sat_lens.corpora import read_stories
from sat_lens.llama2c_tokenizer import TokenizerError, read_llama2c_pieces
from sat_lens.stories import NAMES, stories
from sat_lens.tokenizers import first_characters, load_tokenizer, main, split_words, story_words, train_bpe

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# Trained here


def test_training_twice_gives_the_same_tokenizer():
    first, again = (train_bpe(islice(stories(0), 300), 600, whole_words=NAMES[:5]).to_str() for _ in range(2))
    assert first == again


def test_merges_are_those_of_the_most_frequent_pairs():
    tokenizer = train_bpe(["abab abab cab"], vocab_size=258)
    # "ab" occurs 5 times, every other pair at most twice: it is the one id beyond separator and bytes.
    assert tokenizer.get_vocab_size() == 258 and tokenizer.token_to_id("ab") == 257
    assert tokenizer.encode("ab").ids == [257]


def test_whole_words_become_one_id_by_merges_alone():
    texts = list(islice(stories(0), 200))
    rare = [" xylophone", "Quetzal", " Quetzal"]
    assert split_words(train_bpe(texts, 700), rare) == rare
    tokenizer = train_bpe(texts, 700, whole_words=rare)
    assert split_words(tokenizer, rare) == []
    assert json.loads(tokenizer.to_str())["added_tokens"][0]["content"] == "<|endoftext|>"
    assert len(json.loads(tokenizer.to_str())["added_tokens"]) == 1


@given(_TEXT)
def test_any_text_survives_a_byte_level_tokenizer(text):
    tokenizer = train_bpe(["once upon a time"], 260)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_fewer_ids_than_bytes_are_refused():
    with pytest.raises(ValueError, match="at least 257.*got 256"):
        train_bpe(["a"], 256)


def test_first_characters_stops_after_whole_texts():
    assert list(first_characters(["aaa", "bb", "c"], 4)) == ["aaa", "bb"]
    assert list(first_characters(["aaa", "bb", "c"], 3)) == ["aaa"]


# Shipped


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer("stories-4096")


def test_the_shipped_tokenizer_has_4096_ids_and_one_separator(shipped):
    assert len(shipped) == shipped.vocab_size == 4096
    assert shipped.bos_token_id == shipped.eos_token_id == shipped.pad_token_id == 0
    assert _ids(shipped, "<|endoftext|>") == [0] and shipped.padding_side == "right"


def test_names_places_and_objects_are_single_ids(shipped):
    assert split_words(shipped.backend_tokenizer, story_words()) == []
    tom, spaced = _ids(shipped, "Tom gave it to Tom")[0], _ids(shipped, "Tom gave it to Tom")[-1]
    assert tom != spaced and shipped.decode([tom]) == "Tom" and shipped.decode([spaced]) == " Tom"


def test_a_name_after_a_newline_is_the_id_of_a_name_at_the_beginning(shipped):
    assert _ids(shipped, "Yes.\nTom")[-1] == _ids(shipped, "Tom")[0]


def test_no_token_is_added_unasked(shipped):
    assert shipped.encode("") == [] and shipped.encode("Tom") == _ids(shipped, "Tom")


def test_stories_survive_the_shipped_tokenizer(shipped):
    for text in islice(stories(11), 50):
        assert shipped.decode(_ids(shipped, text)) == text


@given(_TEXT)
@settings(deadline=None)
def test_any_text_survives_the_shipped_tokenizer(text):
    tokenizer = _loaded(module.SHIPPED / "stories-4096").backend_tokenizer
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@cache
def _loaded(path: Path):
    return load_tokenizer(path)


# From paths


def test_a_tokenizer_json_loads_by_file_and_by_folder(shipped, tmp_path):
    (tmp_path / "tokenizer.json").write_text(shipped.backend_tokenizer.to_str())
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert _ids(load_tokenizer(source), "Tom and Lily") == _ids(shipped, "Tom and Lily")


def test_a_beginning_that_a_file_would_add_is_not_added(shipped, tmp_path):
    adding = Tokenizer.from_str(shipped.backend_tokenizer.to_str())
    adding.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert adding.encode("Tom").ids[0] == 0
    adding.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("Tom") == _ids(shipped, "Tom")


def test_a_hand_made_pair_of_gpt2_files_encodes_by_its_merges(tmp_path):
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "<|endoftext|>": 5}
    (tmp_path / "x_vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "x_merges.txt").write_text("#version: 0.2\na b\nab c\n")
    tokenizer = load_tokenizer(tmp_path)
    assert _ids(tokenizer, "abcab") == [4, 3] and tokenizer.bos_token_id == 5


@pytest.mark.real_data
def test_gpt2_files_give_gpt2_ids(real_data):
    tokenizer = load_tokenizer(real_data / "gpt2_bpe")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert len(tokenizer) == 50257 and tokenizer.bos_token_id == _ids(tokenizer, "<|endoftext|>")[0] == 50256


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", "is no tokenizer.json"),
        ("tokenizer.json", b"\xff\x00", "is no tokenizer.json"),
        ("tokenizer.json", b'{"version": "1.0"}', "is no tokenizer.json"),
        ("tok.bin", b"\x07", "must have the bytes at ids 3 to 258"),
        ("tok.bin", b"\x07\x00\x00\x00\x01", "cut off inside piece 0"),
        ("tok.bin", struct.pack("<ifi", 7, 0.0, 99) + b"abc", "piece 0 has 99 bytes"),
        ("tok.bin", struct.pack("<ifi", 7, 0.0, -5) + b"abc", "piece 0 has -5 bytes"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=says) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_separator_is_refused(tmp_path):
    Tokenizer(module.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="has neither"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_files_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="one \\*vocab.json and one \\*merges.txt.*has 0 and 0"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tok512.bin"])
def test_a_path_that_is_not_there_is_not_found(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        load_tokenizer(tmp_path / name)


def test_a_hub_name_without_network_is_a_tokenizer_error(monkeypatch):
    import transformers

    def offline(name, **options):
        assert options["trust_remote_code"] is False
        raise OSError("no\nconnection")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(TokenizerError, match="'gpt2' is no file here.*no connection"):
        load_tokenizer("gpt2")


def test_a_hub_tokenizer_has_padding_and_adds_nothing(monkeypatch):
    import transformers

    adding = train_bpe(["once"], 260)
    adding.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    given_back = transformers.PreTrainedTokenizerFast(tokenizer_object=adding, eos_token="<|endoftext|>")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name, **options: given_back)
    tokenizer = load_tokenizer("owner/name")
    assert tokenizer.pad_token_id == tokenizer.bos_token_id == 0
    assert 0 not in tokenizer.encode("once")


# llama2.c


def _llama2c_file(path: Path, pieces: list[tuple[str, float]]) -> Path:
    whole = [
        ("<unk>", 0.0),
        ("\n<s>\n", 0.0),
        ("\n</s>\n", 0.0),
        *((f"<0x{b:02X}>", 0.0) for b in range(256)),
        *pieces,
    ]
    data = b"".join(struct.pack("<fi", score, len(name.encode())) + name.encode() for name, score in whole)
    path.write_bytes(struct.pack("<i", 9) + data)
    return path


def _greedy_merges(pieces: list[tuple[bytes, float]], text: str) -> list[int]:
    """The encoding loop of llama2.c, as naive as there: the best-scored neighbours join until none can."""
    ids = {piece: index for index, (piece, _) in reversed(list(enumerate(pieces)))}
    tokens = [ids[b" "]] if text else []
    for character in text:
        encoded = character.encode()
        tokens += [ids[encoded]] if encoded in ids else [byte + 3 for byte in encoded]
    while True:
        best = None
        for at in range(len(tokens) - 1):
            joined = ids.get(pieces[tokens[at]][0] + pieces[tokens[at + 1]][0])
            if joined is not None and (best is None or pieces[joined][1] > best[0]):
                best = (pieces[joined][1], at, joined)
        if best is None:
            return tokens
        tokens[best[1] : best[1] + 2] = [best[2]]


def test_llama2c_joins_the_best_score_first_by_hand(tmp_path):
    pieces = [(" ", -9.0), ("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), (" a", -3.0)]
    tokenizer = load_tokenizer(_llama2c_file(tmp_path / "tok.bin", pieces))
    # " aba": "ba" (-1) joins before "ab" (-2) and leaves " a" (-3): ids 264 and 263.
    assert tokenizer.encode("aba") == [264, 263]
    # "\n" and the two bytes of e-acute are in no piece: byte b is id b + 3; the space before it stays, id 259.
    assert tokenizer.encode("\n\u00e9") == [259, 13, 0xC3 + 3, 0xA9 + 3]
    assert tokenizer.decode([259, 13, 0xC3 + 3, 0xA9 + 3]) == "\n\u00e9"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.real_data
def test_llama2c_encoding_equals_the_naive_loop_on_real_stories(real_data):
    path = real_data / "stories260K" / "tok512.bin"
    tokenizer, pieces = load_tokenizer(path), read_llama2c_pieces(path)
    texts = list(read_stories(str(real_data / "tinystories" / "valid.txt")))
    for text in random.Random(0).sample(texts, 25):
        assert tokenizer.encode(text) == _greedy_merges(pieces, text)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.real_data
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from(" aetohsnd.\n\u00e9\u201c!'"), min_size=1, max_size=40))
def test_llama2c_encoding_equals_the_naive_loop_on_odd_text(real_data, text):
    path = real_data / "stories260K" / "tok512.bin"
    tokenizer = _loaded(path)
    assert tokenizer.encode(text) == _greedy_merges(read_llama2c_pieces(path), text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


# The command


def test_the_command_writes_a_tokenizer_that_loads(tmp_path, capsys):
    main(
        [
            "--corpus",
            "stories",
            "--characters",
            "200000",
            "--vocab-size",
            "1100",
            "--out",
            str(tmp_path / "new"),
        ]
    )
    assert capsys.readouterr().out == f"1100 ids; 0 story words in pieces\n{tmp_path / 'new' / 'tokenizer.json'}\n"
    assert len(load_tokenizer(tmp_path / "new")) == 1100


def test_the_command_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["--corpus", str(tmp_path / "none.txt"), "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="at least 257"):
        main(["--corpus", "stories", "--vocab-size", "10", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
