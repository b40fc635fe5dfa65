"""The commands ``slicefine file``, ``apply`` and ``remove``: slice files and folders of weights."""
