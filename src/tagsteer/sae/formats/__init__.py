"""One file per SAE file format, each from files to the one SAE type. Nothing here knows models or text."""
