"""Word lists of the rule tagger: closed classes, and common open-class words of stories for children."""

from analyses.labels.words import PRONOUNS

_CLOSED_LISTS: dict[str, str] = {
    "pronoun": (
        "who whom whose what someone somebody something anyone anybody anything everyone everybody everything "
        "nobody nothing"
    ),
    "determiner": "a an the this these those every each some any another both all much no",
    "preposition": (
        "of to like before after since until up down off upon in on at for from with by into onto under "
        "over near through around about behind between beside across along against inside without toward "
        "towards till during"
    ),
    "conjunction": "that and or but because if when while although though unless than whether as",
    "auxiliary": (
        "am is are was were be been being 'm 're 'll 've 'd can could will would shall should may might must ca wo"
    ),
    "particle": "not n't 's",
    "adverb": (
        "very too so again then now always never soon often once just even still only here away back "
        "together also maybe later almost far where why how yesterday today tomorrow ever more most "
        "everywhere outside suddenly out instead perhaps quite already afterwards there home"
    ),
    "interjection": "oh hello hi wow bye goodbye yes please ok okay hey hooray ouch yay thanks",
    "number": "one two three four five six seven eight nine ten hundred",
}
CLOSED: dict[str, str] = dict.fromkeys(PRONOUNS, "pronoun") | {
    word: part for part, listed in _CLOSED_LISTS.items() for word in listed.split()
}
"""Word, in small letters -> part of speech, where the neighbours do not tell otherwise."""

VERBS = frozenset(
    (
        "go went gone come came see saw seen say said tell told give gave given get got take took taken "
        "make made find found think thought know knew known feel felt keep kept let put run ran sit sat "
        "stand stood eat ate eaten begin began begun become became bring brought buy bought catch caught "
        "fall fell fallen fly flew flown grow grew grown hear heard hide hid hidden hold held hurt leave "
        "left lose lost mean meant meet met read ride rode ring rang sing sang sung sleep slept speak "
        "spoke swim swam throw threw thrown wake woke wear wore win won write wrote written shake shook "
        "break broke broken want like love live learn ask jump thank share show shown climb hug hop try "
        "tried cry cried carry carried do did done does have has had goes look stop open close pick pull "
        "push call wait smile laugh play help walk talk drink drank need start paint draw drew teach "
        "taught build built cut fight fought forget forgot forgotten sell sold send sent shine shone sink "
        "sank spend spent steal stole tear tore understand understood hit shut dance cook listen follow "
        "happen seem nod whisper shout agree decide finish move turn fill use visit work be clap wave bark "
        "chase explore enjoy watch save fix pretend promise"
    ).split()
)
PARTICIPLES = frozenset(
    (
        "been gone come seen said told given got taken made found thought known felt kept put run sat "
        "stood eaten begun become brought bought caught fallen flown grown heard hidden held hurt left "
        "lost met read had done thrown won written broken shown forgotten sold sent spent"
    ).split()
)
NOUNS_TOO = frozenset(
    (
        "ring hug smile look play help walk talk drink cut fight call wave work ride swim run love kiss "
        "dance paint show laugh fall turn sleep hurt need stop start visit move cook cry shout bark watch "
        "use"
    ).split()
)
"""Words that are a verb or a noun."""
ADJECTIVES = frozenset(
    (
        "big little small tall short long old new young good bad nice kind happy sad glad mad angry scared "
        "tired hungry thirsty excited proud brave shy silly funny clever smart pretty beautiful ugly quiet "
        "loud soft hard hot cold warm cool wet dry clean dirty red blue green yellow pink white black "
        "brown purple orange gray shiny bright dark best better sorry ready safe sick sure true afraid "
        "alone different same special great wonderful own other first last next fast slow strong weak "
        "heavy light full empty high low deep sweet yummy lonely friendly curious worried surprised rainy "
        "sunny windy snowy fun late early many gentle calm easy free rich poor wise fine lucky sleepy "
        "lovely tiny huge round fluffy whole few"
    ).split()
)
NOUNS = frozenset(
    (
        "thing king morning evening string wing spring ceiling wedding building family belly jelly "
        "butterfly fly bed seed weed friend day time mom dad mommy daddy mother father girl boy noise "
        "water tree sky sun school town lunch dinner breakfast everyone"
    ).split()
)
"""Nouns that the suffix rules would take for something else, or that follow `to` without an article."""
BE = frozenset("am is are was were be been being 'm 're".split())
POSSESSIVES = frozenset("my your his her its our their 's whose".split())
SUBJECTS = frozenset("i you he she it we they".split())
DEGREES = frozenset("very so too quite more most".split())
