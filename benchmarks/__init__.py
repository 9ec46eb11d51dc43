"""What the design promises about speed and memory, measured: `make bench`, explained in docs/benchmarks.md.

One file per benchmark, whose docstring says what both arms do. `harness.py` alternates the arms and compares with the
bar, `arms.py` has what several benchmarks share: the running supervisor, the plain diffusers script, child processes.
"""
