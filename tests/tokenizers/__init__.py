"""Families of tokenizers."""
