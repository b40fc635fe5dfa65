"""Tables of texts and labels: reading CSV, TSV, JSONL and Parquet files, and turning labels into class indices.

Values are never guessed or changed, and no row is dropped; empty lines are skipped. An invalid file raises an error
that names the file, the line and the remedy.
"""
