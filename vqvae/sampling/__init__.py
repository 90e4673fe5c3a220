"""What sample.py does with a finished run: a module a mode, and `modes`, which checks the command before torch is imported."""
