import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sat_lens.stories import IOI_TEMPLATES, NAMES, OBJECTS, PLACES, is_held_out_pair
from sat_lens.tasks import Task, TaskError, ioi_task, load_task, task_from_file
from sat_lens.tasks.ioi import usable_names

WORDS = sorted({w for text in IOI_TEMPLATES for w in re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", "", text))})


def word_tokenizer(names=NAMES, bos="<s>"):
    """One id a word or punctuation mark; unknown words are <unk>."""
    vocabulary = ["<unk>", "<s>", *dict.fromkeys([*WORDS, *PLACES, *OBJECTS, *names])]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token=bos)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def ioi(tokenizer):
    return load_task("ioi", tokenizer, n=200, seed=0)


def small_task(**changes):
    fields = {
        "name": "toy",
        "clean": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "corrupt": torch.tensor([[1, 9, 3], [4, 9, 0]]),
        "answers": torch.tensor([0, 1]),
        "wrong_answers": torch.tensor([1, 0]),
        "positions": {"end": torch.tensor([2, 1])},
    }
    return Task(**fields | changes)


def test_logit_difference_is_read_at_the_end_of_each_prompt_and_not_at_the_padding():
    logits = torch.zeros(2, 3, 4)
    logits[0, 2] = torch.tensor([3.0, 1.0, 0, 0])  # prompt 0 ends at 2: 3 - 1
    logits[1, 1] = torch.tensor([5.0, 1.0, 0, 0])  # prompt 1 ends at 1: 1 - 5
    logits[1, 2] = 100.0
    assert small_task().logit_difference(logits).tolist() == [2.0, -4.0]


def test_a_subset_keeps_rows_together():
    part = small_task(prompts=("a", "b")).subset([1])
    assert (part.n, part.clean.tolist(), part.answers.tolist()) == (1, [[4, 5, 0]], [1])
    assert part.lengths.tolist() == [2] and part.prompts == ("b",)
    assert small_task().subset(slice(0, 1)).clean.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": {}}, "'end'"),
        ({"positions": {"end": torch.tensor([2, 3])}}, "0..2"),
        ({"wrong_answers": torch.tensor([1, 1])}, "prompt 1"),
    ],
)
def test_a_task_whose_rows_do_not_fit_is_refused(changes, message):
    with pytest.raises(TaskError, match=message):
        small_task(**changes)


def test_both_name_orders_come_equally_often(ioi):
    first = ioi.positions["IO"] < ioi.positions["S1"]
    assert int(first.sum()) == 100


def test_positions_point_at_the_names_and_the_answer_is_the_receiver(ioi):
    rows = torch.arange(ioi.n)
    assert torch.equal(ioi.clean[rows, ioi.positions["IO"]], ioi.answers)
    assert torch.equal(ioi.clean[rows, ioi.positions["S1"]], ioi.wrong_answers)
    assert torch.equal(ioi.clean[rows, ioi.positions["S2"]], ioi.wrong_answers)
    assert (ioi.positions["S2"] > ioi.positions["IO"]).all()


def test_a_prompt_starts_with_the_beginning_of_text_and_ends_before_the_answer(ioi, tokenizer):
    for row, length, text in zip(ioi.clean.tolist(), ioi.lengths.tolist(), ioi.prompts, strict=True):
        assert row[:length] == [1, *tokenizer.encode(text, add_special_tokens=False)]
        assert text.endswith(" to") and set(row[length:]) <= {0}


@pytest.mark.parametrize("split", ["held_out", "train"])
def test_a_split_holds_only_pairs_of_its_side(split, tokenizer):
    task = ioi_task(tokenizer, n=60, split=split)
    ids = torch.stack([task.answers, task.wrong_answers], 1).tolist()
    assert {is_held_out_pair(*tokenizer.convert_ids_to_tokens(pair)) for pair in ids} == {split == "held_out"}


def test_the_counterfactual_has_three_fresh_names_in_the_places_of_the_old_ones(ioi):
    rows = torch.arange(ioi.n)
    replaced = torch.stack([ioi.corrupt[rows, ioi.positions[key]] for key in ("IO", "S1", "S2")], 1)
    for clean, fresh in zip(ioi.clean.tolist(), replaced.tolist(), strict=True):
        assert len(set(fresh)) == 3 and not set(fresh) & set(clean)
    differs = (ioi.clean != ioi.corrupt).sum(1)
    assert differs.tolist() == [3] * ioi.n


