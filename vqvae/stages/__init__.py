"""What one training step computes, for each of the two stages."""
