"""From a prepared data set to batches: the order of an epoch, windows of histories, and collation."""
