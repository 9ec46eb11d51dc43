"""What is tried next when a job failed, and what a person is told when nothing is left to try."""
