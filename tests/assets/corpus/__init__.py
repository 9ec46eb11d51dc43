"""A corpus of model repositories for measuring detection: every file as it would lie on a disk, its data as holes."""
