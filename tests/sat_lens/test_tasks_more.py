"""Pronoun, induction, repeated name, agreement, greater-than: read back as a reader would, and balanced."""

import random
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sat_lens.stories import NAMES, pronoun
from sat_lens.tasks import TaskError, load_task
from sat_lens.tasks.agreement import DISTRACTORS, SUBJECTS, TEMPLATES
from sat_lens.tasks.names import CORRUPTIONS, TASKS, checked_corruption
from sat_lens.tasks.pairs import balanced
from sat_lens.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer("stories-4096")


def word_tokenizer(words):
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "<s>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def corrupt_texts(task, tokenizer):
    return [
        tokenizer.decode(row[1:length])
        for row, length in zip(task.corrupt.tolist(), task.lengths.tolist(), strict=True)
    ]


def words(ids, tokenizer):
    return [tokenizer.decode([i]) for i in ids.tolist()]


def test_the_list_of_tasks_costs_a_command_line_nothing():
    code = "import sys; from sat_lens.tasks.names import TASKS; print(*TASKS, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [*TASKS, "False"]
    assert {"ioi", "gendered_pronoun", "induction", "agreement", "greater_than"} <= set(TASKS)


@pytest.mark.parametrize(("name", "corrupt"), [(name, corrupt) for name in TASKS for corrupt in CORRUPTIONS[name]])
def test_every_counterfactual_differs_and_is_as_long_as_its_prompt(name, corrupt, shipped):
    task = load_task(name, shipped, n=30, seed=3, corrupt=corrupt)
    assert (task.name, task.n) == (name, 30)
    columns = torch.arange(task.clean.shape[1])
    inside = columns < task.lengths[:, None]
    differs = task.clean != task.corrupt
    assert differs.any(1).all() and not differs[~inside].any()
    assert (task.clean[:, 0] == shipped.bos_token_id).all() and (task.corrupt[:, 0] == shipped.bos_token_id).all()
    if name != "induction":  # prompts of ids, which their text need not give back
        for row, length, text in zip(task.clean.tolist(), task.lengths.tolist(), task.prompts, strict=True):
            assert row[1:length] == shipped.encode(text, add_special_tokens=False)
        assert all(len(shipped.encode(t, add_special_tokens=False)) + 1 == length
                   for t, length in zip(corrupt_texts(task, shipped), task.lengths.tolist(), strict=True))  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_pure_function_of_its_seed(name, shipped):
    one, again, other = (load_task(name, shipped, n=20, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.clean, again.clean) and torch.equal(one.corrupt, again.corrupt)
    assert one.prompts == again.prompts and one.prompts != other.prompts


@pytest.mark.parametrize("name", ["gendered_pronoun", "induction", "agreement"])
def test_a_constant_guess_is_right_in_exactly_half_of_the_prompts(name, shipped):
    task = load_task(name, shipped, n=62)
    assert Counter(task.answers.tolist()) == Counter(task.wrong_answers.tolist())


def test_kinds_are_balanced_from_the_left():
    assert Counter(balanced(6, "abcd", random.Random(0))) == {"a": 2, "b": 2, "c": 1, "d": 1}


@pytest.mark.parametrize(("corrupt", "key"), [("io", "IO"), ("s1", "S1"), ("s2", "S2")])
def test_a_minimal_pair_of_ioi_changes_one_name_to_a_third_one(corrupt, key, shipped):
    task = load_task("ioi", shipped, n=40, corrupt=corrupt)
    rows = torch.arange(task.n)
    column = task.positions[key]
    assert ((task.clean != task.corrupt).sum(1) == 1).all()
    third, *others = (words(ids, shipped) for ids in (task.corrupt[rows, column], task.answers, task.wrong_answers))
    for name, *taken in zip(third, *others, strict=True):
        assert name.strip() in set(NAMES) - {word.strip() for word in taken}
    assert torch.equal(task.clean, load_task("ioi", shipped, n=40).clean)  # the same prompts, whatever the pairs


def test_a_pronoun_is_the_one_of_the_only_name(shipped):
    task = load_task("gendered_pronoun", shipped, n=80)
    spoken = [set(re.findall(r"[A-Z]\w+", text)) & set(NAMES) for text in task.prompts]
    assert [f" {pronoun(*names)}" for names in spoken] == words(task.answers, shipped)
    rows = torch.arange(task.n)
    at = task.positions["name"]
    assert ((task.clean != task.corrupt).sum(1) == 1).all()
    other = [word.strip() for word in words(task.corrupt[rows, at], shipped)]
    assert [f" {pronoun(name)}" for name in other] == words(task.wrong_answers, shipped)
    assert [word.strip() for word in words(task.clean[rows, at], shipped)] == [min(names) for names in spoken]


def induced(row, column):
    """What followed the id at `column` where it stood before, or None."""
    earlier = [i for i in range(column) if row[i] == row[column]]
    return row[earlier[-1] + 1] if earlier else None


@pytest.mark.parametrize(("corrupt", "left"), [("fresh", None), ("swap", "wrong"), ("match", None)])
def test_induction_is_solved_by_looking_back_and_its_counterfactual_is_not(corrupt, left, shipped):
    task = load_task("induction", shipped, n=40, corrupt=corrupt)
    assert set(task.lengths.tolist()) == {1 + 12 + 3}
    rows = torch.arange(task.n)
    assert torch.equal(task.clean[rows, task.positions["answer"]], task.answers)
    assert torch.equal(task.clean[rows, task.positions["match"]], task.clean[:, -1])
    for i, (clean, other) in enumerate(zip(task.clean.tolist(), task.corrupt.tolist(), strict=True)):
        answer, wrong = int(task.answers[i]), int(task.wrong_answers[i])
        assert induced(clean, 15) == answer
        assert clean.count(answer) == clean.count(wrong) == 1  # neither is seen more often
        assert induced(other, 15) == {None: None, "wrong": wrong}[left]
        assert other.count(answer) == other.count(wrong) == (0 if corrupt == "fresh" else 1)
        assert other[13:] == clean[13:]
    pairs = task.clean[:, :13].reshape(20, 2, 13)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert torch.equal(task.answers[0::2], task.wrong_answers[1::2])


FULL_NAMES = re.compile(r"([A-Z]\w+) ([A-Z]\w+) \D*?([A-Z]\w+) ([A-Z]\w+)\b.* ([A-Z]\w+)$")


@pytest.mark.parametrize("corrupt", CORRUPTIONS["repeated_name"])
def test_a_repeated_name_asks_for_the_family_name_of_the_one_who_comes_back(corrupt, shipped):
    task = load_task("repeated_name", shipped, n=40, corrupt=corrupt)
    asked_first = 0
    for i, (text, changed) in enumerate(zip(task.prompts, corrupt_texts(task, shipped), strict=True)):
        clean, other = (FULL_NAMES.search(re.sub("^(One|Once) .*?, ", "", t)).groups() for t in (text, changed))
        family = {clean[0]: clean[1], clean[2]: clean[3]}
        answer, wrong = (shipped.decode([int(ids[i])]) for ids in (task.answers, task.wrong_answers))
        mine = family.pop(clean[4])
        theirs = family.popitem()[1]
        assert f" {mine}".startswith(answer) and f" {theirs}".startswith(wrong)
        asked_first += clean[4] == clean[0]
        after = {other[0]: other[1], other[2]: other[3]}
        assert after.get(other[4]) == {"fresh": None, "swap": theirs, "match": None}[corrupt]
        assert (mine in after.values()) == (corrupt != "fresh") and other[4] == clean[4]
    assert asked_first == 20


def number(word):
    return "plural" if word.endswith("s") else "singular"


def test_a_verb_agrees_with_its_subject_and_the_distractor_tempts_in_half(shipped):
    task = load_task("agreement", shipped, n=80)
    subject = re.compile(rf"\b({'|'.join(SUBJECTS)})s?\b")
    distractor = re.compile(rf"\b({'|'.join(DISTRACTORS)})s?$")
    tempted = Counter()
    for text, changed, answer in zip(
        task.prompts, corrupt_texts(task, shipped), words(task.answers, shipped), strict=True
    ):
        noun, last = subject.search(text)[0], distractor.search(text)[0]
        assert answer == {"singular": " was", "plural": " were"}[number(noun)]
        assert changed == text.replace(noun, noun[:-1] if number(noun) == "plural" else f"{noun}s")
        tempted[number(noun), number(noun) != number(last)] += 1
    assert set(tempted.values()) == {20} and len(tempted) == 4
    for key, nouns in (("subject", subject), ("distractor", distractor)):
        at = words(task.clean[torch.arange(80), task.positions[key]], shipped)
        found = [nouns.search(text)[0] for text in task.prompts]
        assert all(noun.startswith(word.strip()) for noun, word in zip(found, at, strict=True))
    assert ((task.clean != task.corrupt).sum(1) == 1).all()


def test_where_no_plural_is_as_long_as_its_singular_another_noun_stands_in():
    text = set(re.sub(r"\{\w+\}", " ", " ".join(TEMPLATES)).replace(",", " ,").replace(".", " .").split())
    pieces = [*text, *SUBJECTS, *DISTRACTORS, "##s", "was", "were", "squirr", "##el"]
    vocabulary = dict.fromkeys(piece for piece in pieces if piece != "squirrel")
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(["<unk>", "<s>", *vocabulary])}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")
    task = load_task("agreement", tokenizer, n=40)
    for text, row, answer in zip(task.prompts, task.corrupt.tolist(), words(task.answers, tokenizer), strict=True):
        changed = tokenizer.convert_ids_to_tokens(row)
        if answer == "was":  # "squirr ##el" is the one singular of two ids, as many as "dog ##s" has
            assert "squirrel" in text and set(changed) & set(SUBJECTS)
        else:
            assert re.search(rf"({'|'.join(SUBJECTS)})s", text) and "##el" in changed
    assert Counter(words(task.answers, tokenizer)) == {"was": 20, "were": 20}


