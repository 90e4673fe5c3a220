"""Priors on codes: one file per architecture, the contract in base.py."""
