"""Text to tokens and sequences."""
