"""Corpora: every kind of file, clean stories, clear refusals, mixtures by weight."""

import json
import re
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sat_lens import corpora
from sat_lens.cleaning import clean
from sat_lens.corpora import CorpusError, files_of, is_endless, mixture_parts, read_mixture, read_stories
from sat_lens.stories import stories


def _write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _read(folder, name, content, **options):
    return list(read_stories(_write(folder, name, content), **options))


# Kinds of corpora


def test_the_generator_is_the_corpus_called_stories():
    assert list(islice(read_stories("stories", seed=5), 3)) == list(islice(stories(5), 3))


def test_each_kind_of_file_gives_the_same_stories(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["One. \u201cTwo.\u201d", "Three.\nFour."]
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": texts}), tmp_path / "a.parquet")
    files = {
        "a.txt": "<|endoftext|>\n".join(f"{text}\n" for text in texts),
        "a.jsonl": "\n".join(json.dumps({"story": text}) for text in texts) + "\n",
        "b.jsonl": "\n".join(json.dumps(text) for text in texts),
        "a.json": json.dumps({"texts": texts}),
        "b.json": json.dumps(texts),
        "c.json": json.dumps([{"content": text} for text in texts]),
    }
    assert list(read_stories(str(tmp_path / "a.parquet"))) == texts
    for name, content in files.items():
        assert _read(tmp_path, name, content) == texts, name


def test_boundary_says_where_a_story_of_a_text_ends(tmp_path):
    text = "Once upon a time, a cat.\n\nIt slept.\n\nOnce upon a time, a dog.\n"
    ends = {mode: _read(tmp_path, "a.txt", text, boundary=mode) for mode in ("auto", "blank-line", "file", "endoftext")}
    cat, dog = "Once upon a time, a cat.", "Once upon a time, a dog."
    assert ends["auto"] == [f"{cat}\nIt slept.", dog]
    assert ends["blank-line"] == [cat, "It slept.", dog]
    assert ends["file"] == ends["endoftext"] == [f"{cat}\nIt slept.\n{dog}"]


def test_auto_takes_the_marker_where_it_occurs(tmp_path):
    assert _read(tmp_path, "a.txt", "A.\n\nOnce upon a time.\n<|endoftext|>\nB.\n") == [
        "A.\nOnce upon a time.",
        "B.",
    ]


def test_a_hub_dataset_is_streamed_without_remote_code(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = {}

    def load_dataset(name, **options):
        asked.update(options, name=name)
        return iter([{"text": "One.\n\nTwo."}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_stories("owner/name", split="validation")) == ["One.\nTwo."]
    assert asked == {"name": "owner/name", "split": "validation", "streaming": True}


def test_without_network_a_hub_dataset_is_a_corpus_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(CorpusError, match="owner/name is no file here.*no route to host"):
        list(read_stories("owner/name"))


# Clean text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\n\n \n\nb", "a\nb"),
        ("  a\tb  \n", "a b"),
        ("a\x00\x07\x1b[1m\x7f\x81b\ufeff", "a[1mb"),
        ("a\u2028b", "a\nb"),
        ("\ud800a", "a"),
        (
            "\u00e2\u20ac\u0153Hi,\u00e2\u20ac\x9d he said. It\u00e2\u20ac\u2122s",
            "\u201cHi,\u201d he said. It\u2019s",
        ),
        ("\u00e2\u20ac\u0153Hi,\u00e2\u20ac he said.\u00e2\u20ac", "\u201cHi,\u201d he said.\u201d"),
        ("caf\u00e9 \u201cno\u201d", "caf\u00e9 \u201cno\u201d"),
    ],
)
def test_text_is_cleaned(raw, expected):
    assert clean(raw) == expected


@given(st.text())
def test_clean_text_has_no_control_characters_and_no_empty_lines(text):
    cleaned = clean(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]|\n\n|^\n|\n$", cleaned)
    cleaned.encode("utf-8")


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_cleaning_ascii_twice_changes_nothing(text):
    assert clean(clean(text)) == clean(text)


def test_a_marker_inside_a_record_parts_two_stories(tmp_path):
    assert _read(tmp_path, "a.json", json.dumps(["A.<|endoftext|>B.", "<|endoftext|>"])) == ["A.", "B."]


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n<|endoftext|>\n", "found none"),
        ("a.txt", "1234 .,;", "found none"),
        ("a.txt", b"Good.\nBad \xff.\n", "0xff at byte 10"),
        ("a.txt", b"Good.\nBad \x00.\n", "NUL at byte 10"),
        ("a.txt", "One.".encode("utf-16"), "UTF-8"),
        ("a.json", b'["\xff"]', "UTF-8"),
        ("a.json", "{", "valid JSON"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "3", "must be a list"),
        ("a.json", '{"texts": 3}', "must be a list"),
        ("a.json", '[{"title": "A."}]', "item 0 has none"),
        ("a.json", "[]", "found none"),
        ("a.jsonl", '{"text": "A."}\n{"text": 3}\n', "line 2 has none"),
        ("a.jsonl", '{"text": "A."}\nB.\n', "line 2"),
        ("a.parquet", "PAR1 no", "must be readable"),
        ("a.csv", "text\nA.", "must end in .txt"),
    ],
)
def test_what_is_no_corpus_is_refused_in_one_line(tmp_path, name, content, says):
    with pytest.raises(CorpusError, match=re.escape(says)) as caught:
        _read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_a_text_column_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": ["A."], "b": [1]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="must have a column text.*has a, b"):
        list(read_stories(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=300))
