"""Turns results into output and computes nothing: text, Markdown, HTML, plots; ``drawn`` has the report and the status that users hold."""
