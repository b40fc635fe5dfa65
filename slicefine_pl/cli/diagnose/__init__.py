"""The command ``slicefine diagnose``."""
