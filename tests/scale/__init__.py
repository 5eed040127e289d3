"""The driver at the size of a web-scale run."""
