"""`wan-compat monitor`: every supervisor of this user on one screen.

    find, attach -> source.py (threads) -> Event -.
    terminal -> keys.py ------------------> Event -+-> reducer.py: (state, event) -> state, orders -> source.py
                                                   '-> view.py: state, size -> lines -> terminal.py (only what changed)

Only `source.py` waits for others, only `terminal.py` changes the terminal; all but these two and the loop in `app.py`
is pure. Nothing here imports torch.
"""
