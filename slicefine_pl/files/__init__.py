"""Safe file access: writes that a crash cannot leave half done, and loads that cannot run code from the file."""
