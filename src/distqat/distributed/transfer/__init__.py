"""States that move between peers: chunks with digests, donors, downloads."""
