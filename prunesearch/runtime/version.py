"""The version of the package. It is a module of its own, so that every folder can import it."""

__version__ = "0.1.0"
