"""What a data set is: cases and splits, the fingerprint, slabs, augmentation, the cache."""
