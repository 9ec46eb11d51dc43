"""The command line: one file per verb, and what the verbs share. Nothing heavy is imported before a verb needs it."""
