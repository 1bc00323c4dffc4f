"""Turns results into output and computes nothing: text.py for terminals and Markdown, plot.py for figures."""
