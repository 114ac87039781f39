"""The failover drill: a swarm of its own, faults on purpose, and a verdict over what was written down."""
