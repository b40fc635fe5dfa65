"""The commands ``slicefine advise`` and ``slicefine fit-law``."""
