"""What is wrong with a model's files and can be helped without touching them: rebuilt in memory, read from beside."""

from wan_compat.policies.mending.mend import Mend, Mended, mend

__all__ = ["Mend", "Mended", "mend"]