def test_random_bytes_are_refused_or_clean(tmp_path, suffix, content):
    path = _write(tmp_path, f"random{suffix}", content)
    try:
        texts = list(read_stories(path))
    except CorpusError as error:
        assert "\n" not in str(error)
    else:
        assert texts and all(clean(text) == text for text in texts if text.isascii())


def test_a_line_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MAX_LINE_BYTES", 10)
    assert _read(tmp_path, "a.txt", "123456789a\n"[1:]) == ["23456789a"]
    with pytest.raises(CorpusError, match="longer one at byte 3"):
        _read(tmp_path, "a.txt", "A.\n123456789a\n")


def test_a_file_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such corpus file"):
        list(read_stories(str(tmp_path / "none.txt")))


@pytest.mark.parametrize("corpus", ["no such thing", "", "x" * 5000, "\0"])
def test_a_name_that_is_no_corpus_is_refused(corpus):
    with pytest.raises(CorpusError, match="a corpus must be"):
        read_stories(corpus)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="is a folder"):
        list(read_stories(str(tmp_path)))


# Mixtures


@pytest.fixture
def two_files(tmp_path):
    long = _write(tmp_path, "long.json", json.dumps([f"{word} " + "a" * 90 for word in ("one", "two", "three")]))
    short = _write(tmp_path, "short.json", json.dumps([f"{word}." for word in ("four", "five", "six", "seven")]))
    return long, short


def test_weights_of_a_mixture_default_to_1():
    assert mixture_parts("stories:0.5+a.txt+o/n:2") == [("stories", 0.5), ("a.txt", 1.0), ("o/n", 2.0)]


@pytest.mark.parametrize("mixture", ["stories:0+a.txt", "stories:-1+a.txt", "stories:x+a.txt", "stories+", "a:nan+b"])
def test_a_weight_that_is_not_above_0_is_refused(mixture):
    with pytest.raises(CorpusError, match="NAME or NAME:WEIGHT"):
        read_stories(mixture)


@pytest.mark.parametrize("weight", [0.1, 1.0, 4.0])
def test_members_have_their_shares_of_characters_in_every_prefix(two_files, weight):
    long, short = two_files
    n_long = n_short = 0
    for text in islice(read_mixture(f"{long}:{weight}+{short}:1"), 400):
        n_long, n_short = n_long + len(text) * (len(text) > 50), n_short + len(text) * (len(text) <= 50)
        # Off by at most a story of each kind.
        assert abs(n_long / weight - n_short) <= 100 / weight + 10


def test_a_mixture_is_the_same_for_the_same_seed(two_files):
    mixture = f"{two_files[0]}+{two_files[1]}+stories"
    first, again, other = (list(islice(read_stories(mixture, seed=seed), 60)) for seed in (0, 0, 1))
    assert first == again != other


def test_a_file_in_a_mixture_comes_back_in_another_order(two_files):
    read = list(islice(read_mixture(f"{two_files[1]}:1"), 40))
    passes = [tuple(read[i : i + 4]) for i in range(0, 40, 4)]
    assert passes[0] == ("four.", "five.", "six.", "seven.")
    assert {frozenset(one) for one in passes} == {frozenset(passes[0])} and len(set(passes)) > 3


def test_a_file_whose_name_looks_like_a_mixture_is_that_file(tmp_path):
    assert _read(tmp_path, "a+b.txt", "A.") == ["A."]


def test_the_generator_and_mixtures_are_endless_and_files_are_not(two_files):
    assert is_endless("stories") and is_endless("stories+a.txt") and not is_endless(two_files[0])
    assert [str(path) for path in files_of(f"{two_files[0]}:2+stories+{two_files[1]}")] == list(two_files)


# Real files


@pytest.mark.real_data
def test_real_validation_text_has_about_a_thousand_clean_stories(real_data):
    texts = list(read_stories(str(real_data / "tinystories" / "valid.txt")))
    assert 950 <= len(texts) <= 1050
    assert max(len(text) for text in texts) < 6000
    assert not [text for text in texts if "\u00e2\u20ac" in text or "\n\n" in text]
    assert sum(text.startswith("Once upon a time") for text in texts) >= 700


@pytest.mark.real_data
def test_the_cut_story_at_the_end_of_real_text_is_left_out(real_data):
    texts = list(read_stories(str(real_data / "tinystories" / "train_a.txt")))
    assert len(texts) == 2316 and texts[0].startswith("One day, a little girl named Lily found a needle")
    assert not texts[-1].endswith("She said it was")
