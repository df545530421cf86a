"""Data sets: cases and splits, the fingerprint and the plan, the cache, slabs and their augmentation, phantoms."""
