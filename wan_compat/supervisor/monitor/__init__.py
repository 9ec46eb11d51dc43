"""`wan-compat monitor`: every supervisor of this user on one screen.

    find, attach -> source.py (threads) -> Event -.
    terminal -> keys.py ------------------> Event -+-> model.py: reduce(state, event) -> state, orders -> source.py
                                                   '-> view.py: state, size -> lines -> terminal.py (only what changed)

`model.py`, `rows.py` and `view.py` are pure; `source.py` is all that waits for others, and `terminal.py` all that
changes the terminal. Nothing here imports torch.
"""
