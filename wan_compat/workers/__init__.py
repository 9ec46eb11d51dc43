"""How a Wan pipeline is loaded and run. The only home of torch and diffusers; never imported by the supervisor."""
