"""Process machinery: worker pools, clusters, signals, and files that appear whole or not at all."""
