"""Packed tokens: nothing lost, nothing cut, batches pure in (seed, step), damage refused."""

import json
import shutil
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sat_lens import packing
from sat_lens.corpora import read_stories
from sat_lens.packing import PackedTokens, PackingError, pack, packed
from sat_lens.stories import stories
from sat_lens.tokenizers import load_tokenizer


@cache
def _words(n: int = 10) -> PreTrainedTokenizerFast:
    """A tokenizer by hand: the separator is 0, and the word "7" is id 7."""
    vocabulary = {"<|endoftext|>": 0, **{str(i): i for i in range(1, n)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture
def three(tmp_path):
    """[0 1 2 3] [0 4 5 6 7 8] [0 9]: 12 tokens."""
    return pack(["1 2 3", "4 5 6 7 8", "9"], _words(), tmp_path / "three", corpus="by hand")


# What is written


def test_stories_are_packed_each_behind_a_separator(three):
    assert three.tokens.tolist() == [0, 1, 2, 3, 0, 4, 5, 6, 7, 8, 0, 9]
    assert three.starts.tolist() == [0, 4, 10] and three.characters.tolist() == [5, 9, 1]
    assert (three.n_tokens, three.n_stories, three.n_characters) == (12, 3, 15)


def test_the_manifest_tells_what_the_files_are(three):
    manifest = json.loads((three.folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["corpus"] == "by hand" and manifest["dtype"] == "<u2"
    assert (manifest["n_tokens"], manifest["n_stories"], manifest["n_characters"]) == (12, 3, 15)
    assert manifest["files"]["tokens.bin"]["bytes"] == 24 and len(manifest["tokenizer_sha256"]) == 64


@pytest.mark.parametrize(("n_ids", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_ids_take_two_bytes_until_the_vocabulary_needs_four(tmp_path, n_ids, dtype):
    tokens = pack([f"1 {n_ids - 1}"], _words(n_ids), tmp_path / "packed").tokens
    assert tokens.dtype == dtype and tokens.tolist() == [0, 1, n_ids - 1]


@pytest.mark.parametrize(("max_tokens", "n_stories"), [(4, 1), (9, 1), (10, 2), (11, 2), (12, 3), (None, 3)])
def test_max_tokens_never_cuts_a_story(tmp_path, max_tokens, n_stories):
    texts = ["1 2 3", "4 5 6 7 8", "9"]
    assert pack(texts, _words(), tmp_path / "p", max_tokens=max_tokens).n_stories == n_stories


def test_an_endless_corpus_is_packed_up_to_max_tokens(tmp_path):
    tokenizer = load_tokenizer("stories-4096")
    found = pack(stories(0), tokenizer, tmp_path / "p", max_tokens=20_000)
    assert 19_500 < found.n_tokens <= 20_000
    ends = [*found.starts[1:].tolist(), found.n_tokens]
    texts = [tokenizer.decode(found.tokens[a + 1 : b]) for a, b in zip(found.starts, ends, strict=True)]
    assert texts == list(islice(stories(0), found.n_stories))
    assert sum(len(text) for text in texts) == found.n_characters


@pytest.mark.parametrize(("texts", "max_tokens"), [([], None), (["1 2 3"], 3)])
def test_no_story_is_refused(tmp_path, texts, max_tokens):
    with pytest.raises(PackingError, match="at least one story.*got none"):
        pack(texts, _words(), tmp_path / "p", max_tokens=max_tokens)
    assert list(tmp_path.iterdir()) == []


def test_a_story_with_the_separator_inside_is_refused(tmp_path):
    with pytest.raises(PackingError, match="must not contain the separator"):
        pack(["1 <|endoftext|> 2"], _words(), tmp_path / "p")


def test_a_pack_that_fails_leaves_the_old_one_and_nothing_half_written(three):
    def breaks_off():
        yield from ["1"] * 2000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(breaks_off(), _words(), three.folder)
    assert [path.name for path in three.folder.parent.iterdir()] == ["three"]
    assert PackedTokens.open(three.folder).n_tokens == 12


# Batches


def test_windows_are_the_tokens_from_their_starts(three):
    assert three.window(np.array([0, 4, 9]), 3).tolist() == [[0, 1, 2], [0, 4, 5], [8, 0, 9]]
    for start in (-1, 10):
        with pytest.raises(PackingError, match="must start between 0 and 9"):
            three.window(np.array([start]), 3)


def test_aligned_windows_start_at_rows_of_stories_that_leave_room(three):
    # Rows of 4 overlap by 1: story 2 (6 tokens from 4) has rows at 4 and 7; the row at 10 has only 2 tokens left.
    rows = {tuple(row) for step in range(50) for row in three.batch(step, 4, 4).tolist()}
    assert rows == {(0, 1, 2, 3), (0, 4, 5, 6), (6, 7, 8, 0)}


def test_windows_that_are_not_aligned_start_anywhere(three):
    rows = [row[0] for step in range(100) for row in three.batch(step, 4, 10, align=False).tolist()]
    assert set(rows) == {0, 1, 2} and min(rows.count(i) for i in range(3)) > 80


def test_a_batch_is_a_pure_function_of_seed_and_step(tmp_path):
    found = pack(stories(0), load_tokenizer("stories-4096"), tmp_path / "p", max_tokens=50_000)
    batches = [found.batch(step, 8, 64, seed=1) for step in range(5)]
    reopened = PackedTokens.open(found.folder)
    assert all(torch.equal(reopened.batch(step, 8, 64, seed=1), batches[step]) for step in (4, 2, 0, 1, 3))
    assert not torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], found.batch(0, 8, 64, seed=2))
    assert batches[0].shape == (8, 64) and batches[0].dtype == torch.int64
    assert found.batch(0, 8, 64, seed=-1).shape == (8, 64)


@pytest.mark.parametrize("align", [True, False])
def test_a_corpus_shorter_than_one_context_is_refused(three, align):
    assert three.batch(0, 2, 12, align=align).tolist() == [three.tokens.tolist()] * 2
    with pytest.raises(PackingError, match="at least 13 tokens, one context.*has 12"):
        three.batch(0, 2, 13, align=align)


# Evaluation


def test_each_story_starts_its_own_row_and_goes_on_in_the_next(three):
    rows = three.evaluation(4)
    assert rows.tokens.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6], [6, 7, 8, 0], [0, 9, 0, 0]]
    assert rows.mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert rows.continued.tolist() == [False, False, True, False]
    assert (rows.n_continued, rows.n_predicted, rows.n_characters) == (1, 9, 15)


def test_the_first_stories_alone_can_be_evaluated(three):
    rows = three.evaluation(6, n_stories=2)
    assert rows.tokens.tolist() == [[0, 1, 2, 3, 0, 0], [0, 4, 5, 6, 7, 8]] and rows.n_characters == 14
    for n_stories in (0, 4):
        with pytest.raises(PackingError, match="n_stories must be between 1 and 3"):
            three.evaluation(6, n_stories=n_stories)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), length=st.integers(2, 12))
