"""Running a repository's restricted code: inside the sandbox, as everything of a worker (docs/restricted.md)."""
