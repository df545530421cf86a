"""Other systems that learn from patches of volumes (extra `baselines`): docs/how_to/other_systems.md."""
