"""Given these facts, what is right and what is allowed? Pure: no processes, sockets, clocks or torch."""
