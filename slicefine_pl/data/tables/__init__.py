"""Tables of texts and labels: reading CSV, TSV, JSONL and Parquet files, and turning labels into class indices.

Nothing is dropped or guessed. A flaw in a file is an error whose message contains the file, the line and the remedy.
"""
