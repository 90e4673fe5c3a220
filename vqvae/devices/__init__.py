"""What depends on the device: CUDA graphs, and copies to it."""
