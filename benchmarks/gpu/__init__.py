"""One command that proves on a GPU what the rest of the project measured on a CPU; see ``__main__.py``."""