def test_every_token_of_every_story_is_predicted_exactly_once(tmp_path_factory, lengths, length):
    texts = [" ".join(str(1 + (i + j) % 9) for j in range(n)) for i, n in enumerate(lengths)]
    rows = pack(texts, _words(), tmp_path_factory.mktemp("p") / "p").evaluation(length)
    predicted: list[list[int]] = []
    for tokens, mask, continued in zip(rows.tokens.tolist(), rows.mask, rows.continued, strict=True):
        inside = tokens[: int(mask.sum())]
        assert mask.tolist() == [True] * len(inside) + [False] * (length - len(inside)) and len(inside) >= 2
        if continued:
            assert inside[0] == predicted[-1][-1]
        else:
            assert inside[0] == 0
            predicted.append([])
        predicted[-1] += inside[1:]
    assert [" ".join(map(str, story)) for story in predicted] == texts
    assert rows.n_predicted == sum(lengths)


def test_a_row_of_one_token_is_refused(three):
    with pytest.raises(PackingError, match="at least 2 tokens"):
        three.evaluation(1)


# Damage


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "characters.bin"])
def test_a_truncated_or_changed_file_is_refused(three, name):
    path, whole = three.folder / name, (three.folder / name).read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(PackingError, match=f"{name} must have {len(whole)} bytes; it has {len(whole) - 1}"):
        PackedTokens.open(three.folder, verify=False)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(PackingError, match="sha256 differs"):
        PackedTokens.open(three.folder)
    path.unlink()
    with pytest.raises(PackingError, match="it has no"):
        PackedTokens.open(three.folder)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"schema_version": 2}, "schema_version 1; .* has 2"),
        ({"vocab_size": 9}, "below the vocabulary of 9; .* has 9"),
        ({"vocab_size": "many"}, "no manifest"),
        ({"dtype": "object"}, "no manifest"),
        ({"files": {}}, "no manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(three, changed, says):
    path = three.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(PackingError, match=says):
        PackedTokens.open(three.folder)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=50) | st.sampled_from([b"[]", b"{}", b"3", b"[" * 100_000]))
