"""A finished run for others: written, and read back without Hydra."""
