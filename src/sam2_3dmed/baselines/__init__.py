"""The systems that ours is compared with, trained on patches of volumes (extra `baselines`); docs/baselines.md."""
