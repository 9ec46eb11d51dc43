"""The monitor's loop: events in, orders out, and the screen drawn when something changed."""

from __future__ import annotations

import queue
import sys
import time

from wan_compat.supervisor.monitor import model
from wan_compat.supervisor.monitor.characters import Characters
from wan_compat.supervisor.monitor.reducer import reduce
from wan_compat.supervisor.monitor.source import Source, Watch
from wan_compat.supervisor.monitor.terminal import Gone, screen
from wan_compat.supervisor.monitor.view import render

TICK_S = 0.5
# What supervisors say is drawn at most this often, what keys do at once.
FRAME_S = 0.25
MAX_EVENTS = 1000  # taken in at one go, so that keys have their turn


def run(source: Source, chars: Characters, *, read_only: bool, color: bool) -> None:
    """Show the screen until the user quits or the terminal is gone."""
    events: queue.SimpleQueue[model.Event] = queue.SimpleQueue()
    with screen(sys.stdin, sys.stdout, color=color) as terminal:

        def put(event: model.Event) -> None:
            events.put(event)
            terminal.wake()

        watch = Watch(source, put)
        state = model.State(read_only=read_only)
        watch.start()
        drawn_s = float("-inf")
        keys: list[str] = []
        try:
            while not state.quit:
                taken: list[model.Event] = [model.Tick(time.monotonic(), time.time()), *map(model.Pressed, keys)]
                while len(taken) < MAX_EVENTS and not events.empty():
                    taken.append(events.get())
                for event in taken:
                    state, orders = reduce(state, event)
                    for order in orders:
                        watch.give(order)
                if "redraw" in keys:
                    terminal.redraw()
                wait_s = TICK_S
                due_s = drawn_s + FRAME_S - time.monotonic()
                if keys or due_s <= 0:
                    terminal.draw(render(state, *terminal.size(), chars))
                    drawn_s = time.monotonic()
                else:
                    wait_s = due_s
                keys = terminal.wait(wait_s)
        except (Gone, KeyboardInterrupt):
            pass  # closed windows and Ctrl-C are ways to quit
        finally:
            watch.close()
