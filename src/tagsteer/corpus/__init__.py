"""Tagged documents and where they come from, one file per source. Knows files and labels, not torch."""