def years(text):
    return [int(year) for year in re.findall(r"\d+", text)]


def test_greater_than_asks_digit_by_digit_where_digits_are_ids(shipped):
    task = load_task("greater_than", shipped, n=60)
    for i, text in enumerate(task.prompts):
        start, century = years(text)
        assert start // 100 == century
        answer, wrong = (int(shipped.decode([int(ids[i])])) for ids in (task.answers, task.wrong_answers))
        tens = start % 100 // 10
        assert answer > tens > wrong >= 1 and answer - tens == tens - wrong
        assert shipped.decode([int(task.clean[i, task.positions["year"][i]])]) == str(tens)
    assert all(years(text)[0] % 100 == 1 for text in corrupt_texts(task, shipped))


def test_greater_than_asks_for_whole_years_where_two_digits_are_an_id():
    two = [f"{i:02d}" for i in range(100)]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *two])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d\d"), "isolated"),
    ])  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>"
    )  # letters are <s>, which is no unknown id
    task = load_task("greater_than", tokenizer, n=400)
    steps = Counter()
    for i, text in enumerate(task.prompts):
        start = years(text)[0] % 100
        answer, wrong = (int(two[int(ids[i]) - 2]) for ids in (task.answers, task.wrong_answers))
        assert 99 >= answer > start > wrong > 1 and answer - start == start - wrong
        steps[answer - start] += 1
        assert int(task.clean[i, task.positions["year"][i]]) == start + 2
    assert set(steps) == set(range(1, 11))
    right, wrong = (Counter(ids.tolist()) for ids in (task.answers, task.wrong_answers))
    middle = range(22 + 2, 80 + 2)  # a guess of one year: 232 draws each, equally likely; 5 standard deviations
    assert abs(sum(right[i] for i in middle) - sum(wrong[i] for i in middle)) < 5 * 400**0.5


