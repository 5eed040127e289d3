"""Looking at tokens: a sample of rows decoded back into images."""
