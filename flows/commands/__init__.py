"""The commands of `dmcp`, one module a group. Each has `register(app)`; what a command runs is imported inside it."""
