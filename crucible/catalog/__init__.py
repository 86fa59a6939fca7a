"""Offers: which machines exist on which pool, and their prices."""
