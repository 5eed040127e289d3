"""Tokens at rest: what a row is, how parts are written, how they are read."""
