"""Endless small stories in the manner of TinyStories: the embedded corpus, which needs no network.

Unit: one string is one story, about 30-200 words in paragraphs that a single newline separates. Names,
places, gifts, pronouns, dialogue and, above all, indirect objects: a share `ioi` of the sentences
introduces two names, lets one of them act and ends on the other ("Tom and Lily went to the park. Tom gave a
ball to Lily."), with both name orders and both actors equally likely, so that a small model can learn
indirect object identification. About one pair of names in ten is held out (`is_held_out_pair`): two such
names never meet in one story.

A story is drawn as a plan, templates with the words of their slots, which is then read out; who is named,
who speaks and who has what is read off the same plan by `sat_lens.story_truth`.

Only `random.Random.random()` is drawn from, whose sequence Python fixes for a seed: same seed, same text
everywhere.

Source: own; no sentence is taken from a public text. The skeletons of the published IOI prompts (auto-
circuit's customised set for TinyStories, keenanpepper/self-ablating-transformers) are among
`IOI_TEMPLATES`, as facts.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

Plan = list[tuple[str, str, Mapping[str, str]]]
"""A story before it is read out: of each piece the gap before it, its template and the words of its slots."""

_GIRLS = (
    "Alice Amy Ann Anna Annie Bella Beth Betsy Clara Daisy Ellie Emily Emma Grace Jane Jen Jenny Jill "
    "Jo Joy Julie Kate Katie Kim Lilly Lily Lisa Liz Lucy Luna Maggie Maria Mary May Mia Molly Pat "
    "Penny Polly Rachel Rose Ruby Sally Sandy Sara Sarah Sophie Sue Tina Zoe"
)
_BOYS = (
    "Alex Andy Ben Benny Bill Billy Bob Bobby Buzz Charlie Dan Danny Dave David Fred Freddy George "
    "Harry Henry Jack Jake James Jerry Jim Jimmy Joe Joey John Johnny Leo Mark Max Mike Paul Pete Peter "
    "Pip Remy Rob Sam Sammy Steve Ted Teddy Thomas Tim Toby Tom Tommy Tony"
)
NAMES: tuple[str, ...] = tuple(sorted(f"{_GIRLS} {_BOYS}".split()))
"""The 100 names of the stories; each is one id of the shipped tokenizer, with and without a leading space."""

PLACES: tuple[str, ...] = tuple(
    (
        "restaurant office house hospital school garden store station park beach farm zoo library forest "
        "lake river playground market museum bakery circus castle pond kitchen"
    ).split()
)
OBJECTS: tuple[str, ...] = tuple(
    (
        "bone necklace basketball drink computer ring kiss snack ball doll book cake toy kite hat flower "
        "cookie balloon drum car boat puzzle blanket spoon cup shell stone feather ribbon bell crayon "
        "pencil letter coin gift scarf"
    ).split()
)
"""What is given; all take the article "a"."""

IOI_TEMPLATES: tuple[str, ...] = (
    "Then, {A} and {B} had a long argument, and afterwards {S} said to",
    "Then, {A} and {B} were working at the {PLACE}. {S} decided to give a {OBJECT} to",
    "Then, {A} and {B} went to the {PLACE}. {S} gave a {OBJECT} to",
    "When {A} and {B} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "Then, {A} and {B} were thinking about going to the {PLACE}. {S} wanted to give a {OBJECT} to",
    "Then, {A} and {B} had a lot of fun at the {PLACE}. {S} gave a {OBJECT} to",
    "After {A} and {B} went to the {PLACE}, {S} gave a {OBJECT} to",
    "When {A} and {B} went to the {PLACE}, {S} gave a {OBJECT} to",
    "{A} and {B} went to the {PLACE}. {S} gave a {OBJECT} to",
    "{A} and {B} were friends. {S} gave a {OBJECT} to",
    "{A} and {B} played at the {PLACE}. {S} threw a {OBJECT} to",
    "{A} met {B} at the {PLACE}. {S} said to",
    "{A} saw {B} near the {PLACE}. {S} wanted to give a {OBJECT} to",
    "{A} and {B} found a {OBJECT}. {S} handed it to",
    "{A} and {B} sat down. {S} said to",
    "{A} sat next to {B}. {S} passed the {OBJECT} to",
    "One day, {A} and {B} walked to the {PLACE}. {S} showed a {OBJECT} to",
    "Later, {A} and {B} were at the {PLACE}. {S} brought a {OBJECT} to",
    "While {A} and {B} were at the {PLACE}, {S} gave a {OBJECT} to",
    "At the {PLACE}, {A} played with {B}. {S} gave a {OBJECT} to",
    "When {A} came to see {B}, {S} gave a {OBJECT} to",
    "{A} waved to {B}, and then {S} ran to",
    "{A} and {B} were playing a game. {S} was nice and gave a {OBJECT} to",
    "{A} and {B} had a {OBJECT}. {S} said sorry and gave it to",
    "After {A} and {B} had lunch, {S} decided to give a {OBJECT} to",
    "Soon {A} and {B} were home. {S} told a story to",
)
"""Openings that end just before " {IO}", the one of {A} and {B} that is not {S}; {S} is {A} or {B}."""

_AFTER_ANY = (
    ".", ".", ".", ".", " and smiled.", " with a big smile.", " right away.", " and they both laughed.",
    " because {io_he} was sad.", " because {io_he} was a good friend.", " because it was a nice day.", "!",
    ", and {io_he} was very happy.", ". {IO} was happy.", '. {IO} said, "Thank you, {S}!"',
    ". {S} felt good.", ", who was glad.", " before they went home.", " and gave {io_him} a hug.",
)  # fmt: skip
_AFTER_SAID = (
    ', "You are my friend."', ', "Let us go home."', ', "I am sorry."', ', "Do you want to play?"',
    ', "I like you, {IO}."', " that it was late.", " that {s_he} was happy.", ', "Look at the {animal}!"',
    ' with a smile, "Hello!"', ', "Can I have the {obj}?"', ".", " that {s_he} was sorry.",
)  # fmt: skip
_OPENINGS = (
    "Once upon a time, there was a {adj} {x_child} named {X}. {x_He} had a friend named {Y}.",
    "Once upon a time, there were two friends. {x_His} name was {X} and {y_his} name was {Y}.",
    "One day, {X} went to the {place} with {Y}.",
    "{X} was a {adj} {x_child}. {x_He} lived near the {place} with {x_his} friend {Y}.",
    "{X} and {Y} were best friends. They liked to play at the {place}.",
    "It was a {weather} day. {X} and {Y} wanted to go to the {place}.",
    "There was a {x_child} named {X} who had a {color} {obj}. {x_He} liked to play with {Y}.",
)
_MIDDLES = (
    "{X} saw a {adj} {animal} near the {place}.", "{X} was {feeling}.",
    "{X} was {feeling}, but {Y} was {feeling2}.", '{X} asked {Y}, "Where is my {obj}?"',
    '"I am {feeling}," said {X}.', "{Y} gave {x_him} a {color} {obj}.",
    "{X} gave {Y} a {obj}, and {y_he} was {feeling}.", "{X} wanted to have the {color} {obj}.",
    "The {animal} was {adj} and {color}.", '"Look, {Y}! There is a {animal} under the tree," said {X}.',
    "{X} looked for {x_his} {obj}, but {x_he} could not find it.", "{Y} found it under the {thing}.",
    "{X} thanked {Y} and gave {y_him} a hug.", "They ran and jumped and played all day.",
    "It began to rain.", "{X}'s mom made a {food} for them.", "{X} and {Y} ate the {food} together.",
    "{x_He} put it in the {thing}.", "{X} told {Y} about the {animal}.",
    '{Y} said, "Do not be sad, {X}. I will help you."', "{X} fell down and hurt {x_his} knee.",
    "{Y} helped {x_him} to stand up.", "They heard a loud noise.", "It was only a {adj} {animal}!",
    "{X} showed {Y} how to make a {obj}.", '"Can I play with you?" asked {X}.', '"Yes, you can," said {Y}.',
    "{X} shared {x_his} {food} with {Y}.", "The sun was warm and the sky was blue.",
    '{x_His} dad said, "Be careful, {X}."', "{X} had an idea.", "{X} laughed, and {Y} laughed too.",
    "The {animal} wanted to play with {X}.", "{X} painted a {color} {animal}.", "{Y} lost {y_his} {obj}.",
    "{X} went back to the {place} to look for it.", "{X} gave the {animal} a {food}, and it was {feeling}.",
)  # fmt: skip
_THIRD = (
    "Then {C} came to play.", "{C} had a {color} {obj} too.", '"Hello," said {C}.', "{C} was {feeling}.",
    "{X} asked {C} to come along.", "{C} laughed.", "{C} saw the {animal} and ran home.",
)  # fmt: skip
_ENDINGS = (
    "At the end of the day, {X} and {Y} went home. They were {feeling}.",
    "They were friends for a long, long time.", "{X} learned that it is good to share.",
    '{X} hugged {Y} and said, "You are my best friend."', "Then it was time for bed. {X} slept well.",
    "From then on, they always played together.",
    "{X} learned to be kind to {y_his} friends, and {Y} was {feeling}.", "Everyone was happy. The end.",
)  # fmt: skip
_FILL: dict[str, Sequence[str]] = {
    "place": PLACES, "obj": OBJECTS,
    "adj": "little big happy funny kind small brave quiet nice silly pretty clever gentle".split(),
    "color": "red blue green yellow pink white black brown purple shiny".split(),
    "feeling": ("happy", "sad", "glad", "scared", "tired", "excited", "proud", "very happy", "angry"),
    "feeling2": ("not", "happy", "sad", "brave", "very kind", "calm"),
    "animal": "dog cat bird rabbit frog duck fish bear mouse horse pig cow squirrel bee lion fox".split(),
    "thing": "table bed chair box bag tree bush door rug basket".split(),
    "food": ("cake", "sandwich", "soup", "pie", "banana", "big cookie", "red berry", "bun", "carrot"),
    "weather": "sunny rainy windy cold warm snowy nice".split(),
}  # fmt: skip
_GIRL_SET = frozenset(_GIRLS.split())


def pronoun(name: str) -> str:
    """ "she" or "he", as the stories use it for one of `NAMES`; any other name is "he"."""
    return "she" if name in _GIRL_SET else "he"


@cache
def is_held_out_pair(a: str, b: str) -> bool:
    """Whether the stories keep the names `a` and `b` apart: about 1 pair in 10, by hash, in either order."""
    digest = hashlib.sha256(" ".join(sorted((a, b))).encode()).digest()
    return a != b and int.from_bytes(digest[:8], "big") % 10 == 0


def stories(seed: int = 0, *, ioi: float = 0.5, drills: float = 0.25) -> Iterator[str]:
    """Endless stories, a pure function of the arguments.

    Args:
        seed: any integer.
        ioi: share of the sentences inside a tale that ask for an indirect object, in [0, 1].
        drills: share of the stories that are nothing but a chain of 4-10 such sentences, in [0, 1]; half
            of them take fresh names each time, half come back to a few names.

    Raises:
        ValueError: a share outside [0, 1].

    Cost: several MB of text a second on one core.
    """
    return map(read_out, story_plans(seed, ioi=ioi, drills=drills))


def story_plans(seed: int = 0, *, ioi: float = 0.5, drills: float = 0.25) -> Iterator[Plan]:
    """The plans of `stories(seed, ioi=ioi, drills=drills)`."""
    for label, share in (("ioi", ioi), ("drills", drills)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{label} must be a share between 0 and 1; got {share}")
    return _endless(random.Random(seed).random, ioi, drills)


def read_out(plan: Plan) -> str:
    """The text of a plan."""
    return "".join([gap + template.format_map(words) for gap, template, words in plan])


def _endless(draw: Callable[[], float], ioi: float, drills: float) -> Iterator[Plan]:
    while True:
        yield _drill(draw) if draw() < drills else _tale(draw, ioi)


def _pick(draw: Callable[[], float], options: Sequence[str]) -> str:
    return options[int(draw() * len(options))]


def _cast(draw: Callable[[], float], n: int) -> list[str]:
    """`n` different names, no two of which are a held-out pair."""
    while True:
        cast: list[str] = []
        free: Sequence[str] = NAMES
        while free and len(cast) < n:
            cast.append(_pick(draw, free))
            free = [name for name in free if name in _partners(cast[-1])]
        if len(cast) == n:
            return cast  # otherwise a dead end: each name left has a held-out partner in the cast


@cache
def _partners(name: str) -> frozenset[str]:
    """The names that may meet `name` in a story."""
    return frozenset(other for other in NAMES if other != name and not is_held_out_pair(name, other))


def _indirect_object(draw: Callable[[], float], one: str, other: str) -> tuple[str, dict[str, str]]:
    """One IOI sentence about two names: who comes first and who acts are two fair coins."""
    a, b = (one, other) if draw() < 0.5 else (other, one)
    s, io = (a, b) if draw() < 0.5 else (b, a)
    template = _pick(draw, IOI_TEMPLATES)
    gift = _pick(draw, OBJECTS)
    words = {"A": a, "B": b, "S": s, "IO": io, "PLACE": _pick(draw, PLACES), "OBJECT": gift}
    after = _pick(draw, _AFTER_SAID if template.endswith("said to") else _AFTER_ANY)
    if "{" in after:
        he = pronoun(io)
        him = "her" if he == "she" else "him"
        animal = _pick(draw, _FILL["animal"])
        words |= {"io_he": he, "io_him": him, "s_he": pronoun(s), "obj": gift, "animal": animal}
    return f"{template} {{IO}}{after}", words


def _drill(draw: Callable[[], float]) -> Plan:
    n_sentences = 4 + int(draw() * 7)
    if draw() < 0.5:
        cast = _cast(draw, 2 * n_sentences)
        pairs = list(zip(cast[::2], cast[1::2], strict=True))
    else:
        cast = _cast(draw, 3 + int(draw() * 4))
        pairs = [_two(draw, cast) for _ in range(n_sentences)]
    sentences = [_indirect_object(draw, one, other) for one, other in pairs]
    return [(" " if i else "", *sentence) for i, sentence in enumerate(sentences)]


def _two(draw: Callable[[], float], cast: Sequence[str]) -> tuple[str, str]:
    first = int(draw() * len(cast))
    return cast[first], cast[(first + 1 + int(draw() * (len(cast) - 1))) % len(cast)]


def _tale(draw: Callable[[], float], ioi: float) -> Plan:
    """Opening, 3-7 sentences, ending; two characters, or three in one tale of four."""
    cast = _cast(draw, 3 if draw() < 0.25 else 2)
    scene = {key: _pick(draw, options) for key, options in _FILL.items()}
    straight = _roles(scene, cast)
    crossed = _roles(scene, [cast[1], cast[0], *cast[2:]])
    middles = (*_MIDDLES, *_THIRD * 2) if len(cast) == 3 else _MIDDLES
    opening = (_pick(draw, _OPENINGS), straight)
    if draw() < 0.3:  # a story may also begin with its first event, as the prompts of tasks do
        opening = _indirect_object(draw, cast[0], cast[1])
    plan: Plan = [("", *opening)]
    for _ in range(3 + int(draw() * 5)):
        if draw() < ioi:
            sentence = _indirect_object(draw, cast[0], cast[1])
        else:
            sentence = (_pick(draw, middles), straight if draw() < 0.5 else crossed)
        plan.append((_gap(draw), *sentence))
    plan.append((_gap(draw), _pick(draw, _ENDINGS), straight))
    return plan


def _gap(draw: Callable[[], float]) -> str:
    return "\n" if draw() < 0.2 else " "


def _roles(scene: dict[str, str], cast: Sequence[str]) -> dict[str, str]:
    """The words of a scene with the names and pronouns of X, Y and, where there is one, C."""
    words = dict(scene, X=cast[0], Y=cast[1], C=cast[-1])
    for role, name in (("x", cast[0]), ("y", cast[1])):
        girl = pronoun(name) == "she"
        he, him, his, child = ("she", "her", "her", "girl") if girl else ("he", "him", "his", "boy")
        words |= {f"{role}_he": he, f"{role}_him": him, f"{role}_his": his, f"{role}_child": child}
        words |= {f"{role}_He": he.title(), f"{role}_His": his.title()}
    return words
