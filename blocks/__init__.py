"""What a user configures once and names in flow parameters."""
