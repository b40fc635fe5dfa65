"""Safe file access: atomic writes, and loading that does not execute code from the file."""
