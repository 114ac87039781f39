"""The client's side of slots and outer rounds: the commit log, the grants, the conveners' shell."""
