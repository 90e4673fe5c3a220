"""Metrics as running sums, reduced once (never a mean of means), and the registry of all figures."""
