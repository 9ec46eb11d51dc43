"""Memory and means: what a generation takes in each phase, and the cheapest way to make it fit the machine.

    shapes      what the headers and configurations say: sizes of the parts, bytes of their tensors
    arena       counts live bytes while a computation is walked through
    courses     how each pipeline goes about a generation: what at a time, what stays meanwhile
    vae, denoiser, encoders      walk through the computation of one part; activations only
    estimate    phases: weights that are resident plus activations, VRAM and RAM
    candidates  the ways to run, cheapest first
    choice      the first of them that fits, or why none does and what would

Pure: sizes in, plans out. Nothing here imports torch; what it says about torch was measured, and tests/estimates.py
holds it to 15% of what torch allocates, for every pipeline.
"""
