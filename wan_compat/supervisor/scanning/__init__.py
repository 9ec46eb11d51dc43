"""The parts of a scan (supervisor/scanner.py).

listing.py    every name below a folder, bounded, links never followed out
contents.py   one file's bytes, or an entry's of an archive: their format, and what the readers of policies/scan say
    sources.py    where bytes come from, and how much of them a scan may have
"""
