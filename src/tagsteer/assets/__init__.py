"""Pinned files from the package index, and the SAEs that ship with tagsteer. Knows nothing of their use."""
