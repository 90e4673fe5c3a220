"""The report of one or several runs: one page in one file, for somebody who was not there."""
