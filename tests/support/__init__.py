"""Small real stand-ins: models, corpora, servers."""
