"""The front door: one module per command, each one call into the pipeline."""
