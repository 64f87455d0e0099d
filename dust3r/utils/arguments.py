"""Types of command-line arguments that several commands have."""

import argparse


def count(text: str) -> int:
    """A number of 1 or more; raises argparse.ArgumentTypeError for another."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
