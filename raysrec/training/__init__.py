"""A training: its loop, what every worker does around it, and how a group of workers is started, resized and ended."""
