"""The same graphs with no screen."""
