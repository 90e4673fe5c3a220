"""Finished runs that come with the package, and how programs find them by name."""
