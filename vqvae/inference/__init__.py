"""Use of a trained model: encode, decode, reconstruct, sample, search for better codes."""
