"""Self-repair: what is taken out of a model is partly made up for by what comes after it."""
