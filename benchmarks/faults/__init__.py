"""Faults planted into ports of known models, and how well they are located: see README.md beside this file."""
