"""A vocabulary of film reviews, for tokenizers made on the spot."""

WORDS = "a the film movie plot acting was is not very good bad great awful dull but i liked hated it".split()  # noqa: SIM905
