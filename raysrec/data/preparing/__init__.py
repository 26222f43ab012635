"""From raw interactions to a prepared data set: filters, numbers for items, one history per user, row groups."""
