"""``python -m tracediff`` and the ``tracediff`` command."""

from tracediff.cli import main

if __name__ == "__main__":
    main()