def test_a_swapped_counterfactual_differs_in_the_actor_alone(tokenizer):
    task = ioi_task(tokenizer, n=20, corrupt="swap")
    rows = torch.arange(task.n)
    assert ((task.clean != task.corrupt).sum(1) == 1).all()
    assert torch.equal(task.corrupt[rows, task.positions["S2"]], task.answers)


def test_prompts_depend_on_the_seed_and_on_nothing_else(tokenizer, ioi):
    again = load_task("ioi", tokenizer, n=200, seed=0)
    assert torch.equal(again.clean, ioi.clean) and torch.equal(again.corrupt, ioi.corrupt)
    assert not torch.equal(load_task("ioi", tokenizer, n=200, seed=1).answers, ioi.answers)


def test_names_that_are_no_single_id_are_left_out():
    few = [name for name in NAMES if name[0] in "ABC"]
    task = ioi_task(word_tokenizer(few), n=20)
    assert not (task.clean == 0).logical_and(torch.arange(task.clean.shape[1]) < task.lengths[:, None]).any()


def test_a_tokenizer_with_too_few_names_is_refused():
    with pytest.raises(TaskError, match=r"at least 5 names .* got at most 4"):
        ioi_task(word_tokenizer(NAMES[:4]), n=4)


def test_names_of_several_ids_are_answered_by_their_first_id_which_differs():
    pieces = [*WORDS, *PLACES, *OBJECTS, *{name[0] for name in NAMES}, *{f"##{name[1:]}" for name in NAMES}]
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(["<unk>", *dict.fromkeys(pieces)])}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    split = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    task = ioi_task(split, n=20)
    assert (task.answers != task.wrong_answers).all()
    rows = torch.arange(task.n)
    assert torch.equal(task.clean[rows, task.positions["IO"]], task.answers)
    assert all(split.decode([a]).isupper() for a in task.answers)
    assert ((task.clean != task.corrupt).sum(1) > 3).any()  # more than one id a name changes


def test_n_must_be_positive(tokenizer):
    with pytest.raises(TaskError, match="at least 1"):
        load_task("ioi", tokenizer, n=0)


def test_an_unknown_task_and_a_missing_tokenizer_are_refused(tokenizer):
    with pytest.raises(TaskError, match="a task is ioi, .*, or a file"):
        load_task("iou", tokenizer)
    with pytest.raises(TaskError, match="tokenizer"):
        load_task("ioi", None)
    with pytest.raises(FileNotFoundError):
        load_task("missing.json", tokenizer)


PROMPT = {
    "clean": "Rob and Sue were friends. Sue gave a ball to",
    "corrupt": "Tom and Ann were friends. Tim gave a ball to",
    "answers": [" Rob"],
    "wrong_answers": [" Sue"],
}


