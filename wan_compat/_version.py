"""The package's version, in one place; read by packaging, the command line and provenance records."""

__version__ = "0.1.0"
