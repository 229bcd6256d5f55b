"""How work is cut into batches and where it runs. Knows work units and their sizes, never what is in them."""
