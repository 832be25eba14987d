"""Faults of the published method and code, and what is done here instead; every result carries the list."""

FAULTS = (
    (
        "random latents were given an index for an activation, hence losses of some 25 nats",
        "permuted and resampled latents have true values, and as many of them",
    ),
    (
        "incomplete simulations fell back to the truth, and sentences were dropped from some lists only",
        "a missing value is NaN: it stops the run, or its token is left out of every row",
    ),
    (
        "simulated values were scaled to each latent's maximum, an outlier",
        "linear scales to the 99 % quantile, the beginning of text has no latents; linear-maximum is as published",
    ),
    ("zero ablation kept bias and skip connection", "zero latents, zero output and mean output are all shown"),
    (
        "the top k were taken of simulated and true latents together, where false positives drive out true ones",
        "all are kept by default; topk and oracles show what each costs",
    ),
    (
        "one token a sequence, means of heavy tails",
        "all positions by default; intervals over stories, paired",
    ),
    (
        "digits' probabilities were not made to sum to 1, and -1 stood for a parse failure",
        "they are renormalised, and a failure is a missing value",
    ),
    (
        "latents were explained, ranked and rewritten on one slice of the corpus",
        "four splits by document: explain, score, calibrate, evaluate",
    ),
    ("train and test windows overlapped", "splits are of documents, copies together"),
    (
        "accuracy on a mix of half active windows says little where 1 in 1,000 is",
        "average precision at the base rate, false positives a token, and floors of shuffled explanations and of a "
        "random coder",
    ),
    ("latents active too rarely were left out silently", "coverage by count and by activation"),
    ("a loss below the model's own passed for success", "KL(base or edited) leads"),
    ("corpus text went into prompts unescaped", "it is escaped, replies are data, and raw replies are kept"),
    (
        "Neuron2Graph: arbitrary masks, merged tokens, the top examples alone",
        "random tokens as masks, token ids, examples of all ranks",
    ),
)
"""What was found there, and what is done here."""
