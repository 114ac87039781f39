"""The trainer's side of inner steps, and the baseline's: batches, routes, steps, records."""
