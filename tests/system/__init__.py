"""Whole commands on a real local Ray."""
