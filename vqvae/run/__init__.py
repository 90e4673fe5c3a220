"""One run folder: what lies in it, what it is made of, and what is said of it."""
