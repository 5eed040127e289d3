"""The model on a device: batches in, indices out; which precision and batch size; what a batch is."""

from pipeline.engine.engine import Encoding, Engine, Images, Indices

__all__ = ["Encoding", "Engine", "Images", "Indices"]
