"""Shared code of the callbacks; the command lines use some of it."""
