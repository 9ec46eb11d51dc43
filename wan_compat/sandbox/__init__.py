"""How a process is confined. One file per layer; mechanism only, no policy."""
