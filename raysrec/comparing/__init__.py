"""What runs and sweeps reached, read from their directories and compared; tables and pages show it."""
