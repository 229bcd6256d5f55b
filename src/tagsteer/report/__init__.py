"""From a finished run folder to a page, figures and CSV files; knows tables, nothing of models."""
