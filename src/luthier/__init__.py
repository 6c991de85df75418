"""Luthier fine-tunes a language model on the machine you have, and shows that it worked."""

__version__ = "0.1.0"
