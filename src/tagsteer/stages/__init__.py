"""What each stage of a run does: reads the folders of earlier stages, writes its own. run.py puts them in order."""
