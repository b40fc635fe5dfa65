"""Text data modules: labeled texts for classifiers; prompts with completions or documents for language models.

Texts come from local files, the GLUE tasks or demo datasets. They are tokenized once, cached, and served as batches of
token sequences.
"""
