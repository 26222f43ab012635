"""Sequential recommenders: from raw ratings to trained models and a table of trusted numbers, on Ray."""
