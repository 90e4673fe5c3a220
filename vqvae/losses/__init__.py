"""What the decoder's output stands for, and how far it is from the data."""
