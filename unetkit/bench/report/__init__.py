"""A run as one HTML file that needs nothing beside it, and no network."""
