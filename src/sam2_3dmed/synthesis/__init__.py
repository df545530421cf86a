"""Made-up anatomy: random volumes with their structures, to train on without a patient's data."""
