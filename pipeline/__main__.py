"""`python -m pipeline`."""

from pipeline.cli import process

if __name__ == "__main__":
    process()
