"""Who runs what, for how long, and what does the user see? Never imports torch, diffusers or repository code."""