def written(tmp_path, content, name="set.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def test_auto_circuit_prompts_are_read_as_they_stand(tmp_path, tokenizer):
    other = PROMPT | {"answers": [" Sue"], "wrong_answers": [" Rob"]}
    task = task_from_file(written(tmp_path, json.dumps({"word_idxs": {}, "prompts": [PROMPT, other]})), tokenizer)
    assert (task.name, task.n, task.prompts[0]) == ("set", 2, PROMPT["clean"])
    assert tokenizer.convert_ids_to_tokens(task.answers.tolist()) == ["Rob", "Sue"]
    assert tokenizer.convert_ids_to_tokens(task.corrupt[0].tolist())[:4] == ["<s>", "Tom", "and", "Ann"]
    assert task.lengths.tolist() == [12, 12]


def test_a_long_file_is_sampled_in_its_order(tmp_path, tokenizer):
    prompts = [
        PROMPT | {"clean": PROMPT["clean"].replace("ball", thing), "corrupt": PROMPT["corrupt"]} for thing in OBJECTS
    ]
    path = written(tmp_path, json.dumps({"prompts": prompts}))
    texts = load_task(path, tokenizer, n=5, seed=3).prompts
    assert len(texts) == 5 and list(texts) == [p["clean"] for p in prompts if p["clean"] in texts]
    assert load_task(path, tokenizer, n=1000).n == len(OBJECTS)


def test_eap_answers_are_ids_or_texts(tmp_path, tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["Rob", "Sue"])
    by_id = f"clean,corrupted,correct_idx,incorrect_idx\n{PROMPT['clean']},{PROMPT['corrupt']},{ids[0]},{ids[1]}\n"
    by_text = f"clean,corrupted,correct,incorrect\n{PROMPT['clean']},{PROMPT['corrupt']}, Rob, Sue\n"
    for content in (by_id, by_text):
        task = task_from_file(written(tmp_path, content, "set.csv"), tokenizer)
        assert (task.answers.tolist(), task.wrong_answers.tolist()) == ([ids[0]], [ids[1]])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"\xff\xfe\x00", "not UTF-8"),
        ("x.json", "[" * 100_000, "not valid JSON"),
        ("x.json", "{}", "list 'prompts'"),
        ("x.json", '{"prompts": []}', "at least 1 prompt"),
        ("x.json", '{"prompts": [3]}', "prompt 0"),
        ("x.json", json.dumps({"prompts": [PROMPT, {"clean": "a"}]}), "prompt 1"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"answers": []}]}), "prompt 0"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"answers": [True]}]}), "prompt 0"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"clean": 7}]}), "prompt 0"),
        ("x.json", json.dumps({"prompts": [PROMPT, PROMPT | {"answers": [" Rob Sue"]}]}), "prompt 1: an answer must"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"answers": [""]}]}), "prompt 0"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"wrong_answers": [" Rob"]}]}), "prompt 0 are the same"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"corrupt": "Tom to"}]}), "prompt 0: clean and corrupt"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"clean": "\ud800 to"}]}), "prompt 0: not valid Unicode"),
        ("x.json", json.dumps({"prompts": [PROMPT | {"answers": [10**30]}]}), "prompt 0: an id must lie in"),
        ("x.csv", "clean,corrupted\na,b\n", "column correct or correct_idx"),
        ("x.csv", "", "column clean"),
        ("x.csv", "clean,corrupted,correct,incorrect\na to,b to\n", "row 0"),
        ("x.csv", 'clean,corrupted,correct,incorrect\n"a', "not valid CSV"),
        ("x.csv", "clean,corrupted,correct,incorrect\na to,b to,-1,999999\n", "prompt 0"),
        ("x.txt", "", "ends in"),
    ],
)  # fmt: skip
def test_a_broken_file_ends_in_one_line_that_says_where(tmp_path, tokenizer, name, content, message):
    with pytest.raises(TaskError, match=re.escape(message)) as caught:
        task_from_file(written(tmp_path, content, name), tokenizer)
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["a.json", "a.csv"]))
def test_random_bytes_never_end_in_anything_but_a_task_error(tmp_path_factory, tokenizer, content, name):
    with pytest.raises(TaskError):
        task_from_file(written(tmp_path_factory.mktemp("bytes"), content, name), tokenizer)


@pytest.mark.real_data
def test_the_published_prompts_are_read_with_gpt2s_tokenizer(real_data):
    from sat_lens.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(real_data / "gpt2_bpe"))
    task = load_task(real_data / "ioi" / "autocircuit_ioi_customized_prompts.json", tokenizer, n=1000)
    assert task.n == 1000 and tokenizer.decode([task.answers[0]]) == " Rob"
    assert set(task.lengths.tolist()) <= set(range(15, 22))  # 14-20 tokens and the beginning of text


def test_the_shipped_tokenizer_takes_every_template_and_every_name():
    from sat_lens.tokenizers import load_tokenizer

    shipped = load_tokenizer("stories-4096")
    task = ioi_task(shipped, n=600)
    assert set(usable_names(shipped)) == set(NAMES)
    assert {shipped.decode([answer])[1:] for answer in task.answers} <= set(NAMES)
    written_out = {re.sub(rf"\b({'|'.join([*NAMES, *PLACES, *OBJECTS])})\b", "_", text) for text in task.prompts}
    templates = {re.sub(r"\{\w+\}", "_", template) for template in IOI_TEMPLATES}
    assert written_out == templates
