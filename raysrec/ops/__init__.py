"""Operators along a history: each a slow obvious reference, a fast path in torch, and a CUDA library where installed."""
