"""The inputs: which shards there are, and what is in them."""
