"""A sweep on Ray: Ray Tune starts its trials, each of them a training."""
