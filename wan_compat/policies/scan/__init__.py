"""What the bytes of a repository say about it: formats, pickles, Python, configurations, archives; and the verdict.

Advice, never permission: `load` decides by a list of admitted formats and the sandbox holds without any of this
(SECURITY.md, T18). Nothing here opens a file, imports or runs what it reads.
"""