def test_a_manifest_of_anything_else_is_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("p")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(PackingError, match="no manifest of packed tokens"):
        PackedTokens.open(folder)


def test_a_folder_without_a_manifest_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is not there"):
        PackedTokens.open(tmp_path)


def test_ids_beyond_the_vocabulary_of_a_model_are_refused(three):
    three.check_vocabulary(10)
    with pytest.raises(PackingError, match="below the vocabulary of 9; .* has 9"):
        three.check_vocabulary(9)


# The cache


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(["one a 1 2", "b 3 4 5"]))
    return str(path)


def test_a_corpus_is_packed_once(tmp_path, corpus, monkeypatch):
    first = packed(corpus, _words(), tmp_path / "cache")
    monkeypatch.setattr(packing, "read_stories", None)
    again = packed(corpus, _words(), tmp_path / "cache")
    assert again.folder == first.folder and again.tokens.tolist() == first.tokens.tolist()


def test_a_corpus_that_is_refused_leaves_no_folder(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (tmp_path / "new" / "cache", kept):
        with pytest.raises(PackingError):
            pack(["one <|endoftext|> two"], _words(), folder / "tokens")
    assert not (tmp_path / "new").exists() and list(kept.iterdir()) == []


def test_another_text_tokenizer_seed_or_length_is_packed_anew(tmp_path, corpus):
    folders = [packed(corpus, _words(), tmp_path / "cache").folder]
    folders.append(packed(corpus, _words(11), tmp_path / "cache").folder)
    folders.append(packed(corpus, _words(), tmp_path / "cache", seed=1).folder)
    folders.append(packed(corpus, _words(), tmp_path / "cache", max_tokens=6).folder)
    with open(corpus, "w") as file:
        json.dump(["other"], file)
    folders.append(packed(corpus, _words(), tmp_path / "cache").folder)
    assert len(set(folders)) == 5


def test_a_damaged_cache_is_made_again(tmp_path, corpus):
    first = packed(corpus, _words(), tmp_path / "cache")
    whole = first.tokens.tolist()
    (first.folder / "tokens.bin").write_bytes(b"\xff" * first.tokens.nbytes)
    assert packed(corpus, _words(), tmp_path / "cache").tokens.tolist() == whole
    shutil.rmtree(first.folder)
    assert packed(corpus, _words(), tmp_path / "cache").tokens.tolist() == whole


@pytest.mark.parametrize("endless", ["stories", "stories:1+a.txt:1"])
def test_an_endless_corpus_without_max_tokens_is_refused(tmp_path, endless):
    with pytest.raises(PackingError, match="endless corpus needs max_tokens"):
        packed(endless, _words(), tmp_path)


@pytest.mark.real_data
def test_real_validation_text_is_packed_whole(real_data, tmp_path):
    tokenizer, path = load_tokenizer("stories-4096"), str(real_data / "tinystories" / "valid.txt")
    found = packed(path, tokenizer, tmp_path)
    rows = found.evaluation(128)
    assert rows.n_predicted == found.n_tokens - found.n_stories
    assert rows.n_characters == found.n_characters == sum(len(text) for text in read_stories(path))
    assert 3.8 < found.n_characters / found.n_tokens < 4.3


def test_train_and_held_out_are_a_partition_of_the_stories(tmp_path):
    from sat_lens.packing import packed

    tokenizer = load_tokenizer("stories-4096")
    texts = [f"Tom saw {n} birds. They were blue." for n in range(400)]
    corpus = tmp_path / "tales.txt"
    corpus.write_text("\n<|endoftext|>\n".join([*texts, texts[7]]) + "\n<|endoftext|>\n")
    parts = {
        part: packed(str(corpus), tokenizer, tmp_path / "cache", part=part) for part in ("all", "train", "held_out")
    }
    assert parts["train"].n_stories + parts["held_out"].n_stories == parts["all"].n_stories == 401
    assert 0 < parts["held_out"].n_stories < 30

    def stories_of(packed_tokens):
        return set(tokenizer.decode(packed_tokens.tokens[:].tolist()).split("<|endoftext|>")) - {""}

    assert stories_of(parts["train"]).isdisjoint(stories_of(parts["held_out"]))
