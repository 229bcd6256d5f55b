"""What the pairs are held against: each baseline a small file behind `methods.Method`."""
