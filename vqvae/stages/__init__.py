"""Stages of training: the losses of a step, and evaluation, of the autoencoder and of the prior."""
