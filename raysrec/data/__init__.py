"""From raw interactions to batches: readers, filters, the catalogue, the order of an epoch, and collation."""
