"""What can be rented where, and at what price."""
