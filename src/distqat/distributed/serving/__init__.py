"""The parts of a server: one replica of a stage, its compute thread, its steps and its rounds."""
