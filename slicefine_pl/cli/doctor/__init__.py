"""The command ``slicefine doctor``."""
