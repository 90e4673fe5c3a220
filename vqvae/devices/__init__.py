"""What depends on the device: CUDA graphs."""
