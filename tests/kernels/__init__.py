"""Triton kernels, held to their plain torch twins in Triton's interpreter."""
