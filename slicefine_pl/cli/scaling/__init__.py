"""The commands ``slicefine advise`` (how sparse to train) and ``slicefine fit-law`` (fit a scaling law to runs)."""
