"""What probes can read at every hook point, against controls, and what the model loses when it is removed."""
