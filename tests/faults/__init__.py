"""Real faults, and how many of them a job survives by itself: `python -m tests.faults`."""
