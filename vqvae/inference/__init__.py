"""What a trained model is used for: encode, decode, search for better codes."""
