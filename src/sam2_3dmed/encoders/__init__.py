"""Image encoders: slices in, feature levels out (paper 3.1)."""
