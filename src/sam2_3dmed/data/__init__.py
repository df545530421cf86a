"""What a data set is: cases and splits, the fingerprint, windows, augmentation, the cache."""
