"""What the workers of several pools share."""
