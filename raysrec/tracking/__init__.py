"""A run told while it goes on: to a person, to its log, to TensorBoard, Prometheus and MLflow."""
