"""From a configuration to stages, tasks and data, and what is looked at before a run begins."""
