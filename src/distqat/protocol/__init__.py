"""The rules that roles agree on, as pure values: step locks, step ids and outcomes, rounds, leases."""
