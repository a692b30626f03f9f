"""What the performance claims rest on: each module prints a table and ends with one JSON line."""
