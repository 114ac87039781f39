"""What every role has on the network: its peer, its way to the client, and who cannot be reached."""
