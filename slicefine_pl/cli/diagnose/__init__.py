"""The command ``slicefine diagnose``: measure a backbone on your data, and write a report as HTML and JSON."""