def test_a_tokenizer_without_years_or_words_or_names_is_refused_in_one_line():
    bare = word_tokenizer(["said", "to", "The", "year", "the"])
    for name in TASKS:
        with pytest.raises(TaskError) as caught:
            load_task(name, bare, n=4)
        assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


def test_a_beginning_of_text_that_is_also_the_unknown_id_does_no_harm(shipped):
    twin = load_tokenizer("stories-4096")
    twin.unk_token = twin.bos_token  # as GPT-2's tokenizer has it
    task = load_task("gendered_pronoun", twin, n=10)
    assert torch.equal(task.clean, load_task("gendered_pronoun", shipped, n=10).clean)


def test_a_corruption_is_one_of_those_listed(shipped, tmp_path):
    assert [checked_corruption(name, None) for name in ("ioi", "greater_than")] == ["fresh", "01"]
    for name in TASKS:
        with pytest.raises(TaskError, match=f"{name} is corrupted by {next(iter(CORRUPTIONS[name]))}.*; got 'none'"):
            load_task(name, shipped, n=4, corrupt="none")
    with pytest.raises(TaskError, match="a file has counterfactuals of its own"):
        load_task(tmp_path / "a.json", shipped, corrupt="fresh")
    with pytest.raises(TaskError, match="split is held_out or train; got 'test'"):
        load_task("ioi", shipped, n=4, split="test")


@pytest.mark.real_data
@pytest.mark.parametrize("source", ["gpt2_bpe", "stories260K/tok512.bin"])
@pytest.mark.parametrize("name", TASKS)
def test_other_tokenizers_are_fitted_too(name, source, real_data):
    tokenizer = load_tokenizer(str(real_data / source))
    task = load_task(name, tokenizer, n=20)
    assert (task.clean != task.corrupt).any(1).all()
    if name == "greater_than" and source == "gpt2_bpe":
        assert all(len(word) == 2 for word in words(task.answers, tokenizer))
