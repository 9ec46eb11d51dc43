"""The monitor in a real terminal, over pretended supervisors: keys, sizes, and what is left of the terminal."""

from __future__ import annotations

from tests.supervisor.monitor.tmux import SANE, needs_tmux, window

PROGRAM = "python -m tests.programs.pretended_monitor"


@needs_tmux
def test_a_person_watches_gives_orders_sleeps_and_leaves_a_sane_terminal() -> None:
    with window() as tmux:
        tmux.type(f"{PROGRAM} hang vanish")
        tmux.wait("a brief one")
        shown = tmux.wait("no answer for 0:0")  # one that hangs holds up nobody
        assert "w1    4720    busy     safe  A" in shown
        assert tmux.flags() == {"alternate_on": "1", "cursor_flag": "0", "wrap_flag": "0"}
        tmux.wait(lambda shown: any("a brief one" in line and "gone" in line for line in shown.splitlines()))

        tmux.press("j", "Down")
        tmux.wait("▸  └ j12")
        tmux.press("c")
        tmux.wait("Cancel j12 of aaaa (a red fox in snow)?  y yes, n no")
        tmux.press("n")
        tmux.wait("nothing was done")
        tmux.press("c", "y")
        shown = tmux.wait("j12 was asked to stop")
        tmux.wait(" 0 running")
        tmux.press("g", "p")
        tmux.wait("PAUSED")
        tmux.press("p")
        tmux.wait("aaaa goes on")
        tmux.press("j", "x")
        tmux.wait("Kill worker w1 of aaaa in the middle of j12?")
        tmux.press("y")
        tmux.wait(lambda shown: "worker w1 was killed" in shown and "4720" not in shown)

        tmux.press("/", "k", "i", "t", "e")
        tmux.wait(" / kite")
        tmux.press("Enter")
        tmux.wait(lambda shown: "filter: kite" in shown and "a blue ball" not in shown)
        tmux.press("Escape")
        tmux.wait("a blue ball")
        tmux.press("?")
        tmux.wait("kill the selected worker")
        tmux.press("Escape", "v")
        tmux.wait("esc back  j k scroll  q quit")
        tmux.press("Escape")

        tmux.run("resize-window", "-x", "120", "-y", "40")
        tmux.wait("Wan2.1-T2V-1.3B-Diffusers")

        tmux.press("C-z")
        tmux.wait("Stopped")
        assert tmux.flags() == SANE
        tmux.type("stty -a | tr ';' '\\n' | grep -ow -e -icanon -e icanon -e -echo -e echo | xargs; fg")
        tmux.wait("w2    4721")
        assert tmux.flags()["alternate_on"] == "1"
        tmux.press("q")
        shown = tmux.wait(
            "READY> fg" if False else lambda shown: "4721" not in shown and shown.rstrip().endswith("READY>")
        )
        assert "icanon echo" in shown  # as it was while the monitor slept
        assert tmux.flags() == SANE
        tmux.type("echo code $?; stty -a | tr ';' '\\n' | grep -ow -e -icanon -e icanon -e -echo -e echo | xargs")
        shown = tmux.wait("code 0")
        assert tmux.wait(lambda shown: shown.count("icanon echo") == 2)
        assert "-icanon" not in shown.replace("-e -icanon", "")


@needs_tmux
def test_hostile_text_does_not_move_the_screen_and_a_crash_gives_the_terminal_back() -> None:
    with window() as tmux:
        tmux.type(f"{PROGRAM} hostile ascii")
        shown = tmux.wait("TRUST")
        assert shown.isascii()
        assert shown.startswith(" wan-compat monitor")
        assert shown.splitlines()[-1].startswith(" j k select")
        assert tmux.run("display-message", "-p", "#{pane_title}").strip() != "owned"
        tmux.press("C-c")
        tmux.wait("READY>")
        tmux.type("echo code $?")
        tmux.wait("code 0")
        assert tmux.flags() == SANE
        tmux.type(f"{PROGRAM} crash")
        tmux.wait("Traceback")
        tmux.wait(lambda shown: shown.rstrip().endswith("READY>"))
        assert tmux.flags() == SANE
        tmux.type("stty -a")
        assert " -icanon" not in tmux.wait(" icanon")
