"""A run: its config, its folder, the model it builds, and training from start to end."""
