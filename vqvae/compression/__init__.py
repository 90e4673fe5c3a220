"""Images as files of entropy-coded codes: the prior's probabilities decide how many bits a code takes."""
