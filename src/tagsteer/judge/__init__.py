"""Judges: texts in, ratings of 0 to 2 for concept, instruction and fluency out."""

from tagsteer.judge.types import PARTS, Judge, JudgeItem, Rating

__all__ = ["PARTS", "Judge", "JudgeItem", "Rating"]
