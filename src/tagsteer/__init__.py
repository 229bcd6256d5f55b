"""tagsteer."""
