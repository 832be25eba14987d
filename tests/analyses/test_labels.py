"""Labels of tokens: planted stories, another route through the decoded tokens, and what may depend on the past only."""

import dataclasses
import re
import struct
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analyses.labels import TARGETS, Labels, labels
from analyses.labels.alignment import characters
from analyses.labels.token_classes import token_class
from analyses.texts import Stories, stories, text_spans
from sat_lens.stories import NAMES, OBJECTS, PLACES
from sat_lens.story_truth import plan_truth
from sat_lens.tasks.encoding import right_padded, start_ids, text_ids
from sat_lens.tokenizers import load_tokenizer, train_bpe

_NAME = rf"\b(?:{'|'.join(NAMES)})\b"
PAST_ONLY = (
    "previous_token", "position", "role", "n_names", "holder", "speaker",
    "sentence_distance",
)  # fmt: skip
GENERATOR_ONLY = ("holder", "speaker")


def with_tokenizer(tokenizer, n_ctx=256):
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=n_ctx))


def story_rows(texts, tokenizer, truths=()):
    """Stories of given texts, as `analyses.texts.stories` makes them."""
    rows = [start_ids(tokenizer) + text_ids(text, tokenizer) for text in texts]
    return Stories(right_padded(rows), torch.tensor([len(row) for row in rows]), tuple(texts), tuple(truths))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("stories-4096")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A byte-level tokenizer whose words are in pieces of a few letters."""
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    path.write_text(train_bpe(["Tom and Lily went to the park. Tom gave a ball to Lily."], 290).to_str())
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def generated(tokenizer):
    return stories(None, with_tokenizer(tokenizer), 40)


@pytest.fixture(scope="module")
def labels_of_whole(generated, tokenizer):
    """By whether the truth is known: the labels of every target that looks at the past only."""
    by_rules = dataclasses.replace(generated, truths=())
    return {
        True: {target: labels(target, generated, tokenizer) for target in PAST_ONLY},
        False: {target: labels(target, by_rules, tokenizer) for target in PAST_ONLY if target not in GENERATOR_ONLY},
    }


@pytest.fixture(scope="module")
def planted(tokenizer):
    """Tom (first) hands a ball to Lily (second), who speaks; Ben (third) gets a kite; Tom looks for it; dad speaks."""
    x = {"X": "Ben", "Y": "Lily", "x_him": "him", "x_his": "his", "x_he": "he", "color": "red", "obj": "kite"}
    sentence = '{A} and {B} found a {OBJECT}. {S} handed it to {IO}. {IO} said, "Thank you, {S}!"'
    truth = plan_truth(
        [
            ("", sentence, {"A": "Tom", "B": "Lily", "S": "Tom", "IO": "Lily", "OBJECT": "ball"}),
            (" ", "{Y} gave {x_him} a {color} {obj}.", x),
            ("\n", "{X} looked for {x_his} {obj}, but {x_he} could not find it.", x | {"X": "Tom"}),
            (" ", '{x_His} dad said, "Be careful, {X}."', x | {"x_His": "His"}),
        ]
    )
    return story_rows([truth.text], tokenizer, [truth])


def spelt(made: Labels, rows: Stories, tokenizer, story: int = 0):
    """(text of the token, name of its class or "") of every token with text."""
    shown = zip(rows.tokens[story].tolist(), made.values[story].tolist(), strict=True)
    return [(tokenizer.decode([i]).strip(" "), made.classes[c] if c >= 0 else "") for i, c in shown][1:]


def test_the_planted_story_has_the_planted_labels(planted, tokenizer):
    assert planted.texts[0] == (
        'Tom and Lily found a ball. Tom handed it to Lily. Lily said, "Thank you, Tom!" Lily gave him a red kite.\n'
        'Tom looked for his kite, but he could not find it. His dad said, "Be careful, Ben."'
    )
    holder, role, who, count, distance = (
        spelt(labels(target, planted, tokenizer), planted, tokenizer)
        for target in ("holder", "role", "speaker", "n_names", "sentence_distance")
    )
    words = [text for text, _ in holder]
    given, kite = words.index("Lily", 3), words.index("kite")
    assert [name for _, name in holder] == (
        [""] * given + ["second"] * (kite - given) + ["other"] * (words.index("kite", kite + 1) - kite)
        + [""] * (len(words) - words.index("kite", kite + 1))
    )  # fmt: skip
    assert [pair for pair in who if pair[1]] == [
        ("Thank", "second"), ("you", "second"), (",", "second"), ("Tom", "second"), ('!"', "second"),
        ("Be", "other"), ("careful", "other"), (",", "other"), ("Ben", "other"), ('."', "other"),
    ]  # fmt: skip
    assert [pair for pair in role if pair[1] != "other"] == [
        ("Tom", "name"), ("Lily", "name"), ("ball", "object"), ("Tom", "name"), ("it", "pronoun"), ("Lily", "name"),
        ("Lily", "name"), ("Thank", "speech"), ("you", "pronoun"), (",", "speech"), ("Tom", "name"), ('!"', "speech"),
        ("Lily", "name"), ("him", "pronoun"), ("kite", "object"), ("Tom", "name"), ("his", "pronoun"),
        ("kite", "object"), ("he", "pronoun"), ("it", "pronoun"), ("His", "pronoun"), ("Be", "speech"),
        ("careful", "speech"), (",", "speech"), ("Ben", "name"), ('."', "speech"),
    ]  # fmt: skip
    assert [name for _, name in count] == ["1", "1"] + ["2"] * (len(words) - 4) + ["3", "3"]
    bins = [name for _, name in distance]
    assert bins[:8] == ["0", "1", "2", "3-4", "3-4", "5-8", "5-8", "0"]  # Tom and Lily found a ball . Tom
    assert [word for word, name in distance if name == "0"] == ["Tom", "Tom", "Lily", "Lily", "Tom", "His"]
    assert labels("holder", planted, tokenizer).source == labels("role", planted, tokenizer).source == "generator"


def test_rules_give_nearly_every_token_of_the_generator_its_true_role(tokenizer):
    rows = stories(None, with_tokenizer(tokenizer), 100)
    true, ruled = (labels("role", of, tokenizer) for of in (rows, dataclasses.replace(rows, truths=())))
    assert (true.source, ruled.source) == ("generator", "rules")
    held = true.values >= 0
    assert held.sum() == 10_643 and (true.values == ruled.values)[held].double().mean() > 0.998
    wrong = set(
        zip(
            true.values[true.values != ruled.values].tolist(),
            ruled.values[true.values != ruled.values].tolist(),
            strict=True,
        )
    )
    assert {(true.classes[a], true.classes[b]) for a, b in wrong} <= {
        ("name", "other"),
        ("name", "speech"),
        ("other", "object"),
    }


def test_padding_and_the_beginning_of_text_have_no_label_of_words(generated, tokenizer):
    for target in TARGETS:
        made = labels(target, generated, tokenizer)
        padding = torch.arange(generated.tokens.shape[1]) >= generated.lengths[:, None]
        assert made.name == target and made.values.shape == generated.tokens.shape and made.values.dtype == torch.long
        assert (made.values[padding] == -1).all() and (made.values.max(1).values >= 0).any()
        if target not in ("current_token", "next_token", "token_class", "position"):
            assert (made.values[:, 0] == -1).all()


def test_tokens_of_names_objects_and_places_decode_to_such_words(generated, tokenizer):
    role = labels("role", generated, tokenizer)
    for kind, listed in (("name", NAMES), ("object", OBJECTS), ("place", PLACES)):
        ids = generated.tokens[role.values == role.classes.index(kind)].tolist()
        assert len(ids) > 50 and {tokenizer.decode([i]).strip() for i in ids} <= set(listed)
    names = labels("n_names", generated, tokenizer)
    for story, text in enumerate(generated.texts):
        n_distinct = len(set(re.findall(_NAME, text)))
        assert names.values[story, generated.lengths[story] - 1] == min(n_distinct, 5)


@pytest.mark.parametrize("which", ["tokenizer", "pieces"])
def test_characters_of_tokens_are_those_that_the_tokens_decode_to(which, request):
    """Second route: the text of the tokens so far, decoded, ends where the token ends."""
    tokenizer = request.getfixturevalue(which)
    rows = stories(None, with_tokenizer(tokenizer, 700), 5)
    at = characters(rows, tokenizer)
    for story, text in enumerate(rows.texts):
        for column in range(1, int(rows.lengths[story])):
            read = tokenizer.decode(rows.tokens[story, 1 : column + 1].tolist())
            own = tokenizer.decode([int(rows.tokens[story, column])])
            assert text[: at.end[story, column]] == read
            if own.strip():
                assert text[at.first[story, column]] == own.strip()[0]
        assert (at.first[story, int(rows.lengths[story]) :] == -1).all() and at.first[story, 0] == -1


def test_pieces_of_a_word_share_its_role_and_a_name_counts_once_it_is_whole(pieces):
    truth = plan_truth([("", "{X} laughed, and {Y} laughed too.", {"X": "Charlie", "Y": "Lily"})])
    rows = story_rows([truth.text], pieces, [truth])
    role, count = (spelt(labels(target, rows, pieces), rows, pieces) for target in ("role", "n_names"))
    named = [piece for piece, name in role if name == "name"]
    assert len(named) > 5 and "".join(named) == "CharlieLily"
    first = len("Charlie") - sum(len(piece) - 1 for piece in named if piece in "Charlie")
    assert [name for _, name in count][: first + 1] == ["0"] * (first - 1) + ["1", "1"]


def test_a_tokenizer_that_puts_a_space_before_the_text_is_aligned_too(tmp_path):
    """llama2.c's: the text's own first space, and pieces that begin with one."""
    known = [b" ", b"T", b"o", b"m", b" T", b"om", b" Tom", b"r", b"a", b"n", b".", b" ran"]
    listed = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), *known]
    listed += [b" r", b"an"]
    data = b"".join(struct.pack("<fi", float(len(piece)), len(piece)) + piece for piece in listed)
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 8) + data)
    tokenizer = load_tokenizer(tmp_path / "tok.bin")
    truth = plan_truth([("", "{X} ran. {X} ran.", {"X": "Tom"})])
    rows = story_rows([truth.text], tokenizer, [truth])
    role = labels("role", rows, tokenizer)
    ids, spans = text_spans(truth.text, tokenizer)
    assert [truth.text[slice(*span)].strip() for span in spans] == ["Tom", "ran", ".", "Tom", "ran", "."]
    assert [role.classes[value] for value in role.values[0, 1:]] == ["name", "other", "other"] * 2
    kinds = labels("token_class", rows, tokenizer)
    assert [kinds.classes[value] for value in kinds.values[0, 1:]] == ["name", "word", "punctuation"] * 2


def test_token_targets_are_the_ids_themselves_and_their_neighbours(generated, tokenizer):
    current, previous, following = (
        labels(f"{which}_token", generated, tokenizer) for which in ("current", "previous", "next")
    )
    for story in range(generated.n):
        row = generated.tokens[story, : generated.lengths[story]].tolist()
        n = len(row)
        assert current.values[story, :n].tolist() == row
        assert previous.values[story, :n].tolist() == [-1, *row[:-1]]
        assert following.values[story, :n].tolist() == [*row[1:], -1]
    assert len(current.classes) == len(tokenizer) and current.classes[text_ids(" Tom", tokenizer)[0]] == " Tom"
    assert current.classes[text_ids("\n", tokenizer)[0]] == r"\n" and current.source == "tokens"
    assert len(set(current.classes)) == len(tokenizer)  # bytes included


def test_kinds_of_tokens_are_those_of_their_text(generated, tokenizer):
    kinds = labels("token_class", generated, tokenizer)
    for i, value in zip(generated.tokens[0, 1:20].tolist(), kinds.values[0, 1:20].tolist(), strict=True):
        assert kinds.classes[value] == token_class(tokenizer.decode([i]))


def test_positions_are_binned_at_their_edges(generated, tokenizer):
    made = labels("position", generated, tokenizer)
    names = [made.classes[value] for value in made.values[int(generated.lengths.argmax())].tolist()]
    assert names[:6] == ["0", "1", "2", "3-4", "3-4", "5-8"]
    assert names[63:67] == ["33-64", "33-64", "65-128", "65-128"]


def test_rare_classes_can_be_left_out_and_the_rest_renumbered(generated, tokenizer):
    whole, cut = labels("current_token", generated, tokenizer), labels("current_token", generated, tokenizer, 100)
    counts = Counter(whole.values[whole.values >= 0].tolist())
    for before, after in zip(whole.values.flatten().tolist(), cut.values.flatten().tolist(), strict=True):
        assert after == (before if before >= 0 and counts[before] >= 100 else -1)
    compact = cut.compact()
    assert len(compact.classes) == sum(count >= 100 for count in counts.values()) < len(cut.classes)
    on = cut.values >= 0
    assert [cut.classes[i] for i in cut.values[on].tolist()] == [
        compact.classes[i] for i in compact.values[on].tolist()
    ]
    assert torch.equal(compact.values >= 0, on)


@settings(max_examples=20, deadline=None)
@given(story=st.integers(0, 39), length=st.integers(3, 250), known=st.booleans())
def test_labels_of_the_beginning_of_a_story_are_the_beginning_of_its_labels(
    generated, labels_of_whole, tokenizer, story, length, known
):
    one = generated.subset(torch.tensor([story]))
    assume(length <= int(one.lengths))
    end = int(characters(one, tokenizer).end[0, length - 1])
    text = one.texts[0][:end]
    assume(start_ids(tokenizer) + text_ids(text, tokenizer) == one.tokens[0, :length].tolist())
    truth = dataclasses.replace(one.truths[0].until(end), text=text)
    beginning = Stories(one.tokens[:, :length], torch.tensor([length]), (text,), (truth,) if known else ())
    for target, whole in labels_of_whole[known].items():
        part = labels(target, beginning, tokenizer)
        assert part.source == whole.source
        assert torch.equal(part.values[0], whole.values[story, :length]), target


def test_a_context_that_cuts_stories_drops_what_is_beyond_it(generated, tokenizer):
    cut = stories(None, with_tokenizer(tokenizer, 24), 40)
    assert cut.texts == generated.texts and (cut.lengths == 24).all()
    ends = characters(cut, tokenizer).end.max(1)
    for truth, whole, end in zip(cut.truths, generated.truths, ends.tolist(), strict=True):
        assert truth.spans and all(span.end <= end for span in truth.spans)
        assert truth.holdings == tuple(event for event in whole.holdings if event.at <= end)
    for target in ("role", "holder", "speaker", "n_names"):
        expected = labels(target, generated, tokenizer).values[:, :24]
        assert torch.equal(labels(target, cut, tokenizer).values, expected), target


def test_stories_of_the_generator_carry_their_truth_and_no_others_do(tokenizer, tmp_path):
    model = with_tokenizer(tokenizer)
    for corpus in (None, "stories", "stories:0.5"):
        found = stories(corpus, model, 5, seed=2)
        assert tuple(truth.text for truth in found.truths) == found.texts
        chosen = found.subset(torch.tensor([3, 1]))
        assert chosen.truths == (found.truths[3], found.truths[1])
    assert stories("stories", model, 5).texts == stories("stories:0.5", model, 5).texts
    (tmp_path / "a.json").write_text('["Tom ran to Zara. Zara laughed.", "Lily sat on the beach."]')
    for corpus in (str(tmp_path / "a.json"), f"stories:0.5+{tmp_path / 'a.json'}:0.5"):
        found = stories(corpus, model, 2)
        assert found.truths == () and labels("role", found, tokenizer).source == "rules"
        for target in ("holder", "speaker"):
            with pytest.raises(ValueError, match=f"{target} needs the truth of the embedded generator"):
                labels(target, found, tokenizer)


def test_an_unknown_target_gets_the_nearest_right_names(generated, tokenizer):
    with pytest.raises(ValueError, match="no target 'hodler'; nearest: holder"):
        labels("hodler", generated, tokenizer)
    with pytest.raises(ValueError, match="nearest: current_token, previous_token, "):
        labels("", generated, tokenizer)
    with pytest.raises(ValueError, match="at_least must be 1 token or more; got 0"):
        labels("role", generated, tokenizer, 0)


def test_stories_without_text_or_of_another_tokenizer_are_refused(generated, tokenizer, pieces):
    bare = Stories(generated.tokens, generated.lengths)
    with pytest.raises(ValueError, match="the text of each of the 40 stories; got 0 texts"):
        labels("role", bare, tokenizer)
    with pytest.raises(ValueError, match="and no tokenizer"):
        labels("n_names", generated, None)
    with pytest.raises(ValueError, match="story 0 is not"):
        labels("role", generated, pieces)
    with pytest.raises(ValueError, match="need a fast tokenizer; got SimpleNamespace"):
        text_spans("Tom ran.", SimpleNamespace(is_fast=False))
    assert labels("current_token", bare, None).classes[3] == "<3>"


def test_labels_beyond_their_classes_are_refused():
    with pytest.raises(ValueError, match="labels of role must be -1 to 1; got 0 to 2"):
        Labels("role", ("a", "b"), torch.tensor([[0, 2]]), "rules")
