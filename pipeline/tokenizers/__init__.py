"""Families of tokenizers beside `VQModel`, and the one way to load any of them: docs/tokenizers.md."""

from pipeline.model import Tokenizer
from pipeline.tokenizers.families import load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
