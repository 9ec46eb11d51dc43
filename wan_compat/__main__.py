"""`python -m wan_compat` is the same program as `wan-compat`."""

from wan_compat.supervisor.cli.main import run

if __name__ == "__main__":
    run()
