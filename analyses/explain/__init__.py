"""Explanations of units: records of examples, explainers by rules, simulators that read the rules alone, and scores.

    parts = story_splits(stories)
    material = Material(restricted(source, parts.explain), stories, parts.explain, Vocabulary.of(tokenizer, d_vocab))
    explanations = Ngrams().explain(material)
    simulator = RuleSimulator(explanations, material.vocabulary)
    choose = tally(simulator, restricted(source, parts.calibrate), stories)
    found = tally(simulator, restricted(source, parts.evaluate), stories).table(choose.best_cut)

`source` gives batches of any units (neurons, masks, latents) as often as it is called: see `splits.Source`.
"""

from analyses.explain.explanation import Explanation, load_explanations, save_explanations
from analyses.explain.floors import constant_explanations, random_tokens, shuffled
from analyses.explain.material import Explainer, Material
from analyses.explain.n2g import Neuron2Graph
from analyses.explain.ngrams import Ngrams
from analyses.explain.output import output_explanations
from analyses.explain.records import Example, Record, Records, records
from analyses.explain.score import UNITS, Tally, tally
from analyses.explain.selection import Coverage, coverage, selected
from analyses.explain.simulate import RuleSimulator, Simulator, simulate
from analyses.explain.sparse_acts import SparseActs, sparse_acts
from analyses.explain.splits import Source, Splits, restricted, story_splits
from analyses.explain.subject import Subject, UnitSubject
from analyses.explain.trees import Trees
from analyses.explain.vocabulary import Vocabulary

__all__ = [
    "UNITS",
    "Coverage",
    "Example",
    "Explainer",
    "Explanation",
    "Material",
    "Neuron2Graph",
    "Ngrams",
    "Record",
    "Records",
    "RuleSimulator",
    "Simulator",
    "Source",
    "SparseActs",
    "Splits",
    "Subject",
    "Tally",
    "Trees",
    "UnitSubject",
    "Vocabulary",
    "constant_explanations",
    "coverage",
    "load_explanations",
    "output_explanations",
    "random_tokens",
    "records",
    "restricted",
    "save_explanations",
    "selected",
    "shuffled",
    "simulate",
    "sparse_acts",
    "story_splits",
    "tally",
]
